package work

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
	"gatehouse/appliance/agent/reach"
	"gatehouse/appliance/agent/spool"
	"gatehouse/appliance/session/wire"
)

const (
	ringSize   = 256 << 10 // bytes of output that are kept for who comes back
	maxTyped   = 16        // frames of input that wait for the target
	maxColumns = 1000
)

// screen is a terminal: what a program shows, kept for a while, and the one
// stream at a time that holds it. The program goes on when the stream is lost,
// and waits while the stream is slow.
type screen struct {
	s        *Session
	name     string // under which it can be resumed
	do       wire.Do
	recorder *spool.Recorder // nil: not recorded
	typed    chan []byte     // nil: no more comes
	answers  chan bool
	done     chan struct{} // the program has ended, or was ended
	rest     []byte        // of input, that a prompt has not used; the program's alone

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

func newScreen(s *Session, o wire.Open, r *spool.Recorder) *screen {
	sc := &screen{
		s: s, name: rand.Text(), do: o.Do, recorder: r, typed: make(chan []byte, maxTyped), answers: make(chan bool, 1), done: make(chan struct{}),
		ring: make([]byte, 0, 4<<10), width: o.Width, height: o.Height,
	}
	sc.changed.L = &sc.mu
	return sc
}

// Write is what the program shows.
func (sc *screen) Write(b []byte) (int, error) {
	if sc.recorder != nil {
		if err := sc.recorder.Output(b); err != nil && sc.s.forced() {
			return 0, err
		}
	}
	return sc.show(b)
}

// show puts output where the holder gets it, once there is room: what it has
// not been sent is not overwritten. With no holder the oldest goes.
func (sc *screen) show(b []byte) (int, error) {
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
func (sc *screen) put(b []byte) {
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
func (sc *screen) take(buf []byte, pos uint64) int {
	at := int(pos % ringSize)
	return copy(buf[:min(len(buf), int(sc.total-pos))], sc.ring[at:])
}

// attach makes a stream the holder, from a place in the output on; who held it
// before has lost it. It returns the place, which is later if that is gone.
func (sc *screen) attach(st wire.Stream, seen uint64) (*holder, uint64) {
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
func (sc *screen) detach(h *holder) {
	sc.mu.Lock()
	if sc.holder != h {
		sc.mu.Unlock()
		return
	}
	sc.holder = nil
	left := sc.left
	if sc.ended == nil && !left {
		sc.abandon = time.AfterFunc(sc.s.cfg.times.resume, func() {
			sc.finish(wire.Ended{Status: -1, Reason: fmt.Sprintf("nobody came back to the terminal for %s", sc.s.cfg.times.resume)})
		})
	}
	sc.changed.Broadcast()
	sc.mu.Unlock()
	if left {
		sc.finish(wire.Ended{Status: -1, Reason: "it was left"})
		sc.s.forget(sc)
	}
}

// finish ends the screen; the first reason counts.
func (sc *screen) finish(e wire.Ended) {
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

// serve is the life of one stream at the screen.
func (sc *screen) serve(st wire.Stream, seen uint64) error {
	h, at := sc.attach(st, seen)
	defer sc.detach(h)
	if err := wire.WriteReply(st, wire.Reply{Terminal: sc.name, At: at, Recorded: sc.recorder != nil}); err != nil {
		return err
	}
	written := make(chan error, 1)
	go func() {
		err := sc.write(h)
		if err != nil {
			st.Close()
		} else {
			settleWrite(st)
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

// settleWrite ends the stream after its last frame; its reader has a while to notice.
func settleWrite(st wire.Stream) {
	if st.CloseWrite() != nil {
		st.Close()
		return
	}
	time.AfterFunc(2*time.Second, func() { st.Close() })
}

// write sends the holder what is new, to the end of the screen or of its hold.
func (sc *screen) write(h *holder) error {
	buf := make([]byte, wire.MaxFrame)
	for {
		kind, n, last := sc.next(h, buf)
		if err := wire.WriteFrame(h.st, kind, buf[:n]); err != nil {
			return err
		}
		if last != nil {
			if last.seen {
				sc.s.forget(sc)
			}
			return nil
		}
	}
}

// last is a frame after which nothing comes.
type last struct{ seen bool } // it is the end of the screen, and not of the hold

// next waits for what is to be sent: a question, output, and at last the end.
func (sc *screen) next(h *holder, buf []byte) (wire.Kind, int, *last) {
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
func (sc *screen) read(h *holder) error {
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

func (sc *screen) received(h *holder, kind wire.Kind, content []byte) error {
	sc.mu.Lock()
	mine := sc.holder == h
	sc.mu.Unlock()
	if !mine {
		return nil // it learns of it with its last frame
	}
	switch kind {
	case wire.Input:
		sc.s.touch()
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
		sc.resize(int(binary.BigEndian.Uint16(content)), int(binary.BigEndian.Uint16(content[2:])))
	case wire.Confirm:
		sc.s.touch()
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

func (sc *screen) input(b []byte) error {
	select {
	case sc.typed <- b:
	case <-sc.done:
	}
	return nil
}

func (sc *screen) resize(width, height int) {
	width, height = min(max(width, 1), maxColumns), min(max(height, 1), maxColumns)
	sc.mu.Lock()
	sc.width, sc.height = width, height
	f := sc.onSize
	sc.mu.Unlock()
	if sc.recorder != nil {
		_ = sc.recorder.Resize(width, height) // a failure ends or is told once, by the recorder
	}
	if f != nil {
		f(width, height)
	}
}

// sized has f called with every size from now on, and returns the one now.
func (sc *screen) sized(f func(width, height int)) (width, height int) {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	sc.onSize = f
	return sc.width, sc.height
}

// next input for the program; io.EOF when no more comes.
func (sc *screen) keys(ctx context.Context) ([]byte, error) {
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

// confirm asks whoever holds the screen.
func (sc *screen) confirm(ctx context.Context, q wire.Question) (bool, error) {
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
		return false, reach.ErrLeft
	case <-ctx.Done():
		return false, errors.New("nobody answered in time")
	}
}

// prompt asks for a line on the screen itself. Neither it nor its echo is
// recorded: people type a password where a name is asked for.
func (sc *screen) prompt(ctx context.Context, text string, hidden bool) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, sc.s.cfg.times.Confirm)
	defer cancel()
	e := lineedit.Editor{Prompt: text, Hidden: hidden}
	if _, err := sc.show(e.Show()); err != nil {
		return "", reach.ErrLeft
	}
	for {
		b, err := sc.keys(ctx)
		if err != nil {
			return "", reach.ErrLeft
		}
		n, echo, what, line := e.Type(b)
		sc.rest = append([]byte(nil), b[n:]...)
		if _, err := sc.show(echo); err != nil {
			return "", reach.ErrLeft
		}
		switch what {
		case lineedit.Line:
			return line, nil
		case lineedit.Interrupt, lineedit.End:
			return "", reach.ErrLeft
		}
	}
}
