package vault

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"gatehouse/appliance/keytext"
	"gatehouse/tpm"
	"gatehouse/tpm/pcr"
	"gatehouse/tpm/tpmtest"
)

// step is how far apart the places are at which something fails: every one
// of them, and a fixed few in the short tests.
func step(short int) int {
	if testing.Short() {
		return short
	}
	return 1
}

func soak(t *testing.T, few, many int) int {
	t.Helper()
	if os.Getenv("GATEHOUSE_SOAK") == "1" {
		return many
	}
	return few
}

func TestKEY12_PowerCutsNeverLockTheTPM(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	v := mustCreate(t, c)
	for n := range soak(t, 20, 200) {
		s.PowerCut(t)
		w, err := Open(t.Context(), c)
		if err != nil {
			t.Fatalf("after %d power cuts: %v", n+1, err)
		}
		same(t, v, w)
		checkSign(t, w)
		if _, _, err := w.Registers(t.Context()); err != nil {
			t.Fatal(err)
		}
		if count, err := w.LockoutCounter(t.Context()); err != nil || count != 0 {
			t.Fatalf("after %d power cuts the lockout counter is %d, %v", n+1, count, err)
		}
		w.Wipe()
	}
}

// faults are the ways in which one answer can be wrong. The transport is the
// real one; what is broken is what comes over its line.
var faults = []struct {
	name string
	f    func(response []byte) (answer []byte, late bool)
}{
	{"failure", func([]byte) ([]byte, bool) { return tpmtest.Code(0x101), false }},
	{"no handle", func([]byte) ([]byte, bool) { return tpmtest.Code(0x18B), false }},
	{"silent", func([]byte) ([]byte, bool) { return nil, false }},
	{"late", func(r []byte) ([]byte, bool) { return r, true }},
	{"truncated", func(r []byte) ([]byte, bool) { return r[:len(r)/2], false }},
	{"shorter", func(r []byte) ([]byte, bool) { // and says so
		r = slices.Clone(r[:max(10, len(r)/2)])
		binary.BigEndian.PutUint32(r[2:], uint32(len(r)))
		return r, false
	}},
	{"longer", func(r []byte) ([]byte, bool) { return append(slices.Clone(r), r...), false }},
	{"size", func(r []byte) ([]byte, bool) {
		r = slices.Clone(r)
		binary.BigEndian.PutUint32(r[2:], 1<<31)
		return r, false
	}},
	{"tag", func(r []byte) ([]byte, bool) {
		r = slices.Clone(r)
		r[1] ^= 3
		return r, false
	}},
	{"garbled", func(r []byte) ([]byte, bool) {
		r = slices.Clone(r)
		for i := 6; i < len(r); i++ {
			r[i] ^= 0xA5
		}
		return r, false
	}},
	{"random", func(r []byte) ([]byte, bool) {
		random := mathrand.New(mathrand.NewPCG(5, uint64(len(r))))
		r = slices.Clone(r)
		for i := 10; i < len(r); i++ {
			r[i] = byte(random.Uint32())
		}
		return r, false
	}},
}

// eachFault breaks one answer after the other of what run does, in every way;
// of the commands one in few, others for each way, and all of them in the long
// tests.
func eachFault(t *testing.T, s *tpmtest.Server, few int, run func(t *testing.T, dev *tpm.TPM, name string)) {
	t.Helper()
	l := s.Line(t)
	dev := tpm.New(l)
	l.Break(t, -1, nil)
	run(t, dev, "no fault")
	n, apart := l.N, soak(t, few, 1)*step(3)
	t.Logf("%d commands", n)
	for i, fault := range faults {
		var broke atomic.Int32 // by the line, which has a goroutine of its own
		for at := i % min(apart, n); at < n; at += apart {
			l.Break(t, at, func(r []byte) ([]byte, bool) {
				broke.Add(1)
				return fault.f(r)
			})
			run(t, dev, fmt.Sprintf("%s answer to command %d", fault.name, at))
			if t.Failed() {
				return
			}
		}
		if broke.Load() == 0 {
			t.Fatalf("%s: no answer was broken", fault.name)
		}
	}
}

