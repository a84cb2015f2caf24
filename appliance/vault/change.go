package vault

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"gatehouse/tpm"
)

var (
	errPassphraseAnew = errors.New("a passphrase is made anew by setting another one")
	errWeaker         = errors.New("the system that was started is not one that its release key approves, and the keys would open for any other from now on: start an approved one")
)

// change writes a header that f changed: one generation, one commit point. f
// gets a copy; on an error nothing has changed.
func (v *Vault) change(ctx context.Context, f func(h *header, data []byte) error) error {
	return v.alone(ctx, func() error {
		h := v.h.clone()
		if err := v.keys.use(func(data, _, _ []byte) error { return f(h, data) }); err != nil {
			return err
		}
		if len(h.slots) > maxSlots {
			return fmt.Errorf("the header has room for %d slots, not for %d", maxSlots, len(h.slots))
		}
		return v.write(h)
	})
}

// alone has f work on a header that is committed, while nobody else does.
func (v *Vault) alone(ctx context.Context, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.committed {
		return errNotCommitted
	}
	return f()
}

// Rotate makes one slot or the data key anew: tpm, host-id, data.
func (v *Vault) Rotate(ctx context.Context, what string) error {
	switch what {
	case "tpm":
		return v.rotateSlots(ctx)
	case "host-id":
		return v.rotateHost(ctx)
	case "data":
		return v.rotateData(ctx)
	case "passphrase":
		return errPassphraseAnew
	}
	return fmt.Errorf("there is no key called %q: tpm, host-id, passphrase or data", what)
}

// rotateSlots seals every TPM slot anew, each under the policy that it has: also those of
// starts that are foreseen, and in a trial that of the system before. A policy without a
// release takes in that of the system that runs. What it opened before then opens one
// start more, as the system before a trial may be one that nobody approves; Settle
// drops it.
func (v *Vault) rotateSlots(ctx context.Context) error {
	own := v.opened()
	if own.tpm == nil || !v.mode().sealed() {
		return v.rotateTPM(ctx) // by the recovery key: no slot is known to open
	}
	if err := v.c.reopenTPM(); err != nil {
		return err
	}
	root := v.tpmRoot()
	here, err := v.c.here(root)
	if err != nil {
		return err
	}
	if own.tpm.approver != nil && here.approver == nil {
		return errWeaker
	}
	// The counter goes up once the release of a raised epoch is kept, and not before.
	here.note, here.atMost = own.tpm.note, max(here.atMost, own.tpm.atMost)
	v.mu.Lock()
	slots := slices.Clone(v.h.slots)
	v.mu.Unlock()
	anew := make(map[string][]slot)
	for _, s := range slots {
		if s.kind != kindTPM {
			continue
		}
		same := *s.tpm
		policies := []*tpmSlot{&same}
		if string(s.public) == string(own.public) {
			policies = []*tpmSlot{here}
			if own.tpm.approver == nil && here.approver != nil {
				same.note = "for the system of before, until the next start"
				policies = append(policies, &same)
			}
		}
		for _, t := range policies {
			made, seed, err := v.c.sealUnder(root, t)
			if err != nil {
				return err
			}
			clear(seed)
			anew[string(s.public)] = append(anew[string(s.public)], made)
		}
	}
	err = v.change(ctx, func(h *header, data []byte) error {
		var all []slot
		for _, s := range h.slots {
			made, ok := anew[string(s.public)]
			if !ok {
				made = []slot{s}
			}
			for _, m := range made {
				if ok {
					if err := h.give(&m, data); err != nil {
						return err
					}
				}
				all = append(all, m)
			}
		}
		h.slots = all
		return nil
	})
	if err == nil {
		v.use(anew[string(own.public)][0])
	}
	return err
}

// rotateTPM seals anew for the system that runs, as it was started, in the
// place of every TPM slot there is. It cannot be opened before the next start,
// for the registers are closed; if they changed since the start they changed
// by the cap alone, which is taken into account.
func (v *Vault) rotateTPM(ctx context.Context) error {
	if !v.mode().sealed() {
		return errors.New("the data is not sealed to a TPM")
	}
	if err := v.c.reopenTPM(); err != nil {
		return err
	}
	s, seed, err := v.c.sealHere(v.tpmRoot())
	if err != nil {
		return err
	}
	clear(seed)
	if err := v.refuseWeaker(s); err != nil {
		return err
	}
	return v.replace(ctx, kindTPM, s)
}

