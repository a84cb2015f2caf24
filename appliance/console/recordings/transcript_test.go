package recordings

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode"
)

// text gives what the events show, handed over in pieces of n bytes.
func text(t testing.TB, n int, events ...[3]any) (string, error) {
	t.Helper()
	cast := "{\"version\":2,\"width\":80,\"height\":24,\"title\":\"never shown\"}\n"
	for _, e := range events {
		b, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		cast += string(b) + "\n"
	}
	var b strings.Builder
	tr := &transcript{to: &b}
	for len(cast) > 0 {
		k := min(n, len(cast))
		if _, err := tr.Write([]byte(cast[:k])); err != nil {
			return b.String(), err
		}
		cast = cast[k:]
	}
	tr.end(nil)
	return b.String(), nil
}

func TestSES9_TranscriptIsBounded(t *testing.T) {
	var many [][3]any
	for range 300 {
		many = append(many, [3]any{1, "o", strings.Repeat("x", 5000)})
	}
	got, err := text(t, 1<<16, many...)
	if err != nil || len(got) > mostText+100 || !strings.HasSuffix(got, "The download has the whole.\n") {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	tr := &transcript{to: &strings.Builder{}}
	endless := []byte(strings.Repeat("x", 1<<16))
	for range 2 * mostEvent / len(endless) {
		if _, err = tr.Write(endless); err != nil {
			break
		}
	}
	if err == nil || len(tr.rest) > mostEvent {
		t.Errorf("an event without an end: %v, %d bytes are held", err, len(tr.rest))
	}
	if _, err := text(t, 10, [3]any{"x", 1, nil}); err == nil {
		t.Error("what is no event was taken")
	}
}

func TestSES9_TranscriptReadsSequences(t *testing.T) {
	for shown, want := range map[string]string{
		"\x1b[1;31mred\x1b[0m":          "red",
		"\x1b]0;title\x07a":             "a",
		"\x1b]2;title\x1b\\a":           "a",
		"\x1bP1$r0m\x1b\\a":             "a",
		"\x1b(B\x1b)0a\x1b=b\x1b>":      "ab",
		"abc\rx":                        "xbc",
		"ab\b\bx":                       "xb",
		"one\x1b[2;1Htwo":               "one|two",
		"one\x1b[2Jtwo":                 "one|two",
		"a\x00\x01\x7f\u202eb\u200dc":   "abc",
		"\t a":                          "  a",
		"\x1b[\x1b[31mb":                "b",
		"\x1b]8;;javascript:x\x1b\\l\n": "l",
	} {
		for _, n := range []int{1, 7, 1000} {
			got, err := text(t, n, [3]any{61.5, "o", shown})
			got = strings.ReplaceAll(strings.ReplaceAll(strings.TrimSuffix(got, "\n"), "\n", "|"), "1:01  ", "")
			if err != nil || got != want {
				t.Errorf("%q in pieces of %d: %q, %v; want %q", shown, n, got, err, want)
			}
		}
	}
	if got, _ := text(t, 9, [3]any{1, "o", "split \x1b"}, [3]any{2, "o", "[31mhere"}); got != "0:02  split here\n" {
		t.Errorf("%q", got)
	}
	if got, _ := text(t, 9); got != "Nothing was shown.\n" {
		t.Errorf("%q", got)
	}
	var b strings.Builder
	tr := &transcript{to: &b}
	tr.end(errors.New("why\x1b[31m"))
	if b.String() != "0:00  The recording cannot be read further: why[31m\n" {
		t.Errorf("%q", b.String())
	}
}

func FuzzTranscript(f *testing.F) {
	for _, s := range []string{"{}\n[1,\"o\",\"\x1b[31ma\"]\n", "{}\n[1,\"m\",\"\\u001b\"]\n[2,\"o\",\"x\"]", "\n\n\n", "{}\n[-1e300,\"o\",\"\\r\\b\\t\"]\n"} {
		f.Add([]byte(s), 3)
	}
	f.Fuzz(func(t *testing.T, cast []byte, n int) {
		var b strings.Builder
		tr := &transcript{to: &b}
		for n = max(1, n); len(cast) > 0; {
			k := min(n, len(cast))
			if _, err := tr.Write(cast[:k]); err != nil {
				break
			}
			cast = cast[k:]
		}
		tr.end(nil)
		if b.Len() > mostText+200 {
			t.Errorf("%d bytes", b.Len())
		}
		if i := strings.IndexFunc(b.String(), func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("%q comes through", b.String()[i:min(b.Len(), i+8)])
		}
	})
}
