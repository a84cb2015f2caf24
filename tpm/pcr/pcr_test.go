package pcr

import (
	"bytes"
	"encoding/hex"
	"testing"
)

func TestMeasuredRefusesUnusedRegisters(t *testing.T) {
	good := [Size]byte{1}
	for name, v := range map[string]Values{
		"absent":   {15: good},
		"all zero": {7: {}},
		"all ones": {7: [Size]byte(bytes.Repeat([]byte{0xFF}, Size))},
	} {
		if v.Measured(7) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := (Values{7: good}).Measured(7); err != nil {
		t.Error(err)
	}
}

func TestSelection(t *testing.T) {
	s := Select(15, 7)
	if got := s.Bitmap(); !bytes.Equal(got, []byte{0x80, 0x80, 0}) {
		t.Errorf("Bitmap = %x", got)
	}
	if s.String() != "7+15" || !s.Has(7) || s.Has(8) || s.Has(-1) || s.Has(99) {
		t.Errorf("%v", s)
	}
	for s, want := range map[Selection]bool{0: false, 1: true, 1 << 23: true, 1 << 24: false} {
		if s.Valid() != want {
			t.Errorf("Valid(%x) = %v", uint32(s), !want)
		}
	}
}

// The digests themselves are compared with a TPM by the tests of package tpm,
// each time they unseal.
func TestPolicy(t *testing.T) {
	got := Policy(Values{7: {}, 15: {}})
	want := Policy(Values{15: {}, 7: {}})
	if got != want {
		t.Error("the order of a map decides the policy")
	}
	for name, v := range map[string]Values{
		"other value":    {7: {1}, 15: {}},
		"swapped":        {7: {}, 15: {1}},
		"other register": {7: {}, 14: {}},
		"fewer":          {7: {}},
	} {
		if Policy(v) == got {
			t.Errorf("%s: the same policy", name)
		}
	}
}

func TestChanges(t *testing.T) {
	old := Values{7: {1}, 15: {}}
	if c := Changes(old, Values{7: {1}, 15: {}}); c != nil {
		t.Errorf("Changes = %v, want none", c)
	}
	c := Changes(old, Values{7: {2}, 15: {3}})
	if len(c) != 2 || c[0].Index != 7 || c[0].Old != old[7] || c[1].Index != 15 || c[1].New != ([Size]byte{3}) {
		t.Errorf("Changes = %v", c)
	}
	if c := Changes(old, Values{}); len(c) != 1 || c[0].Index != 7 {
		t.Errorf("Changes with a bank that is gone = %v, want PCR 7", c)
	}
}

func TestExtend(t *testing.T) {
	// SHA-256 of 64 zero bytes.
	got := Extend([Size]byte{}, [Size]byte{})
	if hex.EncodeToString(got[:]) != "f5a5fd42d16a20302798ef6ed309979b43003d2320d9f0e8ea9831a92759fb4b" {
		t.Errorf("Extend = %x", got)
	}
}
