package consoletest

import (
	"context"
	"math"
	"net/netip"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/netconf"
)

// network doubles settings and links. The tests' browsers come to loopback,
// which stands for the first address of eth0. The judge is the real one.
type network struct {
	settings, kept control.NetworkSettings
	machine        *Machine // nil: the links are doubled
}

// Machine is a real one in the place of doubled links: the console listens on
// port 443 of all its addresses, and settings are applied to it.
type Machine struct {
	Address  netip.Addr // at which the box is reached first
	Settings control.NetworkSettings
	Links    func() []control.Link
	Own      func() []control.Link
	Apply    func(control.NetworkSettings) error
}

// apply brings settings into effect.
func (n *network) apply(s control.NetworkSettings) error {
	n.settings = s
	if n.machine == nil {
		return nil
	}
	return n.machine.Apply(s)
}

func (n *network) own() []control.Link {
	if n.machine != nil {
		return n.machine.Own()
	}
	return []control.Link{{Name: "eth0", MAC: "02:00:00:00:00:01", Carrier: true}, {Name: "eth1", MAC: "02:00:00:00:00:02"}}
}

var eth0Address = netip.MustParsePrefix("192.168.1.40/24")

func (b *Box) links() []control.Link {
	n := &b.network
	if n.machine != nil {
		return n.machine.Links()
	}
	out := []control.Link{
		{Name: "eth0", MAC: "02:00:00:00:00:01", Carrier: true, Addresses: []netip.Prefix{eth0Address, netip.MustParsePrefix("2001:db8:1::40/64")}, Source: "dhcp", Gateways: []netip.Addr{netip.MustParseAddr("192.168.1.1")}, MTU: 1500},
		{Name: "eth1", MAC: "02:00:00:00:00:02", Source: "dhcp", MTU: 1500},
	}
	for _, v := range n.settings.VLANs {
		out = append(out, control.Link{Name: v.Name, MAC: "02:00:00:00:00:01", Carrier: true, Source: "dhcp", MTU: 1500})
	}
	for i := range out {
		for _, s := range n.settings.Links {
			if s.Name == out[i].Name && s.Mode == "static" {
				out[i].Addresses, out[i].Source, out[i].Gateways = s.Addresses, "static", s.Gateways
			}
		}
	}
	return out
}

func (b *Box) judgeNetwork(q control.NetworkTry) (r control.NetworkReport) {
	if r.Problems = netconf.CheckChange(b.network.settings, q.Settings, b.network.own()); len(r.Problems) > 0 {
		return r
	}
	before, after := netconf.Named(b.network.settings, b.network.own()), netconf.Named(q.Settings, b.network.own())
	r.Summary = netconf.Changes(before, after)
	local := q.Local
	if local.IsLoopback() {
		local = b.links()[0].Addresses[0].Addr()
	}
	r.SelfCut = netconf.Cut(before, after, b.links(), local)
	return r
}

func (b *Box) handleNetwork(s *control.Server) {
	control.Handle(s, control.OpNetwork, func(context.Context, control.Role, control.None) (control.NetworkState, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		n := &b.network
		if b.hosted {
			return control.NetworkState{}, refused(control.CodeState, "this Gatehouse runs on a host of yours: set the network there")
		}
		st := control.NetworkState{Settings: n.settings, Kept: n.kept, Candidate: b.trials.candidate(control.AboutNetwork), Links: b.links(), Own: b.network.own(), Resolvers: []netip.Addr{netip.MustParseAddr("192.168.1.1")}, Search: []string{"example.org"}}
		if len(n.settings.Resolvers) > 0 {
			st.Resolvers = n.settings.Resolvers
		}
		return st, nil
	})
	control.Handle(s, control.OpNetworkTry, func(_ context.Context, _ control.Role, q control.NetworkTry) (control.NetworkReport, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		r := b.judgeNetwork(q)
		if q.DryRun || len(r.Problems) > 0 || netconf.Equal(b.network.settings, q.Settings) {
			return r, nil
		}
		if err := b.trials.free(control.AboutNetwork); err != nil {
			return r, err
		}
		n := &b.network
		later := r.SelfCut && n.machine != nil
		if !later {
			if err := n.apply(q.Settings); err != nil {
				return r, err
			}
		}
		r.Candidate = b.trials.begin(control.AboutNetwork, q.Actor, r.Summary,
			func() error { n.kept = n.settings; return nil },
			func() error { return n.apply(n.kept) })
		if later { // the answer goes out first, and nothing is younger until it has
			r.Candidate.Applied = math.MaxInt64
			told := *r.Candidate
			time.AfterFunc(500*time.Millisecond, func() {
				b.mu.Lock()
				defer b.mu.Unlock()
				if err := n.apply(q.Settings); err != nil {
					b.t.Errorf("applying: %v", err)
				}
				if w := b.trials.waiting[control.AboutNetwork]; w != nil {
					w.Applied = boottime()
				}
			})
			r.Candidate = &told
		}
		return r, nil
	})
	control.Handle(s, control.OpClockFloor, func(ctx context.Context, _ control.Role, q control.ClockFloor) (control.Clock, error) {
		if _, err := b.append(ctx, control.Event{Actor: q.Actor, Action: "reset clock floor", From: q.From}); err != nil {
			return control.Clock{}, err
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.clock.Floor = Built
		return b.clock, nil
	})
}

// Built is when the program was built, below which no clock goes.
var Built = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// KeptNetwork is what a restart would bring.
func (b *Box) KeptNetwork() control.NetworkSettings {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.network.kept
}

// SetNetwork has settings in effect and kept, as of an earlier day.
func (b *Box) SetNetwork(s control.NetworkSettings) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.network.settings, b.network.kept = s, s
}
