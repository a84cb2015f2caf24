package files

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"gatehouse/appliance/session/wire"
)

type half struct {
	io.Reader
	io.Writer
}

func TestSES4_FramesThatAreRefused(t *testing.T) {
	head := func(k FrameKind, n int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(k)<<24|uint32(n)) }
	for name, b := range map[string][]byte{
		"nothing":               {},
		"half a head":           {'d', 0},
		"cut":                   append(head('d', 5), "four"...),
		"too long":              append(head('d', MaxContent+1), make([]byte, MaxContent+1)...),
		"an error that is none": append(head('x', 2), "[]"...),
	} {
		if k, content, err := NewFrames(half{bytes.NewReader(b), nil}).Read(); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s was read as %q of %d bytes, %v", name, k, len(content), err)
		}
	}
	if err := NewFrames(half{nil, io.Discard}).Say(FrameBegin, Begin{Why: strings.Repeat("x", MaxContent)}); err == nil {
		t.Error("a message longer than a frame was sent")
	}
	var begin Begin
	for name, b := range map[string][]byte{
		"another kind": append(head('d', 2), "{}"...), "progress where none is due": append(head('p', 2), "{}"...),
		"no JSON": append(head('a', 1), '{'), "unknown field": append(head('a', 7), `{"a":1}`...),
	} {
		if err := NewFrames(half{bytes.NewReader(b), nil}).Expect(FrameBegin, &begin, nil); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestSES4_FramesThereAndBack(t *testing.T) {
	var b bytes.Buffer
	f := NewFrames(&b)
	content := bytes.Repeat([]byte("0123456789abcdef"), MaxContent/8)
	if err := errors.Join(f.Write(FrameData, content), f.Write(FrameData, nil), f.Say(FrameProgress, End{Size: 7}), f.Say(FrameBegin, Begin{From: 5, Why: "so"}),
		f.Fail(wire.Refuse(wire.NotFound, "no\x1b[31m")), f.Fail(errors.New("odd"))); err != nil {
		t.Fatal(err)
	}
	var got []byte
	for i, want := range []int{MaxContent, MaxContent, 0} {
		k, c, err := f.Read()
		if err != nil || k != FrameData || len(c) != want {
			t.Fatalf("frame %d: %q, %d bytes, %v", i, k, len(c), err)
		}
		got = append(got, c...)
	}
	var begin Begin
	var done int64
	if err := f.Expect(FrameBegin, &begin, func(n int64) { done = n }); err != nil || begin != (Begin{5, "so"}) || done != 7 || !bytes.Equal(got, content) {
		t.Errorf("%+v, %d, %v", begin, done, err)
	}
	var r *wire.Refusal
	if _, _, err := f.Read(); !errors.As(err, &r) || r.Code != wire.NotFound || strings.ContainsRune(r.Text, 0x1b) {
		t.Errorf("%v", err)
	}
	if _, _, err := f.Read(); !errors.As(err, &r) || r.Code != wire.Failed || r.Text != "odd" {
		t.Errorf("%v", err)
	}
}

func TestSES4_NamesOfParts(t *testing.T) {
	long := strings.Repeat("x", 255)
	seen := map[string]bool{}
	for _, name := range []string{"a", ".a", "a b", long, long[:239], long[:240], "\xff\n"} {
		part := PartName(name)
		if len(part) > 255 || !IsPart(part) || seen[part] || part == name || strings.Contains(part, "/") {
			t.Errorf("%q has the part %q", name, part)
		}
		seen[part] = true
	}
	for _, name := range []string{"a", ".a", "a.gatehouse-part", ""} {
		if IsPart(name) {
			t.Errorf("%q counts as a part", name)
		}
	}
	for size, want := range map[int64]int64{-1: 0, 0: 0, 1: 0, Chunk: 0, Chunk + 1: Chunk, 2 * Chunk: Chunk, 2*Chunk + 1: 2 * Chunk} {
		if got := Whole(size); got != want {
			t.Errorf("of %d bytes %d are trusted, want %d", size, got, want)
		}
	}
}

func TestSES4_ShownNamesAreHarmless(t *testing.T) {
	for name, want := range map[string]string{"plain": "plain", "Grüße": "Grüße", "a\nb": `"a\nb"`, "\x1b[2J": `"\x1b[2J"`, "\xff": `"\xff"`, "\u202ex": `"\u202ex"`} {
		if got := Shown(name); got != want {
			t.Errorf("%q is shown as %s, want %s", name, got, want)
		}
	}
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte("d\x00\x00\x01xz\x00\x00\x02{}"))
	f.Add([]byte("x\x00\x00\x0d{\"error\":\"a\"}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		frames := NewFrames(half{r, nil})
		for {
			before := r.Len()
			_, c, err := frames.Read()
			if len(c) > MaxContent || before == r.Len() && err == nil {
				t.Fatal("a frame out of nothing")
			}
			var refused *wire.Refusal
			if err != nil && !errors.As(err, &refused) {
				return
			}
		}
	})
}
