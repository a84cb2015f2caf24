package vault

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"gatehouse/tpm"
	"gatehouse/tpm/tpmtest"
)

func TestKEY1_SealedBoxOpensAfterRestart(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	v := mustCreate(t, c)
	if v.Trust().Grade != "B" || v.Trust().Mechanism != "tpm" {
		t.Errorf("Trust = %+v", v.Trust())
	}
	s.PowerCut(t)
	w := mustOpen(t, c)
	same(t, v, w)
	checkSign(t, w)
	checkClaim(t, c, w)
	s.PowerCut(t)
	x := mustOpen(t, c)
	if claimed, err := x.Claimed(t.Context()); !claimed || err != nil {
		t.Errorf("Claimed = %v, %v after a restart", claimed, err)
	}
	if n, err := x.LockoutCounter(t.Context()); n != 0 || err != nil {
		t.Errorf("LockoutCounter = %d, %v", n, err)
	}
	if n := s.Loaded(t); n != 0 {
		t.Errorf("%d objects and sessions left loaded", n)
	}
}

func TestKEY1_CappedUntilRestart(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	mustCreate(t, c)
	for range 2 { // after Create, and after Open
		_, err := Open(t.Context(), c)
		l := wantLocked(t, err, "pcr")
		if len(l.PCRs) != 1 || l.PCRs[0].Index != 15 || !strings.Contains(l.Cause, "PCR 15") {
			t.Errorf("%v does not name PCR 15", l)
		}
		s.PowerCut(t)
		mustOpen(t, c)
	}
	// A failed attempt closes the TPM as well.
	s.PowerCut(t)
	broken := c
	d := c.Meta.(*disk).clone()
	d.data[len(headerMagic)+20] ^= 1
	d.data[copySize+len(headerMagic)+20] ^= 1
	broken.Meta = d
	_, err := Open(t.Context(), broken)
	wantLocked(t, err, "header")
	_, err = Open(t.Context(), c)
	wantLocked(t, err, "pcr")
	// And a first start in a run where somebody was before us is none.
	blank := tpmtest.Start(t)
	blank.Measure(t, 15, "somebody")
	_, err = Create(t.Context(), box(blank, newDisk()))
	wantLocked(t, err, "pcr")
}

func TestKEY1_HostedIsNotCapped(t *testing.T) {
	s := tpmtest.Start(t)
	s.Measure(t, 15, "the host's own system")
	c := box(s, newDisk())
	c.Form = Host
	v := mustCreate(t, c)
	same(t, v, mustOpen(t, c))
	same(t, v, mustOpen(t, c))
	c.Form = Box
	_, err := Open(t.Context(), c)
	wantLocked(t, err, "header")
}

func TestKEY12_ChangedPCRIsNamed(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	v := mustCreate(t, c)
	was := s.Firmware
	s.Firmware = "secure boot on"
	s.PowerCut(t)
	_, err := Open(t.Context(), c)
	l := wantLocked(t, err, "pcr")
	if len(l.PCRs) != 1 || l.PCRs[0].Index != 7 || l.PCRs[0].Old == l.PCRs[0].New || len(l.PCRs[0].New) != 64 || !strings.Contains(l.Cause, "PCR 7") {
		t.Errorf("%+v does not name PCR 7", l)
	}
	s.Firmware = was
	s.PowerCut(t)
	same(t, v, mustOpen(t, c))
}

func TestKEY6_OtherTPMOpensNothing(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	v := mustCreate(t, c)
	s.PowerCut(t)
	other := box(tpmtest.Start(t), c.Meta)
	before := slices.Clone(c.Meta.(*disk).data)
	_, err := Open(t.Context(), other)
	wantLocked(t, err, "srk")
	other.TPM = nil
	_, err = Open(t.Context(), other)
	wantLocked(t, err, "tpm")
	if i, err := Inspect(t.Context(), other); err != nil || i.Mechanism != "tpm" || i.Blank || i.Trust.Grade != "B" {
		t.Errorf("Inspect = %+v, %v", i, err)
	}
	if !bytes.Equal(before, c.Meta.(*disk).data) {
		t.Error("a machine that could not open the header wrote to it")
	}
	same(t, v, mustOpen(t, c))
	s.Clear(t)
	s.PowerCut(t)
	_, err = Open(t.Context(), c)
	wantLocked(t, err, "srk")
}

