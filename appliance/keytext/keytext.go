// Package keytext writes 32-byte keys as text that a person can type, with check characters that find typing errors.
package keytext

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"strings"
)

const (
	alphabet   = "0123456789ABCDEFGHJKMNPQRSTVWXYZ" // Crockford's, without I L O U
	dataChars  = 52                                 // 32 bytes in 5-bit steps, 4 bits zero at the end
	checkChars = 4                                  // 20 bits: a typing error passes once in a million
	// Group is how many characters stand between two hyphens; there are eight groups.
	Group = 7
)

// Kind is what a key is for. The check characters depend on its label, so that
// a key of one kind typed in the place of another is refused.
type Kind struct {
	Name  string // in errors: "API key"
	Label string // never changed: it is in every key that was written down
}

// Recovery is how a recovery key is written down.
var Recovery = Kind{Name: "recovery key", Label: "gatehouse/recovery/1 check "}

// Format writes the key in eight groups of seven characters.
func (k Kind) Format(key [32]byte) string {
	var b strings.Builder
	put := func(v byte) {
		if b.Len()%(Group+1) == Group {
			b.WriteByte('-')
		}
		b.WriteByte(alphabet[v])
	}
	acc, have := uint32(0), 0
	for _, v := range key {
		acc, have = acc<<8|uint32(v), have+8
		for have >= 5 {
			have -= 5
			put(byte(acc>>have) & 31)
		}
	}
	put(byte(acc<<(5-have)) & 31) // the last bit of 256 and four zero bits
	for _, v := range k.check(key) {
		put(v)
	}
	return b.String()
}

// Parse reads what Format wrote and a person typed or pasted: case, spaces and
// hyphens do not matter, I and L are 1, O is 0.
func (k Kind) Parse(s string) (key [32]byte, err error) {
	values, err := k.values(s)
	if err != nil {
		return key, err
	}
	if len(values) != dataChars+checkChars {
		return key, fmt.Errorf("the %s is too short: it has %d characters without hyphens, not %d", k.Name, dataChars+checkChars, len(values))
	}
	acc, have, out := uint32(0), 0, 0
	for _, v := range values[:dataChars] {
		acc, have = acc<<5|uint32(v), have+5
		if have >= 8 {
			have -= 8
			key[out] = byte(acc >> have)
			out++
		}
	}
	if want := k.check(key); acc&0xF != 0 || subtle.ConstantTimeCompare(want[:], values[dataChars:]) != 1 {
		return [32]byte{}, fmt.Errorf("the %s has a typing error: its check characters do not fit", k.Name)
	}
	return key, nil
}

// Normal is typed text as Format would write it, without hyphens.
func (k Kind) Normal(s string) (string, error) {
	values, err := k.values(s)
	if err != nil {
		return "", err
	}
	out := make([]byte, len(values))
	for i, v := range values {
		out[i] = alphabet[v]
	}
	return string(out), nil
}

func (k Kind) values(s string) ([]byte, error) {
	var values []byte
	for _, r := range strings.ToUpper(s) {
		switch r {
		case '-', ' ', '\t', '\r', '\n':
			continue
		case 'I', 'L':
			r = '1'
		case 'O':
			r = '0'
		}
		v := strings.IndexRune(alphabet, r)
		if v < 0 {
			return nil, fmt.Errorf("the %s has a character that no key has: copy it anew", k.Name)
		}
		if len(values) == dataChars+checkChars {
			return nil, fmt.Errorf("the %s is too long: it has %d characters without hyphens", k.Name, dataChars+checkChars)
		}
		values = append(values, byte(v))
	}
	return values, nil
}

func (k Kind) check(key [32]byte) [checkChars]byte {
	h := sha256.Sum256(append([]byte(k.Label), key[:]...))
	v := uint32(h[0])<<12 | uint32(h[1])<<4 | uint32(h[2])>>4
	return [checkChars]byte{byte(v >> 15), byte(v>>10) & 31, byte(v>>5) & 31, byte(v) & 31}
}
