package audit

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatehouse/appliance/control"
)

var testStart = time.Date(2026, 11, 22, 19, 40, 12, 0, time.UTC)

// clock goes on by a second at each look.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(time.Second)
	return c.t
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func testConfig(key *ecdsa.PrivateKey) Config {
	c := &clock{t: testStart}
	return Config{
		Key: &key.PublicKey,
		Sign: func(_ context.Context, digest []byte) ([]byte, error) {
			return ecdsa.SignASN1(rand.Reader, key, digest)
		},
		Now: c.now, Rand: rand.Reader, GID: -1,
	}
}

func open(t testing.TB, dir string, c Config) *Writer {
	t.Helper()
	w, err := Open(dir, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func event(n int) control.Event {
	return control.Event{
		Actor: fmt.Sprintf("person%d@example.org", n%3), Action: []string{"sign-in", "restart", "change list"}[n%3],
		Object: fmt.Sprintf("thing %d", n), From: "192.0.2.7", Outcome: "ok", Detail: map[string]string{"b": "2", "a": "<&>\u2028"},
	}
}

func appendEvents(t testing.TB, w *Writer, from, to int) {
	t.Helper()
	for n := from; n < to; n++ {
		if _, err := w.Append(t.Context(), event(n)); err != nil {
			t.Fatal(err)
		}
	}
}

func mustCheckpoint(t testing.TB, w *Writer) control.Appended {
	t.Helper()
	a, err := w.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func whole(t testing.TB, dir string, trust Trust) Report {
	t.Helper()
	r, err := VerifyDir(dir, trust)
	if err != nil {
		t.Fatalf("VerifyDir = %v", err)
	}
	return r
}

func TestOpenRefusals(t *testing.T) {
	key := newKey(t)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"no key":      func(c *Config) { c.Key = nil },
		"another key": func(c *Config) { c.Key = &p384.PublicKey },
		"no entropy":  func(c *Config) { c.Rand = bytes.NewReader(nil) },
	} {
		c := testConfig(key)
		change(&c)
		if _, err := Open(t.TempDir(), c); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file, testConfig(key)); err == nil {
		t.Error("a file was opened as a folder")
	}
}

func TestAUD1_OneWriter(t *testing.T) {
	dir, key := t.TempDir(), newKey(t)
	w := open(t, dir, testConfig(key))
	if _, err := Open(dir, testConfig(key)); err == nil {
		t.Fatal("a second writer was let in")
	}
	w.Close()
	open(t, dir, testConfig(key))
}

func TestAppendRefusals(t *testing.T) {
	w := open(t, t.TempDir(), testConfig(newKey(t)))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	before := w.Head()
	for name, f := range map[string]func() error{
		"nobody":  func() error { _, err := w.Append(t.Context(), control.Event{Action: "claim"}); return err },
		"nothing": func() error { _, err := w.Append(t.Context(), control.Event{Actor: "system"}); return err },
		"too long": func() error {
			e := event(1)
			e.Object = strings.Repeat("x", MaxLine)
			_, err := w.Append(t.Context(), e)
			return err
		},
		"ended":      func() error { _, err := w.Append(ended, event(1)); return err },
		"ended sign": func() error { _, err := w.Checkpoint(ended); return err },
	} {
		if f() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if w.Head() != before {
		t.Error("a refused event changed the head")
	}
	appendEvents(t, w, 0, 1)
}

func TestAUD1_AppendedIsOnDiskAndReadable(t *testing.T) {
	dir, key := t.TempDir(), newKey(t)
	w := open(t, dir, testConfig(key))
	for n := range 20 {
		a, err := w.Append(t.Context(), event(n))
		if err != nil {
			t.Fatal(err)
		}
		if a.Sequence != uint64(n+2) || a.Hash != w.Head().Hash {
			t.Fatalf("Append = %+v, head %+v", a, w.Head())
		}
		p, err := Reader{dir}.Read(Query{Limit: 1})
		if err != nil || len(p.Entries) != 1 || p.Entries[0].Hash != a.Hash || p.Entries[0].Event.Object != event(n).Object {
			t.Fatalf("after Append the newest entry is %+v, %v", p, err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, fmt.Sprintf(segmentName, 1)))
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("segment: %v, %v, want mode 0640", info.Mode(), err)
	}
}

func TestGroupMayRead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	c := testConfig(newKey(t))
	c.GID = 60903
	open(t, dir, c)
	for path, want := range map[string]os.FileMode{dir: 0o750, filepath.Join(dir, fmt.Sprintf(segmentName, 1)): 0o640} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if gid := info.Sys().(*syscall.Stat_t).Gid; gid != 60903 || info.Mode().Perm() != want {
			t.Errorf("%s: group %d mode %v, want 60903 and %v", path, gid, info.Mode(), want)
		}
	}
}

func TestCheckpoints(t *testing.T) {
	dir, key := t.TempDir(), newKey(t)
	w := open(t, dir, testConfig(key))
	appendEvents(t, w, 0, 5)
	a := mustCheckpoint(t, w)
	if again := mustCheckpoint(t, w); again != a {
		t.Errorf("a second checkpoint without events in between: %+v, want %+v", again, a)
	}
	if h := w.Head(); h.Checkpoint != a.Sequence || h.Sequence != a.Sequence {
		t.Errorf("head %+v, want checkpoint %d", h, a.Sequence)
	}
	appendEvents(t, w, 5, 8)
	r := whole(t, dir, Trust{Key: &key.PublicKey})
	if r.Signed != a.Sequence-1 || r.Checkpoints != 1 || !r.KeyTrusted || r.Last != a.Sequence+3 {
		t.Errorf("report %+v", r)
	}
	w.Close()
	w = open(t, dir, testConfig(key))
	if h := w.Head(); h.Checkpoint != a.Sequence {
		t.Errorf("after a restart the head is %+v, want checkpoint %d", h, a.Sequence)
	}
}

func TestCheckpointRefusals(t *testing.T) {
	key := newKey(t)
	for name, sign := range map[string]Signer{
		"fails":       func(context.Context, []byte) ([]byte, error) { return nil, errors.New("TPM_RC_FAILURE") },
		"garbage":     func(context.Context, []byte) ([]byte, error) { return []byte("signature"), nil },
		"another key": func(_ context.Context, d []byte) ([]byte, error) { return ecdsa.SignASN1(rand.Reader, newKey(t), d) },
	} {
		c := testConfig(key)
		c.Sign = sign
		dir := t.TempDir()
		w := open(t, dir, c)
		appendEvents(t, w, 0, 2)
		if _, err := w.Checkpoint(t.Context()); err == nil {
			t.Errorf("%s: a checkpoint was written", name)
		}
		appendEvents(t, w, 2, 4)
		if r := whole(t, dir, Trust{}); r.Signed != 0 || r.Last != 5 {
			t.Errorf("%s: report %+v", name, r)
		}
	}
}

func TestSlowSignerDoesNotHoldUpEvents(t *testing.T) {
	key := newKey(t)
	c := testConfig(key)
	begun, goOn := make(chan bool), make(chan bool)
	sign := c.Sign
	c.Sign = func(ctx context.Context, d []byte) ([]byte, error) {
		begun <- true
		<-goOn
		return sign(ctx, d)
	}
	dir := t.TempDir()
	w := open(t, dir, c)
	appendEvents(t, w, 0, 3)
	done := make(chan error)
	go func() { _, err := w.Checkpoint(context.Background()); done <- err }()
	<-begun
	appendEvents(t, w, 3, 6) // would hang
	close(goOn)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if r := whole(t, dir, Trust{}); r.Signed != 4 || r.Last != 8 {
		t.Errorf("report %+v, want entry 4 signed by entry 8", r)
	}
}

func TestRotation(t *testing.T) {
	dir, key := t.TempDir(), newKey(t)
	c := testConfig(key)
	c.SegmentSize = 2000
	w := open(t, dir, c)
	appendEvents(t, w, 0, 30)
	mustCheckpoint(t, w)
	names, err := segments(dir)
	if err != nil || len(names) < 4 {
		t.Fatalf("%d segments, %v", len(names), err)
	}
	w.c.Now = func() time.Time { return testStart.AddDate(0, 1, 0) }
	appendEvents(t, w, 30, 31)
	if later, err := segments(dir); err != nil || len(later) != len(names)+1 {
		t.Errorf("a new month: %d segments after %d, %v", len(later), len(names), err)
	}
	w.Close()
	w = open(t, dir, c)
	appendEvents(t, w, 31, 32)
	r := whole(t, dir, Trust{Key: &key.PublicKey})
	if r.Signed == 0 || r.KeyChanges != 0 {
		t.Errorf("report %+v", r)
	}
	// Each segment but the first is a part on its own.
	b, err := os.ReadFile(filepath.Join(dir, names[2]))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(bytes.NewReader(b), Trust{}); err == nil {
		t.Error("a part was taken for the whole")
	}
	if _, err := Verify(bytes.NewReader(b), Trust{Part: true}); err != nil {
		t.Error(err)
	}
	// Blocks reserved for a closed segment are given back.
	var st syscall.Stat_t
	if err := syscall.Stat(filepath.Join(dir, names[0]), &st); err != nil || st.Blocks*512 > 64<<10 {
		t.Errorf("a closed segment holds %d bytes on disk, %v", st.Blocks*512, err)
	}
}

func TestAnotherKeyIsNamed(t *testing.T) {
	dir, one, two := t.TempDir(), newKey(t), newKey(t)
	w := open(t, dir, testConfig(one))
	appendEvents(t, w, 0, 3)
	mustCheckpoint(t, w)
	w.Close()
	w = open(t, dir, testConfig(two))
	appendEvents(t, w, 3, 5)
	mustCheckpoint(t, w)
	if r := whole(t, dir, Trust{}); r.KeyChanges != 1 || r.Checkpoints != 2 || !strings.Contains(r.Sentence, "changed 1 times") {
		t.Errorf("report %+v", r)
	}
	old, young := whole(t, dir, Trust{Key: &one.PublicKey}), whole(t, dir, Trust{Key: &two.PublicKey})
	if old.Signed != 4 || young.Signed <= old.Signed {
		t.Errorf("signed by the old key up to %d, by the new one up to %d", old.Signed, young.Signed)
	}
	if _, err := VerifyDir(dir, Trust{Key: &newKey(t).PublicKey}); err == nil {
		t.Error("a log that the trusted key never signed was accepted")
	}
}

func TestTextThatIsNotUTF8(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir, testConfig(newKey(t)))
	for _, s := range []string{"\xff\xfe", "a\xc3", "\uFFFD", "\x00\x1b[31m\r\n", "\U0001F512\u2028</script>"} {
		if _, err := w.Append(t.Context(), control.Event{Actor: "x" + s, Action: "y" + s, Detail: map[string]string{s: s}}); err != nil {
			t.Fatal(err)
		}
	}
	whole(t, dir, Trust{})
}

func TestConcurrentAppends(t *testing.T) {
	dir, key := t.TempDir(), newKey(t)
	w := open(t, dir, testConfig(key))
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for n := range 10 {
				if _, err := w.Append(t.Context(), event(g*10+n)); err != nil {
					t.Error(err)
				}
				if _, err := w.Checkpoint(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	p, err := Reader{dir}.Read(Query{Limit: MaxLimit})
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, e := range p.Entries {
		if e.Kind == KindEvent {
			seen++
		}
	}
	whole(t, dir, Trust{Key: &key.PublicKey})
	if seen != 80 {
		t.Errorf("%d events, want 80", seen)
	}
}
