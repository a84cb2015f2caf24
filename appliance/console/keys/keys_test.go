package keys_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/console/keys"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
)

// guard is what the pages ask.
type guard struct {
	mu    sync.Mutex
	asked int
	fails error
	now   time.Time
}

func (g *guard) Keys(context.Context) (control.Keys, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked++
	return consoletest.Guarded(time.Now()), g.fails
}

func desk(t *testing.T, g *guard) (*consoletest.Desk, *keys.Pages) {
	t.Helper()
	pages := keys.New(keys.Ports{Keys: g.Keys, Steady: func() time.Time { return g.now },
		MakeRecovery: func(context.Context, control.By) (control.RecoveryKey, error) {
			return control.RecoveryKey{Text: "A-B"}, nil
		}})
	return consoletest.NewDesk(t, func(*consoletest.Desk) []shell.Route { return pages.Routes() }), pages
}

func TestKEY5_OnlyTheOwnerSeesAndChangesKeys(t *testing.T) {
	g := &guard{}
	d, pages := desk(t, g)
	for _, role := range []right.Role{right.Administrator, right.Technician, right.Viewer} {
		d.As(role)
		for _, r := range pages.Routes() {
			p := d.Open(r.Path)
			if r.Method == "POST" {
				p = d.SendJSON(r.Path, "{}")
			}
			if p.Status != 403 || !strings.Contains(p.Body, "no right") {
				t.Errorf("%s %s as %s: %d", r.Method, r.Path, role, p.Status)
			}
		}
	}
	if g.asked != 0 {
		t.Errorf("the keys were asked for %d times", g.asked)
	}
}

// What changes a way to the data asks for password and code again, except what
// takes the recovery key itself.
func TestKEY5_ChangesWantAFreshSignIn(t *testing.T) {
	_, pages := desk(t, &guard{})
	for _, r := range pages.Routes() {
		if want := r.Method == "POST" && !strings.HasSuffix(r.Path, "/confirm"); want && !r.Fresh {
			t.Errorf("POST %s takes any session", r.Path)
		}
	}
}

func TestStatusAsksTheTPMOnceAMinute(t *testing.T) {
	g := &guard{now: time.Now(), fails: errors.New("the TPM does not answer")}
	d, pages := desk(t, g)
	for range 2 {
		if _, err := pages.Known(t.Context()); err == nil {
			t.Error("a failure was kept for an answer")
		}
	}
	g.fails = nil
	ask := func(want int, when string) {
		t.Helper()
		g.asked = 0
		for range 5 {
			if k, err := pages.Known(t.Context()); err != nil || k.Epoch != 1 {
				t.Fatalf("%s: %v", when, err)
			}
		}
		if g.asked != want {
			t.Errorf("%s: asked %d times, want %d", when, g.asked, want)
		}
	}
	ask(1, "at first")
	ask(0, "then")
	if p := d.SendJSON("/api/v1/keys/recovery", "{}"); p.Status != 201 {
		t.Fatalf("%d", p.Status)
	}
	ask(1, "after a change")
	g.now = g.now.Add(time.Hour)
	ask(1, "an hour later")
}