func TestKEY6_CloneOfTheDiskOpensNothing(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	mustCreate(t, c)
	clone := box(tpmtest.Start(t), c.Meta.(*disk).clone())
	_, err := Open(t.Context(), clone)
	wantLocked(t, err, "srk")
	if i, err := Inspect(t.Context(), clone); err != nil || i.Latched {
		t.Errorf("Inspect = %+v, %v", i, err)
	}
}

// A clone that copies the TPM's state too cannot be told apart here; it is the
// hub that sees two boxes with one key. Stated so that nobody relies on it.
func TestKEY6_CloneOfDiskAndTPMIsNotSeenLocally(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	v := mustCreate(t, c)
	twin := s.Copy(t)
	same(t, v, mustOpen(t, box(twin, c.Meta.(*disk).clone())))
}

// forge makes a whole header of an attacker's own, bound to the host id that
// he knows, with the install id of the real one.
func forge(t *testing.T, id [16]byte) *disk {
	t.Helper()
	d := newDisk()
	c := Config{Meta: d, HostID: hostID(machine), Form: Box}.ready()
	m, own, err := c.choose()
	if err != nil {
		t.Fatal(err)
	}
	h := &header{created: 1, mode: m, installID: id, slots: []slot{own}}
	data := make([]byte, dataKeySize)
	if err := h.wrap(data, make([]byte, volumeKeySize), make([]byte, baseSize)); err != nil {
		t.Fatal(err)
	}
	v, err := newVault(&c, h, data, &h.slots[0])
	if err != nil {
		t.Fatal(err)
	}
	v.p = &pages{}
	if err := v.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestKEY2_HeaderEditedToSayHostIDIsRefused(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	v := mustCreate(t, c)
	s.PowerCut(t)

	edited := c
	edited.Meta = forge(t, v.InstallID())
	_, err := Open(t.Context(), edited)
	wantLocked(t, err, "latch")
	_, err = Create(t.Context(), edited)
	wantLocked(t, err, "latch")
	if i, err := Inspect(t.Context(), edited); err != nil || !i.Latched || i.Problem == nil {
		t.Errorf("Inspect = %+v, %v", i, err)
	}

	// Without the TPM it opens the attacker's own key, which opens no data.
	edited.TPM = nil
	w := mustOpen(t, edited)
	if subkey(t, v) == subkey(t, w) {
		t.Error("a forged header gave the real key")
	}

	// The mode alone edited, with a fresh checksum: the slot does not fit it.
	for _, m := range []mode{modeHostID, modePassphrase, 0, 9} {
		d := c.Meta.(*disk).clone()
		for i := range copies {
			at := i*copySize + headerFixed + 8 + 16
			d.data[at] = byte(m)
			resum(d.data[i*copySize:])
		}
		edited := c
		edited.Meta = d
		_, err := Open(t.Context(), edited)
		wantLocked(t, err, "header")
		s.PowerCut(t)
	}
	same(t, v, mustOpen(t, c))
}

// Every bit of a header that is edited under a good checksum is refused, be it
// by the parser, the TPM or the MAC, and never opens anything.
func TestKEY1_EditedHeaderIsRefused(t *testing.T) {
	t.Run("host-id", func(t *testing.T) { editEveryByte(t, forms()["host-id"], 1) })
	// Hosted, because a box would be capped after the first attempt.
	c := box(tpmtest.Start(t), nil)
	c.Form = Host
	t.Run("tpm", func(t *testing.T) { editEveryByte(t, c, soak(t, 7, 1)) })
}

func editEveryByte(t *testing.T, c Config, step int) {
	c.Meta = newDisk()
	mustCreate(t, c)
	size := headerSize(c.Meta.(*disk).data)
	for at := 0; at < size-32; at += step {
		d := c.Meta.(*disk).clone()
		for i := range copies {
			d.data[i*copySize+at] ^= 1 << (at % 8)
			resum(d.data[i*copySize:])
		}
		c := c
		c.Meta = d
		v, err := Open(t.Context(), c)
		if err == nil {
			v.Wipe()
			t.Fatalf("byte %d of the header was edited, and it opened", at)
		}
		if errors.Is(err, ErrBlank) {
			t.Fatalf("byte %d of the header was edited, and it counts as blank", at)
		}
	}
}

func TestKEY2_BlankOrForeignMetaUnderLatchIsLocked(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	v := mustCreate(t, c)
	s.PowerCut(t)

	blank := c
	blank.Meta = newDisk()
	_, err := Open(t.Context(), blank)
	wantLocked(t, err, "latch")
	_, err = Create(t.Context(), blank)
	wantLocked(t, err, "latch")
	if i, err := Inspect(t.Context(), blank); err != nil || !i.Latched || !i.Blank || i.Problem == nil {
		t.Errorf("Inspect = %+v, %v", i, err)
	}
	torn := c
	torn.Meta = newDisk()
	torn.Meta.(*disk).data[9] = 7
	_, err = Open(t.Context(), torn)
	wantLocked(t, err, "latch")

	foreign := c
	foreign.Meta = newDisk()
	mustCreate(t, box(tpmtest.Start(t), foreign.Meta))
	s.PowerCut(t)
	_, err = Open(t.Context(), foreign)
	wantLocked(t, err, "srk")

	s.PowerCut(t)
	same(t, v, mustOpen(t, c))
	s.PowerCut(t)

	// Erase is the way on, and the old disk is then worth nothing.
	old := c
	old.Meta = c.Meta.(*disk).clone()
	if err := Erase(t.Context(), blank); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), blank); !errors.Is(err, ErrBlank) {
		t.Fatalf("Open after Erase = %v, want ErrBlank", err)
	}
	w := mustCreate(t, blank)
	if w.InstallID() == v.InstallID() || subkey(t, w) == subkey(t, v) {
		t.Error("the new installation is the old one")
	}
	s.PowerCut(t)
	_, err = Open(t.Context(), old)
	wantLocked(t, err, "counter") // it went on where the erased one had ended
}

