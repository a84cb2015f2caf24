package console

import (
	"errors"
	"strings"
	"testing"

	"gatehouse/appliance/account/password"
	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/control"
)

func seeded(t *testing.T, b *consoletest.Box) control.SeedOwner {
	t.Helper()
	hash, err := password.NewHasher().Make(t.Context(), consoletest.Password)
	if err != nil {
		t.Fatal(err)
	}
	return control.SeedOwner{Name: "Ada", Email: "ada@example.org", Password: hash}
}

// A console that is told of a seed's owner has him before it serves anybody: the
// set-up page is never there, and the password of the seed signs in, to set up a
// second factor first.
func TestBOX11_SeedOwnsBeforeAnyoneIsServed(t *testing.T) {
	b := consoletest.Start(t, Run)
	b.Stop()
	o := seeded(t, b)
	b.SetSeed(&o)
	b.Boot()
	if b.State() != control.StateReady || b.Ready().Owner != o.Email || b.Ready().Database != control.DatabaseClaimed {
		t.Fatalf("%s, %+v", b.State(), b.Ready())
	}
	br := b.Browser()
	if p := br.Open("/setup"); p.Status != 404 && p.Path == "/setup" {
		t.Errorf("the set-up page answers %d", p.Status)
	}
	if p := br.Send("/sign-in", "email", o.Email, "password", consoletest.Password+"x"); p.Path != "/sign-in" {
		t.Errorf("a wrong password leads to %s", p.Path)
	}
	if p := br.Send("/sign-in", "email", o.Email, "password", consoletest.Password); !strings.HasPrefix(p.Path, "/welcome/") {
		t.Errorf("the password of the seed leads to %d %s", p.Status, p.Path)
	}
}

// What is wrong with a seed is said, and leaves a box that is claimed as usual.
func TestBOX11_ConsoleRefusesSeeds(t *testing.T) {
	for says, spoil := range map[string]func(*control.SeedOwner, *consoletest.Box){
		"not an e-mail address": func(o *control.SeedOwner, _ *consoletest.Box) { o.Email = "ada(@example.org" },
		"1 to 100 letters":      func(o *control.SeedOwner, _ *consoletest.Box) { o.Name = "A\x00" },
		"another form": func(o *control.SeedOwner, _ *consoletest.Box) {
			o.Password = strings.Replace(o.Password, "t=2", "t=1", 1)
		},
		"no hash":         func(o *control.SeedOwner, _ *consoletest.Box) { o.Password = "" },
		"does not answer": func(_ *control.SeedOwner, b *consoletest.Box) { b.FailCommit(errors.New("the TPM does not answer")) },
	} {
		b := consoletest.Start(t, Run)
		b.Stop()
		o := seeded(t, b)
		spoil(&o, b)
		b.SetSeed(&o)
		b.Boot()
		if got := b.Ready(); b.State() != control.StateUnclaimed || !strings.Contains(got.SeedProblem, says) || got.Database != control.DatabaseUnclaimed {
			t.Errorf("%s: %s, %+v", says, b.State(), got)
		}
		b.FailCommit(nil)
		b.Browser().Own(b)
		if b.State() != control.StateReady {
			t.Errorf("%s: the box could not be claimed afterwards: %s", says, b.State())
		}
	}
}
