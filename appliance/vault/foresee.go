package vault

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"slices"

	"gatehouse/tpm/pcr"
)

// Boot is a start that is foreseen: firmware that will measure something else,
// or a release of another epoch.
type Boot struct {
	PCR7     [pcr.Size]byte   // zero: as at this start
	Epoch    uint64           // 0: as now
	Approver *ecdsa.PublicKey // of the release; nil: as now
	Note     string           // what the slot waits for
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
		return lockedTPM(countCause, err)
	}
	var add []slot
	for _, b := range boots {
		t := &tpmSlot{values: make(pcr.Values), approver: used.tpm.approver, epoch: used.tpm.epoch, atMost: n, note: b.Note[:min(len(b.Note), maxNote)]}
		for i, x := range used.tpm.values {
			t.values[i] = x
		}
		if b.PCR7 != [pcr.Size]byte{} {
			t.values[secureBootRegister] = b.PCR7
		}
		if b.Approver != nil {
			if t.approver == nil {
				return errors.New("this box's key is sealed without a release in its policy: it has no release key that could be another")
			}
			if t.approver, err = b.Approver.Bytes(); err != nil {
				return fmt.Errorf("reading the release key: %w", err)
			}
		}
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
	return s.tpm != nil && s.tpm.values[secureBootRegister] == t.values[secureBootRegister] && s.tpm.epoch == t.epoch && s.tpm.atMost == t.atMost &&
		bytes.Equal(s.tpm.approver, t.approver)
}

// ExpectRelease has the key open for a release that another key approves, or of a
// raised epoch, at the start that tries it; what opens for the present one opens
// on. Where no release is in the policy there is nothing to do: any system that
// the firmware starts in the same way opens the key.
func (v *Vault) ExpectRelease(ctx context.Context, approver *ecdsa.PublicKey, epoch uint64) error {
	if !v.mode().sealed() || v.c.Form != Box {
		return nil
	}
	own := v.opened()
	if own.tpm == nil {
		return errors.New("the data was not opened by the TPM at this start: make its slot anew first (page Keys and trust)")
	}
	if own.tpm.approver == nil {
		return nil
	}
	if approver == nil {
		return errors.New("the release brings no approvals, and this box's key opens for approved releases alone")
	}
	key, err := approver.Bytes()
	if err != nil {
		return fmt.Errorf("reading the release key: %w", err)
	}
	if bytes.Equal(key, own.tpm.approver) && epoch <= own.tpm.epoch {
		return nil
	}
	// The firmware may have been told something since this start, which it measures at the next.
	v.mu.Lock()
	slots := slices.Clone(v.h.slots)
	v.mu.Unlock()
	var boots []Boot
	for _, s := range slots {
		if s.tpm != nil && bytes.Equal(s.tpm.approver, own.tpm.approver) && s.tpm.epoch == own.tpm.epoch {
			boots = append(boots, Boot{PCR7: [pcr.Size]byte(s.tpm.values[secureBootRegister]), Epoch: epoch, Approver: approver, Note: "for the release that is tried"})
		}
	}
	return v.Expect(ctx, boots)
}

// Settle keeps the TPM slot that opened this start and drops the others. If
// the release's epoch was raised, the counter goes up first: from then on no
// older copy of the header opens. Keys that this version of the program added
// are made: a start that does not prove itself leaves the header as it was.
func (v *Vault) Settle(ctx context.Context) error {
	own := v.opened()
	if !v.mode().sealed() || own.tpm == nil {
		return nil
	}
	if err := v.settleSlots(ctx, own); err != nil {
		return err
	}
	return v.completeKeys(ctx)
}

func (v *Vault) settleSlots(ctx context.Context, own slot) error {
	root := v.tpmRoot()
	for own.tpm.atMost > 0 {
		n, err := v.c.count(root)
		if err != nil {
			return lockedTPM(countCause, err)
		}
		if n >= own.tpm.atMost {
			break
		}
		if err := v.c.TPM.Count(root, counter()); err != nil {
			return lockedTPM("The TPM does not shut out releases of older epochs.", err)
		}
	}
	v.mu.Lock()
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
