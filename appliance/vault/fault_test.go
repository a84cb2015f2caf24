package vault

import (
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"testing"

	"gatehouse/tpm"
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
		if count, err := w.LockoutCounter(t.Context()); err != nil || count != 0 {
			t.Fatalf("after %d power cuts the lockout counter is %d, %v", n+1, count, err)
		}
		w.Wipe()
	}
}

// At every command of every operation the TPM fails or answers nonsense: no
// panic, no weaker key, and once it works again the same data.
func TestKEY2_FailingTPMIsNoWayToWeakerKeys(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	v := mustCreate(t, c)
	spoil := map[string]func([]byte) ([]byte, error){
		"failure":   func([]byte) ([]byte, error) { return tpmtest.Code(0x101), nil },
		"no handle": func([]byte) ([]byte, error) { return tpmtest.Code(0x18B), nil },
		"garbled": func(r []byte) ([]byte, error) {
			r = slices.Clone(r)
			for i := 6; i < len(r); i++ {
				r[i] ^= 0xA5
			}
			return r, nil
		},
		"short": func(r []byte) ([]byte, error) {
			r = slices.Clone(r[:max(10, len(r)/2)])
			binary.BigEndian.PutUint32(r[2:], uint32(len(r)))
			return r, nil
		},
		"gone": func([]byte) ([]byte, error) { return nil, errors.New("no such device") },
	}
	for name, f := range spoil {
		for at := 0; ; at += step(3) {
			s.PowerCut(t)
			fault := &tpmtest.Fault{To: s.Transport(), After: func(n int, _, resp []byte) ([]byte, error) {
				if n == at || (name == "gone" && n > at) {
					return f(resp)
				}
				return resp, nil
			}}
			broken := c
			broken.TPM = tpm.New(fault)
			w, err := Open(t.Context(), broken)
			var l *Locked
			switch {
			case err == nil:
				same(t, v, w) // a failed flush or a re-asked question
				w.Wipe()
			case !errors.As(err, &l):
				t.Fatalf("%s at command %d: %v is not Locked", name, at, err)
			}
			if fault.N <= at {
				break
			}
		}
	}
	s.PowerCut(t)
	same(t, v, mustOpen(t, c))
}

func TestKEY2_FailingTPMAtFirstStartMakesNoWeakerKey(t *testing.T) {
	for at := 0; ; at += step(7) {
		s := tpmtest.Start(t)
		fault := &tpmtest.Fault{To: s.Transport(), Before: func(n int, _ []byte) ([]byte, error) {
			if n >= at {
				return tpmtest.Code(0x101), nil
			}
			return nil, nil
		}}
		c := box(s, newDisk())
		c.Passphrase = []byte("a passphrase that was given")
		working := c
		c.TPM = tpm.New(fault)
		v, err := Create(t.Context(), c)
		if err == nil {
			if v.Trust().Mechanism != "tpm" {
				t.Fatalf("at command %d: mechanism %s", at, v.Trust().Mechanism)
			}
			err = v.Commit(t.Context())
		}
		if fault.N <= at {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
		if err == nil {
			continue // only a flush failed
		}
		var l *Locked
		if !errors.As(err, &l) {
			t.Fatalf("at command %d: %v is not Locked", at, err)
		}
		// The next start finds nothing, or what was committed and opens.
		s.PowerCut(t)
		w, err := Open(t.Context(), working)
		if errors.Is(err, ErrBlank) {
			w, err = Create(t.Context(), working)
		}
		if err != nil {
			t.Fatalf("the start after a failure at command %d: %v", at, err)
		}
		if w.Trust().Mechanism != "tpm" {
			t.Errorf("at command %d: mechanism %s", at, w.Trust().Mechanism)
		}
		w.Wipe()
	}
}