func TestEraseEndsEveryMode(t *testing.T) {
	s := tpmtest.Start(t)
	configs := forms()
	configs["tpm"] = box(s, nil)
	for name, c := range configs {
		c.Meta = newDisk()
		v := mustCreate(t, c)
		if err := v.SetClaimed(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := WriteClaimVerifier(c.Meta, [16]byte{1}, [32]byte{2}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := Erase(t.Context(), c); err != nil {
				t.Fatalf("%s: Erase: %v", name, err)
			}
		}
		if !isBlank(c.Meta.(*disk).data) {
			t.Errorf("%s: something is left", name)
		}
		s.PowerCut(t)
		w := mustCreate(t, c)
		if claimed, err := w.Claimed(t.Context()); claimed || err != nil {
			t.Errorf("%s: Claimed = %v, %v after Erase", name, claimed, err)
		}
	}
}

// What another system started on this machine can do to the claimed bit, as
// the TPM's owner, ends in the locked state and never in a claimable box.
func TestACC1_ClaimedBitCannotBeTakenAway(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	v := mustCreate(t, c)
	unclaimed := c.Meta.(*disk).clone()
	if err := v.SetClaimed(t.Context()); err != nil {
		t.Fatal(err)
	}
	root := v.h.tpm.root
	if err := v.withClaimedAuth(func(auth []byte) error {
		return s.TPM().WriteNV(root, claimedIndex(auth), claimedData(v.InstallID(), false))
	}); err == nil {
		t.Error("the claimed bit was cleared by somebody with the data key")
	}
	s.PowerCut(t)

	// The disk put back to before the claim changes nothing.
	before := c
	before.Meta = unclaimed
	if claimed, err := mustOpen(t, before).Claimed(t.Context()); !claimed || err != nil {
		t.Errorf("Claimed = %v, %v on the disk from before the claim", claimed, err)
	}

	attacks := map[string]func() error{
		"removed": func() error { return s.TPM().UndefineNV(root, nvClaimed) },
		"made anew": func() error {
			index := claimedIndex(bytes.Repeat([]byte{9}, 32))
			if err := s.TPM().DefineNV(root, index); err != nil {
				return err
			}
			return s.TPM().WriteNV(root, index, claimedData(v.InstallID(), false))
		},
		"of another kind": func() error {
			if err := s.TPM().UndefineNV(root, nvClaimed); err != nil {
				return err
			}
			return s.TPM().DefineNV(root, tpm.Index{Handle: nvClaimed, Size: 17})
		},
	}
	for _, name := range []string{"removed", "made anew", "of another kind"} {
		if err := attacks[name](); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, c := range []Config{c, before} {
			s.PowerCut(t)
			_, err := Open(t.Context(), c)
			wantLocked(t, err, "claim")
		}
		if _, err := v.Claimed(t.Context()); err == nil {
			t.Errorf("%s: Claimed gives an answer", name)
		}
	}
}

// A power cut between writing the claimed bit and locking it.
func TestACC1_ClaimedBitIsLockedAtTheNextStart(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	v := mustCreate(t, c)
	write := func(claimed bool) error {
		return v.withClaimedAuth(func(auth []byte) error {
			return s.TPM().WriteNV(v.h.tpm.root, claimedIndex(auth), claimedData(v.InstallID(), claimed))
		})
	}
	if err := write(true); err != nil {
		t.Fatal(err)
	}
	s.PowerCut(t)
	mustOpen(t, c)
	if write(false) == nil {
		t.Error("the claimed bit can still be cleared")
	}
}

// The answer to the write is lost: what counts is the bit.
func TestACC1_LostAnswerToAClaimIsNoRefusal(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	lost := false
	c.TPM = tpm.New(&tpmtest.Fault{To: s.Transport(), After: func(_ int, cmd, resp []byte) ([]byte, error) {
		if lost && binary.BigEndian.Uint32(cmd[6:]) == 0x137 { // NV_Write
			return tpmtest.Code(0x101), nil
		}
		return resp, nil
	}})
	v := mustCreate(t, c)
	lost = true
	if err := v.SetClaimed(t.Context()); err != nil {
		t.Errorf("SetClaimed = %v", err)
	}
	if claimed, err := v.Claimed(t.Context()); !claimed || err != nil {
		t.Errorf("Claimed = %v, %v", claimed, err)
	}
}

func TestLatchIsWrittenAgain(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	v := mustCreate(t, c)
	if err := s.TPM().UndefineNV(v.h.tpm.root, nvLatch); err != nil {
		t.Fatal(err)
	}
	s.PowerCut(t)
	same(t, v, mustOpen(t, c))
	blank := c
	blank.Meta = newDisk()
	_, err := Open(t.Context(), blank)
	wantLocked(t, err, "latch")
	// A latch of another installation is not ours to overwrite.
	if err := s.TPM().UndefineNV(v.h.tpm.root, nvLatch); err != nil {
		t.Fatal(err)
	}
	if err := s.TPM().DefineNV(v.h.tpm.root, latchIndex()); err != nil {
		t.Fatal(err)
	}
	if err := s.TPM().WriteNV(v.h.tpm.root, latchIndex(), make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	s.PowerCut(t)
	_, err = Open(t.Context(), c)
	wantLocked(t, err, "latch")
}

// A bank that the firmware does not fill, or that it lacks, is sealed to by
// nobody; where it was filled once the box says what became of it. All ones no
// software TPM shows: the check is tpm/pcr's.
func TestKEY2_EmptyBankIsRefusedByName(t *testing.T) {
	for name, hurt := range map[string]func(*tpmtest.Server){
		"all zero": func(s *tpmtest.Server) { s.Firmware = "" },
		"absent":   func(s *tpmtest.Server) { s.SHA1Only(t) },
	} {
		s := tpmtest.Start(t)
		c := box(s, newDisk())
		v, text := owned(t, c)
		hurt(s)
		s.PowerCut(t)
		_, err := Open(t.Context(), c)
		l := wantLocked(t, err, "pcr")
		if !strings.Contains(l.Cause, "SHA-256") || !errors.Is(l, tpm.ErrBank) || !strings.Contains(l.Advice, "recovery key") {
			t.Errorf("%s: %v does not name the bank", name, l)
		}
		w, err := Recover(t.Context(), c, text)
		if err != nil {
			t.Fatal(err)
		}
		same(t, v, w)
		if !strings.Contains(w.Note(), "SHA-256") {
			t.Errorf("%s: sealed to a bank that is empty: %q", name, w.Note())
		}

		blank := tpmtest.Start(t)
		hurt(blank)
		blank.PowerCut(t)
		c = box(blank, newDisk())
		c.HostID = hostID(machine)
		_, err = Create(t.Context(), c)
		if l := wantLocked(t, err, "pcr"); !strings.Contains(l.Cause, "SHA-256") {
			t.Errorf("%s: %v does not name the bank", name, l)
		}
	}
}

func TestTPMThatBelongsToSomebodyElseIsRefused(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	s.SetOwnerPassword(t, "somebody else's")
	v, err := Create(t.Context(), c)
	if err == nil {
		err = v.Commit(t.Context())
	}
	l := wantLocked(t, err, "tpm")
	if !strings.Contains(l.Cause, "password") {
		t.Errorf("%v does not say that somebody set a password", l)
	}
}
