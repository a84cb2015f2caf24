package slot

import (
	"bytes"
	"strings"
	"testing"
)

func TestDefaultRefusesWhatConfigDoesNotWrite(t *testing.T) {
	good := Config(A)
	for name, bad := range map[string][]byte{
		"empty":      nil,
		"short":      good[:511],
		"long":       append(bytes.Clone(good), '\n'),
		"noise":      bytes.Repeat([]byte{0xA5}, SectorSize),
		"zeroes":     make([]byte, SectorSize),
		"editor":     bytes.Replace(good, []byte("editor no"), []byte("editor ye"), 1),
		"third slot": bytes.Replace(good, []byte("-a.efi"), []byte("-c.efi"), 1),
		"torn":       append(bytes.Clone(good[:300]), make([]byte, SectorSize-300)...),
	} {
		if s, err := Default(bad); err == nil {
			t.Errorf("%s: read as slot %c", name, s)
		}
	}
}

func TestConfigIsOneSectorAndReadsBack(t *testing.T) {
	for _, s := range []Slot{A, B} {
		c := Config(s)
		if len(c) != SectorSize {
			t.Errorf("configuration of slot %c has %d bytes", s, len(c))
		}
		if !strings.HasPrefix(string(c), "default "+s.Entry()+"\n") || !strings.Contains(string(c), "editor no\n") {
			t.Errorf("configuration of slot %c: %q", s, strings.TrimRight(string(c), "\n"))
		}
		if got, err := Default(c); err != nil || got != s {
			t.Errorf("Default of slot %c's configuration = %c, %v", s, got, err)
		}
		if s.Other() == s || s.Other().Other() != s {
			t.Errorf("the other slot of %c is %c", s, s.Other())
		}
	}
}

func FuzzDefault(f *testing.F) {
	f.Add(Config(A))
	f.Add(Config(B))
	f.Add([]byte("default gatehouse-a.efi\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := Default(b); err == nil && !bytes.Equal(b, Config(s)) {
			t.Errorf("took %q for slot %c", b, s)
		}
	})
}
