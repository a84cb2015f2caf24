package vault

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"gatehouse/appliance/control"
	"gatehouse/appliance/keytext"
	"gatehouse/tpm"
	"gatehouse/tpm/pcr"
)

// recoveryText is how a recovery key is written down.
var recoveryText = keytext.Kind{Name: "recovery key", Label: "gatehouse/recovery/1 check "}

var errPassphraseAnew = errors.New("a passphrase is made anew by setting another one")

// change writes a header that f changed: one generation, one commit point. f
// gets a copy; on an error nothing has changed.
func (v *Vault) change(ctx context.Context, f func(h *header, data []byte) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.committed {
		return errNotCommitted
	}
	h := v.h.clone()
	if err := v.keys.use(func(data, _, _ []byte) error { return f(h, data) }); err != nil {
		return err
	}
	if len(h.slots) > maxSlots {
		return fmt.Errorf("the header has room for %d slots, not for %d", maxSlots, len(h.slots))
	}
	return v.write(h)
}

// RecoveryState is none, unconfirmed or confirmed.
func (v *Vault) RecoveryState() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	state := "none"
	for _, s := range v.h.slots {
		switch {
		case s.kind == kindRecovery && s.flags&slotConfirmed != 0:
			return "confirmed"
		case s.kind == kindRecovery:
			state = "unconfirmed"
		}
	}
	return state
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
	text = recoveryText.Format(seed)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.pending = text[len(text)-keytext.Group:]
	return text, nil
}

