package monitor

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"strings"
	"testing"

	"gatehouse/appliance/control"
	"gatehouse/appliance/released"
)

type signer struct{ key *ecdsa.PrivateKey }

func (s signer) Public() *ecdsa.PublicKey { return &s.key.PublicKey }
func (s signer) Sign(_ context.Context, d [32]byte) ([]byte, error) {
	return ecdsa.SignASN1(rand.Reader, s.key, d[:])
}

// By the page only the box that was named is erased, in the name of who asked,
// and a host's Gatehouse is not.
func TestBOX13_EraseByRequestWantsTheName(t *testing.T) {
	erased := 0
	b := newBox(t, func(c *Config) {
		c.Machine.Erase = func(context.Context) error { erased++; return nil }
	})
	by := control.By{Actor: "ada@example.org", From: "192.0.2.9"}
	for _, state := range []control.State{control.StateStarting, control.StateUnclaimed, control.StateLocked} {
		b.setState(state, "")
		if _, err := b.eraseAsked(t.Context(), control.Console, control.Erase{By: by, Name: "gatehouse-test"}); err == nil || !strings.Contains(err.Error(), "at its console alone") {
			t.Errorf("%s: %v", state, err)
		}
	}
	b.setState(control.StateReady, "")
	for _, name := range []string{"", "gatehouse", "gatehouse-other"} {
		_, err := b.eraseAsked(t.Context(), control.Console, control.Erase{By: by, Name: name})
		var refused *control.Error
		if !errors.As(err, &refused) || refused.Code != control.CodeInvalid || !strings.Contains(refused.Text, "gatehouse-test") {
			t.Errorf("name %q: %v", name, err)
		}
	}
	if erased != 0 || len(b.powers) != 0 || len(b.audit.events) != 0 {
		t.Fatalf("after refusals: erased %d times, %v, %v", erased, b.powers, b.audit.events)
	}
	if _, err := b.eraseAsked(t.Context(), control.Console, control.Erase{By: by, Name: " Gatehouse-Test "}); err != nil {
		t.Fatal(err)
	}
	if erased != 1 || len(b.powers) != 1 || len(b.audit.events) != 1 || b.audit.events[0].Actor != by.Actor || b.audit.events[0].From != by.From {
		t.Errorf("erased %d times, %v, %+v", erased, b.powers, b.audit.events)
	}
	hosted := newBox(t, nil)
	if _, err := hosted.eraseAsked(t.Context(), control.Console, control.Erase{By: by, Name: "gatehouse-test"}); err == nil || !strings.Contains(err.Error(), "gatehoused uninstall") {
		t.Errorf("hosted: %v", err)
	}
}

func TestBOX13_OnlyAnOpenBoxWithAnOwnerSignsItsRelease(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ask := control.ReleaseAsk{By: control.By{Actor: "ada@example.org"}, Name: "Ada Lovelace"}
	b := newBox(t, func(c *Config) {
		c.Signer, c.Machine.Serial = signer{key}, "A1"
		c.Machine.Erase = func(context.Context) error { return nil }
	})
	for state, m := range map[string]*box{"hosted": newBox(t, nil), "unclaimed": b} {
		if r, err := m.released(t.Context(), control.Console, ask); err == nil {
			t.Errorf("%s: %s", state, r.File)
		}
	}
	b.mu.Lock()
	b.state = control.StateReady
	b.mu.Unlock()
	b.audit.err = errors.New("the disk is full")
	if r, err := b.released(t.Context(), control.Console, ask); err == nil {
		t.Errorf("without the audit log: %s", r.File)
	}
	b.audit.err = nil
	r, err := b.released(t.Context(), control.Console, ask)
	if err != nil {
		t.Fatal(err)
	}
	s, err := released.Open(r.File)
	if err != nil || s.Box != "gatehouse-test" || s.By != "Ada Lovelace" || s.Serial != "A1" || strings.Contains(string(r.File), "ada@") {
		t.Errorf("%+v, %v", s, err)
	}
}
