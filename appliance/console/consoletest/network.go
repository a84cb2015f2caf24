package consoletest

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"gatehouse/appliance/control"
)

// network doubles settings and links. The tests' browsers come to loopback,
// which stands for the first address of eth0; an address that is not on
// the network of its gateway is refused, as the real judge does.
type network struct {
	settings, kept control.NetworkSettings
}

var eth0Address = netip.MustParsePrefix("192.168.1.40/24")

func (b *Box) links() []control.Link {
	n := b.network
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
	for _, l := range q.Settings.Links {
		for _, g := range l.Gateways {
			if !slices.ContainsFunc(l.Addresses, func(p netip.Prefix) bool { return p.Contains(g) }) && l.Mode == "static" {
				r.Problems = append(r.Problems, control.Problem{File: "links", Text: g.String(), Reason: "the gateway is not on a network of " + l.Name})
			}
		}
		r.Summary = append(r.Summary, fmt.Sprintf("Link %s: %s %v.", l.Name, l.Mode, l.Addresses))
		if l.Name == "eth0" && q.Local.IsLoopback() && l.Mode != "automatic" {
			r.SelfCut = !slices.Contains(l.Addresses, b.links()[0].Addresses[0])
		}
	}
	for _, v := range q.Settings.VLANs {
		r.Summary = append(r.Summary, fmt.Sprintf("VLAN %d on %s is %s.", v.ID, v.On, v.Name))
	}
	if len(q.Settings.Time)+len(q.Settings.Resolvers) > 0 {
		r.Summary = append(r.Summary, "Other resolvers or time servers.")
	}
	return r
}

func (b *Box) handleNetwork(s *control.Server) {
	control.Handle(s, control.OpNetwork, func(context.Context, control.Role, control.None) (control.NetworkState, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		n := &b.network
		st := control.NetworkState{Settings: n.settings, Kept: n.kept, Candidate: b.trials.candidate(control.AboutNetwork), Links: b.links(), Resolvers: []netip.Addr{netip.MustParseAddr("192.168.1.1")}, Search: []string{"example.org"}}
		if len(n.settings.Resolvers) > 0 {
			st.Resolvers = n.settings.Resolvers
		}
		return st, nil
	})
	control.Handle(s, control.OpNetworkTry, func(_ context.Context, _ control.Role, q control.NetworkTry) (control.NetworkReport, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		r := b.judgeNetwork(q)
		if q.DryRun || len(r.Problems) > 0 {
			return r, nil
		}
		if err := b.trials.free(control.AboutNetwork); err != nil {
			return r, err
		}
		n := &b.network
		n.settings = q.Settings
		r.Candidate = b.trials.begin(control.AboutNetwork, q.Actor, r.Summary,
			func() error { n.kept = n.settings; return nil },
			func() error { n.settings = n.kept; return nil })
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
