package vault

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"gatehouse/tpm"
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
	if v.h.mode == modeTPM {
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
	data, volume, kek := make([]byte, dataKeySize), make([]byte, volumeKeySize), make([]byte, dataKeySize)
	defer func() { clear(data); clear(volume); clear(kek) }()
	for _, b := range [][]byte{h.installID[:], data, volume, kek} {
		if err := c.fill(b); err != nil {
			return nil, err
		}
	}
	if c.TPM != nil {
		root, err := c.TPM.Root()
		if err != nil {
			return nil, lockedTPM(sealCause, err)
		}
		if err := c.mix(root, data, volume, kek); err != nil {
			return nil, err
		}
		if err := c.seal(h, root, kek); err != nil {
			return nil, err
		}
	} else {
		chosen, err := c.choose(h)
		if err != nil {
			return nil, err
		}
		copy(kek, chosen)
		clear(chosen)
	}
	if err := h.wrap(c, kek, data, volume); err != nil {
		return nil, err
	}
	return newVault(c, h, data)
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

// wrap fills in what the data key encrypts, and what encrypts it.
func (h *header) wrap(c *Config, kek, data, volume []byte) error {
	wrapped, err := wrap(kek, data, wrapDataKey+" "+h.mode.String(), h.installID)
	if err != nil {
		return err
	}
	copy(h.wrapped[:], wrapped)
	volumeKEK, err := derive(data, h.installID, internalVolume, 32)
	if err != nil {
		return err
	}
	defer clear(volumeKEK)
	if wrapped, err = wrap(volumeKEK, volume, "volume key", h.installID); err != nil {
		return err
	}
	copy(h.volume[:], wrapped)
	if h.mode != modeTPM {
		return nil
	}
	auth, err := derive(data, h.installID, internalCheckpoint, 32)
	if err != nil {
		return err
	}
	defer clear(auth)
	if h.tpm.checkpoint, err = c.TPM.NewKey(h.tpm.root, auth); err != nil {
		return lockedTPM("The TPM cannot make the checkpoint key.", err)
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
	if v.h.mode != modeTPM {
		return nil
	}
	return v.withClaimedAuth(v.settle)
}

// Erase forgets the data key for good, whatever state it is in. On a box with
// a TPM the machine must be restarted before a new one can be made. The header
// goes first: a power cut after it leaves a latch over a blank META, which is
// locked and can be erased again.
func Erase(ctx context.Context, c Config) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c = c.ready()
	if err := erase(c.Meta); err != nil {
		return err
	}
	if c.TPM == nil {
		return nil
	}
	const again = "erasing what the TPM remembers (the data key is gone; erase again): %w"
	root, err := c.TPM.Root()
	if err != nil {
		return fmt.Errorf(again, err)
	}
	// The latch goes last: while it stands, the box does not begin anew.
	for _, index := range []uint32{nvClaimed, nvLatch} {
		if err := c.TPM.UndefineNV(root, index); err != nil {
			return fmt.Errorf(again, err)
		}
	}
	return nil
}
