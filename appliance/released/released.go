// Package released is the statement that a box signs before it is erased for somebody else: which box it was, who let it go and when.
//
// It is signed with the key of the audit log's checkpoints, which dies with the
// erase. So it proves that whoever held the box as its owner said so while it
// was whole; it cannot prove that the erase came to its end, which the box says
// at its next start, and in its audit log no more.
package released

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Statement is what the box says. Of the person it has the name alone: it goes
// to whoever buys the box.
type Statement struct {
	Format   int       `json:"format"` // 1
	Box      string    `json:"box"`
	Model    string    `json:"model,omitempty"`
	Serial   string    `json:"serial,omitempty"`
	Released time.Time `json:"released"`
	By       string    `json:"by"`
	Erases   []string  `json:"erases"` // what the erase takes, in words
	Key      []byte    `json:"key"`    // of the box, PKIX
}

// signed is the file.
type signed struct {
	Statement []byte `json:"statement"` // JSON, as it was signed
	Signature []byte `json:"signature"` // ECDSA with SHA-256, ASN.1
}

// MaxSize is the longest file, in bytes.
const MaxSize = 16 << 10

// The same key signs the heads of the audit log: neither can be taken for the other.
const purpose = "gatehouse release statement v1\n"

func digest(statement []byte) [32]byte {
	return sha256.Sum256(append([]byte(purpose), statement...))
}

// Sign makes the file.
func Sign(ctx context.Context, s Statement, key *ecdsa.PublicKey, sign func(context.Context, [32]byte) ([]byte, error)) ([]byte, error) {
	var err error
	if s.Key, err = x509.MarshalPKIXPublicKey(key); err != nil {
		return nil, fmt.Errorf("writing the key of the box: %w", err)
	}
	s.Format = 1
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	signature, err := sign(ctx, digest(text))
	if err != nil {
		return nil, fmt.Errorf("signing the statement: %w", err)
	}
	b, err := json.MarshalIndent(signed{text, signature}, "", "  ")
	return append(b, '\n'), err
}

// ErrNot means that a file is no statement, or not as it was signed.
var ErrNot = errors.New("this is not a statement of a Gatehouse as it was signed")

// Open checks the signature, by the key that the statement itself names: whose
// box that is, is for who compares it with what was noted before.
func Open(file []byte) (s Statement, err error) {
	var f signed
	if len(file) > MaxSize || strict(file, &f) != nil || strict(f.Statement, &s) != nil {
		return Statement{}, ErrNot
	}
	key, err := x509.ParsePKIXPublicKey(s.Key)
	public, ok := key.(*ecdsa.PublicKey)
	sum := digest(f.Statement)
	if err != nil || !ok || s.Format != 1 || !ecdsa.VerifyASN1(public, sum[:], f.Signature) {
		return Statement{}, ErrNot
	}
	return s, nil
}

// Fingerprint is the SHA-256 of the key.
func (s Statement) Fingerprint() string { return fmt.Sprintf("%x", sha256.Sum256(s.Key)) }

func strict(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if d.More() {
		return ErrNot
	}
	return nil
}
