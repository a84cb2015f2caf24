package onetime

import (
	"crypto/rand"
	"fmt"
	"strings"
)

// RecoveryCodes is how many a person gets.
const RecoveryCodes = 10

// alphabet is Crockford's base 32: no I, L, O or U.
const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// NewRecoveryCode draws a code of 80 bits, so that a fast hash of it is enough
// to store: nobody tries 2^80.
func NewRecoveryCode() string {
	b := make([]byte, 16)
	rand.Read(b)
	var s strings.Builder
	for i, c := range b {
		if i > 0 && i%4 == 0 {
			s.WriteByte('-')
		}
		s.WriteByte(alphabet[c&31])
	}
	return s.String()
}

// ParseRecoveryCode reads a code as a person types it and returns it as
// NewRecoveryCode writes it.
func ParseRecoveryCode(typed string) (string, error) {
	var s strings.Builder
	n := 0
	for _, r := range strings.ToUpper(typed) {
		switch r {
		case ' ', '-', '\t':
			continue
		case 'O':
			r = '0'
		case 'I', 'L':
			r = '1'
		}
		if !strings.ContainsRune(alphabet, r) {
			return "", fmt.Errorf("a recovery code has no %q in it", r)
		}
		if n > 0 && n%4 == 0 {
			s.WriteByte('-')
		}
		s.WriteRune(r)
		n++
	}
	if n != 16 {
		return "", fmt.Errorf("a recovery code has 16 letters and digits, this has %d", n)
	}
	return s.String(), nil
}
