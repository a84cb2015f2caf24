package sessions_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/console/sessions"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
)

func desk(t *testing.T, b *consoletest.Broker) *consoletest.Desk {
	t.Helper()
	return consoletest.NewDesk(t, func(*consoletest.Desk) []shell.Route {
		return sessions.New(sessions.Ports{Sessions: b.Sessions, End: b.End, Notice: b.Notice}).Routes()
	})
}

func TestSES7_EndingIsRefusedToWhoMayNot(t *testing.T) {
	b := consoletest.AtWork(t, time.Now())
	d := desk(t, b)
	for _, id := range []string{"", "x", strings.Repeat("0", 32), strings.Repeat("A", 32), consoletest.SessionID(4).String()} {
		if p := d.Send("/sessions/end", "session", id); p.Status != 403 {
			t.Errorf("ending %q: %d", id, p.Status)
		}
	}
	d.As(right.Technician)
	if p := d.Send("/sessions/end", "session", consoletest.SessionID(2).String()); p.Status != 403 {
		t.Errorf("a technician ends another's: %d", p.Status)
	}
	d.As(right.Viewer)
	for _, path := range []string{"/sessions", "/sessions/live"} {
		if p := d.Open(path); p.Status != 403 {
			t.Errorf("a viewer opens %s: %d", path, p.Status)
		}
	}
	if p := d.Send("/sessions/end", "session", consoletest.SessionID(1).String()); p.Status != 403 {
		t.Errorf("a viewer ends one: %d", p.Status)
	}
	if len(b.Asked) != 0 {
		t.Errorf("something was done: %q", b.Asked)
	}
}

func TestSES7_OwnersButtonEndsASession(t *testing.T) {
	b := consoletest.AtWork(t, time.Now())
	d := desk(t, b)
	p := d.Open("/sessions")
	for _, want := range []string{"grace@example.org", "203.0.113.7", "direct, UDP", "cut off, may come back", "terminal", "nobody typed for 30 minutes", "1 MB", "End your session at nas", "End the session of grace@example.org at Pump house, east", "/recordings/play?session=" + consoletest.SessionID(4).String()} {
		if !strings.Contains(p.Body, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	p = d.Send("/sessions/end", "session", consoletest.SessionID(2).String())
	if p.Path != "/sessions" || !strings.Contains(p.Body, "The session was ended") || !strings.Contains(p.Body, "ended by ada@example.org") {
		t.Errorf("%d %s", p.Status, p.Path)
	}
	if len(b.Asked) != 1 || b.By[0].Person.Email != "ada@example.org" || b.By[0].From != "127.0.0.1" {
		t.Errorf("%q by %+v", b.Asked, b.By)
	}
}

func TestSES7_TechnicianSeesTheirOwn(t *testing.T) {
	b := consoletest.AtWork(t, time.Now())
	d := desk(t, b)
	d.As(right.Technician)
	p := d.Open("/sessions/live")
	if strings.Contains(p.Body, "grace@example.org") || !strings.Contains(p.Body, "<strong>you</strong>") || strings.Contains(p.Body, "/recordings/play") || strings.Contains(p.Body, "/audit") {
		t.Errorf("a technician sees:\n%s", p.Body)
	}
	if strings.Contains(p.Body, "<html") {
		t.Error("the part that refreshes itself is a whole page")
	}
}

func TestSES7_HundredOfThePastAndNewestFirst(t *testing.T) {
	b := consoletest.NewBroker()
	start := time.Now().Add(-time.Hour)
	for i := range 130 {
		b.Put(api.Session{ID: consoletest.SessionID(i), Technician: "ada@example.org", Target: session.Target{Name: "nas"}, State: api.Over,
			Started: start, Ended: start.Add(time.Duration(i) * time.Second), Reason: fmt.Sprintf("reason-%d.", i)})
	}
	body := desk(t, b).Open("/sessions").Body
	if n := strings.Count(body, "reason-"); n != 100 {
		t.Errorf("%d are shown, want 100", n)
	}
	first, last := strings.Index(body, "reason-129."), strings.Index(body, "reason-30.")
	if first < 0 || last < first || strings.Contains(body, "reason-29.") {
		t.Error("they are not the newest, newest first")
	}
	if !strings.Contains(body, "Nobody is in") {
		t.Error("it does not say that nobody is in")
	}
}

func TestSES7_StatusSaysWhoIsIn(t *testing.T) {
	b := consoletest.AtWork(t, time.Now())
	p := sessions.New(sessions.Ports{Sessions: b.Sessions, End: b.End, Notice: b.Notice})
	d := consoletest.NewDesk(t, func(*consoletest.Desk) []shell.Route { return append(p.Routes(), consoletest.CardRoute(p.Card)) })
	body := d.Open("/card").Body
	if !strings.Contains(body, "grace@example.org") || !strings.Contains(body, "/sessions") || strings.Contains(body, "nobody typed") {
		t.Errorf("the card:\n%s", body)
	}
	d.As(right.Technician)
	if body := d.Open("/card").Body; strings.Contains(body, "grace@example.org") || !strings.Contains(body, "you") {
		t.Errorf("a technician's card:\n%s", body)
	}
	d.As(right.Viewer)
	if body := d.Open("/card").Body; strings.TrimSpace(body) != "" {
		t.Errorf("a viewer's card:\n%s", body)
	}
}
