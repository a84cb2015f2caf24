package monitor

import (
	"context"
	"errors"
	"testing"

	"gatehouse/appliance/control"
)

func TestBOX9_FactorResetRefuses(t *testing.T) {
	restarts := 0
	restart := func(control.Role) error { restarts++; return nil }
	b := newBox(t, func(c *Config) { c.Restart = restart })
	b.ready(t, control.DatabaseUnclaimed)
	if err := b.ResetFactor(t.Context()); err == nil {
		t.Error("a box that nobody owns has no factor to reset")
	}
	b = newBox(t, func(c *Config) { c.Restart, c.Locked, c.Vault = restart, "the TPM is another", nil })
	if err := b.ResetFactor(t.Context()); err == nil {
		t.Error("while locked")
	}
	b = newBox(t, func(c *Config) { c.Restart = restart })
	b.vault.claimed = true
	b.ready(t, control.DatabaseClaimed)
	b.audit.err = errors.New("no space left on device")
	if err := b.ResetFactor(t.Context()); err == nil {
		t.Error("without a line in the audit log")
	}
	b.audit.err = nil
	if s := b.ready(t, control.DatabaseClaimed); s.ResetFactor != "" || restarts != 0 {
		t.Errorf("refused, but ordered: %+v, %d restarts", s, restarts)
	}
	// A role that acknowledges what nobody ordered.
	if _, err := b.factorReset(t.Context(), control.Console, control.FactorReset{}); !control.IsCode(err, control.CodeState) {
		t.Errorf("acknowledged without an order: %v", err)
	}
	b.cfg.Restart = func(control.Role) error { return errors.New("there is no such role") }
	if err := b.ResetFactor(t.Context()); err == nil {
		t.Error("the console could not be started anew")
	}
	if s := b.ready(t, control.DatabaseClaimed); s.ResetFactor != "" {
		t.Error("an order that failed is delivered later")
	}
	b.cfg.Restart = restart
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.ResetFactor(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if s := b.ready(t, control.DatabaseClaimed); s.ResetFactor != "" {
		t.Error("an order that nobody waits for is delivered later")
	}
}

func TestBOX9_FactorResetIsDeliveredOnce(t *testing.T) {
	b := newBox(t, nil)
	b.vault.claimed = true
	b.ready(t, control.DatabaseClaimed)
	var told []string
	b.cfg.Restart = func(r control.Role) error {
		if r != control.Console || b.audit.events[len(b.audit.events)-1].Action != "reset second factor" {
			t.Errorf("restarted %s before the audit log was written", r)
		}
		go func() {
			first, again := b.ready(t, control.DatabaseClaimed), b.ready(t, control.DatabaseClaimed)
			told = append(told, first.ResetFactor, again.ResetFactor)
			if _, err := b.factorReset(t.Context(), control.Console, control.FactorReset{Order: "x" + first.ResetFactor}); err == nil {
				t.Error("another order was acknowledged")
			}
			if _, err := b.factorReset(t.Context(), control.Console, control.FactorReset{Order: first.ResetFactor}); err != nil {
				t.Error(err)
			}
		}()
		return nil
	}
	if err := b.ResetFactor(t.Context()); err != nil {
		t.Fatal(err)
	}
	if told[0] == "" || told[0] != told[1] {
		t.Errorf("told %q: a console that crashes before it acknowledges has to hear it again", told)
	}
	if s := b.ready(t, control.DatabaseClaimed); s.ResetFactor != "" {
		t.Error("it is delivered twice")
	}
}