// named is what every failure has to be: a locked box that says why.
func named(t *testing.T, err error, what string) {
	t.Helper()
	var l *Locked
	if !errors.As(err, &l) || l.Rung == "" || l.Cause == "" || l.Advice == "" || l.Err == nil {
		t.Errorf("%s: %v does not say what failed", what, err)
	}
	if errors.Is(err, tpm.ErrSilent) && !strings.Contains(l.Cause, "in time") {
		t.Errorf("%s: %q does not say that the TPM was silent", what, l.Cause)
	}
}

// capped says that nothing more can be unsealed in this run of the machine.
func capped(t *testing.T, s *tpmtest.Server, root tpm.Root, what string) {
	t.Helper()
	values, err := s.TPM().PCRs(root, pcr.Select(capRegister))
	if err != nil || values[capRegister] == [pcr.Size]byte{} {
		t.Errorf("%s: the TPM was not closed: %v", what, err)
	}
}

// noLockout says that nothing of all that counted as a guess.
func noLockout(t *testing.T, s *tpmtest.Server, root tpm.Root) {
	t.Helper()
	if n, err := s.TPM().Lockout(root); err != nil || n != 0 {
		t.Errorf("lockout counter %d, %v", n, err)
	}
}

// Whatever the TPM does at any command of a start: no panic, no weaker key, a
// box that says what failed and is closed, and once the TPM works again the same data.
func TestKEY2_FailingTPMIsNoWayToWeakerKeys(t *testing.T) {
	for name, form := range map[string]func(*testing.T, *tpmtest.Server) Config{
		"box":    func(_ *testing.T, s *tpmtest.Server) Config { return box(s, newDisk()) },
		"system": func(t *testing.T, s *tpmtest.Server) Config { return measuredBox(t, s, releaseKey(t), 1) },
		"hosted": func(_ *testing.T, s *tpmtest.Server) Config {
			c := box(s, newDisk())
			c.Form = Host
			return c
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := tpmtest.Start(t)
			c := form(t, s)
			c.Passphrase = []byte("a passphrase that was given") // a weaker way, if there were one
			v := mustCreate(t, c)
			opened := 0
			eachFault(t, s, 4, func(t *testing.T, dev *tpm.TPM, what string) {
				s.PowerCut(t)
				broken := c
				broken.TPM = dev
				w, err := Open(t.Context(), broken)
				if err != nil {
					named(t, err, what)
				} else {
					// The answer to a flush, or to a question that was asked again.
					opened++
					same(t, v, w)
					w.Wipe()
				}
				if c.Form == Box {
					capped(t, s, v.h.tpm.root, what)
				}
			})
			t.Logf("opened in spite of %d broken answers", opened)
			s.PowerCut(t)
			same(t, v, mustOpen(t, c))
			noLockout(t, s, v.h.tpm.root)
		})
	}
}

// A TPM that never answers costs the start the time of two commands, not of
// all, and the recovery key finds it again once it does.
func TestKEY8_RecoveryAfterASilentTPM(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	v, text := owned(t, c)
	s.PowerCut(t)
	l := s.Line(t)
	l.Break(t, 0, func([]byte) ([]byte, bool) { return nil, false })
	c.TPM = tpm.New(unplugged{l})
	_, err := Open(t.Context(), c)
	if locked := wantLocked(t, err, "tpm"); !strings.Contains(locked.Cause, "in time") || !strings.Contains(locked.Advice, "recovery key") {
		t.Errorf("%v does not say that the TPM is silent", locked)
	}
	if l.N != 2 {
		t.Errorf("%d commands were tried at a TPM that does not answer", l.N)
	}
	c.TPM = tpm.New(l) // it is plugged in again, and the same connection is used on
	w, err := Recover(t.Context(), c, text)
	if err != nil {
		t.Fatal(err)
	}
	same(t, v, w)
	if w.Note() != "" {
		t.Errorf("not sealed anew: %s", w.Note())
	}
	capped(t, s, v.h.tpm.root, "after the recovery")
	s.PowerCut(t)
	same(t, v, mustOpen(t, c))
}

