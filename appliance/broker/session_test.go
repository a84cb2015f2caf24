package broker

import (
	"context"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
)

// TestSES7_TargetThatGoesWhileItIsAskedFor: its removal found no session yet that
// it could end. The new machine's credential is not for the old host either.
func TestSES7_TargetThatGoesWhileItIsAskedFor(t *testing.T) {
	move := func(spoil func(*api.TargetNew)) func(*desk, api.Target) {
		return func(d *desk, m api.Target) {
			q := nas(session.RecordingOff)
			q.ID = m.ID
			spoil(&q)
			d.target(q)
			if q.Kind == session.SSH {
				d.must(d.SetCredential(d.Context(), owner, api.CredentialSet{ID: m.ID, User: "root", Password: "of the new machine"}))
			}
		}
	}
	for name, c := range map[string]struct {
		meanwhile func(*desk, api.Target)
		reason    string
	}{
		"removed":      {func(d *desk, m api.Target) { d.must(d.Remove(d.Context(), owner, m.ID)) }, "the target was removed"},
		"another host": {move(func(q *api.TargetNew) { q.Host = "192.0.2.11" }), "the target was changed"},
		"another port": {move(func(q *api.TargetNew) { q.Port = 2222 }), "the target was changed"},
		"another kind": {move(func(q *api.TargetNew) { q.Kind = session.TCP }), "the target was changed"},
	} {
		for when, hook := range map[string]func(*desk, func()){
			// Before the session is one that could be ended, and after it.
			"before": func(d *desk, do func()) {
				was := d.cfg.Audit
				d.cfg.Audit = func(ctx context.Context, e control.Event) error {
					if e.Action == "open session" {
						do()
					}
					return was(ctx, e)
				}
			},
			"after": func(d *desk, do func()) {
				was := d.cfg.Wall
				d.cfg.Wall = func() time.Time { // tickets ask for it
					if len(d.live) > 0 {
						do()
					}
					return was()
				}
			},
		} {
			d := newDesk(t)
			m := d.target(nas(session.RecordingOff))
			a := d.attend()
			done := false
			hook(d, func() {
				if !done {
					done = true
					c.meanwhile(d, m)
				}
			})
			if g, err := d.Ask(t.Context(), owner, api.Ask{Target: "nas", Transport: session.TLS, Key: session.Key{1}}); !refused(err) || !done {
				t.Errorf("%s, %s: granted %s, %v", name, when, g.Session, err)
			}
			if s, err := d.Sessions(t.Context(), owner); err != nil || len(s) != 1 || s[0].State != api.Over || s[0].Reason != c.reason {
				t.Errorf("%s, %s: listed as %+v, %v", name, when, s, err)
			}
			if s := d.said(); strings.Count(s, "session over") != 1 {
				t.Errorf("%s, %s: the audit log says %q", name, when, s)
			}
			// An offer would have been queued by now, in front of what comes next.
			end := a.hear().End
			if end == nil {
				t.Errorf("%s, %s: the agent is offered it", name, when)
			}
		}
	}
}
