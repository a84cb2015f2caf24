package boot

import (
	"context"
	"errors"
	"io/fs"

	"gatehouse/appliance/control"
	"gatehouse/appliance/host"
	"gatehouse/appliance/unlock"
	"gatehouse/appliance/vault"
	"gatehouse/tpm/eventlog"
)

// keyring is what a form of the program can do with the keys: monitor.Keys.
type keyring struct {
	vault  *vault.Vault // nil while locked
	locked *vault.Locked
	config vault.Config // of the vault
	boot   host.SecureBoot
	epoch  uint64
	start  *measured    // how firmware started this system; nil: on a host, whose affair that is
	owner  firmwareDoor // the firmware's keys; nil: on a host
	image  fs.FS        // the initramfs, which brings the keys to enrol
	// disk is the one that the box started from; nil: it is looked for.
	disk func() (ownDisk, error)
	// unlock opens the data; nil: this form cannot, but by being started anew.
	unlock func(context.Context, unlock.Secret) error
}

var errKeysClosed = errors.New("the box is locked: its keys are not open")

// View is the ladder from power-on to the data, as far as it is known.
func (k *keyring) View(ctx context.Context) (control.Keys, error) {
	out := control.Keys{SecureBoot: secureBootStatus(k.boot), Recovery: "none", Epoch: k.epoch}
	k.firmware(&out)
	if k.vault == nil {
		out.Trust = control.Trust{Mechanism: "none", Grade: "-", Sentence: "locked: the keys are not open"}
		out.Rungs = k.rungs(out.Trust)
		k.broken(ctx, &out)
		return out, nil
	}
	out.Trust, out.Slots, out.Recovery = k.vault.Trust(), k.vault.Slots(), k.vault.RecoveryState()
	out.Generation, out.Behind = k.vault.Generation(), k.vault.Behind()
	if n := k.vault.Note(); n != "" {
		out.Notes = append(out.Notes, n)
	}
	var err error
	if out.Registers, out.TPM, err = k.vault.Registers(ctx); err != nil {
		// A TPM that fails while the box runs is something to show, not a
		// reason to show nothing.
		out.Notes = append(out.Notes, err.Error())
	}
	if k.vault.OffersTPM() {
		out.Offered = "This machine has a TPM 2.0 that was not there, or was off, when the keys were made. Sealing to it protects the data if the disk is stolen."
	}
	out.Rungs = k.rungs(out.Trust)
	return out, nil
}

// broken says of a locked box which registers changed and which ways there are,
// as far as its header tells without being open.
func (k *keyring) broken(ctx context.Context, out *control.Keys) {
	if k.locked != nil {
		for _, p := range k.locked.PCRs {
			out.Registers = append(out.Registers, control.Register{Index: p.Index, Name: vault.RegisterName(p.Index), Value: p.New, Sealed: p.Old})
		}
	}
	if k.config.Meta == nil {
		return
	}
	seen, err := vault.Inspect(ctx, k.config)
	if err != nil {
		out.Notes = append(out.Notes, err.Error())
		return
	}
	out.Slots, out.Recovery = seen.Slots, seen.Recovery
}

func (k *keyring) why() string {
	if k.locked == nil {
		return "The data is not open."
	}
	return describe(k.locked)
}

// rungs explain the start. On a host they begin with the keys.
func (k *keyring) rungs(trust control.Trust) []control.Rung {
	s := eventlog.Start{}
	if k.start != nil {
		s = k.start.explain(eventlog.SecureBoot(k.boot), k.vault != nil && k.vault.Measured())
	}
	s.Trust = trust
	if k.vault != nil {
		s.Behind = k.vault.Behind()
	}
	if k.vault == nil {
		s.Locked = k.why()
	}
	all := eventlog.Explain(s)
	if k.start == nil {
		for i := range all[:3] {
			all[i].State, all[i].Sentence = control.RungUnavailable, "This is a service on somebody's system: how that was started is its own affair."
		}
	}
	return all
}

func secureBootStatus(b host.SecureBoot) control.SecureBootStatus {
	s := control.SecureBootStatus{Known: b.Known, Enabled: b.Enabled, SetupMode: b.SetupMode}
	switch {
	case !b.Known:
		s.Sentence = "There is no UEFI firmware here that could check what it starts."
	case b.Enabled:
		s.Sentence = "Secure Boot is on: the firmware starts nothing that is not signed with a key it knows."
	case b.SetupMode:
		s.Sentence = "Secure Boot is off, and the firmware has no platform key: keys can be written into it."
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

// SetPassphrase has a passphrase asked for at each start: at the console and by
// gatehouse unlock, or on a host by its variable.
func (k *keyring) SetPassphrase(ctx context.Context, passphrase []byte) error {
	v, err := k.open()
	if err != nil {
		return err
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
