package monitor

import (
	"context"
	"encoding/hex"
	"slices"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/unlock"
)

// Passphrases that may be tried from afar: a person chose it, so guessing is
// what it has to be kept from. A recovery key has 256 bits.
const (
	passphraseBurst = 10
	passphraseEach  = 30 * time.Second
)

// unlocking is the way into a locked box from afar.
type unlocking struct {
	key    *unlock.Key // nil: there is none
	shown  control.Unlocking
	busy   bool // one secret at a time
	budget budget
}

func (m *Monitor) registerUnlock(s *control.Server) {
	control.Handle(s, control.OpUnlockKey, func(context.Context, control.Role, control.None) (control.UnlockKey, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.unlocking.key == nil {
			return control.UnlockKey{}, errNoWay
		}
		return control.UnlockKey{Public: m.unlocking.key.Public(), Takes: m.unlocking.shown.Takes}, nil
	})
	control.Handle(s, control.OpUnlock, m.unlockFromAfar)
}

var (
	errNotLocked = &control.Error{Code: control.CodeState, Text: "the data of this box is open: there is nothing to unlock"}
	errNoWay     = &control.Error{Code: control.CodeState, Text: "neither a recovery key nor a passphrase opens this box: its page says what does"}
)

// prepareUnlock makes the key that secrets are encrypted to, once the console
// has told its certificate: never before, or whoever serves the page could
// choose among certificates until the words suit him.
func (m *Monitor) prepareUnlock(ctx context.Context, c control.Certificate) {
	var takes []string
	if m.cfg.Vault == nil && m.cfg.Keys != nil {
		takes = m.cfg.Keys.Takes(ctx)
	}
	spki, err := hex.DecodeString(c.SPKI)
	var key *unlock.Key
	if err == nil && len(spki) == 32 && len(takes) > 0 {
		if key, err = unlock.NewKey(m.cfg.Rand); err != nil {
			m.cfg.Logger.Error("the box cannot be unlocked from afar", "err", err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unlocking.forget()
	if key != nil {
		m.unlocking.key = key
		m.unlocking.shown = control.Unlocking{Words: unlock.Words([32]byte(spki), key.Public()), Takes: takes}
	}
}

func (u *unlocking) forget() {
	if u.key != nil {
		u.key.Close()
	}
	u.key, u.shown = nil, control.Unlocking{}
}

// Unlock opens a locked box by what is typed at its console.
func (m *Monitor) Unlock(ctx context.Context, typed []byte) error {
	s := unlock.Secret{Text: typed}
	defer s.Clear()
	if err := m.alone(); err != nil {
		return err
	}
	defer m.letNext()
	return m.unlock(ctx, control.Event{Actor: "console"}, s)
}

// unlockFromAfar opens it by what a tool sent. The console that passes it on
// cannot read it, and cannot have made it: its binding and this start's key
// are in it.
func (m *Monitor) unlockFromAfar(ctx context.Context, _ control.Role, q control.Unlock) (control.None, error) {
	// The tool's going away must not leave the data half open.
	ctx = context.WithoutCancel(ctx)
	if err := m.alone(); err != nil {
		return control.None{}, err
	}
	defer m.letNext()
	s, err := m.openSealed(q)
	if err != nil {
		return control.None{}, err
	}
	defer s.Clear()
	actor := map[unlock.Kind]string{unlock.Recovery: "recovery key", unlock.Passphrase: "passphrase"}[s.Kind]
	return control.None{}, m.unlock(ctx, control.Event{Actor: actor, From: q.From}, s)
}

func (m *Monitor) openSealed(q control.Unlock) (s unlock.Secret, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.unlocking.key == nil {
		return s, errNoWay
	}
	if s, err = m.unlocking.key.Open(q.Binding, q.Sealed); err != nil {
		return s, &control.Error{Code: control.CodeInvalid, Text: err.Error()}
	}
	takes := map[unlock.Kind]string{unlock.Recovery: control.TakesRecovery, unlock.Passphrase: control.TakesPassphrase}[s.Kind]
	if !slices.Contains(m.unlocking.shown.Takes, takes) {
		s.Clear()
		return s, &control.Error{Code: control.CodeState, Text: "this box is not opened by that, but by its " + m.unlocking.shown.Ways()}
	}
	if s.Kind == unlock.Passphrase && !m.unlocking.budget.take(m.cfg.Now(), passphraseBurst, passphraseEach) {
		s.Clear()
		return s, &control.Error{Code: control.CodeState, Text: "too many passphrases were tried: wait a minute, or type it at the box's own console"}
	}
	return s, nil
}

// alone lets one secret be tried at a time: each may cost 32 MiB, and opening
// the data is one thing.
func (m *Monitor) alone() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.cfg.Keys == nil || m.cfg.Vault != nil || m.state != control.StateLocked:
		return errNotLocked
	case m.unlocking.busy:
		return &control.Error{Code: control.CodeState, Text: "another key is being tried at this moment: try again"}
	}
	m.unlocking.busy = true
	return nil
}

func (m *Monitor) letNext() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unlocking.busy = false
}

// unlock records the wish, then has it carried out. Once the data is open the
// key of this start is forgotten: what was recorded on the way opens nothing.
func (m *Monitor) unlock(ctx context.Context, e control.Event, s unlock.Secret) error {
	e.Action, e.Object = "unlock", m.cfg.Name
	if err := m.audit(ctx, e); err != nil {
		return err
	}
	if err := m.cfg.Keys.Unlock(ctx, s); err != nil {
		return m.outcome(ctx, e, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unlocking.forget()
	return nil
}
