package vault

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"gatehouse/tpm"
	"gatehouse/tpm/pcr"
)

// NV indices, in the range that the TCG's registry leaves to a machine's owner.
const (
	nvLatch   = 0x01814701 // "this box is sealed to its TPM": install id; anybody may read it
	nvClaimed = 0x01814702 // install id and one byte: 1 if the box has an owner; authorised from the data key
)

const (
	secureBootRegister = 7
	capRegister        = 15
)

// capDigest is what PCR 15 is extended by once the key was asked for.
func capDigest() [32]byte { return sha256.Sum256([]byte("gatehouse: the data key was asked for")) }

// policy is the set of registers that a key is sealed to. On a host PCR 15
// belongs to that host's own system, and the service must start again without
// a restart of the machine, so it is left out and nothing is capped.
func (c *Config) policy() pcr.Selection {
	if c.Form == Box {
		return pcr.Select(secureBootRegister, capRegister)
	}
	return pcr.Select(secureBootRegister)
}

// closeTPM extends PCR 15, so that nothing started from the data volume can
// ask for the key again in this run of the machine (a data partition swapped
// for one of an attacker's making must never get code run while it can be had).
func (c *Config) closeTPM(root *tpm.Root) error {
	if c.TPM == nil || c.Form != Box {
		return nil
	}
	if root == nil {
		return c.TPM.ExtendPlain(capRegister, capDigest())
	}
	err := c.TPM.Extend(*root, capRegister, capDigest())
	if errors.Is(err, tpm.ErrForeign) {
		return c.TPM.ExtendPlain(capRegister, capDigest())
	}
	return err
}

func latchIndex() tpm.Index { return tpm.Index{Handle: nvLatch, Size: 16} }

func claimedIndex(auth []byte) tpm.Index {
	return tpm.Index{Handle: nvClaimed, Size: 17, Auth: auth}
}

// latch reads the latch where no header is there to say anything. An index of
// the claimed bit without a latch is what an interrupted first start leaves;
// it counts as a latch, because the key that could use it is gone. So does
// an index of somebody else's in this place: there is then no room for ours.
func (c *Config) latch() (set bool, err error) {
	if c.TPM == nil {
		return false, nil
	}
	root, err := c.TPM.Root()
	if err != nil {
		return false, err
	}
	for _, index := range []tpm.Index{latchIndex(), claimedIndex([]byte{})} {
		_, _, err := c.TPM.ReadNV(root, index)
		switch {
		case errors.Is(err, tpm.ErrNoIndex):
		case err == nil, errors.Is(err, tpm.ErrAuth), errors.Is(err, tpm.ErrUnwritten), errors.Is(err, tpm.ErrForeign):
			return true, nil
		default:
			return false, err
		}
	}
	return false, nil
}

const sealCause = "The TPM does not work, so nothing can be sealed to it."

// seal makes the TPM slot of a new header, and proves that it opens before
// anything depends on it.
func (c *Config) seal(h *header, root tpm.Root, kek []byte) error {
	const cause = sealCause
	values, err := c.TPM.PCRs(root, c.policy())
	if err != nil {
		return lockedTPM(cause, err)
	}
	if err := values.Measured(secureBootRegister); err != nil {
		return lockedTPM(cause, fmt.Errorf("%w: %w", tpm.ErrBank, err))
	}
	if changed := pcr.Changes(pcr.Values{capRegister: {}}, values); c.Form == Box && len(changed) > 0 {
		return lockedPCR(changed, nil)
	}
	s := &tpmSlot{root: root, values: values, latch: nvLatch, claimed: nvClaimed}
	if s.sealed, err = c.TPM.Seal(root, kek, values); err != nil {
		return lockedTPM(cause, err)
	}
	back, err := c.TPM.Unseal(root, s.sealed, values.Selection())
	if err != nil {
		return lockedTPM(cause, err)
	}
	defer clear(back)
	if !bytes.Equal(back, kek) {
		return lockedTPM(cause, errors.New("it gave back another key than was sealed"))
	}
	h.mode, h.tpm = modeTPM, s
	return nil
}

