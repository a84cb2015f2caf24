package vault

import (
	"context"
	"errors"
	"slices"

	"gatehouse/tpm"
	"gatehouse/tpm/pcr"
)

var errNotCommitted = errors.New("the data key is not committed yet")

// Create makes new keys in memory; nothing is written before Commit. META must
// be blank and the machine's TPM, if there is one, must not be latched. On a
// box the TPM is closed behind it.
func Create(ctx context.Context, c Config) (*Vault, error) {
	c = c.ready()
	s, err := look(ctx, &c)
	if err != nil {
		c.closeQuietly()
		return nil, err
	}
	if !s.unwritten() {
		return nil, errors.New("making a data key: META holds one already")
	}
	v, err := create(&c)
	if err != nil {
		c.closeQuietly()
		return nil, err
	}
	var root *tpm.Root
	if v.h.mode.sealed() {
		root = &v.h.tpm.root
	}
	if err := c.closeTPM(root); err != nil {
		v.Wipe()
		return nil, lockedTPM("The TPM cannot be closed after the key was sealed.", err)
	}
	v.p = s.pages
	return v, nil
}

func create(c *Config) (*Vault, error) {
	h := &header{created: c.Now().Unix()}
	data, volume, base := make([]byte, dataKeySize), make([]byte, volumeKeySize), make([]byte, baseSize)
	defer func() { clear(data); clear(volume); clear(base) }()
	for _, b := range [][]byte{h.installID[:], data, volume, base} {
		if err := c.fill(b); err != nil {
			return nil, err
		}
	}
	var own slot
	if c.TPM != nil {
		root, err := c.TPM.Root()
		if err != nil {
			return nil, lockedTPM(sealCause, err)
		}
		if err := c.mix(root, data, volume, base); err != nil {
			return nil, err
		}
		if err := c.untouched(root); err != nil {
			return nil, err
		}
		var seed []byte
		if own, seed, err = c.sealHere(root); err != nil {
			return nil, err
		}
		defer clear(seed)
		if err := c.prove(root, &own, seed); err != nil {
			return nil, err
		}
		h.mode = modeTPM
		if h.tpm, err = c.newTPMKeys(root, base, h.installID); err != nil {
			return nil, err
		}
	} else {
		var err error
		if h.mode, own, err = c.choose(); err != nil {
			return nil, err
		}
	}
	h.slots = []slot{own}
	if err := h.wrap(data, volume, base); err != nil {
		return nil, err
	}
	return newVault(c, h, data, &h.slots[0])
}

// untouched refuses a run of the machine in which somebody was before us.
func (c *Config) untouched(root tpm.Root) error {
	if c.Form != Box {
		return nil
	}
	values, err := c.TPM.PCRs(root, pcr.Select(capRegister))
	if err != nil {
		return lockedTPM(sealCause, err)
	}
	if changed := pcr.Changes(pcr.Values{capRegister: {}}, values); len(changed) > 0 {
		return lockedPCR(changed, nil)
	}
	return nil
}

// mix adds the TPM's randomness: with either source good, the keys are.
func (c *Config) mix(root tpm.Root, keys ...[]byte) error {
	for _, key := range keys {
		for part := range slices.Chunk(key, 32) {
			r, err := c.TPM.Random(root, len(part))
			if err != nil {
				return lockedTPM("The TPM gives no random bytes.", err)
			}
			for i := range part {
				part[i] ^= r[i]
			}
			clear(r)
		}
	}
	return nil
}

// wrap fills in what the data key encrypts, and gives it to every slot.
func (h *header) wrap(data, volume, base []byte) error {
	for _, w := range []struct {
		purpose, what string
		plain, into   []byte
	}{
		{internalVolume, "volume key", volume, h.volume[:]},
		{internalBase, "base secret", base, h.base[:]},
	} {
		kek, err := derive(data, h.installID, w.purpose, 32)
		if err != nil {
			return err
		}
		wrapped, err := wrap(kek, w.plain, w.what, h.installID)
		clear(kek)
		if err != nil {
			return err
		}
		copy(w.into, wrapped)
	}
	for i := range h.slots {
		if err := h.give(&h.slots[i], data); err != nil {
			return err
		}
	}
	return nil
}

// Commit writes what Create made. The header is the commit point: a power cut
// before it leaves META blank and the next start makes other keys; one after
// it leaves a header that opens, and the next Open brings latch and claimed
// bit into the TPM.
func (v *Vault) Commit(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.committed {
		if err := v.save(); err != nil {
			return err
		}
		v.committed = true
	}
	if !v.h.mode.sealed() {
		return nil
	}
	return v.withClaimedAuth(v.settle)
}