// unplugged is a line that cannot be opened anew.
type unplugged struct{ line *tpmtest.Line }

func (u unplugged) Send(command []byte) ([]byte, error) { return u.line.Send(command) }
func (u unplugged) Reset() error                        { return errors.New("no such device") }

// The recovery key opens whatever the TPM does; what it cannot seal anew it says.
func TestKEY8_RecoveryOverAFailingTPM(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	v, text := owned(t, c)
	eachFault(t, s, 4, func(t *testing.T, dev *tpm.TPM, what string) {
		s.PowerCut(t)
		broken := c
		broken.TPM = dev
		w, err := Recover(t.Context(), broken, text)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		same(t, v, w)
		if w.Trust().Mechanism != "tpm" {
			t.Errorf("%s: %+v", what, w.Trust())
		}
		w.Wipe()
		capped(t, s, v.h.tpm.root, what)
		s.PowerCut(t)
		x, err := Open(t.Context(), c)
		if err != nil {
			t.Errorf("%s: the next start: %v", what, err)
			return
		}
		same(t, v, x)
		x.Wipe()
	})
	noLockout(t, s, v.h.tpm.root)
}

func TestKEY2_FailingTPMAtFirstStartMakesNoWeakerKey(t *testing.T) {
	s := tpmtest.Start(t)
	key := releaseKey(t)
	eachFault(t, s, 16, func(t *testing.T, dev *tpm.TPM, what string) {
		s.Clear(t)
		s.PowerCut(t)
		c := measuredBox(t, s, key, 1)
		c.Passphrase = []byte("a passphrase that was given")
		working := c
		c.TPM = dev
		v, err := Create(t.Context(), c)
		if err == nil {
			if v.Trust().Mechanism != "tpm" || v.Trust().Grade != "A" {
				t.Errorf("%s: %+v", what, v.Trust())
			}
			err = v.Commit(t.Context())
			v.Wipe()
		}
		if err != nil {
			named(t, err, what)
		}
		// The next start finds nothing, or what was committed and opens.
		s.PowerCut(t)
		w, err := Open(t.Context(), working)
		if errors.Is(err, ErrBlank) {
			w, err = Create(t.Context(), working)
		}
		if err != nil {
			t.Errorf("%s: the next start: %v", what, err)
			return
		}
		if w.Trust().Mechanism != "tpm" || w.Trust().Grade != "A" {
			t.Errorf("%s: the next start: %+v", what, w.Trust())
		}
		w.Wipe()
	})
}

// While an epoch is raised: the box opens with the slot of before or after.
func TestKEY10_FailingTPMWhileSettling(t *testing.T) {
	s := tpmtest.Start(t)
	key := releaseKey(t)
	epoch := uint64(1)
	c := measuredBox(t, s, key, epoch)
	v := mustCreate(t, c)
	disk := c.Meta
	eachFault(t, s, 4, func(t *testing.T, dev *tpm.TPM, what string) {
		s.PowerCut(t)
		u, err := Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		defer u.Wipe()
		if err := u.Expect(t.Context(), []Boot{{PCR7: u.h.first(kindTPM).tpm.values[7], Epoch: epoch + 1}}); err != nil {
			t.Fatal(err)
		}
		s.PowerCut(t)
		epoch++
		c = measuredBox(t, s, key, epoch)
		c.Meta = disk
		w, err := Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Wipe()
		w.c.TPM = dev
		if err := w.Settle(t.Context()); err != nil {
			named(t, err, what)
		}
		s.PowerCut(t)
		x, err := Open(t.Context(), c)
		if err != nil {
			t.Errorf("%s: the next start: %v", what, err)
			return
		}
		defer x.Wipe()
		same(t, v, x)
		if err := x.Settle(t.Context()); err != nil || len(x.Slots()) != 1 {
			t.Errorf("%s: the next Settle: %v, %d slots", what, err, len(x.Slots()))
		}
	})
	noLockout(t, s, v.h.tpm.root)
}

