package vault

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"

	"gatehouse/appliance/keytext"
	"gatehouse/tpm"
)

// IsRecoveryKey says that a text has the form of a recovery key, of whatever box.
func IsRecoveryKey(typed string) bool {
	key, err := keytext.Recovery.Parse(typed)
	clear(key[:])
	return err == nil
}

// MakeRecovery makes a new recovery key and gives it, once. One that was
// confirmed before keeps working until this one is confirmed. Only a box that
// has an owner gets one: whoever holds it counts as the owner.
func (v *Vault) MakeRecovery(ctx context.Context) (text string, err error) {
	claimed, err := v.Claimed(ctx)
	if err != nil {
		return "", err
	}
	if !claimed {
		return "", errors.New("this box has no owner yet: the recovery key is made after the claim")
	}
	var seed [32]byte
	defer clear(seed[:])
	if err := v.c.fill(seed[:]); err != nil {
		return "", err
	}
	public, err := publicOf(seed[:])
	if err != nil {
		return "", err
	}
	err = v.change(ctx, func(h *header, data []byte) error {
		h.without(kindRecovery, func(s *slot) bool { return s.flags&slotConfirmed != 0 })
		s := slot{kind: kindRecovery, made: v.c.Now().Unix(), public: public}
		if err := h.give(&s, data); err != nil {
			return err
		}
		h.slots = append(h.slots, s)
		return nil
	})
	if err != nil {
		return "", err
	}
	text = keytext.Recovery.Format(seed)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.pending = text[len(text)-keytext.Group:]
	return text, nil
}

// ConfirmRecovery takes the last group of the new recovery key, or all of it,
// as proof that somebody keeps it. The key before opens nothing from then on.
func (v *Vault) ConfirmRecovery(ctx context.Context, typed string) error {
	text, err := keytext.Recovery.Normal(typed)
	if err != nil {
		return err
	}
	v.mu.Lock()
	pending := v.pending
	v.mu.Unlock()
	err = v.change(ctx, func(h *header, _ []byte) error {
		i := slices.IndexFunc(h.slots, func(s slot) bool { return s.kind == kindRecovery && s.flags&slotConfirmed == 0 })
		if i < 0 {
			return errors.New("there is no new recovery key that waits to be confirmed: make one first")
		}
		if len(text) <= keytext.Group {
			if pending == "" {
				return errors.New("the box was started anew since this recovery key was made: type the whole key, not only its last group")
			}
			if text != pending {
				return errors.New("this is not the last group of the new recovery key: look at what you wrote down")
			}
		} else if err := h.slots[i].madeFrom(typed); err != nil {
			return err
		}
		s := h.slots[i]
		s.flags |= slotConfirmed
		h.without(kindRecovery, nil)
		h.slots = append(h.slots, s)
		return nil
	})
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.pending = ""
	return nil
}

func (s *slot) madeFrom(typed string) error {
	seed, err := keytext.Recovery.Parse(typed)
	defer clear(seed[:])
	if err != nil {
		return err
	}
	public, err := publicOf(seed[:])
	if err == nil && string(public) != string(s.public) {
		err = errors.New("this is not the new recovery key: it is well-formed, but another one")
	}
	return err
}

// Recover opens the data key by the recovery key and makes the slot that opens
// by itself anew for this machine as it is now. If that cannot be done, the
// data opens all the same, and Note says that the key is needed again.
func Recover(ctx context.Context, c Config, typed string) (*Vault, error) {
	c = c.ready()
	seed, err := keytext.Recovery.Parse(typed)
	defer clear(seed[:])
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p, err := readPages(c.Meta)
	if err != nil {
		return nil, lockedMeta(err)
	}
	if p.newest == nil {
		return nil, lockedHeader(p.problem)
	}
	h := &p.newest.header
	var (
		data []byte
		used *slot
	)
	for i := range h.slots {
		if used = &h.slots[i]; used.kind == kindRecovery {
			if data, err = h.take(used, seed[:]); err == nil {
				break
			}
		}
	}
	if data == nil {
		return nil, noRecovery(h)
	}
	defer clear(data)
	v, err := assemble(&c, &sight{pages: p}, data, used)
	if err != nil {
		return nil, err
	}
	if err := v.p.mirror(c.Meta); err != nil {
		v.Wipe()
		return nil, lockedMeta(err)
	}
	if err := v.closeAndReseal(ctx); err != nil {
		c.Log.Warn("the data is open, and nothing was sealed anew", "err", err)
		v.note = "The recovery key opened the data, and the keys could not be sealed anew: " + strings.TrimSuffix(err.Error(), ".") + ". It is needed again at the next start."
	}
	return v, nil
}

