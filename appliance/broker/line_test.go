package broker

import (
	"testing"

	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
)

// event is what the agent tells of a session.
func (a *agent) event(id session.ID, what attend.What, text string) {
	a.Helper()
	a.tell(attend.FromSite{Event: &attend.Event{Session: id, What: what, Text: text}})
}

// TestSES1_LongSessionOutlivesTheConsole: somebody came to it long ago, and the
// agent does not say so again.
func TestSES1_LongSessionOutlivesTheConsole(t *testing.T) {
	d := newDesk(t)
	d.target(nas(session.RecordingOff))
	a := d.attend()
	g, err := d.Ask(t.Context(), owner, api.Ask{Target: "nas", Transport: session.TLS, Key: session.Key{1}})
	if err != nil {
		t.Fatal(err)
	}
	state := func() api.State {
		t.Helper()
		s, err := d.Sessions(t.Context(), owner)
		if err != nil || len(s) != 1 {
			t.Fatalf("%+v, %v", s, err)
		}
		return s[0].State
	}
	a.event(g.Session, attend.Joined, "")
	d.until(func() bool { return state() == api.Live })
	d.pass(2 * arrive)
	d.open()
	d.sweep(t.Context())
	if s := state(); s != api.Lost || d.Live() != 1 {
		t.Errorf("after the restart it is %s, and %d people are counted", s, d.Live())
	}
	a = d.attend(g.Session)
	d.sweep(t.Context())
	a.event(g.Session, attend.Way, "relay")
	d.until(func() bool { return state() != api.Lost })
	if s := state(); s != api.Live {
		t.Errorf("once the agent is back it is %s", s)
	}
	if _, err := d.Meet(t.Context(), owner, g.Session); err != nil {
		t.Errorf("it does not meet again: %v", err)
	}
}

// TestSES1_FoundAgainIsNotCutOff: what has a way again is not shown as cut off.
func TestSES1_FoundAgainIsNotCutOff(t *testing.T) {
	d := newDesk(t)
	d.target(nas(session.RecordingOff))
	a := d.attend()
	g, err := d.Ask(t.Context(), owner, api.Ask{Target: "nas", Transport: session.TLS, Key: session.Key{1}})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []struct {
		what  attend.What
		text  string
		state api.State
		path  string
	}{
		{attend.Way, "relay", api.Waiting, "relay"}, // joined with the first stream
		{attend.Joined, "", api.Live, "relay"},
		{attend.Lost, "", api.Lost, ""},
		{attend.Way, "tcp", api.Live, "tcp"},
	} {
		a.event(g.Session, e.what, e.text)
		a.event(g.Session, attend.Opened, "after") // so that it is known to have come
		var s []api.Session
		d.until(func() bool { s, err = d.Sessions(t.Context(), owner); return err != nil || len(s[0].Open) == 1 })
		if err != nil || s[0].State != e.state || s[0].Path != e.path {
			t.Errorf("after %s %q it is %s by %q, %v", e.what, e.text, s[0].State, s[0].Path, err)
		}
		a.event(g.Session, attend.Closed, "after")
		d.until(func() bool { s, err = d.Sessions(t.Context(), owner); return err != nil || len(s[0].Open) == 0 })
	}
}
