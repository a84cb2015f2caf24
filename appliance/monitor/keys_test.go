package monitor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"gatehouse/appliance/control"
	"gatehouse/appliance/unlock"
)

// keyring notes what it was asked to do.
type keyring struct {
	done  []string
	takes []string
	err   error
}

func (k *keyring) do(what string) error {
	if k.err == nil {
		k.done = append(k.done, what)
	}
	return k.err
}

func (k *keyring) View(context.Context) (control.Keys, error) {
	return control.Keys{Generation: 7}, k.err
}
func (k *keyring) MakeRecovery(context.Context) (string, error) { return "A-B", k.do("make") }
func (k *keyring) ConfirmRecovery(_ context.Context, typed string) error {
	return k.do("confirm " + typed)
}
func (k *keyring) Rotate(_ context.Context, what string) error { return k.do("rotate " + what) }
func (k *keyring) SetPassphrase(_ context.Context, p []byte) error {
	return k.do("passphrase " + string(p))
}
func (k *keyring) TakeTPM(context.Context) error         { return k.do("take") }
func (k *keyring) EnrolSecureBoot(context.Context) error { return k.do("enrol") }
func (k *keyring) Takes(context.Context) []string        { return k.takes }
func (k *keyring) Unlock(_ context.Context, s unlock.Secret) error {
	return k.do(fmt.Sprintf("unlock %d %s", s.Kind, s.Text))
}

// changes are all that a role may ask to be done to the keys.
func (b *box) changes() map[string]error {
	by := control.By{Actor: "ann@example.com", From: "192.0.2.9"}
	return map[string]error{
		"recovery key made": b.changeKeys(context.Background(), by, "recovery key made", "", func(k Keys) error {
			_, err := k.MakeRecovery(context.Background())
			return err
		}),
		"key rotated": b.changeKeys(context.Background(), by, "key rotated", "data", func(k Keys) error {
			return k.Rotate(context.Background(), "data")
		}),
	}
}

func TestKEY5_KeysChangeOnlyOnAnOpenBoxThatHasAnOwner(t *testing.T) {
	k := &keyring{}
	with := func(c *Config) { c.Keys = k }
	unclaimed := newBox(t, with)
	unclaimed.ready(t, control.DatabaseUnclaimed)
	locked := newBox(t, func(c *Config) { c.Keys, c.Locked, c.Vault = k, "the TPM is another", nil })
	none := newBox(t, nil)
	full := newBox(t, with)
	full.vault.claimed = true
	full.ready(t, control.DatabaseClaimed)
	full.audit.err = errors.New("no space left on device")
	for name, b := range map[string]*box{"unclaimed": unclaimed, "locked": locked, "a form without keys": none, "no line in the audit log": full} {
		for what, err := range b.changes() {
			if err == nil {
				t.Errorf("%s: %s", name, what)
			}
		}
	}
	if k.done != nil {
		t.Errorf("refused, and done: %q", k.done)
	}
}

func TestAUD1_ChangesOfKeysAreRecordedBeforeAndWhenTheyFail(t *testing.T) {
	k := &keyring{}
	b := newBox(t, func(c *Config) { c.Keys = k })
	b.vault.claimed = true
	b.ready(t, control.DatabaseClaimed)
	b.audit.events = nil
	for what, err := range b.changes() {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if len(b.audit.events) != 2 || len(k.done) != 2 || b.audit.events[0].Actor != "ann@example.com" || b.audit.events[0].From != "192.0.2.9" {
		t.Errorf("events %+v, done %q", b.audit.events, k.done)
	}
	k.err = errors.New("the TPM does not answer")
	b.audit.events = nil
	for what, err := range b.changes() {
		if !control.IsCode(err, control.CodeFailed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if n := slices.IndexFunc(b.audit.events, func(e control.Event) bool { return e.Outcome == "failed" && e.Detail["error"] != "" }); n < 1 {
		t.Errorf("no failure after a wish: %+v", b.audit.events)
	}
}

// The recovery key is for a locked box and for the person before it: it is no
// request of a role.
func TestKEY8_OnlyALockedBoxIsUnlocked(t *testing.T) {
	k := &keyring{}
	open := newBox(t, func(c *Config) { c.Keys = k })
	open.vault.claimed = true
	open.ready(t, control.DatabaseClaimed)
	if err := open.Unlock(t.Context(), []byte("A-B")); !control.IsCode(err, control.CodeState) || k.done != nil {
		t.Errorf("an open box: %v, %q", err, k.done)
	}
	locked := newBox(t, func(c *Config) { c.Keys, c.Locked, c.Vault, c.Audit = k, "the TPM is another", nil, nil })
	typed := []byte("A-B")
	if err := locked.Unlock(t.Context(), typed); err != nil || !slices.Equal(k.done, []string{"unlock 0 A-B"}) {
		t.Errorf("%v, %q", err, k.done)
	}
	if string(typed) == "A-B" {
		t.Error("what was typed is still in memory")
	}
	k.err = errors.New("this is not the recovery key of this box")
	if err := locked.Unlock(t.Context(), []byte("C-D")); !control.IsCode(err, control.CodeFailed) {
		t.Errorf("%v", err)
	}
}
