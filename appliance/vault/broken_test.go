package vault

import (
	"bytes"
	"strings"
	"testing"

	"gatehouse/tpm/pcr"
	"gatehouse/tpm/tpmtest"
)

// broken is a measured box with an owner, a recovery key, and something that is
// about to break.
type broken struct {
	Config
	tpm *tpmtest.Server // of the machine that it is in
	was *Vault
	key string
}

func (b *broken) disk() *disk { return b.Meta.(*disk) }

// start starts another system on the machine, which is measured into PCR 11. It
// brings approvals of its own, or none that fit.
func (b *broken) start(t *testing.T, system string, approve func(now pcr.Values)) {
	t.Helper()
	b.tpm.PowerCut(t)
	b.tpm.Measure(t, 11, system)
	if approve != nil {
		approve(mustRegisters(t, b, approvedRegisters()))
	}
}

// Every rung that can break under an owned box of grade A. It ends locked, at
// the rung and with the cause by name; nothing but the recovery key opens it;
// that seals it anew, so that the next start needs nobody, where that can be done
// without sealing it to less; and at no time does it say a lower grade.
func TestKEY8_EveryBrokenRung(t *testing.T) {
	release, stranger := releaseKey(t), releaseKey(t)
	// again is a later start of the same machine.
	again := func(t *testing.T, b *broken) { b.tpm.PowerCut(t) }
	for name, c := range map[string]struct {
		hurt  func(t *testing.T, b *broken)
		rung  string
		cause string
		note  string // not sealed anew, and why; "": sealed anew
		next  func(t *testing.T, b *broken)
		opens bool // at the start after that, by itself
	}{
		"PCR 7 changed": {
			hurt: func(t *testing.T, b *broken) { b.tpm.Firmware = "another db"; b.tpm.PowerCut(t) },
			rung: "pcr", cause: "PCR 7 changed", next: again, opens: true,
		},
		"PCR 11 changed by a release of somebody else's": {
			hurt: func(t *testing.T, b *broken) {
				b.start(t, "a system of somebody else's", func(now pcr.Values) { b.System = systemOf(t, stranger, 1, now) })
			},
			rung: "pcr", cause: "another release key",
			next:  func(t *testing.T, b *broken) { b.start(t, "a system of somebody else's", nil) },
			opens: true,
		},
		"PCR 11 changed by a system that nobody approves": {
			hurt: func(t *testing.T, b *broken) { b.start(t, "anything", nil) },
			rung: "pcr", cause: "PCR 11, 12, 13", note: "not one that its release key approves",
			next: func(t *testing.T, b *broken) { b.start(t, "anything", nil) },
		},
		"PCR 11 changed once and back": {
			hurt: func(t *testing.T, b *broken) { b.start(t, "anything", nil) },
			rung: "pcr", cause: "PCR 11, 12, 13", note: "not one that its release key approves",
			next: again, opens: true,
		},
		"TPM cleared": {
			hurt: func(t *testing.T, b *broken) { b.tpm.Clear(t); b.tpm.PowerCut(t) },
			rung: "srk", cause: "not the one that the data is sealed to, or it was cleared", next: again, opens: true,
		},
		"TPM swapped": {
			hurt: func(t *testing.T, b *broken) { b.tpm = tpmtest.Start(t); b.TPM = b.tpm.TPM() },
			rung: "srk", cause: "not the one that the data is sealed to", next: again, opens: true,
		},
		"TPM swapped under a system that nobody approves": {
			hurt: func(t *testing.T, b *broken) {
				b.tpm = tpmtest.Start(t)
				b.TPM = b.tpm.TPM()
				b.start(t, "anything", nil)
			},
			rung: "srk", cause: "not the one that the data is sealed to", note: "not one that its release key approves", next: again,
		},
		"TPM absent": {
			hurt: func(t *testing.T, b *broken) { b.TPM = nil },
			rung: "tpm", cause: "this machine has none", note: "this machine has none",
			next: func(*testing.T, *broken) {},
		},
		"TPM absent and there again": {
			hurt: func(t *testing.T, b *broken) { b.TPM = nil },
			rung: "tpm", cause: "this machine has none", note: "this machine has none",
			next: func(t *testing.T, b *broken) { b.TPM = b.tpm.TPM(); b.tpm.PowerCut(t) }, opens: true,
		},
		"a header of an older epoch put back": {
			hurt: func(t *testing.T, b *broken) {
				old := b.disk().clone()
				now := mustRegisters(t, b, approvedRegisters()|pcr.Select(secureBootRegister))
				v := mustOpen(t, b.Config)
				if err := v.Expect(t.Context(), []Boot{{PCR7: now[7], Epoch: 2}}); err != nil {
					t.Fatal(err)
				}
				b.System = systemOf(t, release, 2, registers(now, approvedRegisters()))
				b.tpm.PowerCut(t)
				if err := mustOpen(t, b.Config).Settle(t.Context()); err != nil {
					t.Fatal(err)
				}
				b.tpm.PowerCut(t)
				b.Meta = old
			},
			rung: "counter", cause: "The header is older than the TPM", next: again, opens: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := &broken{tpm: tpmtest.Start(t)}
			b.Config = measuredBox(t, b.tpm, release, 1)
			b.was, b.key = owned(t, b.Config)
			if g := b.was.Trust().Grade; g != "A" {
				t.Fatalf("grade %s before anything broke", g)
			}
			b.tpm.PowerCut(t)
			c.hurt(t, b)
			before := bytes.Clone(b.disk().data)

			_, err := Open(t.Context(), b.Config)
			l := wantLocked(t, err, c.rung)
			if !strings.Contains(l.Cause, c.cause) || !strings.Contains(l.Advice, "recovery key") {
				t.Errorf("locked: %v", l)
			}
			if !bytes.Equal(before, b.disk().data) {
				t.Error("a start that opened nothing wrote to META")
			}
			w, err := Recover(t.Context(), b.Config, b.key)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(w.Wipe)
			sameData(t, b.was, w)
			if (w.Note() == "") != (c.note == "") || !strings.Contains(w.Note(), c.note) {
				t.Errorf("Note = %q", w.Note())
			}
			graded(t, w, "recovered")

			c.next(t, b)
			x, err := Open(t.Context(), b.Config)
			if !c.opens {
				wantLocked(t, err, c.rung)
				return
			}
			if err != nil {
				t.Fatalf("the start after the recovery: %v", err)
			}
			t.Cleanup(x.Wipe)
			sameData(t, b.was, x)
			graded(t, x, "at the start after the recovery")
			if claimed, err := x.Claimed(t.Context()); !claimed || err != nil {
				t.Errorf("Claimed = %v, %v: it could be claimed", claimed, err)
			}
		})
	}
}

