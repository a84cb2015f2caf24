package consoletest

import (
	"context"
	"crypto/rand"
	"encoding/hex"

	"gatehouse/appliance/control"
	"gatehouse/appliance/unlock"
)

// unlocking is the way into a locked box from afar, by a real key.
type unlocking struct {
	key   *unlock.Key
	shown control.Unlocking
	by    []string // what it was opened with, and from where
}

// OfferUnlock has a locked box take these, and gives its words.
func (b *Box) OfferUnlock(takes ...string) (words string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	key, err := unlock.NewKey(rand.Reader)
	if err != nil {
		return "", err
	}
	spki, err := hex.DecodeString(b.ready.Certificate.SPKI)
	if err != nil {
		return "", err
	}
	b.unlocking = unlocking{key: key, shown: control.Unlocking{Words: unlock.Words([32]byte(spki), key.Public()), Takes: takes}}
	return b.unlocking.shown.Words, nil
}

// Unlocked is what it was opened with, and from where.
func (b *Box) Unlocked() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.unlocking.by
}

func (b *Box) handleUnlock(s *control.Server) {
	control.Handle(s, control.OpUnlockKey, func(context.Context, control.Role, control.None) (control.UnlockKey, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.unlocking.key == nil {
			return control.UnlockKey{}, refused(control.CodeState, "nothing opens this box")
		}
		return control.UnlockKey{Public: b.unlocking.key.Public(), Takes: b.unlocking.shown.Takes}, nil
	})
	control.Handle(s, control.OpUnlock, func(_ context.Context, _ control.Role, q control.Unlock) (control.None, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.unlocking.key == nil {
			return control.None{}, refused(control.CodeState, "nothing opens this box")
		}
		secret, err := b.unlocking.key.Open(q.Binding, q.Sealed)
		if err != nil {
			return control.None{}, refused(control.CodeInvalid, "%v", err)
		}
		b.unlocking.by = append(b.unlocking.by, string(secret.Text)+" from "+q.From)
		return control.None{}, nil
	})
}
