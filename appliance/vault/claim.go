package vault

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
)

// MetaSize is the size of META in bytes.
const MetaSize = 4 << 20

// A verifier of a claim code, as written at flashing: magic, salt, key, and
// the SHA-256 of these. It is no secret of the box's: it is there before the
// box has any, and gone once the box is claimed.
const verifierMagic = "GHCLAIM1"

const verifierSize = len(verifierMagic) + 16 + 32

// ReadClaimVerifier reads the verifier of a claim code that was set at
// flashing; ok is false if none was. A damaged one is an error: the box is
// then claimed by a code of its own, shown at its console.
func ReadClaimVerifier(dev Device) (salt [16]byte, key [32]byte, ok bool, err error) {
	buf := make([]byte, verifierSize+sha256.Size)
	if n, err := dev.ReadAt(buf, verifierAt); err != nil && (!errors.Is(err, io.EOF) || n != len(buf)) {
		return salt, key, false, fmt.Errorf("reading the claim code's verifier in META: %w", err)
	}
	if isBlank(buf) {
		return salt, key, false, nil
	}
	sum := sha256.Sum256(buf[:verifierSize])
	if !bytes.HasPrefix(buf, []byte(verifierMagic)) || !bytes.Equal(sum[:], buf[verifierSize:]) {
		return salt, key, false, errors.New("the claim code's verifier in META is damaged: use the code at the console, or set one anew by flashing")
	}
	copy(salt[:], buf[len(verifierMagic):])
	copy(key[:], buf[len(verifierMagic)+16:])
	return salt, key, true, nil
}

// WriteClaimVerifier keeps the verifier of a claim code.
func WriteClaimVerifier(dev Device, salt [16]byte, key [32]byte) error {
	buf := append([]byte(verifierMagic), salt[:]...)
	buf = append(buf, key[:]...)
	sum := sha256.Sum256(buf)
	if err := writeBlocks(dev, verifierAt, append(buf, sum[:]...)); err != nil {
		return fmt.Errorf("writing the claim code's verifier to META: %w", err)
	}
	return nil
}

// ClearClaimVerifier forgets it.
func ClearClaimVerifier(dev Device) error {
	if err := writeBlocks(dev, verifierAt, make([]byte, blockSize)); err != nil {
		return fmt.Errorf("clearing the claim code's verifier in META: %w", err)
	}
	return nil
}

// Unwritten says that no box keeps keys in META yet: none was started from this
// disk as far as its first commit.
func Unwritten(dev Device) (bool, error) {
	p, err := readPages(dev)
	if err != nil {
		return false, err
	}
	return p.unwritten(), nil
}
