package vault

import (
	"slices"
	"testing"

	"gatehouse/tpm/pcr"
	"gatehouse/tpm/tpmtest"
)

// register7 is PCR 7 of a machine whose firmware is another, and leaves it as it was.
func register7(t *testing.T, s *tpmtest.Server, c Config, firmware string) [pcr.Size]byte {
	t.Helper()
	was := s.Firmware
	s.Firmware = firmware
	s.PowerCut(t)
	root, err := c.TPM.Root()
	if err != nil {
		t.Fatal(err)
	}
	values, err := c.TPM.PCRs(root, pcr.Select(secureBootRegister))
	if err != nil {
		t.Fatal(err)
	}
	s.Firmware = was
	s.PowerCut(t)
	return values[secureBootRegister]
}

// publics are the keys of the TPM's slots.
func publics(v *Vault) (all []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, s := range v.h.slots {
		if s.kind == kindTPM {
			all = append(all, string(s.public))
		}
	}
	return all
}

// mustRotate makes keys anew. Of the TPM none of the keys before is left, and no slot is lost.
func mustRotate(t *testing.T, v *Vault, all ...string) {
	t.Helper()
	for _, what := range all {
		before := publics(v)
		if err := v.Rotate(t.Context(), what); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		after := publics(v)
		if len(after) != len(before) {
			t.Errorf("%s: %d slots of the TPM, before it %d", what, len(after), len(before))
		}
		kept := slices.ContainsFunc(before, func(p string) bool { return slices.Contains(after, p) })
		if kept != (what == "data") {
			t.Errorf("%s: a key of before is there: %v", what, kept)
		}
	}
}

// What the firmware was told, or Secure Boot that was switched on, counts from the next
// start on: a key that is made anew before it opens there, too, and where nothing came of it.
func TestKEY10_KeysMadeAnewOpenAtTheForeseenStart(t *testing.T) {
	for _, what := range [][]string{{"tpm"}, {"data"}, {"tpm", "data", "tpm"}} {
		s := tpmtest.Start(t)
		c := measuredBox(t, s, releaseKey(t), 1)
		mustCreate(t, c)
		next := register7(t, s, c, "more is refused")
		v := mustOpen(t, c)
		if err := v.Expect(t.Context(), []Boot{{PCR7: [pcr.Size]byte{1}, Note: "half way"}, {PCR7: next, Note: "dbx"}}); err != nil {
			t.Fatal(err)
		}
		mustRotate(t, v, what...)
		if list := v.Slots(); len(list) != 3 || !list[0].InUse || list[1].Note != "half way" || list[2].Note != "dbx" {
			t.Errorf("%v: %+v", what, list)
		}
		was := s.Firmware
		for _, firmware := range []string{was, "more is refused"} {
			s.Firmware = firmware
			s.PowerCut(t)
			w, err := Open(t.Context(), c)
			if err != nil {
				t.Fatalf("%v, firmware %q: %v", what, firmware, err)
			}
			same(t, v, w)
			if firmware == was {
				continue
			}
			if err := w.Settle(t.Context()); err != nil || len(w.Slots()) != 1 || w.Trust().Grade != "A" {
				t.Errorf("%v: settled: %v, %+v", what, err, w.Slots())
			}
		}
		s.Firmware = was
		s.PowerCut(t)
		_, err := Open(t.Context(), c)
		wantLocked(t, err, "pcr")
	}
}

// A key that is made anew in a trial opens for the system before, should the trial go
// back; and once the trial is kept the raised epoch shuts out what it always does.
func TestKEY10_KeysMadeAnewInATrialOpenForTheSystemBefore(t *testing.T) {
	s := tpmtest.Start(t)
	c := measuredBox(t, s, releaseKey(t), 1)
	after := releaseKey(t)
	v := mustCreate(t, c)
	if err := v.ExpectRelease(t.Context(), &after.PublicKey, 2); err != nil {
		t.Fatal(err)
	}
	next := c
	next.System = measuredBox(t, s, after, 2).System
	s.PowerCut(t)
	w := mustOpen(t, next)
	mustRotate(t, w, "tpm", "data")
	header := c.Meta.(*disk).clone()
	s.PowerCut(t)
	x, err := Open(t.Context(), c)
	if err != nil {
		t.Fatalf("the trial goes back: %v", err)
	}
	same(t, v, x)
	mustRotate(t, x, "tpm") // it may be tried again
	s.PowerCut(t)
	if w, err = Open(t.Context(), next); err != nil {
		t.Fatalf("tried again: %v", err)
	}
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

// A box that was sealed without a release takes one into the policy when its key is
// made anew. What opened this start opens one more: it may be the system before a trial.
func TestKEY10_TheReleaseComesIntoThePolicyAndNoStartIsLost(t *testing.T) {
	s := tpmtest.Start(t)
	c := measuredBox(t, s, releaseKey(t), 1)
	before := c
	before.System = nil
	v := mustCreate(t, before)
	s.PowerCut(t)
	w := mustOpen(t, c)
	for range 2 {
		if err := w.Rotate(t.Context(), "tpm"); err != nil {
			t.Fatal(err)
		}
		if n := len(w.Slots()); n != 2 || w.Trust().Grade != "A" {
			t.Fatalf("%d slots, %+v", n, w.Trust())
		}
	}
	header := c.Meta.(*disk).clone()
	s.PowerCut(t)
	x := mustOpen(t, c)
	same(t, v, x)
	if err := x.Settle(t.Context()); err != nil || len(x.Slots()) != 1 || x.Trust().Grade != "A" {
		t.Errorf("settled: %v, %+v, %+v", err, x.Slots(), x.Trust())
	}
	s.PowerCut(t)
	s.Measure(t, 11, "another system")
	_, err := Open(t.Context(), c)
	wantLocked(t, err, "pcr")
	s.PowerCut(t)
	s.Measure(t, 11, "the system before")
	before.Meta = header
	x, err = Open(t.Context(), before)
	if err != nil {
		t.Fatalf("the trial goes back: %v", err)
	}
	same(t, v, x)
}

// A power cut at any byte of the change leaves a box that opens now, and at the start that
// is foreseen.
func TestKEY5_PowerCutWhileTheSlotsOfTheTPMAreMadeAnew(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	mustCreate(t, c)
	next := register7(t, s, c, "more is refused")
	v := mustOpen(t, c)
	if err := v.Expect(t.Context(), []Boot{{PCR7: next}}); err != nil {
		t.Fatal(err)
	}
	was := s.Firmware
	for _, what := range []string{"tpm", "data"} {
		start := func(d *disk, firmware string) (*Vault, error) {
			s.Firmware = firmware
			s.PowerCut(t)
			c := c
			c.Meta = d
			return Open(t.Context(), c)
		}
		whole := c.Meta.(*disk).clone()
		w, err := start(whole, was)
		if err != nil {
			t.Fatal(err)
		}
		whole.total = 0
		mustRotate(t, w, what)
		points := cutPoints(whole.total)
		for i := 0; i < len(points); i += soak(t, len(points)/5, 1) {
			d := c.Meta.(*disk).clone()
			w, err := start(d, was)
			if err != nil {
				t.Fatal(err)
			}
			d.left = points[i]
			cut := w.Rotate(t.Context(), what)
			d.left = -1
			for _, firmware := range []string{was, "more is refused"} {
				x, err := start(d, firmware)
				if err != nil {
					t.Fatalf("%s: cut at byte %d (%v), firmware %q: %v", what, points[i], cut, firmware, err)
				}
				same(t, v, x)
				x.Wipe()
			}
			w.Wipe()
		}
	}
}
