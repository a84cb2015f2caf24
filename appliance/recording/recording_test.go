package recording

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

// keys is one pair; making it is slow enough to do once.
func keys(t testing.TB) (private, public []byte) {
	t.Helper()
	private, public, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return private, public
}

var header = Header{
	Session: strings.Repeat("5e", 16), Site: strings.Repeat("51", 16), Who: "ada@example.com", Target: "NAS", Title: "NAS",
	Width: 80, Height: 24, Started: time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC),
}

func begun(t testing.TB, public []byte) (*bytes.Buffer, *Writer) {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter(&b, public, header)
	if err != nil {
		t.Fatal(err)
	}
	return &b, w
}

// recorded is a short recording of several chunks; ends are where each chunk ends.
func recorded(t testing.TB, public []byte, secret string) (b []byte, ends []int) {
	t.Helper()
	buf, w := begun(t, public)
	ends = append(ends, buf.Len())
	for i := range 5 {
		if err := w.Output(time.Duration(i)*time.Second, fmt.Appendf(nil, "%d %s\r\n", i, secret)); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, buf.Len())
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes(), append(ends, buf.Len())
}

// read is all that a reader gets of b, and how it ended.
func read(b, private []byte) (texts []string, whole bool, err error) {
	r, err := Open(bytes.NewReader(b), int64(len(b)), private)
	if err != nil {
		return nil, false, err
	}
	for e, err := range r.Events(0) {
		if err != nil {
			return texts, false, err
		}
		texts = append(texts, e.Text)
	}
	return texts, r.Whole, nil
}

func TestSES9_NothingInClear(t *testing.T) {
	private, public := keys(t)
	secret := rand.Text() + rand.Text()
	b, _ := recorded(t, public, secret)
	for _, s := range []string{secret, header.Who, header.Session, header.Target + `"`} {
		if bytes.Contains(b, []byte(s)) {
			t.Errorf("%q is in the file", s)
		}
	}
	other, _ := keys(t)
	if _, _, err := read(b, other); !errors.Is(err, ErrKey) {
		t.Errorf("with another key: %v", err)
	}
	if _, _, err := read(b, nil); err == nil {
		t.Error("opened without a key")
	}
	if texts, whole, err := read(b, private); err != nil || !whole || len(texts) != 5 || !strings.Contains(texts[4], secret) {
		t.Errorf("%q, whole %v, %v", texts, whole, err)
	}
}

func TestSES9_EveryChangeIsFound(t *testing.T) {
	private, public := keys(t)
	b, ends := recorded(t, public, "x")
	for i := range b {
		if testing.Short() && i%5 != 0 {
			continue
		}
		if i > len(magic)+2+20 && i < ends[0]-200 && i%37 != 0 {
			continue // the encapsulated key is long, and each of its bits counts alike
		}
		bad := bytes.Clone(b)
		bad[i] ^= 1 << (i % 8)
		if texts, whole, err := read(bad, private); err == nil && whole {
			t.Fatalf("byte %d changed, and it reads %q", i, texts)
		}
	}
	chunk := func(i int) []byte { return b[ends[i-1]:ends[i]] }
	join := func(parts ...[]byte) []byte { return bytes.Join(append([][]byte{b[:ends[0]]}, parts...), nil) }
	strange, se := recorded(t, public, "x")
	for name, bad := range map[string][]byte{
		"one left out":         join(chunk(1), chunk(3), chunk(4), chunk(5), chunk(6)),
		"two exchanged":        join(chunk(2), chunk(1), chunk(3), chunk(4), chunk(5), chunk(6)),
		"one twice":            join(chunk(1), chunk(1), chunk(2), chunk(3), chunk(4), chunk(5), chunk(6)),
		"one of another":       join(chunk(1), chunk(2), strange[se[2]:se[3]], chunk(4), chunk(5), chunk(6)),
		"the end first":        join(chunk(6)),
		"something at the end": append(bytes.Clone(b), chunk(5)...),
		"another's head":       append(bytes.Clone(strange[:se[0]]), b[ends[0]:]...),
		"no chunk":             b[:len(magic)+2],
		"nothing":              nil,
		"only the magic":       []byte(magic),
		"a long key":           append([]byte(magic), 0xff, 0xff),
	} {
		if texts, whole, err := read(bad, private); err == nil && whole {
			t.Errorf("%s: it reads %q", name, texts)
		}
	}
}

