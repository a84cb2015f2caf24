package monitor

import (
	"context"
	"fmt"
	"time"

	"gatehouse/appliance/control"
)

// planned is a restart that was asked for and leaves people their grace. It lives
// in memory: a box that starts anew before that has done what was wanted.
type planned struct {
	power control.Power
	at    time.Time
	timer *time.Timer
}

// Restart and switch off, for a person at the console: at once, since who stands
// there may have a reason that does not wait.
func (m *Monitor) Restart(ctx context.Context) error {
	return m.power(ctx, control.Power{Action: "restart", Actor: "console"})
}

// PowerOff switches the box off.
func (m *Monitor) PowerOff(ctx context.Context) error {
	return m.power(ctx, control.Power{Action: "off", Actor: "console"})
}

var errNoRestart = &control.Error{Code: control.CodeState, Text: "the box does not restart, or does so now: there is nothing to take back"}

var powers = map[string]string{"restart": "restart", "off": "switch off", "stay": "stay on"}

func (m *Monitor) power(ctx context.Context, p control.Power) error {
	action, ok := powers[p.Action]
	if !ok {
		return &control.Error{Code: control.CodeInvalid, Text: fmt.Sprintf("power action %q is neither restart nor off", p.Action)}
	}
	if m.cfg.Machine.Power == nil {
		return &control.Error{Code: control.CodeState, Text: "this Gatehouse runs on a host of yours: restart it there, with the host's own means"}
	}
	if p.Action == "stay" {
		return m.stay(ctx, p)
	}
	event := control.Event{Actor: p.Actor, Action: action, From: p.From}
	at := m.cfg.Now().Add(control.Grace).UTC().Truncate(time.Second)
	if p.Later {
		event.Detail = map[string]string{"at": at.Format(time.RFC3339)}
	}
	if err := m.audit(ctx, event); err != nil {
		return err
	}
	if !p.Later {
		m.plan(nil)
		m.cfg.Machine.Power(p.Action)
		return nil
	}
	m.plan(&planned{power: p, at: at})
	return nil
}

// plan has one restart come after its grace, in the place of another.
func (m *Monitor) plan(next *planned) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.planned; p != nil && !p.timer.Stop() {
		return // it comes now
	}
	m.planned = next
	if next != nil {
		// What was asked for is in the audit log already.
		next.timer = time.AfterFunc(control.Grace, func() { m.cfg.Machine.Power(next.power.Action) })
	}
}

// stay takes back what was to come.
func (m *Monitor) stay(ctx context.Context, p control.Power) error {
	m.mu.Lock()
	waits := m.planned
	m.mu.Unlock()
	if waits == nil {
		return errNoRestart
	}
	if err := m.audit(ctx, control.Event{Actor: p.Actor, Action: powers[p.Action], From: p.From}); err != nil {
		return err
	}
	m.plan(nil)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.planned != nil {
		return errNoRestart
	}
	return nil
}

// restart is the next that comes by itself: one by request, or into a release.
func (m *Monitor) restart(ctx context.Context) *control.Restart {
	m.mu.Lock()
	var next *control.Restart
	if p := m.planned; p != nil {
		next = &control.Restart{At: p.at, Off: p.power.Action == "off"}
	}
	m.mu.Unlock()
	if m.cfg.Systems == nil {
		return next
	}
	u, err := m.cfg.Systems.View(ctx)
	if err != nil || u.Restart == nil || u.Transfer == nil || next != nil && next.At.Before(*u.Restart) {
		return next // how updates stand is told by who is asked for that
	}
	return &control.Restart{At: u.Restart.UTC(), Version: u.Transfer.Version}
}
