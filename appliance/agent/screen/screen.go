// Package screen is a terminal in a session: what a program shows, kept for a while, and the one stream at a time that holds it.
//
// The program goes on when the stream is lost, and waits while the stream is
// slow. docs/sessions.md has the frames.
package screen

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"gatehouse/appliance/agent/lineedit"
	"gatehouse/appliance/session/wire"
)

const (
	ringSize  = 256 << 10              // bytes of output that are kept for who comes back
	maxTyped  = 16                     // frames of input that wait for the target
	graceTime = 500 * time.Millisecond // for a stream that has lost the screen to hear so
	// MaxColumns is the most columns, and rows.
	MaxColumns = 1000
)

// ErrLeft ends a question that its person broke off, or did not answer in time.
var ErrLeft = errors.New("the sign-in was broken off")

// Config is one screen.
type Config struct {
	Width, Height int
	// Record is given what the program shows, before anybody sees it; nil: it is
	// not recorded. On an error it is not shown.
	Record  func([]byte) error
	Resized func(width, height int) // for the recording; nil: none
	Touch   func()                  // the person did something
	Gone    func()                  // nobody will come back to the screen
	Resume  time.Duration           // who lost it comes back
	Confirm time.Duration           // a line that is asked for is typed
}

// Screen is a terminal.
type Screen struct {
	cfg     Config
	name    string
	typed   chan []byte // nil: no more comes
	answers chan bool
	done    chan struct{} // the program has ended, or was ended
	rest    []byte        // of input, that a prompt has not used; the program's alone

	mu            sync.Mutex
	changed       sync.Cond
	ring          []byte
	total         uint64 // bytes of output since the start
	holder        *holder
	question      []byte // that waits for its answer, as JSON
	asked         int    // how many questions there were
	ended         *wire.Ended
	left          bool // the person has said goodbye
	abandon       *time.Timer
	width, height int
	onSize        func(width, height int)
}

// holder is one stream at a screen.
type holder struct {
	st    wire.Stream
	pos   uint64 // bytes of output that were taken for it
	asked int    // the last question that it was asked
}

// New makes a screen that nobody holds yet.
func New(c Config) *Screen {
	sc := &Screen{
		cfg: c, name: rand.Text(), typed: make(chan []byte, maxTyped), answers: make(chan bool, 1), done: make(chan struct{}),
		ring: make([]byte, 0, 4<<10), width: c.Width, height: c.Height,
	}
	sc.changed.L = &sc.mu
	return sc
}

// Name is what it can be resumed under; it cannot be guessed.
func (sc *Screen) Name() string { return sc.name }

// Done is closed when the screen has ended.
func (sc *Screen) Done() <-chan struct{} { return sc.done }

// Write is what the program shows.
func (sc *Screen) Write(b []byte) (int, error) {
	if sc.cfg.Record != nil {
		if err := sc.cfg.Record(b); err != nil {
			return 0, err
		}
	}
	return sc.show(b)
}

// show puts output where the holder gets it, once there is room: what it has
// not been sent is not overwritten. With no holder the oldest goes.
func (sc *Screen) show(b []byte) (int, error) {
	n := 0
	for n < len(b) {
		sc.mu.Lock()
		for sc.ended == nil && sc.holder != nil && sc.total-sc.holder.pos >= ringSize {
			sc.changed.Wait()
		}
		if sc.ended != nil {
			sc.mu.Unlock()
			return n, errors.New("the terminal has ended")
		}
		part := b[n:]
		if sc.holder != nil {
			part = part[:min(len(part), int(ringSize-(sc.total-sc.holder.pos)))]
		}
		sc.put(part)
		n += len(part)
		sc.changed.Broadcast()
		sc.mu.Unlock()
	}
	return n, nil
}

// put adds to the ring, whose byte i is that of the output at i modulo its
// size. It grows to its size with the output.
func (sc *Screen) put(b []byte) {
	for len(b) > 0 {
		if len(sc.ring) < ringSize {
			n := min(len(b), ringSize-len(sc.ring))
			sc.ring = append(sc.ring, b[:n]...)
			sc.total += uint64(n)
			b = b[n:]
			continue
		}
		n := copy(sc.ring[sc.total%ringSize:], b)
		sc.total += uint64(n)
		b = b[n:]
	}
}

