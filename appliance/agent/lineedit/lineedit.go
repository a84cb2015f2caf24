// Package lineedit is one line that a person types at a terminal: echo, backspace, the lines before. Pure.
package lineedit

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxLine    = 512 // bytes
	maxHistory = 32  // lines
)

// What a line ended with.
type What int

// The ends of a line.
const (
	Line      What = iota + 1 // enter
	Interrupt                 // ctrl-c
	End                       // ctrl-d on an empty line
)

// Editor takes what is typed, key by key. The zero value is ready.
type Editor struct {
	Prompt string
	Hidden bool // nothing is shown of what is typed, and nothing remembered

	line    []rune
	size    int // of line, in bytes
	part    []byte
	escape  escape
	wasCR   bool
	history []string
	at      int    // place in history; len(history): the line itself
	kept    []rune // the line itself, while another is shown
}

// escape is where in a sequence of a key the input is.
type escape int

const (
	none    escape = iota
	started        // after ESC
	inside         // after ESC [ or ESC O
)

// Type takes bytes until a line ends. It returns how many it took, what the
// terminal shows of them, and how the line ended with its text; 0 if it has not
// ended. What a person cannot have meant as text is left out.
func (e *Editor) Type(b []byte) (n int, echo []byte, what What, text string) {
	for n < len(b) && what == 0 {
		c := b[n]
		n++
		if e.wasCR && c == '\n' {
			e.wasCR = false
			continue
		}
		e.wasCR = c == '\r'
		if c < utf8.RuneSelf {
			e.part = nil // the rest of a character did not come
		}
		switch {
		case e.escape != none:
			echo = append(echo, e.sequence(c)...)
		case c >= utf8.RuneSelf:
			echo = append(echo, e.character(c)...)
		case c == '\r' || c == '\n':
			echo = append(echo, "\r\n"...)
			what, text = Line, e.take()
		case c == 3:
			echo = append(echo, "^C\r\n"...)
			e.take()
			what = Interrupt
		case c == 4:
			if len(e.line) == 0 {
				echo = append(echo, "\r\n"...)
				what = End
			}
		default:
			echo = append(echo, e.key(c)...)
		}
	}
	if what == Line {
		e.remember(text)
	}
	return n, echo, what, text
}

// Show is the prompt with what has been typed so far.
func (e *Editor) Show() []byte {
	if e.Hidden {
		return []byte(e.Prompt)
	}
	return []byte(e.Prompt + string(e.line))
}

func (e *Editor) key(c byte) []byte {
	switch {
	case c == 8 || c == 127:
		return e.back()
	case c == 21: // ctrl-u
		var echo []byte
		for len(e.line) > 0 {
			echo = append(echo, e.back()...)
		}
		return echo
	case c == 27:
		e.escape = started
		return nil
	case c < ' ':
		return nil
	}
	return e.add(rune(c))
}

// character collects the bytes of one that has several.
func (e *Editor) character(c byte) []byte {
	e.part = append(e.part, c)
	if !utf8.FullRune(e.part) {
		return nil
	}
	r, n := utf8.DecodeRune(e.part)
	e.part = nil
	if r == utf8.RuneError && n == 1 {
		return nil
	}
	return e.add(r)
}

func (e *Editor) add(r rune) []byte {
	if !unicode.IsPrint(r) || e.size+utf8.RuneLen(r) > maxLine {
		return nil
	}
	e.line = append(e.line, r)
	e.size += utf8.RuneLen(r)
	if e.Hidden {
		return nil
	}
	return utf8.AppendRune(nil, r)
}

func (e *Editor) back() []byte {
	if len(e.line) == 0 {
		return nil
	}
	r := e.line[len(e.line)-1]
	e.line = e.line[:len(e.line)-1]
	e.size -= utf8.RuneLen(r)
	if e.Hidden {
		return nil
	}
	return []byte(strings.Repeat("\b \b", columns(r)))
}

// columns is how much room a terminal gives a character: 2 for those of East
// Asia and pictures, near enough for a backspace.
func columns(r rune) int {
	switch {
	case unicode.Is(unicode.Mn, r):
		return 0
	case unicode.In(r, unicode.Han, unicode.Hangul, unicode.Hiragana, unicode.Katakana), r >= 0x1f300 && r < 0x20000:
		return 2
	}
	return 1
}

// sequence follows what a key sends that is no character, to its end. Arrows
// up and down bring the lines before; the others do nothing.
func (e *Editor) sequence(c byte) []byte {
	if e.escape == started && (c == '[' || c == 'O') {
		e.escape = inside
		return nil
	}
	if e.escape == inside && (c < 0x40 || c > 0x7e) {
		return nil
	}
	was := e.escape
	e.escape = none
	if was != inside || e.Hidden {
		return nil
	}
	switch c {
	case 'A':
		return e.recall(e.at - 1)
	case 'B':
		return e.recall(e.at + 1)
	}
	return nil
}

func (e *Editor) recall(at int) []byte {
	if at < 0 || at > len(e.history) {
		return nil
	}
	if e.at == len(e.history) {
		e.kept = e.line
	}
	e.at, e.line = at, e.kept
	if at < len(e.history) {
		e.line = []rune(e.history[at])
	}
	e.size = len(string(e.line))
	return append([]byte("\r\x1b[K"), e.Show()...)
}

func (e *Editor) take() string {
	text := string(e.line)
	e.line, e.size, e.part, e.kept, e.at = nil, 0, nil, nil, len(e.history)
	return text
}

func (e *Editor) remember(text string) {
	if e.Hidden || text == "" || len(e.history) > 0 && e.history[len(e.history)-1] == text {
		return
	}
	e.history = append(e.history, text)
	if len(e.history) > maxHistory {
		e.history = slices.Delete(e.history, 0, 1)
	}
	e.at = len(e.history)
}
