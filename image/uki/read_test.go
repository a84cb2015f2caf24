package uki

import (
	"bytes"
	"strings"
	"testing"
)

func TestBOX4_SectionsAreReadBack(t *testing.T) {
	sections := []Section{{".linux", []byte("kernel")}, {".initrd", bytes.Repeat([]byte("i"), 1000)}, {".cmdline", []byte("quiet")}}
	whole, err := Assemble(stub(), sections)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Read(whole)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 5 || got[0].Name != ".text" {
		t.Fatalf("%d sections, the first is %s", len(got), got[0].Name)
	}
	for i, want := range sections {
		if s := got[2+i]; s.Name != want.Name || !bytes.Equal(s.Content, want.Content) {
			t.Errorf("%s of %d bytes, want %s of %d", s.Name, len(s.Content), want.Name, len(want.Content))
		}
	}
	for name, bad := range map[string][]byte{
		"a name twice":             bytes.Replace(whole, []byte(".initrd\x00"), []byte(".linux\x00\x00"), 1),
		"nothing":                  nil,
		"a section beyond its end": whole[:len(whole)-600],
		"no program":               []byte(strings.Repeat("x", 4096)),
	} {
		if _, err := Read(bad); err == nil {
			t.Errorf("%s: read", name)
		}
	}
}
