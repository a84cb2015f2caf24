package monitor

import (
	"bytes"
	"sync"
	"testing"

	"gatehouse/appliance/control"
	"gatehouse/appliance/setup/proof"
)

// A box that has an owner must not pay for a code that nobody may use: 32 MiB
// and some tenths of a second, at each start.
func TestACC1_CodeIsStretchedForTheFirstWhoAsks(t *testing.T) {
	b := newBox(t, nil)
	if b.material.Key != nil {
		t.Error("the start stretched the code")
	}
	if _, err := b.claimMaterial(t.Context(), control.Console, control.None{}); err == nil || b.material.Key != nil {
		t.Errorf("before the console is ready: %v", err)
	}
	b.ready(t, control.DatabaseUnclaimed)
	first := b.ask(t)
	code, err := proof.ParseCode(b.Code())
	if err != nil {
		t.Fatal(err)
	}
	if want := proof.Derive(code, [proof.SaltSize]byte(first.Salt)); !bytes.Equal(first.Key, want[:]) {
		t.Error("the verifier is not that of the code on the console")
	}
	if again := b.ask(t); !bytes.Equal(again.Key, first.Key) || !bytes.Equal(again.Salt, first.Salt) {
		t.Error("the second who asks gets another verifier")
	}
}

// The code may be renewed at any time while others ask.
func TestACC1_VerifierFollowsTheCode(t *testing.T) {
	b := newBox(t, nil)
	b.ready(t, control.DatabaseUnclaimed)
	first := b.ask(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if m, err := b.claimMaterial(t.Context(), control.Console, control.None{}); err != nil || len(m.Key) == 0 {
				t.Errorf("while the code was renewed: %v", err)
			}
		})
	}
	if err := b.NewCode(t.Context()); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	last := b.ask(t)
	code, err := proof.ParseCode(b.Code())
	if err != nil {
		t.Fatal(err)
	}
	if want := proof.Derive(code, [proof.SaltSize]byte(last.Salt)); !bytes.Equal(last.Key, want[:]) || bytes.Equal(last.Key, first.Key) {
		t.Error("the verifier is not that of the new code")
	}
}

func (b *box) ask(t *testing.T) control.ClaimMaterial {
	t.Helper()
	m, err := b.claimMaterial(t.Context(), control.Console, control.None{})
	if err != nil {
		t.Fatal(err)
	}
	return m
}
