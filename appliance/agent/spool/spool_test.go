package spool

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/recording"
	"gatehouse/appliance/session"
)

// hub keeps what it is told, as the hub does: in order, each byte once.
type hub struct {
	mu    sync.Mutex
	kept  map[session.ID][]byte
	last  map[session.ID]bool
	word  func(attend.Kept)
	fault func(*attend.Chunk) error // of the line
	deaf  bool                      // the chunk comes, the answer does not
}

func newHub() *hub { return &hub{kept: map[session.ID][]byte{}, last: map[session.ID]bool{}} }

func (h *hub) tell(m attend.FromSite) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := m.Chunk
	if h.fault != nil {
		if err := h.fault(c); err != nil {
			return err
		}
	}
	if have := h.kept[c.Session]; int(c.At) <= len(have) {
		if end := int(c.At) + len(c.Bytes); end > len(have) {
			h.kept[c.Session] = append(have[:c.At], c.Bytes...)
		}
		if c.Last {
			h.last[c.Session] = true
		}
	}
	if !h.deaf {
		k := attend.Kept{Session: c.Session, Size: int64(len(h.kept[c.Session]))}
		go h.word(k)
	}
	return nil
}

var header = recording.Header{Session: strings.Repeat("5e", 16), Site: strings.Repeat("51", 16), Who: "ada@example.com", Target: "NAS", Width: 80, Height: 24, Started: time.Now().UTC()}

