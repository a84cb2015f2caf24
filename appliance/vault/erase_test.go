package vault

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"gatehouse/tpm"
	"gatehouse/tpm/tpmtest"
)

// The header of before, put back after Erase by somebody who kept a copy of it,
// on the same machine with the same TPM: it opens by nothing that the box itself
// has, whatever he does to the TPM as its owner.
func TestBOX13_HeaderOfBeforeOpensNothing(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	v := mustCreate(t, c)
	if err := v.SetClaimed(t.Context()); err != nil {
		t.Fatal(err)
	}
	meta := c.Meta.(*disk)
	kept := slices.Clone(meta.data)
	s.PowerCut(t)
	mustOpen(t, c).Wipe() // as long as it was not erased
	s.PowerCut(t)
	old, err := readPages(meta)
	if err != nil {
		t.Fatal(err)
	}
	slot := old.newest.slots[0].tpm
	if seed, err := c.unsealSlot(old.newest.tpm.root, slot); err != nil || len(seed) == 0 {
		t.Fatalf("the TPM does not unseal before Erase (%v): this test could not fail", err)
	}

	if err := Erase(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	stays := func(when string) {
		t.Helper()
		s.PowerCut(t)
		after := slices.Clone(meta.data)
		copy(meta.data, kept)
		var locked *Locked
		if v, err := Open(t.Context(), c); err == nil {
			v.Wipe()
			t.Errorf("%s the old header opens", when)
		} else if !errors.As(err, &locked) {
			t.Errorf("%s the old header gives %v, want a Locked", when, err)
		}
		s.PowerCut(t)
		if seed, err := c.unsealSlot(old.newest.tpm.root, slot); err == nil || len(seed) > 0 {
			t.Errorf("%s the TPM unseals what the old header holds", when)
		}
		copy(meta.data, after)
	}
	stays("erased,")
	if err := s.TPM().DefineCounter(old.newest.tpm.root, counter()); err != nil {
		t.Fatal(err)
	}
	n, err := s.TPM().ReadCounter(old.newest.tpm.root, counter())
	if err != nil || n <= slot.atMost {
		t.Errorf("made anew the counter is %d, was sealed for at most %d (%v)", n, slot.atMost, err)
	}
	stays("with the counter made anew by hand,")
	if err := s.TPM().UndefineNV(old.newest.tpm.root, nvCounter); err != nil {
		t.Fatal(err)
	}
	// An index of zeroes in the counter's place has another name.
	if err := s.TPM().DefineNV(old.newest.tpm.root, tpm.Index{Handle: nvCounter, Size: 8}); err != nil {
		t.Fatal(err)
	}
	if err := s.TPM().WriteNV(old.newest.tpm.root, tpm.Index{Handle: nvCounter, Size: 8}, make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	stays("with zeroes in the counter's place,")
	if err := Erase(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	s.PowerCut(t)
	w := mustCreate(t, c)
	if w.InstallID() == v.InstallID() {
		t.Error("the new box is the old one")
	}
	w.Wipe()
	stays("under a new box,")
}

// Where nothing but the header holds the key, a copy of it is the key: said in
// docs/keys.md, and why the data are discarded.
func TestBOX13_WithoutTPMACopyOfTheHeaderIsTheKey(t *testing.T) {
	for name, c := range forms() {
		c.Meta = newDisk()
		v := mustCreate(t, c)
		kept := slices.Clone(c.Meta.(*disk).data)
		if err := Erase(t.Context(), c); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		copy(c.Meta.(*disk).data, kept)
		w := mustOpen(t, c)
		sameData(t, v, w)
	}
}

func TestBOX13_NothingOfMetaIsLeft(t *testing.T) {
	c := forms()["host-id"]
	d := &disk{data: bytes.Repeat([]byte{0xA5}, MetaSize), left: -1}
	clear(d.data[:erasedEnd])
	c.Meta = d
	mustCreate(t, c)
	if err := WriteNetwork(d, []byte("an address")); err != nil {
		t.Fatal(err)
	}
	if err := Erase(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if !isBlank(d.data[:erasureAt]) {
		t.Error("something is left in META")
	}
}

// The report is shown and never believed, so that is all that may be in it.
func TestBOX13_ErasureIsReadAsItWasWritten(t *testing.T) {
	d := &disk{data: make([]byte, MetaSize), left: -1}
	if _, ok, err := ReadErasure(d); ok || err != nil {
		t.Errorf("blank: %v, %v", ok, err)
	}
	if _, ok, err := ReadErasure(newDisk()); ok || err != nil {
		t.Errorf("a META that ends before: %v, %v", ok, err)
	}
	for _, want := range []Erasure{{}, {Words: "begun"}, {Done: true, Words: strings.Repeat("w", maxErasure)}} {
		if err := WriteErasure(d, want); err != nil {
			t.Fatal(err)
		}
		got, ok, err := ReadErasure(d)
		if err != nil || !ok || got != want {
			t.Errorf("got %v %v %v, want %v", got, ok, err, want)
		}
	}
	if err := WriteErasure(d, Erasure{Words: strings.Repeat("w", blockSize)}); err != nil {
		t.Fatal(err)
	}
	for at := erasureAt; at < erasureAt+erasureHead+maxErasure+1; at += 37 {
		d.data[at] ^= 0x10
		if e, ok, err := ReadErasure(d); ok || err != nil {
			t.Errorf("with byte %d changed: %v, %v, %v", at, e, ok, err)
		}
		d.data[at] ^= 0x10
	}
	if err := ClearErasure(d); err != nil || !isBlank(d.data) {
		t.Errorf("it is not cleared: %v", err)
	}
}
