package monitor

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"gatehouse/appliance/control"
)

// order is what a person at the box wants of the console's database. It is
// given in this process alone: no role can, and the one that carries it out
// learns of it when it starts. It is kept in memory: one that a power cut ends
// before it was carried out is given again by who still stands there.
type order struct {
	id   string
	done chan struct{}
}

// orderTime is how long a person waits for an order to be carried out; the
// console starts in a second or two.
const orderTime = 30 * time.Second

// ResetFactor has the console remove the owner's second factor, for a person
// at the box: the next sign-in with the password sets up a new one. It returns
// once that is done.
func (m *Monitor) ResetFactor(ctx context.Context) error {
	m.claiming.Lock()
	state := m.State()
	m.claiming.Unlock()
	switch {
	case state != control.StateReady:
		return fmt.Errorf("the box is %s: there is no owner's second factor to reset", state)
	case m.cfg.Restart == nil:
		return errors.New("the console cannot be started anew here")
	}
	m.mu.Lock()
	owner, o := m.owner, m.order
	if o == nil {
		o = &order{id: rand.Text(), done: make(chan struct{})}
	}
	m.mu.Unlock()
	if err := m.audit(ctx, control.Event{Actor: "console", Action: "reset second factor", Object: owner}); err != nil {
		return err
	}
	m.mu.Lock()
	m.order = o
	m.mu.Unlock()
	if err := m.cfg.Restart(control.Console); err != nil {
		m.withdraw(o)
		return fmt.Errorf("starting the console anew: %w", err)
	}
	wait := time.NewTimer(orderTime)
	defer wait.Stop()
	select {
	case <-o.done:
		return nil
	case <-ctx.Done():
		m.withdraw(o)
		return ctx.Err()
	case <-wait.C:
		// It would be carried out at some later start, when nobody expects it.
		m.withdraw(o)
		return errors.New("the console did not carry it out in time: the second factor is perhaps still the old one. Look at its log, and try again")
	}
}

func (m *Monitor) withdraw(o *order) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.order == o {
		m.order = nil
	}
}

// orderFor is the order that a console which starts now has to carry out.
func (m *Monitor) orderFor(s control.State) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.order == nil || s != control.StateReady {
		return ""
	}
	return m.order.id
}

// factorReset takes the acknowledgement.
func (m *Monitor) factorReset(_ context.Context, _ control.Role, q control.FactorReset) (control.None, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.order == nil || q.Order != m.order.id {
		return control.None{}, &control.Error{Code: control.CodeState, Text: "there is no such order: it was carried out before, or withdrawn"}
	}
	close(m.order.done)
	m.order = nil
	return control.None{}, nil
}
