package console

import (
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/account/onetime"
	"gatehouse/appliance/console/consoletest"
)

// TestBOX9_FactorResetAtTheBox: the old app, codes and sessions open nothing
// any more; the password leads to a new second factor and nowhere else.
func TestBOX9_FactorResetAtTheBox(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	b.Restart()
	if p := br.Open("/account"); p.Path != "/account" {
		t.Fatalf("a restart without an order: %s", p.Path)
	}
	b.OrderFactorReset()
	if p := br.Open("/account"); p.Path != "/account" {
		t.Errorf("it happened before the console was started anew: %s", p.Path)
	}
	b.Restart()
	if b.Ordered() {
		t.Error("not acknowledged")
	}
	if p := br.Open("/account"); p.Path != "/sign-in" {
		t.Errorf("the old session lives on: %s", p.Path)
	}
	if p := b.Browser().Send("/sign-in", "email", "ada@example.org", "password", "not the password"); p.Status != 422 {
		t.Errorf("another password: %d %s", p.Status, p.Path)
	}
	fresh := b.Browser()
	if p := fresh.Send("/sign-in", "email", "ada@example.org", "password", consoletest.Password); !strings.HasPrefix(p.Path, "/welcome/") {
		t.Fatalf("the password led to %s", p.Path)
	}
	for _, path := range []string{"/", "/audit", "/network", "/account"} {
		if p := fresh.Open(path); !strings.HasPrefix(p.Path, "/welcome/") {
			t.Errorf("%s before there is a new factor: %s", path, p.Path)
		}
	}
	old := br.Secret
	fresh.Enrol()
	if string(old) == string(fresh.Secret) {
		t.Error("the new factor is the old one")
	}
	again := b.Browser()
	again.Send("/sign-in", "email", "ada@example.org", "password", consoletest.Password)
	for _, stale := range []string{onetime.Code(old, onetime.Step(time.Now())), br.Codes[0]} {
		if p := again.Send("/sign-in/code", "code", stale); p.Status != 422 {
			t.Errorf("an old code: %d %s", p.Status, p.Path)
		}
	}
	b.Restart()
	if p := fresh.Open("/account"); p.Path != "/account" {
		t.Errorf("it happened once more at the next start: %s", p.Path)
	}
}
