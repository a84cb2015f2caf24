package monitor

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/netconf"
)

// Network is how the monitor reaches the links and the place where settings
// are kept.
type Network struct {
	Kept  control.NetworkSettings // at the start
	Own   func() []control.Link   // that the machine has by itself
	Apply func(context.Context, control.NetworkSettings) error
	// Keep makes settings those of the next start: at its return they are.
	Keep  func(control.NetworkSettings) error
	Names func() (resolvers []netip.Addr, search []string) // in effect
	Taken func() map[string]int                            // control.NetworkState; nil: nothing is learnt
}

// networkSettings are those in effect, and those that a restart would bring.
type networkSettings struct {
	effect, kept control.NetworkSettings
	own          []control.Link // that those in effect were last set on
	failed       string         // why not all of that could be; it is tried again
}

var errHostNetwork = &control.Error{Code: control.CodeState, Text: "this Gatehouse runs on a host of yours: set the network there, with the host's own means"}

// startNetwork brings what was kept: a change that waited when the roles, or
// the machine, started anew is gone.
func (m *Monitor) startNetwork() {
	n := m.cfg.Network
	if n == nil {
		return
	}
	m.network = networkSettings{effect: n.Kept, kept: n.Kept, own: n.Own()}
	if err := n.Apply(context.Background(), n.Kept); err != nil {
		m.network.failed = err.Error()
		m.cfg.Logger.Error("not all of the network is as it was kept", "err", err)
	}
}

func (m *Monitor) registerNetwork(s *control.Server) {
	control.Handle(s, control.OpNetwork, func(context.Context, control.Role, control.None) (control.NetworkState, error) {
		if m.cfg.Network == nil {
			return control.NetworkState{}, errHostNetwork
		}
		return m.Network(), nil
	})
	control.Handle(s, control.OpNetworkTry, m.tryNetwork)
	control.Handle(s, control.OpClockFloor, m.clockFloor)
}

func (m *Monitor) networkNow() networkSettings {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.network
}

// Network is what the faces show of the network; hosted it holds the links alone.
func (m *Monitor) Network() control.NetworkState {
	now := m.networkNow()
	s := control.NetworkState{Settings: now.effect, Kept: now.kept}
	if c := m.candidate(control.AboutNetwork); c.ID != "" {
		s.Candidate = &c
	}
	if m.cfg.Machine.Links != nil {
		s.Links = m.cfg.Machine.Links()
	}
	if n := m.cfg.Network; n != nil {
		s.Own = n.Own()
		s.Resolvers, s.Search = n.Names()
		if n.Taken != nil {
			s.Taken = n.Taken()
		}
	}
	return s
}

// applyNetwork brings settings into effect, or those of before back.
func (m *Monitor) applyNetwork(ctx context.Context, s control.NetworkSettings) error {
	ctx = context.WithoutCancel(ctx) // the asker's connection may be what ends by it
	if err := m.cfg.Network.Apply(ctx, s); err != nil {
		m.bringBack(ctx, m.networkNow().effect)
		return err
	}
	m.inEffect(s, nil)
	return nil
}

// bringBack brings in what counted before, as the start does: all of it that
// can be now. A card that was pulled meanwhile must not leave in effect what
// nobody kept. What could not be is tried again when links are looked at.
func (m *Monitor) bringBack(ctx context.Context, s control.NetworkSettings) {
	err := m.cfg.Network.Apply(context.WithoutCancel(ctx), s)
	if err != nil {
		m.cfg.Logger.Error("not all of the network is as it was before", "err", err)
	}
	m.inEffect(s, err)
}

func (m *Monitor) inEffect(s control.NetworkSettings, err error) {
	m.mu.Lock()
	m.network.effect, m.network.failed = s, ""
	if err != nil {
		m.network.failed = err.Error()
	}
	m.mu.Unlock()
	m.Refilter() // what is on-link changed with the addresses
}

// keepNetwork makes settings those of the next start.
func (m *Monitor) keepNetwork(s control.NetworkSettings) error {
	if err := m.cfg.Network.Keep(s); err != nil {
		return err
	}
	m.mu.Lock()
	m.network.kept = s
	m.mu.Unlock()
	return nil
}

// tryNetwork judges settings, and brings them into effect to be kept.
func (m *Monitor) tryNetwork(ctx context.Context, _ control.Role, q control.NetworkTry) (control.NetworkReport, error) {
	if m.cfg.Network == nil {
		return control.NetworkReport{}, errHostNetwork
	}
	m.changing.Lock()
	defer m.changing.Unlock()
	if s := m.State(); s != control.StateReady {
		return control.NetworkReport{}, &control.Error{Code: control.CodeState, Text: fmt.Sprintf("the box is %s: until it is ready, the network is set at its console", s)}
	}
	own, now := m.cfg.Network.Own(), m.networkNow()
	report := control.NetworkReport{Problems: netconf.CheckChange(now.kept, q.Settings, own)}
	if len(report.Problems) > 0 {
		return report, nil
	}
	before, after := netconf.Named(now.effect, own), netconf.Named(q.Settings, own)
	report.Summary = netconf.Changes(before, after)
	if m.cfg.Machine.Links != nil {
		report.SelfCut = netconf.Cut(before, after, m.cfg.Machine.Links(), q.Local)
	}
	if q.DryRun {
		return report, nil
	}
	if err := m.mayTry(control.AboutNetwork); err != nil {
		return report, err
	}
	if netconf.Equal(before, after) {
		return report, nil // there is nothing to keep
	}
	if err := m.audit(ctx, control.Event{Actor: q.Actor, From: q.From, Action: "try network", Detail: map[string]string{"change": shorten(strings.Join(report.Summary, "; "))}}); err != nil {
		return report, err
	}
	if !report.SelfCut {
		if err := m.applyNetwork(ctx, q.Settings); err != nil {
			return report, fmt.Errorf("the network stays as it was: %w", err)
		}
	}
	back := m.networkNow().kept
	c := m.try(control.AboutNetwork, q.Actor, report.Summary,
		func(context.Context) error { return m.keepNetwork(q.Settings) },
		func(ctx context.Context) error { m.bringBack(ctx, back); return nil })
	if report.SelfCut {
		m.applyLater(c.ID, q.Settings)
		c = m.candidate(control.AboutNetwork)
	}
	report.Candidate = &c
	return report, nil
}