// One bit of one byte of what the TPM answers to a start is turned over: the
// box stays closed or opens to the same keys, whichever byte it is.
func TestKEY1_FlippedAnswersNeverGiveAnotherKey(t *testing.T) {
	s := tpmtest.Start(t)
	c := measuredBox(t, s, releaseKey(t), 1)
	v := mustCreate(t, c)
	var sizes []int
	open := func(at, bit int) (*Vault, error) {
		s.PowerCut(t)
		sizes = nil
		total := 0
		flipped := c
		flipped.TPM = tpm.New(&tpmtest.Fault{To: s.Transport(), After: func(_ int, _, r []byte) ([]byte, error) {
			if i := at - total; i >= 0 && i < len(r) {
				r = slices.Clone(r)
				r[i] ^= 1 << bit
			}
			total += len(r)
			sizes = append(sizes, len(r))
			return r, nil
		}})
		return Open(t.Context(), flipped)
	}
	w, err := open(-1, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.Wipe()
	total, opened := 0, 0
	for _, n := range sizes {
		total += n
	}
	for at := 0; at < total; at += soak(t, 7, 1) * step(5) {
		for bit := range soak(t, 1, 8) {
			w, err := open(at, (at+bit)%8)
			if err == nil {
				opened++
				same(t, v, w)
				w.Wipe()
				continue
			}
			named(t, err, fmt.Sprintf("byte %d", at))
		}
	}
	t.Logf("%d bytes in %d answers; opened in spite of %d changes", total, len(sizes), opened)
	s.PowerCut(t)
	same(t, v, mustOpen(t, c))
	noLockout(t, s, v.h.tpm.root)
}

// Nothing that a vault keeps crosses the bus in the clear in the life of a box,
// not even eight bytes of it.
func TestKEY1_NoKeyCrossesTheBus(t *testing.T) {
	s := tpmtest.Start(t)
	var bus bytes.Buffer
	tap := tpm.New(&tpmtest.Fault{To: s.Transport(), After: func(_ int, cmd, r []byte) ([]byte, error) {
		bus.Write(cmd)
		bus.Write(r)
		return r, nil
	}})
	key := releaseKey(t)
	c := measuredBox(t, s, key, 1)
	quiet := c
	c.TPM = tap
	v, text := owned(t, c)
	secrets := make(map[string][]byte)
	keep := func(when string, v *Vault) {
		t.Helper()
		err := v.keys.use(func(data, volume, base []byte) error {
			secrets[when+": data key"], secrets["volume key"], secrets["base secret"] = slices.Clone(data), slices.Clone(volume), slices.Clone(base)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, purpose := range []string{internalMAC, internalClaimed, internalCheckpoint, internalMemory, internalAttest, internalTunnel} {
			if secrets[purpose], err = v.derive(purpose, 32); err != nil {
				t.Fatal(err)
			}
		}
		s.PowerCut(t)
		if secrets[when+": sealed secret"], err = quiet.unsealSlot(v.h.tpm.root, v.h.first(kindTPM).tpm); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
	}
	keep("made", v)
	v = mustOpen(t, c)
	checkSign(t, v)
	if _, _, err := v.Registers(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := v.Remember(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"tpm", "data"} {
		if err := v.Rotate(t.Context(), what); err != nil {
			t.Fatal(err)
		}
	}
	keep("rotated", v)
	v, err := Recover(t.Context(), c, text)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	keep("recovered", v)
	seed, err := keytext.Recovery.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	secrets["recovery key"] = seed[:]

	const part = 8
	if root := v.h.tpm.root.Name[:part]; !bytes.Contains(bus.Bytes(), root) {
		t.Fatal("the tap does not see even what is public")
	}
	if len(secrets) != 15 {
		t.Errorf("%d secrets, want 15", len(secrets))
	}
	for name, x := range secrets {
		for i := range len(x) - part + 1 {
			if bytes.Contains(bus.Bytes(), x[i:i+part]) {
				t.Errorf("%s was seen on the bus", name)
				break
			}
		}
	}
	t.Logf("%d bytes", bus.Len())
}
