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
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"

	"gatehouse/appliance/keytext"
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

// keyText is how an API key is written.
var keyText = keytext.Kind{Name: "API key", Label: "gatehouse/site/1 check "}

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
	k, err := keyText.Parse(s)
	return APIKey(k), err
}

// Text is the key for people: 8 groups of 7 characters. It is not called
// String, so that no log line prints a key by accident.
func (k APIKey) Text() string { return keyText.Format(k) }

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