func TestSES9_CutIsWholeUpToTheCut(t *testing.T) {
	private, public := keys(t)
	b, ends := recorded(t, public, "x")
	step := 1
	if testing.Short() {
		step = 7 // each opening is a decapsulation
	}
	for n := ends[0]; n < len(b); n += step {
		want := 0
		for _, e := range ends[1:] {
			if n >= e {
				want++
			}
		}
		texts, whole, err := read(b[:n], private)
		if err != nil || whole || len(texts) != want {
			t.Fatalf("cut at %d of %d: %d events, want %d; whole %v, %v", n, len(b), len(texts), want, whole, err)
		}
	}
	r, err := Open(bytes.NewReader(b[:len(b)-1]), int64(len(b)-1), private)
	if err != nil || r.Verify() == nil {
		t.Errorf("a recording without its end is verified: %v", err)
	}
}

// broken is a disk that is full after so many bytes.
type broken struct{ left int }

func (w *broken) Write(b []byte) (int, error) {
	if w.left -= len(b); w.left < 0 {
		return 0, errors.New("no space left on device")
	}
	return len(b), nil
}

func TestSES9_FullDiskIsSaid(t *testing.T) {
	_, public := keys(t)
	if _, err := NewWriter(&broken{0}, public, header); err == nil {
		t.Error("a recording was begun on a full disk")
	}
	w, err := NewWriter(&broken{5000}, public, header)
	if err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, 100<<10)
	rand.Read(noise)
	err = w.Output(0, noise)
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		t.Fatal("nothing was said of a full disk")
	}
	if err := w.Output(0, []byte("x")); err == nil {
		t.Error("after that it goes on as if nothing were missing")
	}
	if err := w.Close(); err == nil {
		t.Error("and it ends as if nothing were missing")
	}
}

