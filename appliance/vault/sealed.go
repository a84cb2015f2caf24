package vault

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"gatehouse/firmware/approval"
	"gatehouse/tpm"
	"gatehouse/tpm/pcr"
)

// NV indices, in the range that the TCG's registry leaves to a machine's owner.
const (
	nvLatch   = 0x01814701 // "this box is sealed to its TPM": install id; anybody may read it
	nvClaimed = 0x01814702 // install id and one byte: 1 if the box has an owner; authorised from the base secret
	nvCounter = 0x01814703 // counts epochs: what was sealed before it was counted up opens no more
	nvKept    = 0x01814705 // digest of what a locked box uses of META; anybody may read it, written with an authorisation from the base secret
	nvMemory  = 0x01814704 // how far the data had come; anybody may read it, written with an authorisation from the base secret
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
//
// The command before may be the one that was not answered, or this one: it is
// tried once more, over a new connection. What was to be opened stays closed
// all the same.
func (c *Config) closeTPM(root *tpm.Root) error {
	if c.TPM == nil || c.Form != Box {
		return nil
	}
	err := c.extendCap(root)
	if err == nil {
		return nil
	}
	if resetErr := c.TPM.Reset(); resetErr != nil {
		return errors.Join(err, resetErr)
	}
	return c.extendCap(root)
}

// reopenTPM makes a TPM usable again that did not answer once. It is for what a
// person asks for on a box that is open or locked; a start does not try twice.
func (c *Config) reopenTPM() error {
	if c.TPM == nil {
		return nil
	}
	if err := c.TPM.Reset(); err != nil {
		return lockedTPM("The TPM did not answer before, and cannot be opened anew.", err)
	}
	return nil
}

func (c *Config) extendCap(root *tpm.Root) error {
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

const (
	sealCause  = "The TPM does not work, so nothing can be sealed to it."
	countCause = "The counter of releases cannot be kept in the TPM."
)

func counter() tpm.Counter { return tpm.Counter{Handle: nvCounter} }

// policyOf is what a slot is sealed under.
func (c *Config) policyOf(s *tpmSlot) (tpm.Policy, error) {
	p := tpm.Policy{Literal: make(pcr.Values)}
	for _, i := range c.policy().Indices() {
		p.Literal[i] = s.values[i]
	}
	if s.atMost > 0 {
		p.Counter, p.AtMost = counter(), s.atMost
	}
	if s.approver != nil {
		key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), s.approver)
		if err != nil {
			return p, err
		}
		p.Key, p.Ref, p.Approved = key, approval.Reference(s.epoch), approvedRegisters()
	}
	return p, nil
}

// count makes the counter if there is none, and reads it. A service on a host
// has none: the epochs are those of our own image.
func (c *Config) count(root tpm.Root) (uint64, error) {
	if c.Form != Box {
		return 0, nil
	}
	n, err := c.TPM.ReadCounter(root, counter())
	if errors.Is(err, tpm.ErrNoIndex) || errors.Is(err, tpm.ErrUnwritten) {
		if err = c.TPM.DefineCounter(root, counter()); err == nil {
			n, err = c.TPM.ReadCounter(root, counter())
		}
	}
	return n, err
}

// watched are the registers whose values a slot remembers.
func (c *Config) watched() pcr.Selection {
	if c.Form != Box {
		return c.policy()
	}
	return c.policy() | approvedRegisters()
}

// sealHere makes a TPM slot for the system that runs, by a new secret.
func (c *Config) sealHere(root tpm.Root) (s slot, seed []byte, err error) {
	t, err := c.here(root)
	if err != nil {
		return s, nil, err
	}
	return c.sealUnder(root, t)
}

