package recordings

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"
)

// Bounds of a transcript.
const (
	mostText  = 1 << 20 // bytes
	mostLine  = 1000    // characters until a line is broken
	mostEvent = 4 << 20 // bytes of one line of the recording
)

// transcript writes an asciicast as text: what was shown, line by line with the
// time of its beginning. It is no terminal: what a full-screen program drew
// stands one below the other.
type transcript struct {
	to      io.Writer
	written int
	cut     bool // no more text: the bound is reached

	rest []byte // of the asciicast, until its line is whole
	head bool   // the header was seen

	at   float64 // of the event, in seconds
	line []rune
	col  int // where the next character goes in it
	mode mode
}

// mode is where one is in an escape sequence (ECMA-48).
type mode int

const (
	plain    mode = iota
	escape        // after ESC
	charset       // after ESC ( and its like: one more
	sequence      // after ESC [, until a final byte
	command       // after ESC ] P X ^ _, until BEL or ESC \
	closing       // ESC within a command
)

// Write takes the asciicast in pieces of any size.
func (t *transcript) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 && !t.cut {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			if len(t.rest)+len(b) > mostEvent {
				return 0, fmt.Errorf("making text of a recording: an event has more than %d bytes", mostEvent)
			}
			t.rest = append(t.rest, b...)
			break
		}
		line := append(t.rest, b[:i]...)
		t.rest, b = t.rest[:0], b[i+1:]
		if err := t.event(line); err != nil {
			return 0, err
		}
	}
	return n, nil
}

func (t *transcript) event(b []byte) error {
	if !t.head { // width, height, title: nothing that was shown
		t.head = true
		return nil
	}
	var kind, text string
	var at float64
	parts := []any{&at, &kind, &text}
	if err := json.Unmarshal(b, &parts); err != nil || len(parts) != 3 {
		return fmt.Errorf("making text of a recording: an event is not [seconds, kind, text]")
	}
	switch kind {
	case "o":
		t.at = at
		for _, r := range text {
			t.put(r)
		}
	case "m":
		t.at = at
		t.newline()
		t.show("— " + text)
		t.newline()
	}
	return nil
}

// put takes one character that the terminal was sent.
func (t *transcript) put(r rune) {
	switch t.mode {
	case escape:
		t.mode = plain
		switch {
		case r == '[':
			t.mode = sequence
		case strings.ContainsRune("]PX^_", r):
			t.mode = command
		case strings.ContainsRune("()*+-./#% ", r):
			t.mode = charset
		}
		return
	case charset:
		t.mode = plain
		return
	case sequence:
		if r >= 0x40 && r <= 0x7e {
			t.mode = plain
			if r == 'H' || r == 'f' || r == 'J' { // the cursor goes elsewhere, the screen is new
				t.newline()
			}
		}
		if r == 0x1b {
			t.mode = escape
		}
		return
	case command:
		switch r {
		case 0x07:
			t.mode = plain
		case 0x1b:
			t.mode = closing
		}
		return
	case closing:
		t.mode = plain // a backslash, or the sequence is broken
		return
	}
	switch r {
	case 0x1b:
		t.mode = escape
	case '\n':
		t.newline()
	case '\r':
		t.col = 0
	case '\b':
		t.col = max(0, t.col-1)
	case '\t':
		t.set(' ')
	default:
		if unicode.IsPrint(r) {
			t.set(r)
		}
	}
}

// set writes over what stands there, as a terminal does.
func (t *transcript) set(r rune) {
	if t.col < len(t.line) {
		t.line[t.col] = r
	} else {
		t.line = append(t.line, r)
	}
	if t.col++; t.col >= mostLine {
		t.newline()
	}
}

// show adds a text of ours or of a marker to the line.
func (t *transcript) show(s string) {
	for _, r := range s {
		if unicode.IsPrint(r) {
			t.set(r)
		}
	}
}

// newline ends the line. Empty ones are left out: screens are full of them.
func (t *transcript) newline() {
	s := strings.TrimRight(string(t.line), " ")
	t.line, t.col = t.line[:0], 0
	if s == "" || t.cut {
		return
	}
	s = length(t.at) + "  " + s + "\n"
	if t.written+len(s) > mostText {
		t.cut = true
		s = "\nOnly so much is shown as text. The download has the whole.\n"
	}
	n, err := io.WriteString(t.to, s)
	t.written += n
	t.cut = t.cut || err != nil // the reader is gone
}

// end is called after the last event; why is what kept the rest from being read.
func (t *transcript) end(why error) {
	t.newline()
	if why != nil && !t.cut {
		t.show("The recording cannot be read further: " + why.Error())
		t.newline()
	}
	if t.written == 0 {
		io.WriteString(t.to, "Nothing was shown.\n")
	}
}

// length writes seconds as people do: 1:02:03.
func length(seconds float64) string {
	s := int64(max(0, min(seconds, 1e8)))
	if s >= 3600 {
		return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
	}
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}