func graded(t *testing.T, v *Vault, when string) {
	t.Helper()
	if tr := v.Trust(); tr.Grade != "A" || tr.Mechanism != "tpm" || !v.h.measured() {
		t.Errorf("%s it is %+v, sealed to a release: %v", when, tr, v.h.measured())
	}
}

func mustRegisters(t *testing.T, b *broken, sel pcr.Selection) pcr.Values {
	t.Helper()
	root, err := b.TPM.Root()
	if err != nil {
		t.Fatal(err)
	}
	now, err := b.TPM.PCRs(root, sel)
	if err != nil {
		t.Fatal(err)
	}
	return now
}

// An older system shut out by its epoch is told from one of somebody else's.
func TestKEY12_OlderEpochIsNamed(t *testing.T) {
	s := tpmtest.Start(t)
	key := releaseKey(t)
	c := measuredBox(t, s, key, 3)
	mustCreate(t, c)
	s.PowerCut(t)
	c.System = measuredBox(t, s, key, 2).System
	_, err := Open(t.Context(), c)
	if l := wantLocked(t, err, "pcr"); !strings.Contains(l.Cause, "epoch 2") || !strings.Contains(l.Cause, "epoch 3") {
		t.Errorf("%v does not name the epochs", l)
	}
}

// The latch against the header: one from before the box was sealed to its TPM is
// put back. Locked; the recovery key seals to the TPM again, not to the
// identifier that the header says, and the box opens by itself.
func TestKEY8_LatchAgainstAnOlderHeader(t *testing.T) {
	s := tpmtest.Start(t)
	c := Config{Meta: newDisk(), HostID: hostID(machine), Form: Box}
	v, key := owned(t, c)
	old, moved := c.Meta.(*disk).clone(), c.Meta.(*disk).clone()
	c.TPM = s.TPM()
	if err := mustOpen(t, c).TakeTPM(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.PowerCut(t)
	mustOpen(t, c)

	c.Meta = old
	s.PowerCut(t)
	_, err := Open(t.Context(), c)
	if l := wantLocked(t, err, "latch"); !strings.Contains(l.Cause, "the header says host-id") {
		t.Errorf("locked: %v", l)
	}
	w, err := Recover(t.Context(), c, key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Wipe)
	sameData(t, v, w)
	if w.Note() != "" || w.Trust().Mechanism != "tpm" {
		t.Errorf("recovered it is %+v, and says %q", w.Trust(), w.Note())
	}
	s.PowerCut(t)
	x := mustOpen(t, c)
	sameData(t, v, x)
	if claimed, err := x.Claimed(t.Context()); !claimed || err != nil || x.Trust().Mechanism != "tpm" {
		t.Errorf("Claimed = %v, %v, %+v", claimed, err, x.Trust())
	}

	// Under the latch of another installation the key opens, seals to nothing, and
	// says that it is needed again.
	other := tpmtest.Start(t)
	mustCreate(t, box(other, newDisk()))
	other.PowerCut(t)
	c.Meta, c.TPM = moved, other.TPM()
	for range 2 {
		_, err = Open(t.Context(), c)
		wantLocked(t, err, "latch")
		y, err := Recover(t.Context(), c, key)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(y.Wipe)
		sameData(t, v, y)
		if !strings.Contains(y.Note(), "another installation") {
			t.Errorf("Note = %q", y.Note())
		}
		other.PowerCut(t)
	}
}

// One copy of the header damaged is none: it opens, and is mended. Both damaged
// is the end of all ways, and is said to be, also to whoever has the recovery key.
func TestKEY8_DamagedCopiesOfTheHeader(t *testing.T) {
	s := tpmtest.Start(t)
	c := measuredBox(t, s, releaseKey(t), 1)
	v, key := owned(t, c)
	whole := c.Meta.(*disk)
	for name, hurt := range map[string]func(d *disk){
		"the first":  func(d *disk) { d.data[50] ^= 1 },
		"the second": func(d *disk) { d.data[copySize+50] ^= 1 },
	} {
		d := whole.clone()
		hurt(d)
		c.Meta = d
		s.PowerCut(t)
		w := mustOpen(t, c)
		sameData(t, v, w)
		graded(t, w, name)
		if !bytes.Equal(d.data[:headerEnd], whole.data[:headerEnd]) {
			t.Errorf("%s copy was not mended", name)
		}
	}
	d := whole.clone()
	d.data[50] ^= 1
	d.data[copySize+50] ^= 1
	c.Meta = d
	s.PowerCut(t)
	_, err := Open(t.Context(), c)
	if l := wantLocked(t, err, "header"); !strings.Contains(l.Cause, "damaged or was changed") {
		t.Errorf("locked: %v", l)
	}
	_, err = Recover(t.Context(), c, key)
	wantLocked(t, err, "header")
}
