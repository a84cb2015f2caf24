package vault

import (
	"bytes"
	"context"
	"errors"
	"slices"
)

// waiting is a data key that a passphrase alone stands before: all else of the
// start was as it should be, and the TPM is closed behind what it gave. That is
// no secret without the passphrase, so it may wait in memory for somebody to
// type it; another start would be needed to ask the TPM again.
type waiting struct {
	s      *sight // what was read of META; set by Open
	used   *slot
	lock   *passphraseSlot
	public []byte // of the passphrase's key
	inner  []byte // the data key, encrypted to it
	what   string // as which it was encrypted
}

// ask opens it by the passphrase of c. The passphrase is judged by the public
// half of its key, so that a wrong one is told from a broken slot. No wrong one
// is counted by the TPM, which knows nothing of it.
func (w *waiting) ask(c *Config, h *header) ([]byte, error) {
	if len(c.Passphrase) == 0 {
		l := missingPassphrase(c)
		l.waits = w
		return nil, l
	}
	seed := w.lock.seed(c.Passphrase)
	defer clear(seed)
	public, err := publicOf(seed)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(public, w.public) {
		l := wrongPassphrase(c)
		l.waits = w
		return nil, l
	}
	data, err := checkSize(openWith(seed, w.inner, w.what, h.installID))
	if err != nil {
		return nil, lockedHeader(err)
	}
	return data, nil
}

// WaitsForPassphrase says that the right passphrase opens the data now.
func (l *Locked) WaitsForPassphrase() bool { return l != nil && l.waits != nil }

// Resume opens by a passphrase what Open left locked because it waits for one.
// It can be called again after a wrong one; META must not have changed since.
func (l *Locked) Resume(ctx context.Context, c Config, passphrase []byte) (*Vault, error) {
	if !l.WaitsForPassphrase() || l.waits.s == nil {
		return nil, errors.New("this box does not wait for a passphrase: one would not open it")
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c = c.ready()
	c.Passphrase = slices.Clone(passphrase)
	defer clear(c.Passphrase)
	data, err := l.waits.ask(&c, &l.waits.s.newest.header)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	return finish(&c, l.waits.s, data, l.waits.used)
}