func noRecovery(h *header) error {
	if h.first(kindRecovery) == nil {
		return errors.New("this box has no recovery key: none was made while it was open")
	}
	return errors.New("this is not the recovery key of this box: it is well-formed, but opens nothing here")
}

// closeAndReseal closes the TPM first: if it did not answer at the start it is
// open yet, and nothing that comes from the data may find it so.
func (v *Vault) closeAndReseal(ctx context.Context) error {
	if err := v.c.reopenTPM(); err != nil {
		return err
	}
	var root *tpm.Root
	if v.h.mode.sealed() {
		root = &v.h.tpm.root
	}
	if err := v.c.closeTPM(root); err != nil {
		return lockedTPM("The TPM cannot be closed.", err)
	}
	return v.reseal(ctx)
}

// reseal gives the box back a slot that opens by itself.
func (v *Vault) reseal(ctx context.Context) error {
	switch v.mode() {
	case modeHostID:
		// Under a latch it would open nothing: this is a header of before the box
		// was sealed to its TPM, or the TPM is somebody else's.
		latched, err := v.c.latch()
		if err != nil {
			return lockedTPM("The TPM does not say whether this machine is sealed to it.", err)
		}
		if latched {
			break
		}
		s, err := v.c.hostSlot()
		if err != nil {
			return err
		}
		return v.replace(ctx, kindHostID, s)
	case modePassphrase:
		return errors.New("the box asks for a passphrase at each start: set a new one")
	}
	if v.c.TPM == nil {
		return errors.New("the data is sealed to a TPM, and this machine has none")
	}
	root, err := v.c.TPM.Root()
	if err != nil {
		return lockedTPM(sealCause, err)
	}
	if v.mode().sealed() && string(root.Name) == string(v.tpmRoot().Name) {
		if err := v.rotateTPM(ctx); err != nil {
			return err
		}
		return v.settleNow()
	}
	if err := v.takeTPM(ctx, root); err != nil {
		return err
	}
	// Nobody has this vault yet, so the audit log begins with the new key.
	v.signer = v.h.tpm
	v.public, err = v.signer.checkpoint.Key()
	return err
}

// TakeTPM seals to a TPM that was not there when the keys were made.
func (v *Vault) TakeTPM(ctx context.Context) error {
	if v.mode().sealed() {
		return errors.New("the data is sealed to the TPM already")
	}
	if v.c.TPM == nil {
		return errors.New("this machine has no TPM 2.0 that is switched on")
	}
	if err := v.c.reopenTPM(); err != nil {
		return err
	}
	root, err := v.c.TPM.Root()
	if err != nil {
		return lockedTPM(sealCause, err)
	}
	return v.takeTPM(ctx, root)
}

// takeTPM moves the box into another TPM: new keys there, a slot, and then
// latch and claimed bit. The checkpoint key of this run stays: what is open
// goes on as it began, and the new one counts from the next start. A TPM that belongs to
// another installation is left alone; only erasing that one clears it.
func (v *Vault) takeTPM(ctx context.Context, root tpm.Root) error {
	latched, err := v.c.latch()
	if err != nil {
		return lockedTPM("The TPM does not say whether it belongs to another installation.", err)
	}
	if latched && !v.latchIsOurs(root) {
		return lockedLatch("This machine's TPM belongs to another installation.", nil)
	}
	v.mu.Lock()
	claimed := v.h.flags&flagClaimed != 0 || v.used.kind == kindRecovery
	v.mu.Unlock()
	s, seed, err := v.c.sealHere(root)
	if err != nil {
		return err
	}
	clear(seed)
	if err := v.refuseWeaker(s); err != nil {
		return err
	}
	var keys *tpmKeys
	err = v.keys.use(func(_, _, base []byte) (err error) {
		keys, err = v.c.newTPMKeys(root, base, v.installID)
		return err
	})
	if err != nil {
		return err
	}
	err = v.change(ctx, func(h *header, data []byte) error {
		if !h.mode.sealed() {
			h.mode = modeTPM
		}
		h.tpm, h.flags = keys, 0
		if claimed {
			h.flags = flagClaimed
		}
		return h.lead(s, data, kindTPM, kindHostID, kindPassphrase)
	})
	if err != nil {
		return err
	}
	v.use(s)
	return v.settleNow()
}

// latchIsOurs says that the TPM was latched by this installation: the header of
// before that was put back.
func (v *Vault) latchIsOurs(root tpm.Root) bool {
	data, _, err := v.c.TPM.ReadNV(root, latchIndex())
	return err == nil && bytes.Equal(data, v.installID[:])
}

// Note is what a person should know of how the data was opened; "" if nothing.
func (v *Vault) Note() string { return v.note }