// take copies output from pos on.
func (sc *Screen) take(buf []byte, pos uint64) int {
	at := int(pos % ringSize)
	return copy(buf[:min(len(buf), int(sc.total-pos))], sc.ring[at:])
}

// attach makes a stream the holder, from a place in the output on; who held it
// before has lost it. It returns the place, which is later if that is gone.
func (sc *Screen) attach(st wire.Stream, seen uint64) (*holder, uint64) {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	old := sc.holder
	first := sc.total - uint64(len(sc.ring))
	h := &holder{st: st, pos: min(max(seen, first), sc.total)}
	sc.holder = h
	if sc.abandon != nil {
		sc.abandon.Stop()
	}
	if old != nil {
		// It may be dead, and a write to it for ever under way.
		time.AfterFunc(graceTime, func() { old.st.Close() })
	}
	sc.changed.Broadcast()
	return h, h.pos
}

// detach is the end of a holder's stream. The screen waits for another, unless
// the person has left it.
func (sc *Screen) detach(h *holder) {
	sc.mu.Lock()
	if sc.holder != h {
		sc.mu.Unlock()
		return
	}
	sc.holder = nil
	left := sc.left
	if sc.ended == nil && !left {
		sc.abandon = time.AfterFunc(sc.cfg.Resume, func() {
			sc.Finish(wire.Ended{Status: -1, Reason: fmt.Sprintf("nobody came back to the terminal for %s", sc.cfg.Resume)})
		})
	}
	sc.changed.Broadcast()
	sc.mu.Unlock()
	if left {
		sc.Finish(wire.Ended{Status: -1, Reason: "it was left"})
		sc.cfg.Gone()
	}
}

// Finish ends the screen; the first reason counts.
func (sc *Screen) Finish(e wire.Ended) {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	if sc.ended != nil {
		return
	}
	e.Reason = wire.Printable(e.Reason, 1024)
	sc.ended = &e
	close(sc.done)
	sc.changed.Broadcast()
}

// Serve is the life of one stream at the screen.
func (sc *Screen) Serve(st wire.Stream, seen uint64) error {
	h, at := sc.attach(st, seen)
	defer sc.detach(h)
	if err := wire.WriteReply(st, wire.Reply{Terminal: sc.name, At: at, Recorded: sc.cfg.Record != nil}); err != nil {
		return err
	}
	written := make(chan error, 1)
	go func() {
		err := sc.write(h)
		if err != nil {
			st.Close()
		} else {
			Settle(st)
		}
		written <- err
	}()
	err := sc.read(h)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	sc.detach(h)
	return errors.Join(err, <-written)
}

// Settle ends a stream after its last frame; its reader has a while to notice.
func Settle(st wire.Stream) {
	if st.CloseWrite() != nil {
		st.Close()
		return
	}
	time.AfterFunc(2*time.Second, func() { st.Close() })
}

// write sends the holder what is new, to the end of the screen or of its hold.
func (sc *Screen) write(h *holder) error {
	buf := make([]byte, wire.MaxFrame)
	for {
		kind, n, last := sc.next(h, buf)
		if err := wire.WriteFrame(h.st, kind, buf[:n]); err != nil {
			return err
		}
		if last != nil {
			if last.seen {
				sc.cfg.Gone()
			}
			return nil
		}
	}
}

// last is a frame after which nothing comes.
type last struct{ seen bool } // it is the end of the screen, and not of the hold

// next waits for what is to be sent: a question, output, and at last the end.
func (sc *Screen) next(h *holder, buf []byte) (wire.Kind, int, *last) {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	for {
		switch {
		case sc.holder != h:
			return wire.Exit, endedFrame(buf, wire.Ended{Status: -1, Reason: "this connection does not hold the terminal any more"}), &last{}
		case sc.question != nil && h.asked != sc.asked && sc.ended == nil:
			h.asked = sc.asked
			return wire.Ask, copy(buf, sc.question), nil
		case h.pos < sc.total:
			n := sc.take(buf, h.pos)
			h.pos += uint64(n)
			sc.changed.Broadcast()
			return wire.Output, n, nil
		case sc.ended != nil:
			return wire.Exit, endedFrame(buf, *sc.ended), &last{seen: true}
		}
		sc.changed.Wait()
	}
}

func endedFrame(buf []byte, e wire.Ended) int {
	b, err := json.Marshal(e)
	if err != nil {
		b = []byte(`{"status":-1}`) // it is texts and a number: this cannot be
	}
	return copy(buf, b)
}

