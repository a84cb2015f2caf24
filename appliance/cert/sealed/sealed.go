// Package sealed keeps one small secret in a file, encrypted under a subkey of the data key.
//
// The file is the version byte 1, a 12-byte nonce, and the secret under
// AES-256-GCM, with the purpose as additional data, so that one file cannot
// take another's place. Each write has a new random nonce; these files are
// written a few times in their life, far from the 2^32 of NIST SP 800-38D.
package sealed

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"

	"gatehouse/appliance/durable"
)

// MaxSecret is the largest secret, in bytes.
const MaxSecret = 64 << 10

const (
	version  = 1
	overhead = 1 + 12 + 16
)

// ErrDamaged means that a file is there and does not open: it was changed, or
// belongs to another box or an earlier life of this one.
var ErrDamaged = errors.New("the file does not open with this box's key")

// Read opens the file at path. A missing file is fs.ErrNotExist; any other
// failure must not be taken as one.
func Read(path string, key []byte, purpose string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading a sealed file: %w", err)
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("reading %s: it is not a regular file (%w)", path, errors.Join(err, ErrDamaged))
	}
	b, err := io.ReadAll(io.LimitReader(f, MaxSecret+overhead+1))
	if err != nil {
		return nil, fmt.Errorf("reading a sealed file: %w", err)
	}
	secret, err := open(b, key, purpose)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return secret, nil
}

func open(b, key []byte, purpose string) ([]byte, error) {
	aead, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	if len(b) < overhead || len(b) > MaxSecret+overhead || b[0] != version {
		return nil, fmt.Errorf("%w: its shape is wrong (%d bytes)", ErrDamaged, len(b))
	}
	secret, err := aead.Open(nil, b[1:13], b[13:], []byte(purpose))
	if err != nil {
		return nil, ErrDamaged
	}
	return secret, nil
}

// Write replaces the file at path, mode 0600, so that a power cut leaves the
// old one or the new one.
func Write(path string, key []byte, purpose string, secret []byte) error {
	if len(secret) > MaxSecret {
		return fmt.Errorf("sealing %s: %d bytes, the limit is %d", path, len(secret), MaxSecret)
	}
	aead, err := newAEAD(key)
	if err != nil {
		return err
	}
	b := make([]byte, 13, overhead+len(secret))
	b[0] = version
	if _, err := rand.Read(b[1:]); err != nil {
		return fmt.Errorf("sealing %s: %w", path, err)
	}
	return durable.WriteFile(path, aead.Seal(b, b[1:13], secret, []byte(purpose)), 0o600)
}

func newAEAD(key []byte) (cipher.AEAD, error) {
	if len(key) != 32 {
		return nil, fmt.Errorf("a sealed file needs a key of 32 bytes, this one has %d", len(key))
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