func TestSES9_TerminalsSendAnything(t *testing.T) {
	private, public := keys(t)
	for name, parts := range map[string][]string{
		"split characters": {"gr", "\xc3", "\xbc", "n \xe2\x82", "\xac"},
		"no characters":    {"\xff\xfe", "\x80", "a\xc3(", "\xc3"},
		"controls":         {"\x1b]0;</script>\x07", "\x00\x01", "\u2028"},
		"an end in half":   {"x\xf0\x9f"},
	} {
		buf, w := begun(t, public)
		want := strings.ToValidUTF8(strings.Join(parts, ""), "\uFFFD")
		for i, p := range parts {
			if err := w.Output(time.Duration(i), []byte(p)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		texts, whole, err := read(buf.Bytes(), private)
		if got := strings.Join(texts, ""); err != nil || !whole || strings.ReplaceAll(got, "\uFFFD\uFFFD", "\uFFFD") != want {
			t.Errorf("%s: %q, want %q; %v", name, got, want, err)
		}
	}
	buf, w := begun(t, public)
	long := bytes.Repeat([]byte("\x01é"), 300<<10)
	if err := w.Output(0, long); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	texts, _, err := read(buf.Bytes(), private)
	if got := strings.Join(texts, ""); err != nil || got != string(long) {
		t.Errorf("%d bytes of %d, %v", len(got), len(long), err)
	}
	for _, bad := range []Header{{}, {Width: 80}, {Width: 1001, Height: 1}, {Width: -1, Height: 24}} {
		if _, err := NewWriter(io.Discard, public, bad); !errors.Is(err, ErrMalformed) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if _, err := NewWriter(io.Discard, []byte("key"), header); err == nil {
		t.Error("a recording to no key")
	}
}

// A day of output, with a person looking for one moment of it.
func TestSES9_SeekInALongOne(t *testing.T) {
	private, public := keys(t)
	buf, w := begun(t, public)
	for s := range 24 * 3600 / 10 {
		at := time.Duration(s) * 10 * time.Second
		if err := w.Output(at, fmt.Appendf(nil, "second %d\r\n", s*10)); err != nil {
			t.Fatal(err)
		}
		if s%6 == 5 {
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	perMinute := float64(buf.Len()) / (24 * 60)
	t.Logf("%d bytes, %.0f a minute", buf.Len(), perMinute)
	counted := &counting{ReaderAt: bytes.NewReader(buf.Bytes())}
	r, err := Open(counted, int64(buf.Len()), private)
	if err != nil {
		t.Fatal(err)
	}
	counted.n = 0
	for e, err := range r.Events(12 * time.Hour) {
		if err != nil || e.At != 12*time.Hour || e.Text != "second 43200\r\n" {
			t.Errorf("%+v, %v", e, err)
		}
		break
	}
	if counted.n > 4096 {
		t.Errorf("to find a moment %d bytes of %d were read", counted.n, buf.Len())
	}
	if err := r.Verify(); err != nil {
		t.Error(err)
	}
	if r.Length() != 24*time.Hour-10*time.Second {
		t.Errorf("it lasts %v", r.Length())
	}
}

type counting struct {
	io.ReaderAt
	n int
}

func (c *counting) ReadAt(b []byte, at int64) (int, error) {
	c.n += len(b)
	return c.ReaderAt.ReadAt(b, at)
}

func TestSES9_ExportIsAsciicast(t *testing.T) {
	private, public := keys(t)
	buf, w := begun(t, public)
	for _, err := range []error{
		w.Output(1500*time.Millisecond, []byte("one\r\n")), w.Resize(2*time.Second, 120, 40), w.Mark(2*time.Second, "here"),
		w.Output(time.Second, []byte("late\r\n")), w.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if w.Resize(0, 0, 0) == nil {
		t.Error("a terminal of no size")
	}
	r, err := Open(bytes.NewReader(buf.Bytes()), int64(buf.Len()), private)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := r.Export(&out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var first map[string]any
	if err := json.Unmarshal([]byte(lines[0]), &first); err != nil || first["version"] != 2.0 || first["width"] != 80.0 {
		t.Errorf("%s, %v", lines[0], err)
	}
	want := []string{`[1.500,"o","one\r\n"]`, `[2.000,"r","120x40"]`, `[2.000,"m","here"]`, `[2.000,"o","late\r\n"]`}
	if got := lines[1:]; strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("%q, want %q", got, want)
	}
}

func FuzzOpen(f *testing.F) {
	private, public := keys(f)
	b, ends := recorded(f, public, "x")
	f.Add(b)
	f.Add(b[:ends[2]])
	long := bytes.Clone(b)
	binary.BigEndian.PutUint32(long[ends[0]+1:], 1<<31)
	f.Add(long)
	f.Fuzz(func(t *testing.T, in []byte) {
		if texts, whole, err := read(in, private); err == nil && whole && !bytes.Equal(in, b) {
			t.Fatalf("another recording was read as a whole one: %q", texts)
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	_, public := keys(b)
	w, err := NewWriter(io.Discard, public, header)
	if err != nil {
		b.Fatal(err)
	}
	line := bytes.Repeat([]byte("drwxr-xr-x 2 root root 4096 Nov 28 12:00 somewhere\r\n"), 20)
	b.SetBytes(int64(len(line)))
	for b.Loop() {
		if err := w.Output(time.Second, line); err != nil {
			b.Fatal(err)
		}
	}
}