// answerTime is how long a change that ends the asker's own connection waits,
// so that the answer, which says where the box will be, still goes out over it.
const answerTime = 500 * time.Millisecond

// applyLater brings a candidate into effect after the answer. Until then it
// cannot be kept: no connection is younger than it.
func (m *Monitor) applyLater(id string, s control.NetworkSettings) {
	t, err := m.find(id)
	if err != nil {
		return
	}
	m.mu.Lock()
	t.Applied = math.MaxInt64
	m.mu.Unlock()
	time.AfterFunc(answerTime, func() {
		m.changing.Lock()
		defer m.changing.Unlock()
		if _, err := m.find(id); err != nil {
			return // taken back already
		}
		ctx := context.Background()
		if err := m.applyNetwork(ctx, s); err != nil {
			m.cfg.Logger.Error("the network stays as it was", "err", err)
			if err := m.undo(ctx, t, "system", "", "could not be set: "+shorten(err.Error())); err != nil {
				m.cfg.Logger.Error("taking back what could not be set", "err", err) // its timer tries again
			}
			return
		}
		m.mu.Lock()
		t.Applied = m.boottime()
		m.mu.Unlock()
	})
}

// lookAtLinks brings the settings to a link that came after the start, as a USB
// adapter does, and tries again what could not be set. A card that went and
// came between two looks has a new index, and comes down.
func (m *Monitor) lookAtLinks() {
	n := m.cfg.Network
	if n == nil {
		return
	}
	own, before := n.Own(), m.networkNow()
	same := slices.EqualFunc(own, before.own, func(a, b control.Link) bool { return a.Index == b.Index && a.Name == b.Name && a.MAC == b.MAC })
	if same && before.failed == "" {
		return
	}
	m.changing.Lock()
	defer m.changing.Unlock()
	s := m.networkNow().effect
	err := n.Apply(context.Background(), s)
	if err != nil && err.Error() != before.failed { // else it was said
		m.cfg.Logger.Error("not all links are as they are set", "err", err)
	}
	m.mu.Lock()
	m.network.own, m.network.failed = own, ""
	if err != nil {
		m.network.failed = err.Error()
	}
	m.mu.Unlock()
}

// SetNetwork changes the network for a person at the console, who sees what
// comes of it: it is kept at once, in every state of the box. A change that
// waits to be kept is over with it.
func (m *Monitor) SetNetwork(ctx context.Context, s control.NetworkSettings) error {
	if m.cfg.Network == nil {
		return errHostNetwork
	}
	m.changing.Lock()
	defer m.changing.Unlock()
	own, before := m.cfg.Network.Own(), m.networkNow()
	if p := netconf.CheckChange(before.kept, s, own); len(p) > 0 {
		var all []string
		for _, one := range p {
			all = append(all, netconf.Sentence(one))
		}
		return &control.Error{Code: control.CodeInvalid, Text: strings.Join(all, "; ")}
	}
	change := shorten(strings.Join(netconf.Changes(netconf.Named(before.effect, own), netconf.Named(s, own)), "; "))
	if err := m.audit(ctx, control.Event{Actor: "console", Action: "set network", Detail: map[string]string{"change": change}}); err != nil {
		return err
	}
	if err := m.applyNetwork(ctx, s); err != nil {
		return fmt.Errorf("the network stays as it was: %w", err)
	}
	if err := m.keepNetwork(s); err != nil {
		m.bringBack(ctx, before.effect)
		return fmt.Errorf("the network stays as it was, since a restart would not bring the new one: %w", err)
	}
	if c := m.candidate(control.AboutNetwork); c.ID != "" {
		if t, err := m.find(c.ID); err == nil {
			m.forget(t)
		}
	}
	return nil
}

// clockFloor resets the floor of the clock, for an owner whom a lying time
// server has pushed it too far.
func (m *Monitor) clockFloor(ctx context.Context, _ control.Role, q control.ClockFloor) (control.Clock, error) {
	if m.cfg.Machine.SetClock == nil {
		return control.Clock{}, &control.Error{Code: control.CodeState, Text: "the clock is the host's: set it there"}
	}
	floor := m.cfg.Clock.Status(m.cfg.Now()).Floor
	if err := m.audit(ctx, control.Event{Actor: q.Actor, From: q.From, Action: "reset clock floor", Detail: map[string]string{"was": floor.UTC().Format("2006-01-02")}}); err != nil {
		return control.Clock{}, err
	}
	if err := m.cfg.Clock.Reset(); err != nil {
		return control.Clock{}, err
	}
	return m.cfg.Clock.Status(m.cfg.Now()), nil
}
