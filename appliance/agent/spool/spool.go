// Package spool keeps the recording of a session on the site's disk until the hub has it: while it grows, and after the agent was killed.
//
// A recording is encrypted before it is written (package recording), so neither
// the disk nor the line to the hub shows what was on the screen. Each second what
// came is written, synced, and only then told on: the hub never has more than the
// disk, so that a power cut leaves two beginnings of one recording.
package spool

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/recording"
	"gatehouse/appliance/session"
)

const (
	suffix    = ".recording"
	flushTime = time.Second
	// MaxSize is the longest recording, in bytes as it is kept. A terminal that
	// people work on makes some MB a day; this is for one that prints noise.
	MaxSize = 1 << 30
)

// Config is one recording.
type Config struct {
	Folder   string
	Leave    uint64 // bytes of the disk that are left for everything else
	Session  session.ID
	To       []byte // public key that it is encrypted to
	Header   recording.Header
	Tell     func(attend.FromSite) error
	Failed   func(error)   // called once, when the recording cannot go on
	Patience time.Duration // for the hub to take the rest, after the end
}

// Recorder writes one recording and hands it to the hub. Its methods may be
// called by any goroutine.
type Recorder struct {
	cfg     Config
	started time.Time
	end     chan struct{}
	done    chan struct{}
	kick    chan struct{}

	mu     sync.Mutex
	file   *os.File
	w      *recording.Writer
	size   int64 // written and synced
	dirty  int64 // written
	ended  bool
	gone   bool // removed at the hub
	failed error
	feed   feed
}

// Start begins a recording. It exists on disk before Start returns.
func Start(c Config) (*Recorder, error) {
	if c.Patience == 0 {
		c.Patience = 30 * time.Second
	}
	r := &Recorder{cfg: c, started: time.Now(), end: make(chan struct{}), done: make(chan struct{}), kick: make(chan struct{}, 1)}
	fail := func(err error) (*Recorder, error) {
		return nil, fmt.Errorf("beginning the recording on the site's disk: %w", err)
	}
	if err := os.MkdirAll(c.Folder, 0o700); err != nil {
		return fail(err)
	}
	path := filepath.Join(c.Folder, c.Session.String()+suffix)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fail(err)
	}
	r.file = f
	r.feed = feed{session: c.Session, from: f}
	err = lock(f)
	if err == nil {
		r.w, err = recording.NewWriter(writer{r}, c.To, c.Header)
	}
	if err == nil {
		err = r.sync()
	}
	if err != nil {
		return fail(errors.Join(err, f.Close(), os.Remove(path)))
	}
	go r.run()
	return r, nil
}

// lock keeps Leftovers of this and any other process away from a recording
// that is being written: the kernel lets go of it when its process ends.
func lock(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }

// writer counts, and knows the limit. It is called with mu held, or before
// anybody else has the Recorder.
type writer struct{ r *Recorder }

func (w writer) Write(b []byte) (int, error) {
	if w.r.dirty+int64(len(b)) > MaxSize {
		return 0, fmt.Errorf("it has %d MiB, the most that a recording may have", MaxSize>>20)
	}
	if w.r.cfg.Leave > 0 {
		var st unix.Statfs_t
		if err := unix.Fstatfs(int(w.r.file.Fd()), &st); err != nil {
			return 0, fmt.Errorf("asking how full the site's disk is: %w", err)
		}
		if free := st.Bavail * uint64(st.Bsize); free < w.r.cfg.Leave+uint64(len(b)) {
			return 0, fmt.Errorf("the site's disk is full: %d MiB are free, and %d MiB are left for everything else", free>>20, w.r.cfg.Leave>>20)
		}
	}
	n, err := w.r.file.Write(b)
	w.r.dirty += int64(n)
	return n, err
}

// Output records what the terminal shows.
func (r *Recorder) Output(b []byte) error {
	return r.add(func(at time.Duration) error { return r.w.Output(at, b) })
}

// Resize records the size of the terminal.
func (r *Recorder) Resize(width, height int) error {
	return r.add(func(at time.Duration) error { return r.w.Resize(at, width, height) })
}

// Mark records a place to find again.
func (r *Recorder) Mark(text string) error {
	return r.add(func(at time.Duration) error { return r.w.Mark(at, text) })
}

func (r *Recorder) add(f func(time.Duration) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed == nil && r.ended {
		return errors.New("the recording has ended")
	}
	if r.failed == nil {
		if err := f(time.Since(r.started)); err != nil {
			r.fail(err)
		}
	}
	return r.failed
}

// fail is called with mu held. What was written before stays, and is told on.
func (r *Recorder) fail(err error) {
	if r.failed != nil {
		return
	}
	r.failed = fmt.Errorf("the recording cannot be written: %w", err)
	if r.cfg.Failed != nil {
		go r.cfg.Failed(r.failed)
	}
}

// Kept says how much the hub has.
func (r *Recorder) Kept(k attend.Kept) {
	r.mu.Lock()
	r.feed.keep(k.Size, r.size, time.Now())
	if k.Removed {
		r.gone, k.Problem = true, "it was removed there"
	}
	if k.Problem != "" && !r.ended {
		r.fail(fmt.Errorf("the hub does not keep it: %.200s", k.Problem))
	}
	r.mu.Unlock()
	r.wake()
}