func start(t *testing.T, folder string, id session.ID, h *hub) (*Recorder, []byte) {
	t.Helper()
	private, public, err := recording.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	var r *Recorder
	ready := make(chan struct{})
	h.word = func(k attend.Kept) { <-ready; r.Kept(k) }
	r, err = Start(Config{Folder: folder, Session: id, To: public, Header: header, Tell: h.tell, Patience: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	close(ready)
	return r, private
}

func read(t *testing.T, b, private []byte) (text string, whole bool) {
	t.Helper()
	r, err := recording.Open(bytes.NewReader(b), int64(len(b)), private)
	if err != nil {
		t.Fatal(err)
	}
	for e, err := range r.Events(0) {
		if err != nil {
			t.Fatal(err)
		}
		text += e.Text
	}
	return text, r.Whole
}

func TestSES9_HandedOverInOrderThroughABadLine(t *testing.T) {
	h := newHub()
	n := 0
	h.fault = func(*attend.Chunk) error {
		if n++; n%3 == 0 {
			return errors.New("the line is cut")
		}
		return nil
	}
	dir := t.TempDir()
	r, private := start(t, dir, session.ID{1}, h)
	for i := range 200 {
		if err := r.Output(bytes.Repeat([]byte{byte('a' + i%26)}, 10<<10)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Mark("the end"); err != nil {
		t.Fatal(err)
	}
	r.End()
	r.End() // is no harm
	select {
	case <-r.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
	}
	text, whole := read(t, h.kept[session.ID{1}], private)
	if !whole || !strings.HasSuffix(text, "the end") || len(text) != 200*10<<10+len("the end") {
		t.Errorf("whole %v, %d bytes", whole, len(text))
	}
	if !h.last[session.ID{1}] {
		t.Error("the hub does not know that it is the last")
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := r.Output([]byte("more")); err == nil {
		t.Error("written after the end")
	}
}

// Nobody but the key's owner reads what lies on the disk.
func TestSES9_SpoolIsEncrypted(t *testing.T) {
	h := newHub()
	h.deaf = true
	dir := t.TempDir()
	r, _ := start(t, dir, session.ID{1}, h)
	was := r.Size()
	if err := r.Output([]byte("a canary of 32 bytes, in the clear")); err != nil {
		t.Fatal(err)
	}
	grown(t, r, was)
	path := filepath.Join(dir, session.ID{1}.String()+suffix)
	b, err := os.ReadFile(path)
	if err != nil || bytes.Contains(b, []byte("canary")) || bytes.Contains(b, []byte("ada@example")) {
		t.Errorf("%v, %q", err, b)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
}

// feeds are told without a clock or a line.
func TestFeed(t *testing.T) {
	now := time.Now()
	content := bytes.Repeat([]byte("0123456789"), 100_000)
	f := feed{session: session.ID{1}, from: bytes.NewReader(content)}
	next := func(size int, final bool) *attend.Chunk {
		t.Helper()
		want := final && f.kept == int64(size) && f.last
		c, all, err := f.next(int64(size), final, now)
		if err != nil {
			t.Fatal(err)
		}
		if all != want {
			t.Errorf("all: %v", all)
		}
		return c
	}
	sent := 0
	for c := next(len(content), false); c != nil; c = next(len(content), false) {
		if int(c.At) != sent || !bytes.Equal(c.Bytes, content[sent:sent+len(c.Bytes)]) || c.Last {
			t.Fatalf("a chunk of %d at %d, sent %d", len(c.Bytes), c.At, sent)
		}
		sent += len(c.Bytes)
	}
	if sent < window || sent > window+attend.MaxChunk {
		t.Errorf("%d bytes without an answer", sent)
	}
	now = now.Add(again + time.Second) // no answer comes: anew
	if c := next(len(content), false); c == nil || c.At != 0 {
		t.Fatalf("%+v", c)
	}
	f.keep(1<<40, int64(len(content)), now) // more than there is
	if c := next(len(content), false); c != nil {
		t.Errorf("a chunk at %d", c.At)
	}
	if c := next(len(content), true); c == nil || !c.Last || len(c.Bytes) != 0 || c.At != int64(len(content)) {
		t.Errorf("the last: %+v", c)
	}
	if c := next(len(content), true); c != nil {
		t.Errorf("after the last: %+v", c)
	}
	f.keep(10, int64(len(content)), now) // a late word takes nothing back
	if _, all, _ := f.next(int64(len(content)), true, now); !all {
		t.Error("not all")
	}
}

const crash = "GATEHOUSE_TEST_CRASH"

// The agent is killed in the middle of a recording. The next one finds it, hands
// it on whole up to the cut, and then it is gone here.
func TestSES9_KilledAgentLeavesAWholeBeginning(t *testing.T) {
	if folder := os.Getenv(crash); folder != "" {
		dying(t, folder)
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestSES9_KilledAgentLeavesAWholeBeginning$")
	cmd.Env = append(os.Environ(), crash+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 8)
	if _, err := out.Read(line); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	private, err := os.ReadFile(filepath.Join(dir, "private"))
	if err != nil {
		t.Fatal(err)
	}
	// A power cut would tear the last write.
	path := filepath.Join(dir, session.ID{7}.String()+suffix)
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.Write([]byte{0, 0, 0, 9, 9})
	f.Close()
	// Others' files, and a recording that goes on, are none of its business.
	if err := os.WriteFile(filepath.Join(dir, "notes.recording"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := newHub()
	h.deaf = true
	live, _ := start(t, dir, session.ID{8}, h)
	defer live.End()

	h2 := newHub()
	l := &Leftovers{Folder: dir, Tell: h2.tell, Log: slog.New(slog.DiscardHandler)}
	h2.word = l.Kept
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	for range 200 {
		if _, err := os.Stat(path); err != nil {
			break
		}
		time.Sleep(25 * time.Millisecond)
	}
	cancel()
	<-done
	if _, err := os.Stat(path); err == nil {
		t.Error("it is still here")
	}
	text, whole := read(t, h2.kept[session.ID{7}], private)
	if whole || !strings.HasSuffix(text, "line 99\r\n") || !h2.last[session.ID{7}] {
		t.Errorf("whole %v, last %v: %.40q", whole, h2.last[session.ID{7}], text)
	}
	if len(h2.kept) != 1 {
		t.Errorf("%d recordings were handed over", len(h2.kept))
	}
	if _, err := os.Stat(filepath.Join(dir, "notes.recording")); err != nil {
		t.Error(err)
	}
}

// dying records, and waits to be killed.
func dying(t *testing.T, folder string) {
	h := newHub()
	h.deaf = true
	r, private := start(t, folder, session.ID{7}, h)
	if err := os.WriteFile(filepath.Join(folder, "private"), private, 0o600); err != nil {
		t.Fatal(err)
	}
	was := r.Size()
	for i := range 100 {
		if err := r.Output([]byte("line " + string(rune('0'+i/10)) + string(rune('0'+i%10)) + "\r\n")); err != nil {
			t.Fatal(err)
		}
	}
	grown(t, r, was)
	_, _ = os.Stdout.WriteString("written\n")
	time.Sleep(time.Minute)
	os.Exit(1)
}

// A hub that does not keep one does not lose it here.
func TestSES9_RefusedByTheHubStays(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, session.ID{7}.String()+suffix)
	if err := os.WriteFile(path, []byte("gatehouse recording 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/hostname", filepath.Join(dir, session.ID{9}.String()+suffix)); err != nil {
		t.Fatal(err)
	}
	h := newHub()
	h.deaf = true
	l := &Leftovers{Folder: dir, Log: slog.New(slog.DiscardHandler)}
	l.Tell = func(m attend.FromSite) error {
		if m.Chunk.Session != (session.ID{7}) {
			t.Errorf("told of %s", m.Chunk.Session)
		}
		l.Kept(attend.Kept{Session: m.Chunk.Session, Problem: "no room"})
		return nil
	}
	if err := l.look(t.Context()); err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

// grown waits for what was recorded to be on the disk.
func grown(t *testing.T, r *Recorder, was int64) {
	t.Helper()
	for range 500 {
		if r.Size() > was {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%d bytes are on the disk", r.Size())
}