// here is what a slot for the system that runs is sealed under.
func (c *Config) here(root tpm.Root) (*tpmSlot, error) {
	const cause = sealCause
	values, err := c.TPM.PCRs(root, c.watched())
	if err != nil {
		return nil, lockedTPM(cause, err)
	}
	if err := bankOf(values); err != nil {
		return nil, lockedTPM(cause, err)
	}
	n, err := c.count(root)
	if err != nil {
		return nil, lockedTPM(countCause, err)
	}
	t := &tpmSlot{values: values, atMost: n}
	if c.Form == Box {
		t.values[capRegister] = [pcr.Size]byte{} // as it is before anybody asked
		if c.approved(values) {
			if t.approver, err = c.System.Key.Bytes(); err != nil {
				return nil, fmt.Errorf("reading the release key: %w", err)
			}
			t.epoch = c.System.Epoch
		}
	}
	return t, nil
}

// bankOf refuses registers that the firmware does not fill, by name.
func bankOf(values pcr.Values) error {
	if err := values.Measured(secureBootRegister); err != nil {
		return fmt.Errorf("%w: %w", tpm.ErrBank, err)
	}
	return nil
}

// sealUnder seals a new secret as the slot says.
func (c *Config) sealUnder(root tpm.Root, t *tpmSlot) (s slot, seed []byte, err error) {
	p, err := c.policyOf(t)
	if err != nil {
		return s, nil, err
	}
	seed = make([]byte, dataKeySize)
	if err := c.fill(seed); err != nil {
		return s, nil, err
	}
	if err := c.mix(root, seed); err != nil {
		return s, nil, err
	}
	if t.blob, err = c.TPM.SealUnder(root, seed, p); err != nil {
		clear(seed)
		return s, nil, lockedTPM(sealCause, err)
	}
	s = slot{kind: kindTPM, made: c.Now().Unix(), tpm: t}
	if s.public, err = publicOf(seed); err != nil {
		clear(seed)
		return s, nil, err
	}
	return s, seed, nil
}

// prove opens what was just sealed, before anything depends on it.
func (c *Config) prove(root tpm.Root, s *slot, seed []byte) error {
	back, err := c.unsealSlot(root, s.tpm)
	defer clear(back)
	if err != nil {
		return lockedTPM(sealCause, err)
	}
	if !bytes.Equal(back, seed) {
		return lockedTPM(sealCause, errors.New("it gave back another key than was sealed"))
	}
	return nil
}

func (c *Config) unsealSlot(root tpm.Root, s *tpmSlot) ([]byte, error) {
	p, err := c.policyOf(s)
	if err != nil {
		return nil, err
	}
	return c.TPM.UnsealUnder(root, s.blob, p, c.approvals())
}

// openTPM unseals by the first slot whose policy holds and closes the TPM
// behind it, whether that worked or not. There is no other way into a header
// that is sealed to a TPM, but the recovery key.
func (h *header) openTPM(c *Config) (data []byte, used *slot, err error) {
	const cause = "The data is sealed to the TPM, and the TPM does not work."
	if c.TPM == nil {
		return nil, nil, &Locked{
			Rung:   "tpm",
			Cause:  "The data is sealed to a TPM, and this machine has none.",
			Advice: "Put the disk back into its machine, or switch the TPM on in the firmware's set-up. " + h.adviceRecovery(),
		}
	}
	if h.first(kindTPM).tpm.values.Selection() != c.watched() {
		return nil, nil, lockedHeader(errors.New("it was sealed by another form of the program"))
	}
	root := h.tpm.root
	var seed []byte
	for i := range h.slots {
		if used = &h.slots[i]; used.kind != kindTPM {
			continue
		}
		seed, err = c.unsealSlot(root, used.tpm)
		if !errors.Is(err, tpm.ErrPolicy) {
			break
		}
	}
	defer clear(seed)
	if errors.Is(err, tpm.ErrPolicy) {
		err = h.brokenPolicy(c, err)
	} else if err != nil {
		err = lockedTPM(cause, err)
	}
	if capErr := c.closeTPM(&root); capErr != nil && err == nil {
		err = lockedTPM("The TPM cannot be closed after the key was taken out.", capErr)
	}
	if err == nil {
		data, err = h.behindTPM(c, used, seed)
	}
	if err != nil {
		var l *Locked
		if errors.As(err, &l) && h.first(kindRecovery) != nil && !strings.Contains(l.Advice, adviceRecovery) {
			l.Advice += " " + adviceRecovery
		}
		return nil, nil, err
	}
	return data, used, nil
}

