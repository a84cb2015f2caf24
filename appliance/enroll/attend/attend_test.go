package attend

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"gatehouse/appliance/session"
)

func TestSES1_LinesThatAreRefused(t *testing.T) {
	for name, line := range map[string]string{
		"no line":       "{}",
		"no JSON":       "hello\n",
		"unknown field": "{\"root\":true}\n",
		"a wrong id":    "{\"end\":{\"session\":\"xyz\",\"reason\":\"\"}}\n",
		"without end":   strings.Repeat(" ", MaxLine+1) + "{}\n",
	} {
		var m ToSite
		if err := Read(NewReader(strings.NewReader(line)), &m); err == nil {
			t.Errorf("%s was read as %+v", name, m)
		}
	}
	if err := Write(io.Discard, FromSite{Event: &Event{Text: strings.Repeat("x", MaxLine)}}); err == nil {
		t.Error("a line over the limit was written")
	}
	if err := Write(io.Discard, FromSite{Chunk: &Chunk{Bytes: make([]byte, MaxChunk)}}); err != nil {
		t.Errorf("the largest part of a recording does not fit into a line: %v", err)
	}
}

// FuzzRead: lines of a site, and of a hub.
func FuzzRead(f *testing.F) {
	for _, m := range []any{ToSite{}, ToSite{End: &End{Session: session.ID{1}, Reason: "over"}}, FromSite{Hello: &Hello{}}, FromSite{Chunk: &Chunk{Bytes: []byte("x")}}} {
		var b bytes.Buffer
		if err := Write(&b, m); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, z := NewReader(bytes.NewReader(b)), NewReader(bytes.NewReader(b))
		for range 100 {
			var to ToSite
			var from FromSite
			if errA, errZ := Read(a, &to), Read(z, &from); errors.Join(errA, errZ) != nil {
				return
			}
		}
	})
}