// ConfirmRecovery takes the last group of the new recovery key, or all of it,
// as proof that somebody keeps it. The key before opens nothing from then on.
func (v *Vault) ConfirmRecovery(ctx context.Context, typed string) error {
	text, err := recoveryText.Normal(typed)
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
	seed, err := recoveryText.Parse(typed)
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

// Rotate makes one slot or the data key anew: tpm, host-id, data.
func (v *Vault) Rotate(ctx context.Context, what string) error {
	switch what {
	case "tpm":
		return v.rotateTPM(ctx)
	case "host-id":
		return v.rotateHost(ctx)
	case "data":
		return v.rotateData(ctx)
	case "passphrase":
		return errPassphraseAnew
	}
	return fmt.Errorf("there is no key called %q: tpm, host-id, passphrase or data", what)
}

// rotateTPM seals anew for the system that runs, as it was started, in the
// place of every TPM slot there is. It cannot be opened before the next start,
// for the registers are closed; if they changed since the start they changed
// by the cap alone, which is taken into account.
func (v *Vault) rotateTPM(ctx context.Context) error {
	if !v.mode().sealed() {
		return errors.New("the data is not sealed to a TPM")
	}
	root := v.tpmRoot()
	s, seed, err := v.c.sealHere(root)
	if err != nil {
		return err
	}
	clear(seed)
	return v.replace(ctx, kindTPM, s)
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
	err := v.change(ctx, func(h *header, data []byte) error {
		h.without(k, nil)
		if err := h.give(&s, data); err != nil {
			return err
		}
		h.slots = append([]slot{s}, h.slots...)
		return nil
	})
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.used = s
	return nil
}

// rotateData makes a new data key. Base secret and volume key are encrypted
// under it anew, and it is given to every slot; nothing else changes, so no
// data is written anew. A slot made before opens the new key, and the old data
// key opens nothing of the new header.
func (v *Vault) rotateData(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.committed {
		return errNotCommitted
	}
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
		p.public = public
		return v.guardBy(ctx, modeTPMPassphrase, p)
	}
	s := slot{kind: kindPassphrase, made: v.c.Now().Unix(), passphrase: p, public: public}
	return v.change(ctx, func(h *header, data []byte) error {
		h.without(kindHostID, nil)
		h.without(kindPassphrase, nil)
		if err := h.give(&s, data); err != nil {
			return err
		}
		h.mode, h.slots = modePassphrase, append([]slot{s}, h.slots...)
		return nil
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

// Boot is a start that is foreseen: firmware that will measure something else,
// or a release of another epoch.
type Boot struct {
	PCR7  [pcr.Size]byte
	Epoch uint64 // 0: as now
	Note  string // what the slot waits for
}

// Expect adds a TPM slot for each start, beside those there are. One that is
// there already is not made again.
func (v *Vault) Expect(ctx context.Context, boots []Boot) error {
	if !v.mode().sealed() || v.c.Form != Box {
		return errors.New("the data is not sealed to the TPM of a box of ours: no start needs to be foreseen")
	}
	v.mu.Lock()
	root, now, used := v.h.tpm.root, slices.Clone(v.h.slots), v.used
	v.mu.Unlock()
	if used.tpm == nil {
		return errors.New("the data was not opened by the TPM at this start: make its slot anew first")
	}
	n, err := v.c.count(root)
	if err != nil {
		return err
	}
	var add []slot
	for _, b := range boots {
		t := &tpmSlot{values: make(pcr.Values), approver: used.tpm.approver, epoch: used.tpm.epoch, atMost: n, note: b.Note[:min(len(b.Note), maxNote)]}
		for i, x := range used.tpm.values {
			t.values[i] = x
		}
		t.values[secureBootRegister] = b.PCR7
		if b.Epoch > t.epoch {
			if t.approver == nil {
				return errors.New("this box's key is sealed without a release in its policy: it has no epoch that could be raised")
			}
			t.epoch, t.atMost = b.Epoch, n+1
		}
		if slices.ContainsFunc(append(now, add...), t.same) {
			continue
		}
		s, seed, err := v.c.sealUnder(root, t)
		if err != nil {
			return err
		}
		clear(seed)
		add = append(add, s)
	}
	if len(add) == 0 {
		return nil
	}
	return v.change(ctx, func(h *header, data []byte) error {
		for _, s := range add {
			if err := h.give(&s, data); err != nil {
				return err
			}
			h.slots = append(h.slots, s)
		}
		return nil
	})
}

func (t *tpmSlot) same(s slot) bool {
	return s.tpm != nil && s.tpm.values[secureBootRegister] == t.values[secureBootRegister] && s.tpm.epoch == t.epoch && s.tpm.atMost == t.atMost
}

// Settle keeps the TPM slot that opened this start and drops the others. If
// the release's epoch was raised, the counter goes up first: from then on no
// older copy of the header opens.
func (v *Vault) Settle(ctx context.Context) error {
	if !v.mode().sealed() || v.used.tpm == nil {
		return nil
	}
	root := v.tpmRoot()
	for v.used.tpm.atMost > 0 {
		n, err := v.c.count(root)
		if err != nil {
			return err
		}
		if n >= v.used.tpm.atMost {
			break
		}
		if err := v.c.TPM.Count(root, counter()); err != nil {
			return fmt.Errorf("shutting out releases of older epochs: %w", err)
		}
	}
	v.mu.Lock()
	own := v.used
	others := slices.ContainsFunc(v.h.slots, func(s slot) bool { return s.kind == kindTPM && string(s.public) != string(own.public) })
	v.mu.Unlock()
	if !others && own.tpm.note == "" {
		return nil
	}
	return v.change(ctx, func(h *header, _ []byte) error {
		h.without(kindTPM, func(s *slot) bool { return string(s.public) == string(own.public) })
		if s := h.first(kindTPM); s != nil {
			t := *s.tpm
			t.note = ""
			s.tpm = &t
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

// Recover opens the data key by the recovery key and makes the slot that opens
// by itself anew for this machine as it is now. If that cannot be done, the
// data opens all the same, and Note says that the key is needed again.
func Recover(ctx context.Context, c Config, typed string) (*Vault, error) {
	c = c.ready()
	seed, err := recoveryText.Parse(typed)
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
			if data, err = h.take(used, seed[:], nil); err == nil {
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
	if err := v.reseal(ctx); err != nil {
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

// reseal gives the box back a slot that opens by itself.
func (v *Vault) reseal(ctx context.Context) error {
	switch v.mode() {
	case modeHostID:
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
	old := v.tpmRoot()
	if string(root.Name) == string(old.Name) {
		if err := v.rotateTPM(ctx); err != nil {
			return err
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		return v.withClaimedAuth(v.settle)
	}
	return v.takeTPM(ctx, root)
}

// TakeTPM seals to a TPM that was not there when the keys were made.
func (v *Vault) TakeTPM(ctx context.Context) error {
	if v.mode().sealed() {
		return errors.New("the data is sealed to the TPM already")
	}
	if v.c.TPM == nil {
		return errors.New("this machine has no TPM 2.0 that is switched on")
	}
	root, err := v.c.TPM.Root()
	if err != nil {
		return lockedTPM(sealCause, err)
	}
	return v.takeTPM(ctx, root)
}

// takeTPM moves the box into another TPM: new keys there, a slot, and then
// latch and claimed bit. One that belongs to another installation is left
// alone; only erasing that one clears it.
func (v *Vault) takeTPM(ctx context.Context, root tpm.Root) error {
	latched, err := v.c.latch()
	if err != nil {
		return lockedTPM("The TPM does not say whether it belongs to another installation.", err)
	}
	if latched {
		return lockedLatch("This machine's TPM belongs to another installation.", nil)
	}
	claimed := v.h.flags&flagClaimed != 0 || v.used.kind == kindRecovery
	s, seed, err := v.c.sealHere(root)
	if err != nil {
		return err
	}
	clear(seed)
	var keys *tpmKeys
	err = v.keys.use(func(_, _, base []byte) (err error) {
		keys, err = v.c.newTPMKeys(root, base, v.h.installID)
		return err
	})
	if err != nil {
		return err
	}
	public, err := keys.checkpoint.Key()
	if err != nil {
		return err
	}
	err = v.change(ctx, func(h *header, data []byte) error {
		for k := kindTPM; k <= kindPassphrase; k++ {
			h.without(k, nil)
		}
		if !h.mode.sealed() {
			h.mode = modeTPM
		}
		h.tpm, h.flags = keys, 0
		if claimed {
			h.flags = flagClaimed
		}
		if err := h.give(&s, data); err != nil {
			return err
		}
		h.slots = append([]slot{s}, h.slots...)
		return nil
	})
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.public, v.used = public, s
	return v.withClaimedAuth(v.settle)
}

// Note is what a person should know of how the data was opened; "" if nothing.
func (v *Vault) Note() string { return v.note }

// Generation counts the changes of the header.
func (v *Vault) Generation() uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.h.generation
}

// Measured says that the key was given because a release was approved.
func (v *Vault) Measured() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.used.tpm != nil && v.used.tpm.approver != nil
}

// OffersTPM says that the machine has a TPM that the data is not sealed to.
func (v *Vault) OffersTPM() bool { return v.c.TPM != nil && !v.mode().sealed() }

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
	return out, status, nil
}