// behindTPM reads the data key out of a slot that the TPM opened, and asks for
// the passphrase where one is the inner of the two.
func (h *header) behindTPM(c *Config, used *slot, seed []byte) ([]byte, error) {
	if h.guard == nil {
		data, err := h.take(used, seed)
		if err != nil {
			return nil, lockedHeader(err)
		}
		return data, nil
	}
	inner, err := openWith(seed, used.sealed, used.kind.String(), h.installID)
	if err != nil {
		return nil, lockedHeader(err)
	}
	w := &waiting{used: used, lock: h.guard, public: h.guard.public, inner: inner, what: guardInfo}
	return w.ask(c, h)
}

// brokenPolicy names what no longer is as it was when the key was sealed: by
// the slot that opened last, which is the first.
func (h *header) brokenPolicy(c *Config, err error) error {
	const cause = "The data is sealed to the TPM, and the TPM does not work."
	s := h.first(kindTPM).tpm
	now, readErr := c.TPM.PCRs(h.tpm.root, c.watched())
	if readErr == nil {
		readErr = bankOf(now)
	}
	switch {
	case errors.Is(readErr, tpm.ErrBank):
		return &Locked{
			Rung:   "pcr",
			Cause:  "The firmware no longer measures into the TPM's SHA-256 registers, which the data is sealed to.",
			Advice: "Turn on the TPM's SHA-256 bank in the firmware's set-up, then restart. " + adviceErase, Err: errors.Join(err, readErr),
		}
	case readErr != nil:
		return lockedTPM(cause, errors.Join(err, readErr))
	}
	if s.atMost > 0 {
		n, readErr := c.TPM.ReadCounter(h.tpm.root, counter())
		if readErr != nil {
			return lockedTPM("The TPM's counter of releases, which the data is sealed to, cannot be read.", errors.Join(err, readErr))
		}
		if n > s.atMost {
			return &Locked{
				Rung:   "counter",
				Cause:  fmt.Sprintf("The header is older than the TPM: it was made when releases were counted to %d, and the TPM has counted to %d.", s.atMost, n),
				Advice: "An older copy of the disk does not open the data. Put the newest one back. " + adviceErase, Err: err,
			}
		}
	}
	old := make(pcr.Values)
	for i, x := range s.values {
		if s.approver != nil || c.policy().Has(i) {
			old[i] = x
		}
	}
	changes := pcr.Changes(old, now)
	if s.approver == nil || !c.approved(now) {
		return lockedPCR(changes, err)
	}
	// Another release, approved by its own key: the registers that it changed are
	// not what broke, unless that key or its epoch is.
	l := lockedPCR(slices.DeleteFunc(slices.Clone(changes), func(x pcr.Change) bool { return approvedRegisters().Has(x.Index) }), err)
	if len(l.PCRs) > 0 {
		return l
	}
	key, keyErr := c.System.Key.Bytes()
	switch {
	case keyErr != nil:
		return fmt.Errorf("reading the release key: %w", keyErr)
	case !bytes.Equal(key, s.approver):
		l = lockedPCR(changes, err)
		l.Cause = "The system that was started is approved by another release key than the one that the data is sealed to."
		l.Advice = "Start the version that ran before, or a newer one of the same maker. " + adviceErase
	case c.System.Epoch < s.epoch:
		l = lockedPCR(changes, err)
		l.Cause = fmt.Sprintf("The system that was started is of epoch %d, and the data is sealed to epoch %d: older systems are shut out since a security release.", c.System.Epoch, s.epoch)
		l.Advice = "Start the version that ran before, or a newer one. " + adviceErase
	}
	return l
}

func registers(v pcr.Values, s pcr.Selection) pcr.Values {
	out := make(pcr.Values)
	for _, i := range s.Indices() {
		out[i] = v[i]
	}
	return out
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
			err = v.c.TPM.WriteNV(v.h.tpm.root, index, claimedData(v.h.installID, v.h.flags&flagClaimed != 0))
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
