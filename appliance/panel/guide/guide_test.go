package guide

import (
	"math/rand/v2"
	"net/netip"
	"strings"
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

// The card was replaced: whatever is set for the new one can be.
func TestBOX7_ReplacedCardIsSetAtTheConsole(t *testing.T) {
	own := []control.Link{{Name: "eth0", MAC: "02:00:00:00:00:09", Carrier: true}}
	kept := control.NetworkSettings{Links: []control.LinkSettings{{Name: "eth0", MAC: "02:00:00:00:00:01", Mode: netconf.Static, Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.1.40/24")}}}}
	st := control.NetworkState{Own: own, Links: own, Settings: kept, Kept: kept}
	for _, script := range [][]string{
		{"1", "static", "192.168.1.40/24", "-", "-", "yes"},
		{"1", "automatic", "192.168.1.1", "yes"},
		{"1", "off", "yes"},
	} {
		g := New(st)
		first, _ := g.Question()
		if text := strings.Join(first, "\n"); !strings.Contains(text, "not there (1)") || strings.Contains(text, "gone-") {
			t.Errorf("shown: %s", text)
		}
		for i, l := range script {
			outcome, again := g.Answer(l)
			if want := i == len(script)-1; again != "" || (outcome == Set) != want {
				t.Fatalf("%v: after %q %v, %s", script, l, outcome, again)
			}
		}
		if p := netconf.CheckChange(kept, g.Settings(), own); len(p) > 0 {
			t.Errorf("%v: %v", script, p)
		}
	}
}
