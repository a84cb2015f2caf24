package proof

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// alphabet is Crockford's base 32: digits and letters without I, L, O and U.
const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// symbols is the length of a code; each carries 5 bits, 60 in all.
const symbols = 12

// A Code is the claim code: 12 symbols that stand at the box and nowhere else.
// The zero Code is no code: Derive refuses it by a panic, since a verifier
// made of it could be answered by anyone.
type Code struct{ text string }

// NewCode draws a code from a source of random bytes. 256 is a multiple of
// 32, so the low five bits of a byte are unbiased.
func NewCode(rand io.Reader) (Code, error) {
	var b [symbols]byte
	if _, err := io.ReadFull(rand, b[:]); err != nil {
		return Code{}, fmt.Errorf("drawing a claim code: %w", err)
	}
	for i := range b {
		b[i] = alphabet[b[i]&31]
	}
	return Code{string(b[:])}, nil
}

// ParseCode reads a code as a person types it: case does not matter, hyphens
// and white space are passed over, O is read as 0, I and L as 1.
func ParseCode(s string) (Code, error) {
	var b strings.Builder
	// A person's slip is a few symbols long; a megabyte is not a slip.
	if len(s) > 64 {
		return Code{}, fmt.Errorf("the claim code has %d symbols, not %d bytes: copy it as the console shows it, like 7K2M-QX9D-4TBH", symbols, len(s))
	}
	for _, r := range s {
		switch {
		case r == '-' || r == ' ' || r == '\t' || r == '\r' || r == '\n':
			continue
		case 'a' <= r && r <= 'z':
			r -= 'a' - 'A'
		}
		switch r {
		case 'O':
			r = '0'
		case 'I', 'L':
			r = '1'
		}
		if r > 0x7e || !strings.ContainsRune(alphabet, r) {
			return Code{}, fmt.Errorf("%q does not occur in a claim code: it has digits and letters, none of them U, like 7K2M-QX9D-4TBH", r)
		}
		b.WriteRune(r)
	}
	if b.Len() != symbols {
		return Code{}, fmt.Errorf("a claim code has %d symbols, this one has %d: compare it with the console", symbols, b.Len())
	}
	return Code{b.String()}, nil
}

// String returns the code as the console shows it, 7K2M-QX9D-4TBH; "" for the zero Code.
func (c Code) String() string {
	if c.text == "" {
		return ""
	}
	return c.text[:4] + "-" + c.text[4:8] + "-" + c.text[8:]
}

// LogValue keeps a code out of logs.
func (c Code) LogValue() slog.Value { return slog.StringValue("claim code") }