// read takes what the holder sends.
func (sc *Screen) read(h *holder) error {
	buf := make([]byte, wire.MaxFrame)
	for {
		kind, content, err := wire.ReadFrame(h.st, buf)
		if err != nil {
			return err
		}
		if err := sc.received(h, kind, content); err != nil {
			return err
		}
	}
}

func (sc *Screen) received(h *holder, kind wire.Kind, content []byte) error {
	sc.mu.Lock()
	mine := sc.holder == h
	sc.mu.Unlock()
	if !mine {
		return nil // it learns of it with its last frame
	}
	switch kind {
	case wire.Input:
		if len(content) == 0 {
			return nil
		}
		sc.cfg.Touch()
		return sc.input(append([]byte(nil), content...))
	case wire.EOF:
		sc.mu.Lock()
		again := sc.left
		sc.left = true
		sc.mu.Unlock()
		if again {
			return nil
		}
		return sc.input(nil)
	case wire.Size:
		if len(content) != 4 {
			return fmt.Errorf("the size of a terminal in %d bytes", len(content))
		}
		sc.Resize(int(binary.BigEndian.Uint16(content)), int(binary.BigEndian.Uint16(content[2:])))
	case wire.Confirm:
		sc.cfg.Touch()
		sc.mu.Lock()
		open := sc.question != nil
		sc.mu.Unlock()
		if open && len(content) == 1 {
			select {
			case sc.answers <- content[0] == 1:
			default: // it was answered
			}
		}
	default:
		return fmt.Errorf("a frame of kind %q at a terminal", byte(kind))
	}
	return nil
}

func (sc *Screen) input(b []byte) error {
	select {
	case sc.typed <- b:
	case <-sc.done:
	}
	return nil
}

func (sc *Screen) Resize(width, height int) {
	width, height = min(max(width, 1), MaxColumns), min(max(height, 1), MaxColumns)
	sc.mu.Lock()
	sc.width, sc.height = width, height
	f := sc.onSize
	sc.mu.Unlock()
	if sc.cfg.Resized != nil {
		sc.cfg.Resized(width, height)
	}
	if f != nil {
		f(width, height)
	}
}

// Sized has f called with every size from now on, and returns the one now.
func (sc *Screen) Sized(f func(width, height int)) (width, height int) {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	sc.onSize = f
	return sc.width, sc.height
}

// Keys is the next input for the program; io.EOF when no more comes.
func (sc *Screen) Keys(ctx context.Context) ([]byte, error) {
	if b := sc.rest; len(b) > 0 {
		sc.rest = nil
		return b, nil
	}
	select {
	case b := <-sc.typed:
		if b == nil {
			return nil, io.EOF
		}
		return b, nil
	case <-sc.done:
		return nil, io.EOF
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Confirm asks whoever holds the screen.
func (sc *Screen) Confirm(ctx context.Context, q wire.Question) (bool, error) {
	b, err := json.Marshal(q)
	if err != nil {
		return false, err
	}
	select {
	case <-sc.answers: // of a question before
	default:
	}
	sc.mu.Lock()
	sc.question = b
	sc.asked++
	sc.changed.Broadcast()
	sc.mu.Unlock()
	defer func() {
		sc.mu.Lock()
		sc.question = nil
		sc.mu.Unlock()
	}()
	select {
	case yes := <-sc.answers:
		return yes, nil
	case <-sc.done:
		return false, ErrLeft
	case <-ctx.Done():
		return false, errors.New("nobody answered in time")
	}
}

// Prompt asks for a line on the screen itself. Neither it nor its echo is
// recorded: people type a password where a name is asked for.
func (sc *Screen) Prompt(ctx context.Context, text string, hidden bool) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, sc.cfg.Confirm)
	defer cancel()
	e := lineedit.Editor{Prompt: text, Hidden: hidden}
	if _, err := sc.show(e.Show()); err != nil {
		return "", ErrLeft
	}
	for {
		b, err := sc.Keys(ctx)
		if err != nil {
			return "", ErrLeft
		}
		n, echo, what, line := e.Type(b)
		sc.rest = append([]byte(nil), b[n:]...)
		if _, err := sc.show(echo); err != nil {
			return "", ErrLeft
		}
		switch what {
		case lineedit.Line:
			return line, nil
		case lineedit.Interrupt, lineedit.End:
			return "", ErrLeft
		}
	}
}
