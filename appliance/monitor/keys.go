package monitor

import (
	"context"
	"errors"

	"gatehouse/appliance/control"
	"gatehouse/appliance/unlock"
)

// Keys is what the machine can do with the data key and what guards it. An
// error is shown to the person who asked.
type Keys interface {
	View(ctx context.Context) (control.Keys, error)
	MakeRecovery(ctx context.Context) (text string, err error)
	ConfirmRecovery(ctx context.Context, typed string) error
	Rotate(ctx context.Context, what string) error
	SetPassphrase(ctx context.Context, passphrase []byte) error // empty: none is asked for any more
	TakeTPM(ctx context.Context) error
	EnrolSecureBoot(ctx context.Context) error
	// Takes is what opens a locked box (control.Takes…); nothing of an open one.
	Takes(ctx context.Context) []string
	// Unlock opens a locked box; when it returns nil the roles are about to be started anew.
	Unlock(ctx context.Context, s unlock.Secret) error
}

var errNoKeys = &control.Error{Code: control.CodeState, Text: "this form of Gatehouse has no keys that could be changed"}

func (m *Monitor) registerKeys(s *control.Server) {
	control.Handle(s, control.OpKeys, func(ctx context.Context, _ control.Role, _ control.None) (control.Keys, error) {
		if m.cfg.Keys == nil {
			return control.Keys{Trust: m.Status().Trust}, nil
		}
		return m.cfg.Keys.View(ctx)
	})
	control.Handle(s, control.OpRecoveryMake, func(ctx context.Context, _ control.Role, by control.By) (key control.RecoveryKey, err error) {
		err = m.changeKeys(ctx, by, "recovery key made", "", func(k Keys) error {
			key.Text, err = k.MakeRecovery(ctx)
			return err
		})
		return key, err
	})
	control.Handle(s, control.OpRecoveryConfirm, func(ctx context.Context, _ control.Role, q control.RecoveryConfirm) (control.None, error) {
		return control.None{}, m.changeKeys(ctx, q.By, "recovery key confirmed", "", func(k Keys) error { return k.ConfirmRecovery(ctx, q.Text) })
	})
	control.Handle(s, control.OpKeyRotate, func(ctx context.Context, _ control.Role, q control.KeyRotate) (control.None, error) {
		return control.None{}, m.changeKeys(ctx, q.By, "key rotated", q.What, func(k Keys) error { return k.Rotate(ctx, q.What) })
	})
	control.Handle(s, control.OpPassphraseSet, func(ctx context.Context, _ control.Role, q control.PassphraseSet) (control.None, error) {
		action := "passphrase of the start set"
		if len(q.Passphrase) == 0 {
			action = "passphrase of the start removed"
		}
		return control.None{}, m.changeKeys(ctx, q.By, action, "", func(k Keys) error { return k.SetPassphrase(ctx, q.Passphrase) })
	})
	control.Handle(s, control.OpTPMTake, func(ctx context.Context, _ control.Role, by control.By) (control.None, error) {
		return control.None{}, m.changeKeys(ctx, by, "TPM taken", "", func(k Keys) error { return k.TakeTPM(ctx) })
	})
	control.Handle(s, control.OpSecureBootEnrol, func(ctx context.Context, _ control.Role, by control.By) (control.None, error) {
		return control.None{}, m.changeKeys(ctx, by, "Secure Boot keys enrolled", "", func(k Keys) error { return k.EnrolSecureBoot(ctx) })
	})
}

// changeKeys records the wish, then has it carried out: what cannot be recorded
// does not happen. A failure is recorded too.
func (m *Monitor) changeKeys(ctx context.Context, by control.By, action, object string, f func(Keys) error) error {
	if m.cfg.Keys == nil {
		return errNoKeys
	}
	if m.State() != control.StateReady {
		return &control.Error{Code: control.CodeState, Text: "keys are changed on a box that has an owner and is open"}
	}
	event := control.Event{Actor: by.Actor, From: by.From, Action: action, Object: object}
	if err := m.audit(ctx, event); err != nil {
		return err
	}
	m.changing.Lock()
	defer m.changing.Unlock()
	return m.outcome(ctx, event, f(m.cfg.Keys))
}

// outcome records that what was recorded as a wish did not come about.
func (m *Monitor) outcome(ctx context.Context, event control.Event, err error) error {
	if err == nil {
		return nil
	}
	event.Outcome, event.Detail = "failed", map[string]string{"error": err.Error()}
	if auditErr := m.audit(ctx, event); auditErr != nil {
		m.cfg.Logger.Error("a failure was not recorded", "err", auditErr)
	}
	var e *control.Error
	if errors.As(err, &e) {
		return e
	}
	return &control.Error{Code: control.CodeFailed, Text: err.Error()}
}