// refuseWeaker keeps what opens for approved systems alone from being sealed for
// any: that is what a slot would be that is made under a system which nobody
// approves, started by the recovery key. The slot of before opens for approved
// ones still.
func (v *Vault) refuseWeaker(s slot) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.h.measured() && s.tpm.approver == nil {
		return errWeaker
	}
	return nil
}

func (v *Vault) rotateHost(ctx context.Context) error {
	if v.mode() != modeHostID {
		return errors.New("the data is not bound to an identifier of the machine")
	}
	s, err := v.c.hostSlot()
	if err != nil {
		return err
	}
	return v.replace(ctx, kindHostID, s)
}

// hostSlot is newHost with its key.
func (c *Config) hostSlot() (slot, error) {
	s, seed, err := c.newHost()
	defer clear(seed)
	if err != nil {
		return s, err
	}
	s.public, err = publicOf(seed)
	return s, err
}

func (v *Vault) replace(ctx context.Context, k kind, s slot) error {
	err := v.change(ctx, func(h *header, data []byte) error { return h.lead(s, data, k) })
	if err == nil {
		v.use(s)
	}
	return err
}

// rotateData makes a new data key. Base secret and volume key are encrypted
// under it anew, and it is given to every slot; nothing else changes, so no
// data is written anew. A slot made before opens the new key, and the old data
// key opens nothing of the new header.
func (v *Vault) rotateData(ctx context.Context) error {
	return v.alone(ctx, v.rotateDataAlone)
}

func (v *Vault) rotateDataAlone() error {
	h := v.h.clone()
	data := make([]byte, dataKeySize)
	defer clear(data)
	if err := v.c.fill(data); err != nil {
		return err
	}
	if h.mode.sealed() {
		if err := v.c.mix(h.tpm.root, data); err != nil {
			return err
		}
	}
	err := v.keys.use(func(_, volume, base []byte) error { return h.wrap(data, volume, base) })
	if err != nil {
		return err
	}
	macKey, err := derive(data, h.installID, internalMAC, 32)
	if err != nil {
		return err
	}
	defer clear(macKey)
	if err := v.writeUnder(h, macKey); err != nil {
		return err
	}
	return v.keys.replace(data)
}

// SetPassphrase has a passphrase asked for at each start: besides a TPM, or in
// the place of an identifier. An empty one ends that, where a TPM remains.
func (v *Vault) SetPassphrase(ctx context.Context, passphrase []byte) error {
	m := v.mode()
	if len(passphrase) == 0 {
		if m != modeTPMPassphrase {
			return errors.New("the passphrase is all that protects the data: there is nothing to fall back to, so it can be changed but not removed")
		}
		return v.guardBy(ctx, modeTPM, nil)
	}
	p, seed, err := v.c.newPassphrase(passphrase)
	if err != nil {
		return err
	}
	defer clear(seed)
	public, err := publicOf(seed)
	if err != nil {
		return err
	}
	if m.sealed() {
		p.made, p.public = v.c.Now().Unix(), public
		return v.guardBy(ctx, modeTPMPassphrase, p)
	}
	s := slot{kind: kindPassphrase, made: v.c.Now().Unix(), passphrase: p, public: public}
	return v.change(ctx, func(h *header, data []byte) error {
		h.mode = modePassphrase
		return h.lead(s, data, kindHostID, kindPassphrase)
	})
}

func (v *Vault) guardBy(ctx context.Context, m mode, p *passphraseSlot) error {
	return v.change(ctx, func(h *header, data []byte) error {
		h.mode, h.guard = m, p
		for i := range h.slots {
			if h.slots[i].kind != kindTPM {
				continue
			}
			if err := h.give(&h.slots[i], data); err != nil {
				return err
			}
		}
		return nil
	})
}

func (v *Vault) mode() mode {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.h.mode
}

func (v *Vault) tpmRoot() tpm.Root {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.h.tpm.root
}

// opened is the slot by which the data key was opened at this start.
func (v *Vault) opened() slot {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.used
}

// use notes that a slot stands in the place of the one that opened.
func (v *Vault) use(s slot) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.used = s
}
