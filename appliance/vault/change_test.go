package vault

import (
	"bytes"
	"errors"
	"runtime"
	"strings"
	"sync"
	"testing"

	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"

	"gatehouse/appliance/keytext"
	"gatehouse/firmware/approval"
	"gatehouse/tpm"
	"gatehouse/tpm/pcr"
	"gatehouse/tpm/tpmtest"
)

// owned is a box with an owner and a recovery key that somebody keeps.
func owned(t *testing.T, c Config) (*Vault, string) {
	t.Helper()
	v := mustCreate(t, c)
	if _, err := v.MakeRecovery(t.Context()); err == nil {
		t.Fatal("a box without an owner gave a recovery key")
	}
	if err := v.SetClaimed(t.Context()); err != nil {
		t.Fatal(err)
	}
	text, err := v.MakeRecovery(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if v.RecoveryState() != "unconfirmed" {
		t.Errorf("RecoveryState = %s", v.RecoveryState())
	}
	if err := v.ConfirmRecovery(t.Context(), "0000000"); err == nil {
		t.Error("a wrong group confirmed the recovery key")
	}
	if err := v.ConfirmRecovery(t.Context(), text[len(text)-7:]); err != nil {
		t.Fatal(err)
	}
	if v.RecoveryState() != "confirmed" {
		t.Errorf("RecoveryState = %s", v.RecoveryState())
	}
	return v, text
}

// sameData is same for a box in another TPM, where the checkpoint key is another.
func sameData(t *testing.T, a, b *Vault) {
	t.Helper()
	ka, errA := a.VolumeKey()
	kb, errB := b.VolumeKey()
	if errA != nil || errB != nil || !bytes.Equal(ka, kb) || subkey(t, a) != subkey(t, b) || a.InstallID() != b.InstallID() {
		t.Errorf("the data or the roles' keys differ: %v %v", errA, errB)
	}
}

func TestKEY8_OtherRecoveryKeysOpenNothing(t *testing.T) {
	c := forms()["host-id"]
	c.Meta = newDisk()
	v, text := owned(t, c)
	before := bytes.Clone(c.Meta.(*disk).data)
	for name, key := range map[string]string{
		"empty": "", "mistyped": strings.Map(func(r rune) rune { return r ^ 1 }, text[:1]) + text[1:], "of another box": keytext.Recovery.Format([32]byte{1, 2, 3}),
	} {
		if w, err := Recover(t.Context(), c, key); err == nil {
			w.Wipe()
			t.Errorf("%s: opened", name)
		}
	}
	if !bytes.Equal(before, c.Meta.(*disk).data) {
		t.Error("a recovery that was refused wrote to META")
	}
	// A new one ends the one before, once it is confirmed and not earlier.
	next, err := v.MakeRecovery(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w, err := Recover(t.Context(), c, text)
	if err != nil {
		t.Fatalf("the confirmed key before a new one is confirmed: %v", err)
	}
	w.Wipe()
	// One that nobody confirmed opens, too: refusing it would keep out its owner alone.
	if w, err = Recover(t.Context(), c, next); err != nil {
		t.Fatalf("a key that nobody confirmed: %v", err)
	}
	w.Wipe()
	if v, err = Open(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := v.ConfirmRecovery(t.Context(), next[len(next)-7:]); err == nil {
		t.Error("a group confirmed a key of another life of the box")
	}
	if err := v.ConfirmRecovery(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	if _, err := Recover(t.Context(), c, text); err == nil {
		t.Error("the old recovery key still opens")
	}
}

// Each rung that breaks is named, and the recovery key brings the box back and
// seals anew: the next start needs nobody.
func TestKEY8_RecoveryOpensAndReseals(t *testing.T) {
	for name, hurt := range map[string]struct {
		rung string
		f    func(t *testing.T, s *tpmtest.Server, c *Config)
	}{
		"PCR 7 changed": {"pcr", func(t *testing.T, s *tpmtest.Server, _ *Config) {
			s.Firmware = "another db"
			s.PowerCut(t)
		}},
		"TPM cleared": {"srk", func(t *testing.T, s *tpmtest.Server, _ *Config) {
			s.Clear(t)
			s.PowerCut(t)
		}},
		"TPM swapped": {"srk", func(t *testing.T, s *tpmtest.Server, c *Config) { c.TPM = tpmtest.Start(t).TPM() }},
	} {
		t.Run(name, func(t *testing.T) {
			s := tpmtest.Start(t)
			c := box(s, newDisk())
			v, text := owned(t, c)
			s.PowerCut(t)
			hurt.f(t, s, &c)
			_, err := Open(t.Context(), c)
			if l := wantLocked(t, err, hurt.rung); !strings.Contains(l.Advice, "recovery key") {
				t.Errorf("the advice %q does not name the recovery key", l.Advice)
			}
			w, err := Recover(t.Context(), c, text)
			if err != nil {
				t.Fatal(err)
			}
			sameData(t, v, w)
			checkSign(t, w)
			if w.Note() != "" {
				t.Errorf("not sealed anew: %s", w.Note())
			}
			if claimed, err := w.Claimed(t.Context()); !claimed || err != nil {
				t.Errorf("Claimed = %v, %v after recovery", claimed, err)
			}
			if name != "TPM swapped" {
				s.PowerCut(t)
				x := mustOpen(t, c)
				sameData(t, v, x)
				if claimed, err := x.Claimed(t.Context()); !claimed || err != nil {
					t.Errorf("Claimed = %v, %v at the next start", claimed, err)
				}
			}
		})
	}
}

func TestKEY8_RecoveryWithoutTheTPMSealsNothingWeaker(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	v, text := owned(t, c)
	s.PowerCut(t)
	c.TPM = nil
	w, err := Recover(t.Context(), c, text)
	if err != nil {
		t.Fatal(err)
	}
	same(t, v, w)
	if w.Trust().Mechanism != "tpm" || w.Note() == "" {
		t.Errorf("Trust = %+v, Note = %q", w.Trust(), w.Note())
	}
	if claimed, err := w.Claimed(t.Context()); !claimed || err != nil {
		t.Errorf("Claimed = %v, %v: who has its recovery key is not asked to claim it", claimed, err)
	}
	// What only the TPM can do is refused in words.
	_, signed := w.Sign(t.Context(), [32]byte{1})
	_, counted := w.LockoutCounter(t.Context())
	for _, err := range []error{signed, counted, w.Rotate(t.Context(), "tpm")} {
		if err == nil || !strings.Contains(err.Error(), "no TPM") && !strings.Contains(err.Error(), "has none") {
			t.Errorf("without a TPM: %v", err)
		}
	}
	_, err = Open(t.Context(), c)
	wantLocked(t, err, "tpm")
	same(t, v, mustOpen(t, box(s, c.Meta)))
}

// A TPM that holds the latch of another installation is not taken over.
func TestKEY8_RecoveryLeavesAnotherInstallationAlone(t *testing.T) {
	c := box(tpmtest.Start(t), newDisk())
	v, text := owned(t, c)
	other := tpmtest.Start(t)
	theirs := box(other, newDisk())
	u := mustCreate(t, theirs)
	other.PowerCut(t)
	c.TPM = other.TPM()
	w, err := Recover(t.Context(), c, text)
	if err != nil {
		t.Fatal(err)
	}
	same(t, v, w)
	if !strings.Contains(w.Note(), "another installation") {
		t.Errorf("Note = %q", w.Note())
	}
	if claimed, err := w.Claimed(t.Context()); !claimed || err != nil {
		t.Errorf("Claimed = %v, %v: the TPM here knows of another box", claimed, err)
	}
	other.PowerCut(t) // it was closed all the same
	same(t, u, mustOpen(t, theirs))
}

// A power cut at any byte of a change leaves a box that opens, with the old
// keys or the new.
func TestKEY5_PowerCutDuringRotation(t *testing.T) {
	const first, second = "the first passphrase", "the second passphrase"
	changes := map[string]func(v *Vault) error{
		"data":       func(v *Vault) error { return v.Rotate(t.Context(), "data") },
		"host-id":    func(v *Vault) error { return v.Rotate(t.Context(), "host-id") },
		"passphrase": func(v *Vault) error { return v.SetPassphrase(t.Context(), []byte(second)) },
		"recovery":   func(v *Vault) error { _, err := v.MakeRecovery(t.Context()); return err },
	}
	for name, f := range changes {
		c := forms()["host-id"]
		if name == "passphrase" {
			c.Passphrase = []byte(first)
		}
		c.Meta = newDisk()
		v, text := owned(t, c)
		whole := c.Meta.(*disk).clone()
		c.Meta = whole
		w := mustOpen(t, c)
		whole.total = 0
		if err := f(w); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		points := cutPoints(whole.total)
		for i := 0; i < len(points); i += soak(t, len(points)/5, 1) {
			d := v.c.Meta.(*disk).clone()
			c := c
			c.Meta = d
			w := mustOpen(t, c)
			d.left = points[i]
			err := f(w)
			d.left = -1
			x, openErr := Open(t.Context(), c)
			if openErr != nil {
				c.Passphrase = []byte(second)
				x, openErr = Open(t.Context(), c)
			}
			if openErr != nil {
				t.Fatalf("%s: cut at byte %d (%v): %v", name, points[i], err, openErr)
			}
			same(t, v, x)
			if y, err := Recover(t.Context(), c, text); err != nil {
				t.Fatalf("%s: cut at byte %d: the recovery key: %v", name, points[i], err)
			} else {
				y.Wipe()
			}
			x.Wipe()
			w.Wipe()
		}
	}
}

func TestKEY5_TheOldDataKeyOpensNothing(t *testing.T) {
	c := forms()["host-id"]
	c.Meta = newDisk()
	v, text := owned(t, c)
	var old []byte
	_ = v.keys.use(func(data, _, _ []byte) error { old = bytes.Clone(data); return nil })
	if err := v.Rotate(t.Context(), "data"); err != nil {
		t.Fatal(err)
	}
	p, err := readPages(c.Meta)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newVault(&c, &p.newest.header, old, &p.newest.slots[0]); err == nil {
		t.Error("the old data key opens the new header")
	}
	w := mustOpen(t, c)
	same(t, v, w)
	x, err := Recover(t.Context(), c, text)
	if err != nil {
		t.Fatalf("the recovery key after a rotation: %v", err)
	}
	same(t, v, x)
}

func TestKEY5_TPMSlotAndDataKeyRotate(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	v, _ := owned(t, c)
	for _, what := range []string{"tpm", "data", "tpm"} {
		if err := v.Rotate(t.Context(), what); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		s.PowerCut(t)
		w := mustOpen(t, c)
		same(t, v, w)
		checkSign(t, w)
		v = w
	}
	for _, what := range []string{"host-id", "passphrase", "", "everything"} {
		if v.Rotate(t.Context(), what) == nil {
			t.Errorf("%q: rotated", what)
		}
	}
}

// Whoever reads, signs or derives while a key is made anew gets what is right
// before or after. Each reader has a goroutine to itself: the lock of one must
// not hide from the race detector that another has none.
func TestKEY5_RotationUnderUse(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	v, _ := owned(t, c)
	want := subkey(t, v)
	var readers sync.WaitGroup
	done := make(chan struct{})
	for name, right := range map[string]func() bool{
		"subkey":     func() bool { return subkey(t, v) == want },
		"trust":      func() bool { return v.Trust().Mechanism == "tpm" },
		"install id": func() bool { return v.InstallID() != [16]byte{} },
		"slots":      func() bool { return len(v.Slots()) == 2 },
		"recovery":   func() bool { return v.RecoveryState() == "confirmed" },
		"generation": func() bool { return v.Generation() > 0 },
		"measured":   func() bool { return !v.Measured() },
		"note":       func() bool { return v.Note() == "" },
		"signature": func() bool {
			checkSign(t, v)
			return true
		},
		"registers": func() bool {
			_, _, err := v.Registers(t.Context())
			return err == nil
		},
	} {
		readers.Go(func() {
			for {
				if !right() {
					t.Errorf("%s: neither old nor new", name)
				}
				select {
				case <-done:
					return
				default:
					runtime.Gosched()
				}
			}
		})
	}
	for range 2 {
		for _, what := range []string{"tpm", "data"} {
			if err := v.Rotate(t.Context(), what); err != nil {
				t.Error(err)
			}
		}
	}
	close(done)
	readers.Wait()
}

func TestKEY2_PassphraseBesidesTheTPM(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	v, text := owned(t, c)
	if v.SetPassphrase(t.Context(), []byte("short")) == nil || v.SetPassphrase(t.Context(), nil) == nil {
		t.Error("a short passphrase, or none, was taken")
	}
	if err := v.SetPassphrase(t.Context(), []byte("a long passphrase")); err != nil {
		t.Fatal(err)
	}
	for passphrase, opens := range map[string]bool{"": false, "another passphrase": false, "a long passphrase": true} {
		s.PowerCut(t)
		c.Passphrase = []byte(passphrase)
		w, err := Open(t.Context(), c)
		if !opens {
			wantLocked(t, err, "passphrase")
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		same(t, v, w)
		if err := w.Rotate(t.Context(), "data"); err != nil {
			t.Fatal(err)
		}
	}
	// The passphrase alone, at another TPM, opens nothing.
	other := c
	other.TPM = tpmtest.Start(t).TPM()
	_, err := Open(t.Context(), other)
	wantLocked(t, err, "srk")
	c.Passphrase = nil
	w, err := Recover(t.Context(), c, text)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.SetPassphrase(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	s.PowerCut(t)
	same(t, v, mustOpen(t, c))
}

// measuredBox is one whose image brings an approval of what was measured.
func measuredBox(t testing.TB, s *tpmtest.Server, key *ecdsa.PrivateKey, epoch uint64) Config {
	t.Helper()
	c := box(s, newDisk())
	root, err := c.TPM.Root()
	if err != nil {
		t.Fatal(err)
	}
	now, err := c.TPM.PCRs(root, approvedRegisters())
	if err != nil {
		t.Fatal(err)
	}
	c.System, c.SecureBoot = systemOf(t, key, epoch, now), true
	return c
}

// systemOf is a release whose key approves these registers.
func systemOf(t testing.TB, key *ecdsa.PrivateKey, epoch uint64, now pcr.Values) *approval.System {
	t.Helper()
	a, err := pcr.Approve(key, approval.Reference(epoch), now)
	if err != nil {
		t.Fatal(err)
	}
	return &approval.System{Key: &key.PublicKey, Epoch: epoch, Starts: []approval.Start{{Path: "loader", Approval: a}}}
}

func releaseKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestKEY10_OnlyOurReleaseOpens(t *testing.T) {
	s := tpmtest.Start(t)
	c := measuredBox(t, s, releaseKey(t), 1)
	v := mustCreate(t, c)
	if v.Trust().Grade != "A" {
		t.Errorf("Trust = %+v", v.Trust())
	}
	s.PowerCut(t)
	same(t, v, mustOpen(t, c))
	s.PowerCut(t)
	s.Measure(t, 11, "another system")
	_, err := Open(t.Context(), c)
	if l := wantLocked(t, err, "pcr"); len(l.PCRs) != 1 || l.PCRs[0].Index != 11 {
		t.Errorf("%+v does not name PCR 11", l)
	}
	s.PowerCut(t)
	stranger := c
	stranger.System = measuredBox(t, s, releaseKey(t), 1).System
	_, err = Open(t.Context(), stranger)
	wantLocked(t, err, "pcr")
}

func TestKEY10_ForeseenFirmwareOpensAndSettles(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	v := mustCreate(t, c)
	// What PCR 7 will be is learnt from a twin that was started that way.
	was := s.Firmware
	s.Firmware = "secure boot on"
	s.PowerCut(t)
	root, err := c.TPM.Root()
	if err != nil {
		t.Fatal(err)
	}
	next, err := c.TPM.PCRs(root, pcr.Select(7))
	if err != nil {
		t.Fatal(err)
	}
	boots := []Boot{{PCR7: [32]byte{1}, Note: "half way"}, {PCR7: next[7], Note: "Secure Boot on"}}
	for range 2 {
		if err := v.Expect(t.Context(), boots); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(v.Slots()); n != 3 {
		t.Fatalf("%d slots, want 3", n)
	}
	for _, firmware := range []string{was, "secure boot on"} {
		s.Firmware = firmware
		s.PowerCut(t)
		same(t, v, mustOpen(t, c))
	}
	s.PowerCut(t)
	w := mustOpen(t, c)
	if err := w.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(w.Slots()); n != 1 {
		t.Errorf("%d slots after settling, want 1", n)
	}
	s.Firmware = was
	s.PowerCut(t)
	_, err = Open(t.Context(), c)
	wantLocked(t, err, "pcr")
}

func TestKEY10_RaisedEpochShutsOutImageAndHeader(t *testing.T) {
	s := tpmtest.Start(t)
	key := releaseKey(t)
	c := measuredBox(t, s, key, 1)
	v := mustCreate(t, c)
	root, err := c.TPM.Root()
	if err != nil {
		t.Fatal(err)
	}
	now, err := c.TPM.PCRs(root, pcr.Select(7))
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Expect(t.Context(), []Boot{{PCR7: now[7], Epoch: 2, Note: "epoch 2"}}); err != nil {
		t.Fatal(err)
	}
	old, header := c, c.Meta.(*disk).clone()
	s.PowerCut(t)
	same(t, v, mustOpen(t, old)) // not settled yet: the release before still opens
	c.System = measuredBox(t, s, key, 2).System
	s.PowerCut(t)
	w := mustOpen(t, c)
	same(t, v, w)
	if err := w.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.PowerCut(t)
	_, err = Open(t.Context(), old)
	wantLocked(t, err, "pcr")
	s.PowerCut(t)
	old.Meta = header
	_, err = Open(t.Context(), old)
	wantLocked(t, err, "counter")
	s.PowerCut(t)
	same(t, v, mustOpen(t, c))
}

func TestKEY2_ATPMThatAppearsLaterIsTakenOnlyWhenAsked(t *testing.T) {
	s := tpmtest.Start(t)
	c := Config{Meta: newDisk(), HostID: hostID(machine), Form: Box}
	v, _ := owned(t, c)
	c.TPM = s.TPM()
	s.PowerCut(t)
	w := mustOpen(t, c)
	if w.Trust().Mechanism != "host-id" {
		t.Errorf("Trust = %+v: taken silently", w.Trust())
	}
	if err := w.TakeTPM(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The audit log of this run was begun with the key of before.
	if !w.Public().Equal(v.Public()) {
		t.Error("the checkpoint key changed under those who have it")
	}
	checkSign(t, w)
	s.PowerCut(t)
	x := mustOpen(t, c)
	sameData(t, v, x)
	if claimed, err := x.Claimed(t.Context()); !claimed || err != nil || x.Trust().Mechanism != "tpm" {
		t.Errorf("Claimed = %v, %v, %+v", claimed, err, x.Trust())
	}
	checkSign(t, x)
	if err := x.TakeTPM(t.Context()); err == nil {
		t.Error("taken twice")
	}
	c.TPM = nil
	_, err := Open(t.Context(), c)
	wantLocked(t, err, "tpm")
	if errors.Is(err, tpm.ErrForeign) {
		t.Error(err)
	}
}

// A release that another key approves opens at the start that tries it, beside the
// one before; once kept, the one before opens nothing any more.
func TestKEY10_AnotherReleaseKeyIsExpected(t *testing.T) {
	s := tpmtest.Start(t)
	before, after := releaseKey(t), releaseKey(t)
	c := measuredBox(t, s, before, 1)
	mustCreate(t, c)
	next := c
	next.System = measuredBox(t, s, after, 2).System
	s.PowerCut(t)
	_, err := Open(t.Context(), next)
	wantLocked(t, err, "pcr") // nobody told the box of it
	s.PowerCut(t)
	v := mustOpen(t, c)
	if err := v.ExpectRelease(t.Context(), nil, 1); err == nil {
		t.Error("a release without approvals was expected")
	}
	if err := v.ExpectRelease(t.Context(), &before.PublicKey, 1); err != nil || len(v.Slots()) != 1 {
		t.Errorf("for the release of before: %v, %d slots", err, len(v.Slots()))
	}
	for range 2 {
		if err := v.ExpectRelease(t.Context(), &after.PublicKey, 2); err != nil || len(v.Slots()) != 2 {
			t.Fatalf("%v, %d slots", err, len(v.Slots()))
		}
	}
	header := c.Meta.(*disk).clone()
	s.PowerCut(t)
	same(t, v, mustOpen(t, c)) // the trial may fail
	s.PowerCut(t)
	w := mustOpen(t, next)
	same(t, v, w)
	if err := w.Settle(t.Context()); err != nil || len(w.Slots()) != 1 {
		t.Fatalf("%v, %d slots", err, len(w.Slots()))
	}
	s.PowerCut(t)
	_, err = Open(t.Context(), c)
	wantLocked(t, err, "pcr")
	s.PowerCut(t)
	old := c
	old.Meta = header
	_, err = Open(t.Context(), old)
	wantLocked(t, err, "counter")
	s.PowerCut(t)
	same(t, v, mustOpen(t, next))
}

// Where no release is in the policy none can be expected, and none needs to be.
func TestKEY10_NoReleaseInThePolicyNeedsNoSlot(t *testing.T) {
	s := tpmtest.Start(t)
	v := mustCreate(t, box(s, newDisk()))
	if err := v.ExpectRelease(t.Context(), &releaseKey(t).PublicKey, 7); err != nil || len(v.Slots()) != 1 {
		t.Errorf("%v, %d slots", err, len(v.Slots()))
	}
	if err := v.Expect(t.Context(), []Boot{{Approver: &releaseKey(t).PublicKey}}); err == nil {
		t.Error("a release key was expected where there is none")
	}
}
