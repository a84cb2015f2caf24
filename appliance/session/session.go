// Package session is what a session is made of before any byte of it flows: who may reach what, until when, and the tickets that a gateway lets its two ends in by.
//
// The organisation's key signs a Grant for the two ends and a Ticket for each of
// them to show at the gateway. A gateway sees tickets alone: not who works on
// what, and no key with which it could stand between. Both are read in one form
// only, so that no byte of them can be changed unseen. docs/sessions.md has the
// shapes and vectors.
//
// The package does no I/O: clock, randomness and keys are handed in.
package session

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Why a grant or a ticket is refused. Errors of this package wrap one of these.
var (
	ErrMalformed = errors.New("it is malformed")
	ErrVersion   = errors.New("it is of another version of the protocol")
	ErrSignature = errors.New("it was not signed by the organisation")
	ErrNotYet    = errors.New("it is not valid yet")
	ErrExpired   = errors.New("it is not valid any more")
	ErrOther     = errors.New("it is for another session or another key")
)

// Version of grants and tickets.
const Version = 1

// Limits of what is signed.
const (
	MaxGrant    = 8 << 10         // bytes
	MaxTicket   = 1 << 10         // bytes
	MaxLife     = 24 * time.Hour  // of a grant
	MaxWait     = 5 * time.Minute // of a ticket: to arrive at the gateway, not to stay
	maxGateways = 8
	maxName     = 128     // bytes of a name that people read
	maxRecordTo = 2 << 10 // bytes: a hybrid key has 1216
)

// ID names one session, or one meeting of its ends at a gateway: 128 random bits, used once.
type ID [16]byte

// NewID reads one.
func NewID(random io.Reader) (ID, error) {
	var id ID
	if _, err := io.ReadFull(random, id[:]); err != nil {
		return id, fmt.Errorf("making a session id: %w", err)
	}
	return id, nil
}

// String is the id in 32 lower-case hex digits, as logs and the audit show it.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText writes String.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads String.
func (id *ID) UnmarshalText(b []byte) error { return unhex(id[:], b, "a session id") }

// Key is the SHA-256 of an end's public key (DER, PKIX), by which it is pinned.
type Key [sha256.Size]byte

// KeyOf is the key of a certificate. Nothing else of the certificate counts.
func KeyOf(c *x509.Certificate) Key { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

// PeerKey is the key that the other end of a TLS connection has proved to hold.
func PeerKey(cs tls.ConnectionState) (Key, error) {
	if !cs.HandshakeComplete || len(cs.PeerCertificates) == 0 {
		return Key{}, fmt.Errorf("%w: the other end showed no key", ErrOther)
	}
	return KeyOf(cs.PeerCertificates[0]), nil
}

// String is the key in 64 lower-case hex digits.
func (k Key) String() string { return hex.EncodeToString(k[:]) }

// MarshalText writes String.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads String.
func (k *Key) UnmarshalText(b []byte) error { return unhex(k[:], b, "a key") }

func unhex(to, from []byte, what string) error {
	if len(from) != hex.EncodedLen(len(to)) || bytes.ContainsAny(from, "ABCDEF") {
		return fmt.Errorf("%w: %s is %d lower-case hex digits", ErrMalformed, what, hex.EncodedLen(len(to)))
	}
	if _, err := hex.Decode(to, from); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrMalformed, what, err)
	}
	return nil
}

// signed is the outer form: the signature is over label, a zero byte and the
// bytes of Message, and nothing of them is read before it is checked.
type signed struct {
	Message   []byte `json:"message"`
	Signature []byte `json:"signature"`
}

func sign(key ed25519.PrivateKey, label string, limit int, v any) ([]byte, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("signing: the organisation's key has %d bytes, want %d", len(key), ed25519.PrivateKeySize)
	}
	m, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	b, err := json.Marshal(signed{m, ed25519.Sign(key, labelled(label, m))})
	if err == nil && len(b) > limit {
		err = fmt.Errorf("%w: %d bytes, the limit is %d", ErrMalformed, len(b), limit)
	}
	return b, err
}

func labelled(label string, m []byte) []byte {
	return append(append(append(make([]byte, 0, len(label)+1+len(m)), label...), 0), m...)
}

// open checks the signature and reads v, in its one form.
func open(key ed25519.PublicKey, label string, limit int, b []byte, v any) error {
	if len(key) != ed25519.PublicKeySize {
		return fmt.Errorf("the organisation's public key has %d bytes, want %d", len(key), ed25519.PublicKeySize)
	}
	if len(b) > limit {
		return fmt.Errorf("%w: %d bytes, the limit is %d", ErrMalformed, len(b), limit)
	}
	var s signed
	if err := exact(b, &s); err != nil {
		return err
	}
	if !ed25519.Verify(key, labelled(label, s.Message), s.Signature) {
		return ErrSignature
	}
	var version struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(s.Message, &version); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if version.Version != Version {
		return fmt.Errorf("%w: %d, here %d", ErrVersion, version.Version, Version)
	}
	return exact(s.Message, v)
}

// exact reads one JSON value that is written as this package would write it:
// JSON has many spellings of one value, and only one of them was signed.
func exact(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if again, err := json.Marshal(v); err != nil || !bytes.Equal(again, b) {
		return fmt.Errorf("%w: it is not in its one form", ErrMalformed)
	}
	return nil
}

// within judges a span of time; both ends of it count.
func within(now, from, until time.Time) error {
	switch {
	case now.Before(from):
		return fmt.Errorf("%w: from %s, the clock here says %s", ErrNotYet, from.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case now.After(until):
		return fmt.Errorf("%w: until %s, the clock here says %s", ErrExpired, until.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// Transport is what the two ends speak with each other.
type Transport string

// With TLS the keys of the ends are those of their public keys. With WebRTC
// they are the SHA-256 of the certificates (DER): a browser knows no other
// (a=fingerprint of RFC 8122).
const (
	TLS    Transport = "tls"
	WebRTC Transport = "webrtc"
)
