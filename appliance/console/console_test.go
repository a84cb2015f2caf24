package console

import (
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/account/onetime"
	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/control"
)

func TestACC1_ClaimSignInStatus(t *testing.T) {
	b := consoletest.Start(t, Run)
	br := b.Browser()
	if p := br.Open("/"); p.Status != 200 || !strings.Contains(p.Body, "no owner yet") {
		t.Fatalf("%d\n%s", p.Status, p.Body)
	}
	br.Own(b)
	if s := b.State(); s != control.StateReady {
		t.Fatalf("the state is %s", s)
	}
	if p := br.Open("/"); p.Path != "/welcome/clock" {
		t.Errorf("the password alone led to %s", p.Path)
	}
	if p := br.Send("/welcome/clock", "action", "keep"); p.Path != "/welcome/factor" {
		t.Errorf("the clock led to %s", p.Path)
	}
	br.Enrol()
	if p := br.Send("/welcome/codes", "action", "saved"); p.Status != 422 {
		t.Errorf("going on without saving: %d %s", p.Status, p.Path)
	}
	if p := br.Open("/account/codes.txt"); !strings.Contains(p.Body, br.Codes[9]) || !strings.HasPrefix(p.Header.Get("Content-Disposition"), "attachment") {
		t.Errorf("the download: %s", p.Body)
	}
	if p := br.Send("/welcome/codes", "action", "saved"); p.Path != "/welcome/recovery" {
		t.Errorf("the codes led to %d %s", p.Status, p.Path)
	}
	p := br.Send("/welcome/recovery")
	if p = br.Send("/welcome/recovery/confirm", "typed", lastGroup(t, p)); p.Path != "/welcome/place" {
		t.Errorf("the recovery key led to %d %s", p.Status, p.Path)
	}
	p = br.Send("/welcome/place", "site", "Head office", "zone", "Europe/Vienna", "window", "night")
	if p.Path != "/" || !strings.Contains(p.Body, "Head office") || !strings.Contains(p.Body, "Grade B") || strings.Contains(p.Body, "What is left") {
		t.Fatalf("the place led to %d %s\n%s", p.Status, p.Path, p.Body)
	}

	if p := br.Send("/sign-out"); p.Path != "/sign-in" {
		t.Errorf("signing out led to %s", p.Path)
	}
	if p := br.Open("/"); p.Path != "/sign-in" {
		t.Errorf("after signing out / led to %s", p.Path)
	}
	b.Restart()
	if p := br.Send("/sign-in", "email", "ada@example.org", "password", consoletest.Password); p.Path != "/sign-in/code" {
		t.Fatalf("the password led to %d %s\n%s", p.Status, p.Path, p.Body)
	}
	if p := br.Open("/audit"); p.Path != "/sign-in/code" {
		t.Errorf("the password alone led to %s", p.Path)
	}
	if p := br.Send("/sign-in/code", "code", onetime.Code(br.Secret, onetime.Step(time.Now()))); p.Path != "/" || p.Status != 200 {
		t.Fatalf("the code led to %d %s\n%s", p.Status, p.Path, p.Body)
	}
}
