package boot

import (
	"context"
	"errors"
	"fmt"

	"gatehouse/appliance/control"
	"gatehouse/appliance/host"
	"gatehouse/appliance/vault"
)

// keyring is what a form of the program can do with the keys: monitor.Keys.
type keyring struct {
	vault  *vault.Vault // nil while locked
	locked *vault.Locked
	boot   host.SecureBoot
	epoch  uint64
	// unlock opens the data; nil: this form cannot, but by being started anew.
	unlock func(ctx context.Context, kind string, secret []byte) error
}

var errKeysClosed = errors.New("the box is locked: its keys are not open")

// View is the ladder from power-on to the data, as far as it is known.
func (k *keyring) View(ctx context.Context) (control.Keys, error) {
	out := control.Keys{SecureBoot: secureBootStatus(k.boot), Recovery: "none", Epoch: k.epoch}
	if k.vault == nil {
		out.Trust = control.Trust{Mechanism: "none", Grade: "-", Sentence: "locked: the keys are not open"}
		out.Rungs = []control.Rung{firmwareRung(k.boot), {Name: "keys", State: control.RungBroken, Sentence: k.why()}}
		return out, nil
	}
	out.Trust, out.Slots, out.Recovery = k.vault.Trust(), k.vault.Slots(), k.vault.RecoveryState()
	out.Generation = k.vault.Generation()
	if n := k.vault.Note(); n != "" {
		out.Notes = append(out.Notes, n)
	}
	registers, status, err := k.vault.Registers(ctx)
	if err != nil {
		return out, err
	}
	out.Registers, out.TPM = registers, status
	if k.vault.OffersTPM() {
		out.Offered = "This machine has a TPM 2.0 that was not there, or was off, when the keys were made. Sealing to it protects the data if the disk is stolen."
	}
	out.Rungs = []control.Rung{firmwareRung(k.boot), k.systemRung(), {Name: "keys", State: control.RungChecked, Sentence: out.Trust.Sentence},
		{Name: "data", State: control.RungChecked, Sentence: "The data opened under these keys, and the header that holds them is unchanged."}}
	return out, nil
}

func (k *keyring) why() string {
	if k.locked == nil {
		return "The data is not open."
	}
	return describe(k.locked)
}

func firmwareRung(b host.SecureBoot) control.Rung {
	r := control.Rung{Name: "firmware", State: control.RungUnchecked, Sentence: secureBootStatus(b).Sentence}
	switch {
	case !b.Known:
		r.State = control.RungUnavailable
	case b.Enabled:
		r.State = control.RungChecked
	}
	return r
}

func (k *keyring) systemRung() control.Rung {
	r := control.Rung{Name: "system", State: control.RungUnchecked, Sentence: "Whether this system is one of our releases is not in the policy of the key: another system that is started the same way could ask for it."}
	if k.vault.Measured() {
		r.State = control.RungChecked
		r.Sentence = fmt.Sprintf("The TPM gave the key because our release key approves the system that was measured, epoch %d.", k.epoch)
	}
	return r
}

func secureBootStatus(b host.SecureBoot) control.SecureBootStatus {
	s := control.SecureBootStatus{Known: b.Known, Enabled: b.Enabled, SetupMode: b.SetupMode}
	switch {
	case !b.Known:
		s.Sentence = "There is no UEFI firmware here that could check what it starts."
	case b.Enabled:
		s.Sentence = "Secure Boot is on: the firmware starts nothing that is not signed with a key it knows."
	case b.SetupMode:
		s.Sentence = "Secure Boot is off, and the firmware has no platform key: this box's own keys can be put into it in the firmware's set-up."
	default:
		s.Sentence = "Secure Boot is off: the firmware starts whatever it finds. Switch it on in the firmware's set-up."
	}
	return s
}

func (k *keyring) open() (*vault.Vault, error) {
	if k.vault == nil {
		return nil, errKeysClosed
	}
	return k.vault, nil
}

// MakeRecovery makes a new recovery key.
func (k *keyring) MakeRecovery(ctx context.Context) (string, error) {
	v, err := k.open()
	if err != nil {
		return "", err
	}
	return v.MakeRecovery(ctx)
}

// ConfirmRecovery puts it in the place of the one before.
func (k *keyring) ConfirmRecovery(ctx context.Context, typed string) error {
	v, err := k.open()
	if err != nil {
		return err
	}
	return v.ConfirmRecovery(ctx, typed)
}

// Rotate makes one key anew.
func (k *keyring) Rotate(ctx context.Context, what string) error {
	v, err := k.open()
	if err != nil {
		return err
	}
	return v.Rotate(ctx, what)
}

// SetPassphrase has a passphrase asked for at each start, by GATEHOUSE_KEY.
func (k *keyring) SetPassphrase(ctx context.Context, passphrase []byte) error {
	v, err := k.open()
	if err != nil {
		return err
	}
	if k.unlock != nil {
		return errors.New("a box of ours cannot ask for a passphrase at its console yet, so none is set")
	}
	return v.SetPassphrase(ctx, passphrase)
}

// TakeTPM seals to a TPM that appeared later.
func (k *keyring) TakeTPM(ctx context.Context) error {
	v, err := k.open()
	if err != nil {
		return err
	}
	return v.TakeTPM(ctx)
}

// EnrolSecureBoot is refused: the keys go into the firmware by its own set-up.
func (k *keyring) EnrolSecureBoot(context.Context) error {
	return errors.New("this version does not write keys into the firmware by itself: put those of the image's folder keys into it in the firmware's set-up")
}

// Unlock opens a locked box.
func (k *keyring) Unlock(ctx context.Context, kind string, secret []byte) error {
	if k.unlock == nil {
		return errors.New("this form of Gatehouse is opened by starting it anew with what it asks for")
	}
	return k.unlock(ctx, kind, secret)
}

// Spool is empty: what happens while the box is locked is in its log alone.
func (k *keyring) Spool() ([]byte, error) { return nil, nil }

// SpoolTaken has nothing to forget.
func (k *keyring) SpoolTaken() error { return nil }

// unlocks opens the data of this box by what a person typed, and has the roles
// started anew over it.
func (b *box) unlocks(ctx context.Context, kind string, secret []byte) error {
	c := b.config
	var (
		keys *vault.Vault
		err  error
	)
	switch {
	case c.Meta == nil:
		return errors.New("there is no disk of this box, so there is nothing to unlock")
	case kind == "recovery":
		keys, err = vault.Recover(ctx, c, string(secret))
	default:
		// The TPM is closed until the next start, so a passphrase besides it
		// cannot be taken now.
		return errors.New("a passphrase is asked for by the form that needs it; here, type the recovery key")
	}
	if err != nil {
		return err
	}
	b.keys, b.locked = keys, ""
	if err := b.openData(ctx); err != nil {
		return err
	}
	b.log.Warn("unlocked", "by", kind, "note", keys.Note())
	b.again()
	return nil
}
