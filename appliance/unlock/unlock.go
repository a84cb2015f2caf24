// Package unlock carries the secret that opens a locked box from a tool to the privileged process, past everybody in between.
//
// The privileged process makes a key pair at each start that is locked. The
// tool is shown its public half and the certificate, and derives words from
// both; the same words stand on the box's own console. Only when the person
// says that they are equal does the tool send anything, and what it sends is
// encrypted to that key and bound to the TLS connection it goes over:
//
//   - somebody in the middle has another certificate, or another key, and so
//     other words: nothing is sent;
//   - the role that serves the page ends TLS and passes on what it cannot read,
//     also if it was taken over: a key of its own would have other words;
//   - what was recorded opens nothing later: the key pair is forgotten when the
//     box opens, restarts, or shows another certificate.
//
// The key pair is made after the certificate is known, so that who chooses the
// certificate cannot look for two pairs with the same words, which would take
// the square root of the tries (docs/decisions/0043-unlock-over-the-network.md).
package unlock

import (
	"crypto/hpke"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"gatehouse/appliance/secret"
	"gatehouse/appliance/setup/proof"
)

// Kind says what a secret is.
type Kind byte

// The kinds of secrets.
const (
	Either     Kind = iota // as typed at the console: whatever it is
	Recovery               // a recovery key
	Passphrase             // the passphrase of the start
)

// Secret is what opens a box.
type Secret struct {
	Kind Kind
	Text []byte
}

// Clear overwrites it.
func (s *Secret) Clear() { clear(s.Text) }

const (
	labelSeal  = "gatehouse unlock v1\x00"
	labelWords = "gatehouse unlock v1 words\x00"

	// MaxText is the longest secret, in bytes.
	MaxText = 1021
	// plainSize is that of every message, so that its length tells nothing: kind,
	// length (2 bytes, big-endian), text, zeroes.
	plainSize   = 3 + MaxText
	bindingSize = 32
)

// Hybrid, like the slots of the header: what is recorded today is not to be
// read by the computers of tomorrow.
func kem() hpke.KEM { return hpke.MLKEM768X25519() }

// Words are the six words of a locked box: of the SHA-256 of its certificate's
// public key, and of the key that secrets are encrypted to.
func Words(spki [32]byte, public []byte) string {
	key := sha256.Sum256(public)
	return proof.Words(sha256.Sum256(slices.Concat([]byte(labelWords), spki[:], key[:])))
}

// Seal encrypts a secret to a box's key, for the connection with this binding
// (proof.Binding) alone.
func Seal(public, binding []byte, s Secret) (sealed []byte, err error) {
	if len(binding) != bindingSize {
		return nil, errors.New("encrypting for the box: the binding is not one")
	}
	if len(s.Text) == 0 || len(s.Text) > MaxText {
		return nil, fmt.Errorf("encrypting for the box: a secret has 1 to %d bytes, this one %d", MaxText, len(s.Text))
	}
	plain := make([]byte, plainSize)
	defer clear(plain)
	plain[0] = byte(s.Kind)
	binary.BigEndian.PutUint16(plain[1:], uint16(len(s.Text)))
	copy(plain[3:], s.Text)
	key, err := kem().NewPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("reading the box's key: %w", err)
	}
	sealed, err = hpke.Seal(key, hpke.HKDFSHA256(), hpke.AES256GCM(), info(binding), plain)
	if err != nil {
		return nil, fmt.Errorf("encrypting for the box: %w", err)
	}
	return sealed, nil
}

func info(binding []byte) []byte { return append([]byte(labelSeal), binding...) }

// Key is the box's half of it. It is used by one goroutine at a time.
type Key struct {
	seed   [32]byte
	public []byte
	closed bool
}

// NewKey makes one.
func NewKey(random io.Reader) (*Key, error) {
	k := &Key{}
	if _, err := io.ReadFull(random, k.seed[:]); err != nil {
		return nil, fmt.Errorf("making the key of the locked state: %w", err)
	}
	var err error
	secret.Do(func() {
		var private hpke.PrivateKey
		if private, err = kem().DeriveKeyPair(k.seed[:]); err == nil {
			k.public = slices.Clone(private.PublicKey().Bytes())
		}
	})
	if err != nil {
		return nil, fmt.Errorf("making the key of the locked state: %w", err)
	}
	return k, nil
}

// Public is what tools encrypt to.
func (k *Key) Public() []byte { return slices.Clone(k.public) }

// Close forgets the private half.
func (k *Key) Close() {
	clear(k.seed[:])
	k.closed = true
}

// ErrNotForUs means that a message was not made for this key and connection.
var ErrNotForUs = errors.New("this was not encrypted for this start of the box and this connection: something stands in between, or the box was started anew meanwhile")

// Open reads what Seal wrote. The caller clears the secret.
func (k *Key) Open(binding, sealed []byte) (s Secret, err error) {
	if k.closed || len(binding) != bindingSize {
		return s, ErrNotForUs
	}
	plain := make([]byte, 0, plainSize)
	defer func() { clear(plain[:cap(plain)]) }()
	secret.Do(func() {
		var private hpke.PrivateKey
		if private, err = kem().DeriveKeyPair(k.seed[:]); err != nil {
			return
		}
		var p []byte
		if p, err = hpke.Open(private, hpke.HKDFSHA256(), hpke.AES256GCM(), info(binding), sealed); err == nil && len(p) == plainSize {
			plain = append(plain, p...)
		}
		clear(p)
	})
	if err != nil {
		return s, ErrNotForUs
	}
	return read(plain)
}

// read takes nothing that Seal would not have written.
func read(plain []byte) (s Secret, err error) {
	malformed := errors.New("what was encrypted for the box is not a secret of the form that this version knows")
	if len(plain) != plainSize {
		return s, malformed
	}
	size := int(binary.BigEndian.Uint16(plain[1:]))
	if kind := Kind(plain[0]); kind > Passphrase || size == 0 || size > MaxText {
		return s, malformed
	}
	for _, b := range plain[3+size:] {
		if b != 0 {
			return s, malformed
		}
	}
	return Secret{Kind(plain[0]), slices.Clone(plain[3 : 3+size])}, nil
}
