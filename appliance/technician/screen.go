package technician

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"gatehouse/appliance/session/wire"
)

// ErrHostKey is the answer no to a Question.
var ErrHostKey = errors.New("the key of the target was not accepted")

// Screen is where a terminal, a command or a console of the target is shown.
type Screen struct {
	// In is what is typed; nil: nothing. It is read until it ends, and by one
	// goroutine that stays with it: a terminal cannot be asked to stop reading.
	In       io.Reader
	Out, Err io.Writer
	Sizes    <-chan Size
	// Filter changes what was typed, or says that the person leaves; nil: nothing is changed.
	Filter func([]byte) (send []byte, leave bool)
	// Hold keeps what comes from In until the other end says that it has begun,
	// as a command does: it is not for a target that is still in question.
	Hold bool
	// Question asks whether this is the target; nil: the answer is no. With
	// Typed the person answers by In: what is typed meanwhile comes from typed
	// and is sent nowhere.
	Question func(q wire.Question, typed <-chan []byte) (bool, error)
	Typed    bool
}

// Size is that of a terminal.
type Size struct{ Width, Height int }

// ErrLeft means that the person left: Filter said so.
var ErrLeft = errors.New("left")

// showing is a Screen at work.
type showing struct {
	Screen
	st wire.Stream

	sending sync.Mutex // one frame at a time
	gone    chan struct{}
	left    chan struct{}

	mu      sync.Mutex
	typed   chan []byte // while a question is open that In answers
	begun   bool
	changed chan struct{} // closed when one of the two is another
}

// Attend shows a stream until the other end says how it ended. It closes the stream.
func Attend(st wire.Stream, screen Screen) (wire.Ended, error) {
	w := &showing{Screen: screen, st: st, gone: make(chan struct{}), left: make(chan struct{}), begun: !screen.Hold, changed: make(chan struct{})}
	var work sync.WaitGroup
	work.Go(w.resize)
	if w.In != nil {
		go w.read() // ends with In, or with the program
	}
	end, err := w.frames()
	close(w.gone)
	work.Wait()
	select {
	case <-w.left:
		err = ErrLeft
	default:
	}
	return end, errors.Join(err, st.Close())
}

func (w *showing) send(k wire.Kind, b []byte) error {
	w.sending.Lock()
	defer w.sending.Unlock()
	return wire.WriteFrame(w.st, k, b)
}

func (w *showing) resize() {
	for {
		select {
		case <-w.gone:
			return
		case s := <-w.Sizes:
			if s.Width <= 0 || s.Height <= 0 || s.Width > 1<<16-1 || s.Height > 1<<16-1 {
				continue
			}
			b := []byte{byte(s.Width >> 8), byte(s.Width), byte(s.Height >> 8), byte(s.Height)}
			if w.send(wire.Size, b) != nil {
				return // frames says what happened
			}
		}
	}
}

// read passes on what is typed: to the open question, or to the target.
func (w *showing) read() {
	buf := make([]byte, wire.MaxFrame)
	for {
		n, err := w.In.Read(buf)
		if n > 0 && !w.pass(append([]byte(nil), buf[:n]...)) {
			return
		}
		if err != nil {
			if w.next() {
				w.send(wire.EOF, nil)
			}
			return
		}
	}
}

// set changes what In is for now.
func (w *showing) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
	close(w.changed)
	w.changed = make(chan struct{})
}

// now says what In is for: a question, the other end, or neither yet.
func (w *showing) now() (typed chan []byte, begun bool, changed chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.typed, w.begun, w.changed
}

// next waits until what is typed is for the other end. A question that is open
// hears that nothing more is typed.
func (w *showing) next() bool {
	for {
		typed, begun, changed := w.now()
		if typed != nil {
			close(typed)
			w.set(func() { w.typed = nil })
			continue
		}
		if begun {
			return true
		}
		select {
		case <-changed:
		case <-w.gone:
			return false
		}
	}
}

func (w *showing) pass(b []byte) bool {
	for {
		typed, begun, changed := w.now()
		if typed != nil {
			select {
			case typed <- b:
				return true
			case <-changed: // the question is closed
				continue
			case <-w.gone:
				return false
			}
		}
		if begun {
			break
		}
		select {
		case <-changed:
		case <-w.gone:
			return false
		}
	}
	leave := false
	if w.Filter != nil {
		b, leave = w.Filter(b)
	}
	if len(b) > 0 && w.send(wire.Input, b) != nil {
		return false
	}
	if leave {
		close(w.left)
		w.st.Close() // frames ends by it
		return false
	}
	return true
}

// frames shows what comes, until the end.
func (w *showing) frames() (wire.Ended, error) {
	buf := make([]byte, wire.MaxFrame)
	for {
		kind, b, err := wire.ReadFrame(w.st, buf)
		if err != nil {
			return wire.Ended{Status: -1}, err
		}
		switch kind {
		case wire.Output:
			w.begin()
			_, err = w.Out.Write(b)
		case wire.Stderr:
			w.begin()
			_, err = w.Err.Write(b)
		case wire.Ask:
			err = w.ask(b)
		case wire.Exit:
			var end wire.Ended
			if err := json.Unmarshal(b, &end); err != nil {
				return wire.Ended{Status: -1}, fmt.Errorf("how it ended cannot be read: %w", err)
			}
			end.Reason = wire.Printable(end.Reason, 1024)
			return end, nil
		default:
			err = fmt.Errorf("a frame of kind %q, which the agent does not send", kind)
		}
		if err != nil {
			return wire.Ended{Status: -1}, err
		}
	}
}

func (w *showing) begin() {
	if _, begun, _ := w.now(); !begun {
		w.set(func() { w.begun = true })
	}
}

func (w *showing) ask(b []byte) error {
	var q wire.Question
	if err := json.Unmarshal(b, &q); err != nil {
		return fmt.Errorf("the agent's question cannot be read: %w", err)
	}
	q.Target, q.Algorithm, q.Fingerprint = wire.Printable(q.Target, 300), wire.Printable(q.Algorithm, 64), wire.Printable(q.Fingerprint, 200)
	yes := false
	var err error
	if w.Question != nil {
		var typed chan []byte
		if w.Typed {
			typed = make(chan []byte, 1)
		}
		w.set(func() { w.typed = typed })
		yes, err = w.Question(q, typed)
		w.set(func() { w.typed = nil })
	}
	answer := []byte{0}
	if yes {
		answer[0] = 1
	}
	if failed := w.send(wire.Confirm, answer); err == nil {
		err = failed
	}
	if err == nil && !yes {
		err = ErrHostKey
	}
	return err
}
