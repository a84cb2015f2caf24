package recording

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// Kind is what an event is, by the letters of asciicast v2.
type Kind string

// The kinds. What is typed is not among them: passwords are.
const (
	Output Kind = "o"
	Resize Kind = "r"
	Marker Kind = "m"
)

// Event is one thing that happened.
type Event struct {
	At   time.Duration // since the start
	Kind Kind
	Text string // of Resize: 80x24
}

// line is asciicast v2's: seconds, kind, text.
func (e Event) line() ([]byte, error) {
	return json.Marshal([]any{json.Number(fmt.Sprintf("%d.%03d", e.At/time.Second, e.At%time.Second/time.Millisecond)), e.Kind, e.Text})
}

func parseEvent(b []byte) (Event, error) {
	var seconds float64
	var e Event
	parts := []any{&seconds, &e.Kind, &e.Text}
	if err := json.Unmarshal(b, &parts); err != nil || len(parts) != 3 {
		return e, fmt.Errorf("%w: an event is not [seconds, kind, text]", ErrMalformed)
	}
	if e.Kind != Output && e.Kind != Resize && e.Kind != Marker || seconds < 0 || seconds > maxLength.Seconds() {
		return e, fmt.Errorf("%w: an event of kind %.8q at %g s", ErrMalformed, e.Kind, seconds)
	}
	e.At = time.Duration(seconds*1000+0.5) * time.Millisecond
	return e, nil
}

// Output records what the terminal showed. Bytes of a character that has not
// come whole wait for the rest; what is no UTF-8 is shown as U+FFFD, as a
// terminal shows it.
func (r *Writer) Output(at time.Duration, b []byte) error {
	if len(r.pending) > 0 {
		b = append(r.pending, b...)
		r.pending = nil
	}
	whole := len(b) - unfinished(b)
	r.pending = append(r.pending, b[whole:]...)
	b = b[:whole]
	for len(b) > 0 {
		n := min(len(b), MaxChunk/8) // JSON can make six bytes of one
		for n < len(b) && n > 0 && !utf8.RuneStart(b[n]) {
			n--
		}
		if n == 0 {
			n = min(len(b), MaxChunk/8)
		}
		if err := r.text(at, Output, strings.ToValidUTF8(string(b[:n]), "\uFFFD")); err != nil {
			return err
		}
		b = b[n:]
	}
	return r.err
}

// unfinished is how many bytes at the end begin a character without ending it.
func unfinished(b []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		if c := b[len(b)-n]; utf8.RuneStart(c) {
			if c >= utf8.RuneSelf && !utf8.FullRune(b[len(b)-n:]) {
				return n
			}
			return 0
		}
	}
	return 0
}

// Resize records that the terminal has another size now.
func (r *Writer) Resize(at time.Duration, width, height int) error {
	if err := (Header{Width: width, Height: height}).check(); err != nil {
		return err
	}
	return r.text(at, Resize, fmt.Sprintf("%dx%d", width, height))
}

// Mark records a place that a person may want to find again.
func (r *Writer) Mark(at time.Duration, text string) error {
	if len(text) > 1000 {
		text = text[:1000]
	}
	return r.text(at, Marker, strings.ToValidUTF8(text, "\uFFFD"))
}

// text adds an event. Time never runs backwards in a recording.
func (r *Writer) text(at time.Duration, k Kind, text string) error {
	if r.err != nil {
		return r.err
	}
	at = max(at, r.last).Truncate(time.Millisecond)
	b, err := Event{at, k, text}.line()
	if err != nil {
		return fmt.Errorf("writing a recording: %w", err)
	}
	if r.buffer.Len()+len(b)+1 > MaxChunk {
		if err := r.Flush(); err != nil {
			return err
		}
	}
	if r.buffer.Len() == 0 {
		r.first = at
	}
	r.last = at
	r.buffer.Write(append(b, '\n'))
	return nil
}
