package guide

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"gatehouse/appliance/control"
	"gatehouse/appliance/netconf"
)

// TestBOX9_WhateverIsTyped: a serial line brings anything. No answer breaks the
// guide, nothing is set without a yes, and what is set can be.
func TestBOX9_WhateverIsTyped(t *testing.T) {
	own := []control.Link{{Name: "eth0", MAC: "02:00:00:00:00:01", Carrier: true}, {Name: "eth1", MAC: "02:00:00:00:00:02"}}
	st := control.NetworkState{Own: own, Links: []control.Link{
		{Name: "eth0", MAC: "02:00:00:00:00:01", Carrier: true, Source: "dhcp", Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.1.40/24")}, Gateways: []netip.Addr{netip.MustParseAddr("192.168.1.1")}},
		{Name: "eth1", MAC: "02:00:00:00:00:02"},
	}}
	words := []string{"", "1", "2", "3", "-1", "static", "automatic", "off", "vlan", "bond", "remove", "20", "4095", "10.0.0.5/24", "2001:db8::5/64", "10.0.0.5/24 10.1.0.5/24", "10.0.0.1", "-", "yes", "no", "\x1b[A", "99999999999999999999", "::", "0.0.0.0/0"}
	rng := rand.New(rand.NewPCG(1, 2))
	set, refused := 0, 0
	for range 20000 {
		g := New(st)
		for range 12 {
			l := words[rng.IntN(len(words))]
			outcome, again := g.Answer(l)
			if outcome == Asks {
				if _, text := g.Question(); text == "" {
					t.Fatalf("no question after %q (%s)", l, again)
				}
				continue
			}
			if outcome == Set {
				if l != "yes" {
					t.Fatalf("set by %q", l)
				}
				set++
				if p := netconf.Check(g.Settings(), own); len(p) > 0 {
					refused++ // the judge has the last word
				}
			}
			break
		}
	}
	if set < 100 || refused == set {
		t.Errorf("%d changes, of which %d were refused", set, refused)
	}
	if s := st.Settings; len(s.Links)+len(s.VLANs)+len(s.Bonds) > 0 {
		t.Errorf("the state that was shown was changed: %+v", s)
	}
}
