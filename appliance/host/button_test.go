package host

import (
	"bytes"
	"encoding/binary"
	"testing"
)

func TestHasPowerKey(t *testing.T) {
	for bits, want := range map[string]bool{
		"":                      false,
		"garbage":               false,
		"0":                     false,
		"10000000000000":        false, // bit 52 of the first word is key 52
		"10000000000000 0":      true,  // bit 52 of the second word is key 116
		"1 10000000000000 0":    true,
		"1f 0 ffffffffffffffff": false,
		"zz 0":                  false,
	} {
		if got := hasPowerKey(bits); got != want {
			t.Errorf("hasPowerKey(%q) = %v, want %v", bits, got, want)
		}
	}
}

func TestReadPresses(t *testing.T) {
	event := func(kind, code uint16, value uint32) []byte {
		b := make([]byte, 16)
		b = binary.NativeEndian.AppendUint16(b, kind)
		b = binary.NativeEndian.AppendUint16(b, code)
		return binary.NativeEndian.AppendUint32(b, value)
	}
	n := 0
	err := readPresses(bytes.NewReader(bytes.Join([][]byte{
		event(0, 0, 0), event(1, 30, 1), event(1, 116, 0), event(1, 116, 2), event(2, 116, 1), // not a press of it
		event(1, 116, 1), event(0, 0, 0)[:10],
	}, nil)), func() { n++ })
	if n != 1 || err == nil {
		t.Errorf("%d presses, error %v; want one, and the end told", n, err)
	}
}
