package portable

import (
	"bytes"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"filippo.io/age"
)

// Work factors of scrypt, as powers of two: 15 takes 32 MB and the better part
// of a second on a small box. age itself writes 18, for which a box of 256 MB has
// no memory; what would take more than 64 MB is not begun.
const (
	workFactor    = 15
	maxWorkFactor = 16
)

// LeastPassphrase is how many characters one has: the file may lie anywhere, and
// be tried at leisure.
const LeastPassphrase = 12

// Passphrase is who knows it.
func Passphrase(text string) ([]age.Recipient, error) {
	if len([]rune(text)) < LeastPassphrase || len(text) > 1024 {
		return nil, refuse("A passphrase for an export has %d characters or more: whoever gets the file can try at leisure.", LeastPassphrase)
	}
	r, err := age.NewScryptRecipient(text)
	if err != nil {
		return nil, err
	}
	r.SetWorkFactor(workFactor)
	return []age.Recipient{r}, nil
}

// Recipients are those who have the secret half of a key that begins with age1.
func Recipients(keys []string) (to []age.Recipient, err error) {
	for _, k := range keys {
		r, err := age.ParseX25519Recipient(strings.TrimSpace(k))
		if err != nil {
			return nil, refuse("%.80q is not a key to export to. One begins with age1 and has 62 characters; age-keygen makes it.", k)
		}
		to = append(to, r)
	}
	if len(to) == 0 || len(to) > 20 {
		return nil, refuse("Give a passphrase, or one to twenty keys that begin with age1.")
	}
	return to, nil
}

// Opener opens a file again and again and does the work once. After the first
// time it knows the key of that file and no longer the secret.
type Opener struct {
	mu      sync.Mutex
	secret  age.Identity
	stanzas []*age.Stanza
	fileKey []byte
}

// Opening takes what a person gives: the passphrase, or the text of a file with
// keys that begin with AGE-SECRET-KEY-1.
func Opening(passphrase, identity string) (*Opener, error) {
	switch {
	case (passphrase == "") == (strings.TrimSpace(identity) == ""):
		return nil, refuse("Give either the passphrase of the file, or the key that opens it.")
	case passphrase != "":
		id, err := age.NewScryptIdentity(passphrase)
		if err != nil {
			return nil, err
		}
		id.SetMaxWorkFactor(maxWorkFactor)
		return &Opener{secret: id}, nil
	}
	list, err := age.ParseIdentities(strings.NewReader(identity))
	if err != nil {
		return nil, refuse("This is not a file of keys: each begins with AGE-SECRET-KEY-1, and keys of plugins or SSH are not taken.")
	}
	return &Opener{secret: several(list)}, nil
}

// several are keys of which one may fit.
type several []age.Identity

func (s several) Unwrap(stanzas []*age.Stanza) ([]byte, error) {
	for _, id := range s {
		if key, err := id.Unwrap(stanzas); !errors.Is(err, age.ErrIncorrectIdentity) {
			return key, err
		}
	}
	return nil, age.ErrIncorrectIdentity
}

// Unwrap is what age asks.
func (o *Opener) Unwrap(stanzas []*age.Stanza) ([]byte, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.fileKey != nil {
		if !slices.EqualFunc(o.stanzas, stanzas, same) {
			return nil, age.ErrIncorrectIdentity // another file
		}
		return slices.Clone(o.fileKey), nil
	}
	if o.secret == nil {
		return nil, age.ErrIncorrectIdentity
	}
	key, err := o.secret.Unwrap(stanzas)
	if err != nil {
		return nil, err
	}
	o.secret, o.stanzas, o.fileKey = nil, stanzas, slices.Clone(key)
	return key, nil
}

func same(a, b *age.Stanza) bool {
	return a.Type == b.Type && slices.Equal(a.Args, b.Args) && bytes.Equal(a.Body, b.Body)
}

// Forget leaves nothing that opens.
func (o *Opener) Forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	clear(o.fileKey)
	o.secret, o.stanzas, o.fileKey = nil, nil, nil
}

// opening puts into words why a file does not open.
func opening(err error) error {
	var none *age.NoIdentityMatchError
	var disk *fs.PathError
	switch text := err.Error(); {
	case errors.As(err, &disk):
		return err
	case errors.As(err, &none), errors.Is(err, age.ErrIncorrectIdentity):
		return refuse("The file does not open: the passphrase or the key is not the right one, or it is meant for others.")
	case strings.Contains(text, "work factor too large"):
		return refuse("The file wants more memory for its passphrase than a box has: it was not written by a Gatehouse. Encrypt it again to a key.")
	}
	return refuse("This is not an age file, or its beginning is damaged. Choose the file that an export made.")
}
