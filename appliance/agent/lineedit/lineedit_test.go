package lineedit

import (
	"strings"
	"testing"
	"unicode"
)

// typed has keys typed, and returns what was shown and the lines that ended.
func typed(e *Editor, keys string) (shown string, lines []string) {
	b := []byte(keys)
	for len(b) > 0 {
		n, echo, what, text := e.Type(b)
		b = b[n:]
		shown += string(echo)
		switch what {
		case Line:
			lines = append(lines, text)
		case Interrupt:
			lines = append(lines, "<interrupt>")
		case End:
			lines = append(lines, "<end>")
		}
	}
	return shown, lines
}

func TestKeys(t *testing.T) {
	const up, down = "\x1b[A", "\x1bOB"
	for name, c := range map[string]struct {
		keys  string
		lines string
		shown string // not compared if empty
	}{
		"a line":                     {"help\r", "help", "help\r\n"},
		"line feeds of a paste":      {"a\r\nb\nc\r", "a|b|c", ""},
		"backspace":                  {"ab\x7fc\x08\x08\x08\x08d\r", "d", "ab\b \bc\b \b\b \bd\r\n"},
		"wide characters":            {"日\x7f\r", "", "日\b \b\b \b\r\n"},
		"ctrl-u":                     {"abc\x15x\r", "x", ""},
		"ctrl-c":                     {"abc\x03x\r", "<interrupt>|x", "abc^C\r\nx\r\n"},
		"ctrl-d in a line":           {"abc\x04\r", "abc", ""},
		"ctrl-d":                     {"\x04", "<end>", ""},
		"the line before":            {"one\rtwo\r" + up + up + down + "!\r", "one|two|two!", ""},
		"back to what was begun":     {"one\rbe" + up + down + "gun\r", "one|begun", ""},
		"beyond the first":           {"one\r" + up + up + up + "\r", "one|one", ""},
		"other keys":                 {"a\x1b[3~b\x1b[1;5Cc\x1bxd\t\r", "abcd", "abcd\r\n"},
		"controls are not shown":     {"a\x07\x00\u202e\u0085b\r", "ab", "ab\r\n"},
		"broken characters":          {"a\xc3\xffb\xe6x\r", "abx", ""},
		"a character in two halves":  {"\xc3\xbc\r", "ü", "ü\r\n"},
		"a key's sequence ends once": {"\x1b[\x1b[Ax\r", "Ax", ""},
	} {
		t.Run(name, func(t *testing.T) {
			shown, lines := typed(&Editor{}, c.keys)
			if strings.Join(lines, "|") != c.lines || c.shown != "" && shown != c.shown {
				t.Errorf("lines %q, shown %q; want %q, %q", lines, shown, c.lines, c.shown)
			}
		})
	}
}

// A password is neither shown nor remembered.
func TestHidden(t *testing.T) {
	e := Editor{Prompt: "password: ", Hidden: true}
	shown, lines := typed(&e, "sec\x7fcret\r")
	if shown != "\r\n" || lines[0] != "secret" {
		t.Errorf("shown %q, read %q", shown, lines)
	}
	e.Hidden = false
	if shown, _ := typed(&e, "\x1b[A"); strings.Contains(shown, "secret") {
		t.Errorf("brought back: %q", shown)
	}
}

func TestLineIsBounded(t *testing.T) {
	var e Editor
	for range maxHistory + 3 {
		_, lines := typed(&e, strings.Repeat("ü", maxLine)+string(rune('a'+len(e.history)%26))+"\r")
		if len(lines) != 1 || len(lines[0]) > maxLine {
			t.Fatalf("a line of %d bytes", len(lines[0]))
		}
		if len(e.history) == 0 {
			t.Fatal("not remembered")
		}
		e.history[len(e.history)-1] += "x"
	}
	if len(e.history) != maxHistory {
		t.Errorf("%d lines remembered", len(e.history))
	}
}

func FuzzType(f *testing.F) {
	f.Add([]byte("a\x1b[A\r\xc3"), false)
	f.Fuzz(func(t *testing.T, b []byte, hidden bool) {
		e := Editor{Hidden: hidden}
		_, lines := typed(&e, string(b))
		for _, l := range lines {
			if strings.ContainsFunc(l, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Fatalf("%q", l)
			}
		}
	})
}
