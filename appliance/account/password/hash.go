// Package password hashes passwords, judges how strong they are, and refuses the common ones.
package password

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"

	"golang.org/x/crypto/argon2"
)

// Cost of argon2id: OWASP's least (19 MiB, two passes, one lane), which the
// smallest box can pay while it does something else.
const (
	memory  = 19 * 1024 // KiB
	passes  = 2
	lanes   = 1
	saltLen = 16
	keyLen  = 32
)

// ErrBusy means that too many people are signing in at once.
var ErrBusy = errors.New("too many sign-ins at once; try again in a moment")

// A Hasher bounds how many hashes run at once: one for everyone and one for
// browsers that are known, so that strangers in any number cannot keep the
// owner waiting, and so that 200 at once cost 38 MiB and not 3.8 GiB.
type Hasher struct {
	strangers chan struct{} // who is being served
	waiting   chan struct{} // who may wait for it
	known     chan struct{}
	decoy     string
}

// MaxWaiting is how many strangers may wait for their turn; more are sent away.
// Each holds a request of the 64 that the console handles at once: the others
// are for those who are signed in or known.
const MaxWaiting = 32

// NewHasher makes a Hasher.
func NewHasher() *Hasher {
	h := &Hasher{
		strangers: make(chan struct{}, 1),
		waiting:   make(chan struct{}, MaxWaiting),
		known:     make(chan struct{}, 1),
	}
	h.decoy = encode(make([]byte, saltLen), make([]byte, keyLen))
	return h
}

// Make hashes a new password.
func (h *Hasher) Make(ctx context.Context, pw string) (string, error) {
	release, err := h.acquire(ctx, true)
	if err != nil {
		return "", err
	}
	defer release()
	salt := make([]byte, saltLen)
	rand.Read(salt) // never fails, crypto/rand
	return encode(salt, argon2.IDKey([]byte(pw), salt, passes, memory, lanes, keyLen)), nil
}

// Check compares a password with a hash; an empty hash (an unknown person)
// costs the same work and is never right. known marks a browser that this
// person has signed in from before.
func (h *Hasher) Check(ctx context.Context, pw, hash string, known bool) (bool, error) {
	salt, want, err := decode(hash)
	exists := hash != ""
	if !exists {
		salt, want, err = decode(h.decoy)
	}
	if err != nil {
		return false, err
	}
	release, err := h.acquire(ctx, known)
	if err != nil {
		return false, err
	}
	defer release()
	got := argon2.IDKey([]byte(pw), salt, passes, memory, lanes, keyLen)
	return subtle.ConstantTimeCompare(got, want) == 1 && exists, nil
}

func (h *Hasher) acquire(ctx context.Context, known bool) (func(), error) {
	lane := h.known
	leave := func() {}
	if !known {
		lane = h.strangers
		select {
		case h.waiting <- struct{}{}:
			leave = func() { <-h.waiting }
		default:
			return nil, ErrBusy
		}
	}
	select {
	case lane <- struct{}{}:
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
	return func() {
		// The 19 MiB are garbage now. Waiting for the collector would let the
		// next hash take 19 fresh ones, and an idle box keep them.
		debug.FreeOSMemory()
		<-lane
		leave()
	}, nil
}

var b64 = base64.RawStdEncoding

// encode writes the usual string form of argon2 (PHC), so that the cost can be
// raised later for new hashes alone.
func encode(salt, key []byte) string {
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, memory, passes, lanes, b64.EncodeToString(salt), b64.EncodeToString(key))
}

// CheckHash says whether a hash that was made elsewhere is of the one form that
// this program makes: the same cost, a salt and a key of the same length.
func CheckHash(hash string) error {
	if hash == "" {
		return errors.New("there is no hash of a password")
	}
	_, _, err := decode(hash)
	return err
}

// decode takes the one form that encode writes: a hash with another cost was
// not written by this program.
func decode(hash string) (salt, key []byte, err error) {
	rest, ok := strings.CutPrefix(hash, fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$", argon2.Version, memory, passes, lanes))
	s, k, both := strings.Cut(rest, "$")
	if ok && both {
		if salt, err = b64.DecodeString(s); err == nil && len(salt) == saltLen {
			if key, err = b64.DecodeString(k); err == nil && len(key) == keyLen {
				return salt, key, nil
			}
		}
	}
	if hash == "" {
		return nil, nil, nil
	}
	return nil, nil, errors.New("the stored password hash has another form than this version writes")
}

// IsHash says whether text is a hash of the one form that this version writes,
// and so one that costs no more to check than its own.
func IsHash(text string) bool {
	salt, _, err := decode(text)
	return err == nil && salt != nil
}
