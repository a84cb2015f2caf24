package keytext

import (
	"strings"
	"testing"
)

var kind = Kind{Name: "test key", Label: "gatehouse/test check "}

func TestParseRefusesWhatWasMistyped(t *testing.T) {
	text := kind.Format([32]byte{1, 2, 3, 31: 0xFF})
	other := Kind{Name: "other key", Label: "gatehouse/other check "}
	if _, err := other.Parse(text); err == nil {
		t.Error("a key of another kind is accepted")
	}
	for name, s := range map[string]string{
		"empty": "", "short": text[:len(text)-1], "long": text + "0", "letter that no key has": "U" + text[1:],
	} {
		if _, err := kind.Parse(s); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for i, r := range text {
		if r == '-' {
			continue
		}
		wrong := "0"
		if r == '0' {
			wrong = "1"
		}
		if _, err := kind.Parse(text[:i] + wrong + text[i+1:]); err == nil {
			t.Errorf("character %d mistyped: accepted", i)
		}
	}
}

func TestParseTakesWhatPeopleType(t *testing.T) {
	key := [32]byte{0: 8, 5: 0x42, 31: 1}
	text := kind.Format(key)
	if parts := strings.Split(text, "-"); len(parts) != 8 || len(parts[7]) != Group {
		t.Fatalf("Format = %s", text)
	}
	typed := strings.NewReplacer("1", "l", "0", "o", "-", " ").Replace(strings.ToLower(text))
	got, err := kind.Parse(typed)
	if err != nil || got != key {
		t.Errorf("Parse(%q) = %x, %v", typed, got, err)
	}
	if n, err := kind.Normal(typed); err != nil || n != strings.ReplaceAll(text, "-", "") {
		t.Errorf("Normal = %q, %v", n, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(kind.Format([32]byte{7}))
	f.Fuzz(func(t *testing.T, s string) {
		key, err := kind.Parse(s)
		if err != nil {
			return
		}
		n, err := kind.Normal(s)
		if err != nil || strings.ReplaceAll(kind.Format(key), "-", "") != n {
			t.Fatalf("%q is accepted and means %x", s, key)
		}
	})
}