// openTPM unseals the key and closes the TPM behind it, whether that worked
// or not. There is no other way into a header that is sealed to a TPM.
func (h *header) openTPM(c *Config) ([]byte, error) {
	const cause = "The data is sealed to the TPM, and the TPM does not work."
	if c.TPM == nil {
		return nil, &Locked{
			Rung:   "tpm",
			Cause:  "The data is sealed to a TPM, and this machine has none.",
			Advice: "Put the disk back into its machine, or switch the TPM on in the firmware's set-up. " + adviceErase,
		}
	}
	if h.tpm.values.Selection() != c.policy() {
		return nil, lockedHeader(errors.New("it was sealed by another form of the program"))
	}
	root := h.tpm.root
	kek, err := c.TPM.Unseal(root, h.tpm.sealed, h.tpm.values.Selection())
	defer clear(kek)
	if errors.Is(err, tpm.ErrPolicy) {
		now, readErr := c.TPM.PCRs(root, h.tpm.values.Selection())
		if readErr != nil {
			err = lockedTPM(cause, errors.Join(err, readErr))
		} else {
			err = lockedPCR(pcr.Changes(h.tpm.values, now), err)
		}
	} else if err != nil {
		err = lockedTPM(cause, err)
	}
	if capErr := c.closeTPM(&root); capErr != nil && err == nil {
		err = lockedTPM("The TPM cannot be closed after the key was taken out.", capErr)
	}
	if err != nil {
		return nil, err
	}
	data, err := unwrap(kek, h.wrapped[:], wrapDataKey+" "+h.mode.String(), h.installID)
	if err != nil {
		return nil, lockedHeader(err)
	}
	return data, nil
}

func claimedData(installID [16]byte, claimed bool) []byte {
	b := byte(0)
	if claimed {
		b = 1
	}
	return append(slices.Clone(installID[:]), b)
}

// readClaimed reads the claimed bit under its authorisation, so that neither a
// bus nor another system on this machine can answer in its place.
func (v *Vault) readClaimed(auth []byte) (claimed, locked bool, err error) {
	data, locked, err := v.c.TPM.ReadNV(v.h.tpm.root, claimedIndex(auth))
	if err != nil {
		return false, false, err
	}
	switch {
	case bytes.Equal(data, claimedData(v.h.installID, true)):
		return true, locked, nil
	case bytes.Equal(data, claimedData(v.h.installID, false)):
		return false, locked, nil
	}
	return false, false, fmt.Errorf("the claimed bit is of another installation: %w", tpm.ErrForeign)
}

func lockedClaim(err error) *Locked {
	return &Locked{
		Rung:   "claim",
		Cause:  "What the TPM remembers of the owner of this box is missing or is of another installation.",
		Advice: "Something else wrote to the TPM. " + adviceErase, Err: err,
	}
}

// settle brings claimed bit and latch into the TPM, in this order, and then
// says so in the header. A power cut in between leaves a header that is not
// settled and opens; the next Open comes here again. Once settled, a missing
// claimed bit is never made anew: that would make an owned box claimable.
func (v *Vault) settle(auth []byte) error {
	claimed, locked, err := v.readClaimed(auth)
	settled := v.h.flags&flagSettled != 0
	index := claimedIndex(auth)
	missing := errors.Is(err, tpm.ErrNoIndex)
	switch {
	case err == nil:
		if claimed && !locked {
			err = v.c.TPM.LockNV(v.h.tpm.root, index) // a power cut came between write and lock
		}
	case settled:
	case missing, errors.Is(err, tpm.ErrUnwritten):
		if missing {
			err = v.c.TPM.DefineNV(v.h.tpm.root, index)
		} else {
			err = nil
		}
		if err == nil {
			err = v.c.TPM.WriteNV(v.h.tpm.root, index, claimedData(v.h.installID, false))
		}
		if err != nil {
			return lockedTPM("The claimed bit cannot be written to the TPM.", err)
		}
	}
	if err != nil {
		return claimError(err)
	}
	if err := v.setLatch(); err != nil {
		return err
	}
	if settled {
		return nil
	}
	v.h.flags |= flagSettled
	return v.save()
}

// setLatch writes the latch if it is not there. It needs no secret and gives
// none away: it only ever makes the box refuse more.
func (v *Vault) setLatch() error {
	root, index := v.h.tpm.root, latchIndex()
	data, locked, err := v.c.TPM.ReadNV(root, index)
	switch {
	case err == nil && !bytes.Equal(data, v.h.installID[:]):
		return lockedLatch("The TPM says that this machine is sealed to another installation.", nil)
	case err == nil && locked:
		return nil
	case err == nil, errors.Is(err, tpm.ErrUnwritten):
		err = nil
	case errors.Is(err, tpm.ErrNoIndex):
		if v.h.flags&flagSettled != 0 {
			v.c.Log.Warn("the latch in the TPM was removed by something else; writing it again")
		}
		err = v.c.TPM.DefineNV(root, index)
	}
	if err == nil && data == nil {
		err = v.c.TPM.WriteNV(root, index, v.h.installID[:])
	}
	if err == nil {
		err = v.c.TPM.LockNV(root, index)
	}
	if err != nil {
		return lockedTPM("The latch cannot be written to the TPM.", err)
	}
	return nil
}
