package boot

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/unlock"
	"gatehouse/appliance/vault"
)

// errUnlocked ends the roles of a locked box, to start those of an open one.
var errUnlocked = errors.New("the box was unlocked")

// anew runs roles that can be started anew once the box was unlocked.
type anew struct {
	mu  sync.Mutex
	end context.CancelCauseFunc
}

// run runs them until ctx ends, they fail, or the box is unlocked.
func (a *anew) run(ctx context.Context, r *roles) error {
	life, end := context.WithCancelCause(ctx)
	defer end(nil)
	a.mu.Lock()
	a.end = end
	a.mu.Unlock()
	err := r.run(life)
	if context.Cause(life) == errUnlocked {
		return errUnlocked
	}
	return err
}

// start starts them anew, once the answer to the one who asked is out.
func (a *anew) start() {
	a.mu.Lock()
	defer a.mu.Unlock()
	end := a.end
	time.AfterFunc(500*time.Millisecond, func() { end(errUnlocked) })
}

// Takes is what opens this box, as far as its header tells without being open.
func (k *keyring) Takes(ctx context.Context) (ways []string) {
	if k.vault != nil || k.unlock == nil || k.config.Meta == nil {
		return nil
	}
	if k.locked.WaitsForPassphrase() {
		ways = append(ways, control.TakesPassphrase)
	}
	seen, err := vault.Inspect(ctx, k.config)
	if err == nil && slices.ContainsFunc(seen.Slots, func(s control.KeySlot) bool { return s.Kind == "recovery" }) {
		ways = append(ways, control.TakesRecovery)
	}
	return ways
}

// Unlock opens a locked box.
func (k *keyring) Unlock(ctx context.Context, s unlock.Secret) error {
	if k.unlock == nil {
		return errors.New("this form of Gatehouse is not unlocked while it runs")
	}
	return k.unlock(ctx, s)
}

// isRecovery says whether a secret is a recovery key: what is typed at the console is one
// if it has that form, and else the passphrase, if one is waited for.
func isRecovery(s unlock.Secret, l *vault.Locked) bool {
	return s.Kind == unlock.Recovery || s.Kind == unlock.Either && (!l.WaitsForPassphrase() || vault.IsRecoveryKey(string(s.Text)))
}

// openBy opens the data by a secret.
func openBy(ctx context.Context, c vault.Config, l *vault.Locked, s unlock.Secret) (*vault.Vault, error) {
	if isRecovery(s, l) {
		return vault.Recover(ctx, c, string(s.Text))
	}
	v, err := l.Resume(ctx, c, s.Text)
	var again *vault.Locked
	if s.Kind == unlock.Either && errors.As(err, &again) && again.Rung == "passphrase" {
		return nil, errors.New("this is neither the passphrase nor the recovery key of this box")
	}
	if errors.As(err, &again) {
		return nil, errors.New(again.Cause)
	}
	return v, err
}

// unlocks opens the data of this box, and has the roles started anew over it.
// Two may type at the same time, at display and serial line: the second finds
// the box open.
func (b *box) unlocks(ctx context.Context, s unlock.Secret) error {
	b.unlocking.Lock()
	defer b.unlocking.Unlock()
	switch {
	case b.keys != nil:
		return errors.New("the data is open already, and the box goes on")
	case b.config.Meta == nil:
		return errors.New("there is no disk of this box, so there is nothing to unlock")
	}
	trial := b.systems.trial.Load()
	if trial && isRecovery(s, b.broken) {
		// It seals for what runs alone, and the system before has to open if this one goes back.
		return errors.New("a new version is on trial, and the recovery key would shut out the one before it: give the passphrase, or restart the box, which goes back to that version, and use the recovery key there")
	}
	keys, err := openBy(ctx, b.config, b.broken, s)
	if err != nil {
		return err
	}
	b.keys, b.locked = keys, ""
	if err := b.openData(ctx); err != nil {
		if trial {
			b.systems.waits.Store(false)
			b.failTrial()
			b.say("systems: going back: " + b.systems.leave)
			b.power("restart")
		}
		return err
	}
	b.log.Warn("unlocked", "by", keys.OpenedBy(), "note", keys.Note())
	b.anew.start()
	return nil
}
