// Package enroll is what a site and its hub say to each other before a tunnel exists: keys, messages and their authentication.
//
// A site makes an API key; a person carries it to the hub. Neither ever sends
// it. Both derive the same keys of it, and every message is authenticated
// under those, together with the exporter of the TLS connection it travels on
// (RFC 9266's idea, with a label of our own): so the site knows that it talks
// to the hub that was given its key, whatever certificate it shows, and the
// hub knows the site. docs/protocol.md has the shapes and vectors.
//
// The package does no I/O: clock, randomness and connection are handed in.
package enroll

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// Sizes, in bytes.
const (
	keySize      = 32
	idSize       = 64
	macSize      = 128 // 1024 bits, the block of SHA-512: HMAC uses it whole
	requestSize  = 32
	nonceSize    = 32
	exporterSize = 32
)

const (
	alphabet   = "0123456789ABCDEFGHJKMNPQRSTVWXYZ" // Crockford's, without I L O U
	dataChars  = 52                                 // 32 bytes in 5-bit steps, 4 bits zero at the end
	checkChars = 4                                  // 20 bits: a typing error passes once in a million
	group      = 7
)

// APIKey is the secret that a site makes and a person carries to the hub.
type APIKey [keySize]byte

// NewAPIKey makes a key of 32 random bytes.
func NewAPIKey(random io.Reader) (APIKey, error) {
	var k APIKey
	if _, err := io.ReadFull(random, k[:]); err != nil {
		return k, fmt.Errorf("making an API key: %w", err)
	}
	return k, nil
}

// ParseAPIKey reads what Text wrote and a person typed or pasted: case, spaces
// and hyphens do not matter, I and L are 1, O is 0.
func ParseAPIKey(s string) (APIKey, error) {
	var (
		k    APIKey
		bits [dataChars + checkChars]byte
		n    int
	)
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
			return k, errors.New("the API key has a character that no key has: copy it anew")
		}
		if n == len(bits) {
			return k, fmt.Errorf("the API key is too long: it has %d characters without hyphens", len(bits))
		}
		bits[n] = byte(v)
		n++
	}
	if n != len(bits) {
		return k, fmt.Errorf("the API key is too short: it has %d characters without hyphens, not %d", len(bits), n)
	}
	acc, have, out := uint32(0), 0, 0
	for _, v := range bits[:dataChars] {
		acc, have = acc<<5|uint32(v), have+5
		if have >= 8 {
			have -= 8
			k[out] = byte(acc >> have)
			out++
		}
	}
	if want := k.check(); acc&0xF != 0 || subtle.ConstantTimeCompare(want[:], bits[dataChars:]) != 1 {
		return APIKey{}, errors.New("the API key has a typing error: its check characters do not fit")
	}
	return k, nil
}

// Text is the key for people: 8 groups of 7 characters. It is not called
// String, so that no log line prints a key by accident.
func (k APIKey) Text() string {
	var b strings.Builder
	put := func(v byte) {
		if b.Len()%(group+1) == group {
			b.WriteByte('-')
		}
		b.WriteByte(alphabet[v])
	}
	acc, have := uint32(0), 0
	for _, v := range k {
		acc, have = acc<<8|uint32(v), have+8
		for have >= 5 {
			have -= 5
			put(byte(acc>>have) & 31)
		}
	}
	put(byte(acc<<(5-have)) & 31) // the last bit of 256 and four zero bits
	for _, v := range k.check() {
		put(v)
	}
	return b.String()
}

func (k APIKey) check() [checkChars]byte {
	h := sha256.Sum256(append([]byte("gatehouse/site/1 check "), k[:]...))
	v := uint32(h[0])<<12 | uint32(h[1])<<4 | uint32(h[2])>>4
	return [checkChars]byte{byte(v >> 15), byte(v>>10) & 31, byte(v>>5) & 31, byte(v) & 31}
}

// String hides the key from logs and errors.
func (k APIKey) String() string { return "API key (hidden)" }

// LogValue hides the key from slog.
func (k APIKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

// ID is the public name of an API key; it says nothing about the key.
type ID [idSize]byte

// String is the ID in hex, 128 digits.
func (i ID) String() string { return hex.EncodeToString(i[:]) }

// MarshalText writes hex.
func (i ID) MarshalText() ([]byte, error) { return []byte(i.String()), nil }

// UnmarshalText reads 128 lower-case hex digits.
func (i *ID) UnmarshalText(b []byte) error {
	raw, err := hex.DecodeString(string(b))
	if err != nil || len(raw) != idSize || string(b) != hex.EncodeToString(raw) {
		return fmt.Errorf("%w: an id is %d lower-case hex digits", ErrMalformed, 2*idSize)
	}
	copy(i[:], raw)
	return nil
}

// Keys are what both sides derive of an API key. A hub stores these, encrypted,
// never the API key.
type Keys struct {
	ID      ID
	MAC     [macSize]byte     // authenticates enrolment messages
	Request [requestSize]byte // authenticates requests afterwards
}

// String names the keys by their public id.
func (k Keys) String() string { return "keys of site key " + k.ID.String()[:16] }

// LogValue keeps the keys out of slog.
func (k Keys) LogValue() slog.Value { return slog.StringValue(k.String()) }

// Keys derives: HKDF-SHA-512 without salt and one label for each.
func (k APIKey) Keys() (Keys, error) {
	var out Keys
	for _, d := range []struct {
		label string
		into  []byte
	}{
		{"gatehouse/site/1 mac", out.MAC[:]},
		{"gatehouse/site/1 request", out.Request[:]},
	} {
		b, err := hkdf.Key(sha512.New, k[:], nil, d.label, len(d.into))
		if err != nil {
			return Keys{}, fmt.Errorf("deriving the keys of a site: %w", err)
		}
		copy(d.into, b)
	}
	copy(out.ID[:], authenticate(out.MAC[:], "gatehouse/site/1 id", k[:]))
	return out, nil
}

// authenticate is HMAC-SHA-512 over a label and parts, each preceded by its
// length in 8 bytes, so that no two lists of parts give the same input.
func authenticate(key []byte, label string, parts ...[]byte) []byte {
	h := hmac.New(sha512.New, key)
	for _, p := range append([][]byte{[]byte(label)}, parts...) {
		var n [8]byte
		for i := range n {
			n[i] = byte(uint64(len(p)) >> (56 - 8*i))
		}
		h.Write(n[:])
		h.Write(p)
	}
	return h.Sum(nil)
}
