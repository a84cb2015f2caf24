package monitor

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"gatehouse/appliance/control"
)

func seedOf(forgot *[]string, err error) *Seed {
	return &Seed{
		Owner:  &control.SeedOwner{Name: "Ann", Email: "ann@example.com", Password: "$argon2id$"},
		Forget: func(box string) error { *forgot = append(*forgot, box); return err },
	}
}

// A seed ends in a claim like any other: one commit point, recorded before, and
// the seed is gone. Until then nobody else can claim the box, and no code is shown.
func TestBOX11_SeedClaimsOnceAndIsForgotten(t *testing.T) {
	var forgot []string
	b := newBox(t, func(c *Config) { c.Seed = seedOf(&forgot, nil) })
	got := b.ready(t, control.DatabaseUnclaimed)
	if got.Seed == nil || got.Seed.Email != "ann@example.com" || b.State() != control.StateStarting || b.Code() != "" {
		t.Fatalf("%+v, %s, code %q", got, b.State(), b.Code())
	}
	if _, err := b.claimMaterial(t.Context(), control.Console, control.None{}); err == nil {
		t.Error("what verifies a claim code is handed out while the seed waits")
	}
	if _, err := b.claimCommit(t.Context(), control.Console, control.ClaimCommit{Owner: "eve@example.com"}); err == nil || b.vault.claimed {
		t.Fatalf("claimed for another than the seed names: %v", err)
	}
	if again := b.ready(t, control.DatabasePending); again.Seed == nil || again.Committed {
		t.Errorf("after a crash of the console before the commit: %+v", again)
	}
	if _, err := b.claimCommit(t.Context(), control.Console, control.ClaimCommit{Owner: "ann@example.com", From: "seed"}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(forgot, []string{"gatehouse-test"}) || b.vault.sets != 1 {
		t.Errorf("forgotten %v, the vault was set %d times", forgot, b.vault.sets)
	}
	if got := b.ready(t, control.DatabasePending); got.State != control.StateReady || !got.Committed || got.Seed != nil {
		t.Errorf("after the commit: %+v", got)
	}
	if len(forgot) != 1 {
		t.Errorf("forgotten %d times", len(forgot))
	}
	var actions []string
	for _, e := range b.audit.events {
		actions = append(actions, e.Action+" "+e.From)
	}
	if !slices.Equal(actions, []string{"claim seed", "seed forgotten "}) {
		t.Errorf("recorded: %q", actions)
	}
	if slices.Contains(b.states, control.StateUnclaimed) {
		t.Errorf("the filter saw %v", b.states)
	}
}

func TestBOX11_RefusedSeedLeavesTheCode(t *testing.T) {
	var forgot []string
	b := newBox(t, func(c *Config) { c.Seed = seedOf(&forgot, nil) })
	b.ready(t, control.DatabaseUnclaimed)
	got, err := b.consoleReady(t.Context(), control.Console, control.ConsoleReady{Database: control.DatabaseUnclaimed, SeedProblem: "the address is none"})
	if err != nil || got.State != control.StateUnclaimed || got.Seed != nil || b.Code() == "" {
		t.Fatalf("%+v, %v, code %q", got, err, b.Code())
	}
	if said := b.Status().Seed; !strings.Contains(said, "the address is none") {
		t.Errorf("the consoles say %q", said)
	}
	if _, err := b.claimCommit(t.Context(), control.Console, control.ClaimCommit{Owner: "eve@example.com"}); err != nil {
		t.Errorf("a claim with the code: %v", err)
	}
	if len(forgot) > 0 {
		t.Error("what is only refused was overwritten in this life")
	}
}

// On a box that has an owner a seed is not obeyed, whatever is on the medium.
func TestBOX11_OwnedBoxObeysNoSeed(t *testing.T) {
	var forgot []string
	b := newBox(t, func(c *Config) { c.Seed = seedOf(&forgot, nil); c.Seed.SecureBoot = true })
	b.vault.claimed = true
	got, err := b.consoleReady(t.Context(), control.Console, control.ConsoleReady{Database: control.DatabaseClaimed, Owner: "bob@example.com"})
	if err != nil || got.Seed != nil || got.State != control.StateReady || len(forgot) != 1 {
		t.Errorf("%+v, %v, forgotten %v", got, err, forgot)
	}
	locked := newBox(t, func(c *Config) { c.Seed = seedOf(&forgot, nil) })
	if got := locked.ready(t, control.DatabaseClaimed); got.Seed != nil || got.State != control.StateLocked {
		t.Errorf("the two disagree, and the seed decides: %+v", got)
	}
}

func TestBOX11_SeedThatStaysOnItsMediumIsSaid(t *testing.T) {
	var forgot []string
	b := newBox(t, func(c *Config) { c.Seed = seedOf(&forgot, errors.New("it is read-only")) })
	b.ready(t, control.DatabaseUnclaimed)
	if _, err := b.claimCommit(t.Context(), control.Console, control.ClaimCommit{Owner: "ann@example.com"}); err != nil {
		t.Fatal(err)
	}
	if said := b.Status().Seed; !strings.Contains(said, "read-only") {
		t.Errorf("the consoles say %q", said)
	}
	if last := b.audit.events[len(b.audit.events)-1]; last.Outcome != "failed" {
		t.Errorf("recorded: %+v", last)
	}
}

func TestBOX5_SeedEnrolsSecureBootForItsOwnerOnly(t *testing.T) {
	k := &keyring{}
	b := newBox(t, func(c *Config) { c.Keys = k })
	b.enrolBySeed()
	if len(k.done) > 0 || !strings.Contains(b.Status().Seed, "not enrolled") {
		t.Errorf("without an owner: %v, %q", k.done, b.Status().Seed)
	}
	b.ready(t, control.DatabaseUnclaimed)
	if _, err := b.claimCommit(t.Context(), control.Console, control.ClaimCommit{Owner: "ann@example.com"}); err != nil {
		t.Fatal(err)
	}
	k.err = errors.New("not in set-up mode")
	b.enrolBySeed()
	if len(b.powers) > 0 || !strings.Contains(b.Status().Seed, "set-up mode") {
		t.Errorf("refused by the firmware: %v, %q", b.powers, b.Status().Seed)
	}
	k.err = nil
	b.enrolBySeed()
	if !slices.Equal(k.done, []string{"enrol"}) || !slices.Equal(b.powers, []string{"restart"}) {
		t.Errorf("%v, %v", k.done, b.powers)
	}
}