// Again tells the hub anew what it has not said that it has.
func (r *Recorder) Again() {
	r.mu.Lock()
	r.feed.back()
	r.mu.Unlock()
	r.wake()
}

func (r *Recorder) wake() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// End ends the recording in order; Done tells when the hub has it, or when it
// has been waited for long enough: Leftovers goes on then.
func (r *Recorder) End() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return
	}
	r.ended = true
	if r.failed == nil {
		if err := r.w.Close(); err != nil {
			r.failed = err
		}
	}
	close(r.end)
}

// Done is closed when nothing of the recording is under way any more.
func (r *Recorder) Done() <-chan struct{} { return r.done }

// Size is how much of it is on disk.
func (r *Recorder) Size() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.size
}

// sync writes what came and has it on disk. On a failure nothing after the last
// good sync is told on: whether it is on disk nobody knows.
func (r *Recorder) sync() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed != nil && !r.ended {
		return r.failed
	}
	if r.w != nil && !r.ended {
		if err := r.w.Flush(); err != nil {
			r.fail(err)
			return r.failed
		}
	}
	if r.dirty == r.size {
		return nil
	}
	if err := r.file.Sync(); err != nil {
		r.fail(err)
		return r.failed
	}
	r.size = r.dirty
	return nil
}

// run flushes and tells, until the hub has all.
func (r *Recorder) run() {
	defer close(r.done)
	tick := time.NewTicker(flushTime)
	defer tick.Stop()
	end, ended := r.end, false
	var patience <-chan time.Time
	for {
		err := r.sync()
		if r.hand(ended) {
			r.remove()
			return
		}
		if err != nil && !ended {
			tick.Reset(10 * flushTime) // it stays as it is until the session ends
		}
		select {
		case <-tick.C:
		case <-r.kick:
		case <-end:
			end, ended = nil, true
			tick.Reset(flushTime)
			t := time.NewTimer(r.cfg.Patience)
			defer t.Stop()
			patience = t.C
		case <-patience:
			r.file.Close() // and with it the lock
			return
		}
	}
}

// hand tells the hub what it has not been told. It says whether the hub has all
// that it will ever have.
func (r *Recorder) hand(final bool) bool {
	for {
		r.mu.Lock()
		if r.gone {
			r.mu.Unlock()
			return final
		}
		c, all, err := r.feed.next(r.size, final, time.Now())
		if err != nil {
			r.fail(err)
		}
		r.mu.Unlock()
		if all || c == nil {
			return all
		}
		if err := r.cfg.Tell(attend.FromSite{Chunk: c}); err != nil {
			r.mu.Lock()
			r.feed.back()
			r.mu.Unlock()
			return false // the line is cut; the next tick tries again
		}
	}
}

func (r *Recorder) remove() {
	// A power cut before it is gone has it told once more; the hub says that it has it.
	os.Remove(r.file.Name())
	r.file.Close()
}

// feed is what the hub has been told of one recording, and what it has.
type feed struct {
	session    session.ID
	from       io.ReaderAt
	sent, kept int64
	last       bool      // the last chunk was sent
	heard      time.Time // when the hub last said that it has more
}

const (
	window = 8 * attend.MaxChunk // sent and not kept
	again  = 10 * time.Second    // without a word: what was sent is sent anew
)

// next is the next chunk of a recording of size bytes, nil if it is the hub's
// turn. all: it has everything. final: nothing is added any more.
func (f *feed) next(size int64, final bool, now time.Time) (c *attend.Chunk, all bool, err error) {
	if f.heard.IsZero() || f.sent == f.kept {
		f.heard = now
	}
	if final && f.last && f.kept >= size {
		return nil, true, nil
	}
	if f.sent > f.kept && now.Sub(f.heard) > again {
		f.back()
		f.heard = now
	}
	if f.sent-f.kept >= window || f.sent >= size && (!final || f.last) {
		return nil, false, nil
	}
	b := make([]byte, max(0, min(size-f.sent, attend.MaxChunk)))
	if len(b) > 0 {
		if _, err := f.from.ReadAt(b, f.sent); err != nil {
			return nil, false, fmt.Errorf("reading it back: %w", err)
		}
	}
	c = &attend.Chunk{Session: f.session, At: f.sent, Bytes: b}
	f.sent += int64(len(b))
	f.last = final && f.sent == size
	c.Last = f.last
	return c, false, nil
}

// back goes to where the hub is: what was on the line since is lost.
func (f *feed) back() { f.sent, f.last = f.kept, false }

// keep believes the hub as far as it can be true of a recording of size bytes.
func (f *feed) keep(kept, size int64, now time.Time) {
	if kept = min(kept, size); kept <= f.kept {
		return
	}
	f.kept, f.heard = kept, now
	f.sent = max(f.sent, f.kept)
}

// parse reads the name of a spool file.
func parse(name string) (session.ID, bool) {
	var id session.ID
	hex, ok := strings.CutSuffix(name, suffix)
	return id, ok && id.UnmarshalText([]byte(hex)) == nil
}
