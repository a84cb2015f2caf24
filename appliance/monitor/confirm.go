package monitor

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"time"

	"gatehouse/appliance/control"
)

// A trial is a change that can cut off its author: it is in effect, and goes
// back by itself unless it is kept over a connection that was accepted after it
// took effect. A connection from before proves nothing: it may live on an
// address, or through a rule, that is gone.
type trial struct {
	control.Candidate
	timer  *time.Timer
	keep   func(context.Context) error // makes it last
	revert func(context.Context) error // brings back what was before
}

const revertAgain = 5 * time.Second // after a failure

// try registers a change that has just taken effect. There is at most one of a
// kind; mayTry says so before anything is changed.
func (m *Monitor) try(about, actor string, summary []string, keep, revert func(context.Context) error) control.Candidate {
	within := m.cfg.KeepWithin
	if within == 0 {
		within = control.KeepWithin
	}
	t := &trial{keep: keep, revert: revert, Candidate: control.Candidate{
		ID: rand.Text()[:12], About: about, Actor: actor, Summary: summary,
		Applied: m.boottime(), Until: m.cfg.Now().Add(within),
	}}
	m.mu.Lock()
	m.trials[about] = t
	t.timer = time.AfterFunc(within, func() { m.expire(t) })
	m.mu.Unlock()
	return m.candidate(about)
}

// mayTry refuses a second change of a kind while the first waits.
func (m *Monitor) mayTry(about string) error {
	if c := m.candidate(about); c.ID != "" {
		return &control.Error{Code: control.CodeState, Text: fmt.Sprintf("a change by %s waits to be kept, for %d more seconds: keep it or take it back first", c.Actor, c.Seconds)}
	}
	return nil
}

// candidate is the change of a kind that waits to be kept; without an ID if there is none.
func (m *Monitor) candidate(about string) control.Candidate {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.trials[about]
	if t == nil {
		return control.Candidate{}
	}
	c := t.Candidate
	c.Seconds = max(0, int(c.Until.Sub(m.cfg.Now())/time.Second))
	c.Summary = slices.Clone(c.Summary)
	return c
}

// Candidates are the changes that wait to be kept, for the console.
func (m *Monitor) Candidates() []control.Candidate {
	var all []control.Candidate
	for _, about := range []string{control.AboutLists, control.AboutNetwork} {
		if c := m.candidate(about); c.ID != "" {
			all = append(all, c)
		}
	}
	return all
}

func (m *Monitor) find(id string) (*trial, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.trials {
		if t.ID == id {
			return t, nil
		}
	}
	return nil, &control.Error{Code: control.CodeState, Text: "this change does not wait to be kept any more: it was kept, or taken back because nobody did in time"}
}

// keep makes a candidate last.
func (m *Monitor) keep(ctx context.Context, _ control.Role, q control.Keep) (control.None, error) {
	m.changing.Lock()
	defer m.changing.Unlock()
	t, err := m.find(q.ID)
	if err != nil {
		return control.None{}, err
	}
	m.mu.Lock()
	applied := t.Applied
	m.mu.Unlock()
	if q.Accepted <= applied {
		return control.None{}, &control.Error{Code: control.CodeState, Text: "this connection is older than the change, so it does not show that you still get in: open the page in a new connection, and keep the change there"}
	}
	if err := m.audit(ctx, control.Event{Actor: q.Actor, From: q.From, Action: "keep " + word(t.About), Object: t.ID}); err != nil {
		return control.None{}, err
	}
	if err := t.keep(ctx); err != nil {
		return control.None{}, fmt.Errorf("keeping the change of the %s: %w", word(t.About), err)
	}
	m.forget(t)
	return control.None{}, nil
}

func word(about string) string {
	if about == control.AboutLists {
		return "allowlists"
	}
	return about
}

// forget ends a trial and its timer.
func (m *Monitor) forget(t *trial) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t.timer.Stop()
	if m.trials[t.About] == t {
		delete(m.trials, t.About)
	}
}

// takeBack undoes a candidate at somebody's wish.
func (m *Monitor) takeBack(ctx context.Context, _ control.Role, q control.Revert) (control.None, error) {
	m.changing.Lock()
	defer m.changing.Unlock()
	t, err := m.find(q.ID)
	if err != nil {
		return control.None{}, err
	}
	return control.None{}, m.undo(ctx, t, q.Actor, q.From, "asked")
}

// RevertAll undoes every candidate, for a person at the console.
func (m *Monitor) RevertAll(ctx context.Context) error {
	m.changing.Lock()
	defer m.changing.Unlock()
	for _, c := range m.Candidates() {
		t, err := m.find(c.ID)
		if err != nil {
			return err
		}
		if err := m.undo(ctx, t, "console", "", "asked at the console"); err != nil {
			return err
		}
	}
	return nil
}

// undo brings back what was before. The way back is the safe one, so an audit
// log that cannot be written does not block it.
func (m *Monitor) undo(ctx context.Context, t *trial, actor, from, reason string) error {
	if err := m.audit(ctx, control.Event{Actor: actor, From: from, Action: "revert " + word(t.About), Object: t.ID, Detail: map[string]string{"reason": reason}}); err != nil {
		m.cfg.Logger.Error("a change is taken back without an entry in the audit log", "about", t.About, "err", err)
	}
	if err := t.revert(ctx); err != nil {
		return fmt.Errorf("taking back the change of the %s: %w", word(t.About), err)
	}
	m.forget(t)
	return nil
}

// expire takes a candidate back that nobody kept, and does not give up.
func (m *Monitor) expire(t *trial) {
	m.changing.Lock()
	defer m.changing.Unlock()
	if _, err := m.find(t.ID); err != nil {
		return // kept or taken back while this waited
	}
	if err := m.undo(context.Background(), t, "system", "", "not kept in time"); err != nil {
		m.cfg.Logger.Error("a change that nobody kept is still in effect; trying again", "err", err)
		m.mu.Lock()
		t.timer = time.AfterFunc(revertAgain, func() { m.expire(t) })
		m.mu.Unlock()
	}
}
