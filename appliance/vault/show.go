package vault

import (
	"context"
	"encoding/hex"
	"time"

	"gatehouse/appliance/control"
)

// Slots lists the ways to the data key.
func (v *Vault) Slots() []control.KeySlot {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.h.list(&v.used)
}

// list is what a page shows of the slots; used is the one that opened, if any.
func (h *header) list(used *slot) []control.KeySlot {
	var out []control.KeySlot
	for _, s := range h.slots {
		k := control.KeySlot{
			Kind: s.kind.String(), Made: time.Unix(s.made, 0).UTC(), Confirmed: s.flags&slotConfirmed != 0,
			InUse: used != nil && used.kind == s.kind && string(used.public) == string(s.public),
		}
		if s.tpm != nil {
			k.Note = s.tpm.note
		}
		out = append(out, k)
	}
	if h.guard != nil {
		out = append(out, control.KeySlot{
			Kind: kindPassphrase.String(), Made: time.Unix(h.guard.made, 0).UTC(),
			InUse: used != nil && used.kind == kindTPM, Note: "asked for besides the TPM",
		})
	}
	return out
}

// RecoveryState is none, unconfirmed or confirmed.
func (v *Vault) RecoveryState() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.h.recoveryState()
}

func (h *header) recoveryState() string {
	state := "none"
	for _, s := range h.slots {
		switch {
		case s.kind == kindRecovery && s.flags&slotConfirmed != 0:
			return "confirmed"
		case s.kind == kindRecovery:
			state = "unconfirmed"
		}
	}
	return state
}

// Generation counts the changes of the header.
func (v *Vault) Generation() uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.h.generation
}

// OpenedBy is the kind of slot that the data was opened by at this start: the
// recovery key's too, after which another was made.
func (v *Vault) OpenedBy() string { return v.by.String() }

// Measured says that the key was given because a release was approved.
func (v *Vault) Measured() bool {
	s := v.opened()
	return s.tpm != nil && s.tpm.approver != nil
}

// OffersTPM says that the machine has a TPM that the data is not sealed to.
func (v *Vault) OffersTPM() bool { return v.c.TPM != nil && !v.mode().sealed() }

// RegisterName says what is measured into a register; "" for one that no key
// is sealed to.
func RegisterName(index int) string { return registerNames[index] }

var registerNames = map[int]string{
	7: "Secure Boot: whether it is on, and whose signatures count", 11: "the system image", 12: "its command line",
	13: "what was loaded beside it", 15: "whether the key was asked for",
}

// Registers are those that the key is sealed to, and the TPM's name; none
// without one.
func (v *Vault) Registers(ctx context.Context) ([]control.Register, *control.TPMStatus, error) {
	if err := ctx.Err(); err != nil || !v.mode().sealed() || v.c.TPM == nil {
		return nil, nil, err
	}
	root := v.tpmRoot()
	now, err := v.c.TPM.PCRs(root, v.c.watched())
	if err != nil {
		return nil, nil, lockedTPM("The TPM does not show its registers.", err)
	}
	v.mu.Lock()
	own := v.h.first(kindTPM).tpm
	v.mu.Unlock()
	var out []control.Register
	for _, i := range v.c.watched().Indices() {
		x, was := now[i], own.values[i]
		out = append(out, control.Register{
			Index: i, Name: registerNames[i], Value: hex.EncodeToString(x[:]), Sealed: hex.EncodeToString(was[:]),
			Approved: own.approver != nil && approvedRegisters().Has(i),
		})
	}
	status := new(control.TPMStatus)
	if status.Lockout, err = v.c.TPM.Lockout(root); err != nil {
		return nil, nil, lockedTPM("The TPM does not show its counter of failures.", err)
	}
	if status.Maker, status.Version, err = v.c.TPM.Identity(root); err != nil {
		return nil, nil, lockedTPM("The TPM does not say who made it.", err)
	}
	ek, err := v.c.TPM.EndorsementKey(root)
	if err != nil {
		// Some TPMs keep it behind a password of somebody's; nothing depends on it.
		v.c.Log.Info("the TPM does not show its endorsement key", "err", err)
	} else {
		status.EK = hex.EncodeToString(ek.Fingerprint[:])
	}
	if status.AK, status.Keys, err = v.vouch(); err != nil {
		return out, status, lockedTPM("The TPM does not vouch for the keys of this box.", err)
	}
	return out, status, nil
}
