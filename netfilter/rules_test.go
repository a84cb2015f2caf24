package netfilter

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gatehouse/appliance/control"
)

var update = flag.Bool("update", false, "write the golden rule sets")

func prefixes(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// Golden are the states whose rules are kept as text; tests/netns loads the
// same texts' rules into a kernel.
func goldenStates() map[string]State {
	onLink := prefixes("192.0.2.5/24", "2001:db8:1::5/64", "fe80::5/64")
	m := make(map[string]State)
	for _, phase := range []control.State{control.StateStarting, control.StateUnclaimed, control.StateLocked, control.StateReady} {
		m["box-"+string(phase)] = State{Phase: phase, OnLink: onLink, Lists: Lists{Off: true}}
		m["hosted-"+string(phase)] = State{Phase: phase, OnLink: onLink, Form: Hosted, Ports: Ports{HTTP: 8080, HTTPS: 8443}, Lists: Lists{Off: true}}
	}
	lists := Lists{Generation: 17, Names: []string{"office", "branch-2"}}
	m["box-lists"] = State{Phase: control.StateReady, OnLink: onLink, Lists: lists}
	lists.Generation = 18
	m["hosted-lists"] = State{Phase: control.StateReady, OnLink: onLink, Form: Hosted, Ports: Ports{HTTP: 8080, HTTPS: 8443}, Lists: lists}
	m["hosted-address"] = State{Phase: control.StateUnclaimed, OnLink: onLink, Form: Hosted,
		Ports: Ports{HTTP: 8080, HTTPS: 8443, HTTPAt: netip.MustParseAddr("192.0.2.5"), HTTPSAt: netip.MustParseAddr("2001:db8:1::5")}}
	m["box-multicast"] = State{Phase: control.StateUnclaimed, OnLink: onLink, Multicast: true}
	m["box-nobody"] = State{Phase: control.StateReady, OnLink: onLink}
	return m
}

func TestGolden(t *testing.T) {
	for name, s := range goldenStates() {
		got := Rules(s).String()
		file := filepath.Join("testdata", name+".nft")
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s: the rules are not those of %s:\n%s", name, file, got)
		}
	}
}

// TestNET1_UnknownStateIsClosed shows that a state without a name never reads
// as "all allowed".
func TestNET1_UnknownStateIsClosed(t *testing.T) {
	for _, form := range []Form{Box, Hosted} {
		base := State{OnLink: prefixes("192.0.2.5/24"), Form: form, Ports: Ports{HTTP: 80, HTTPS: 443}, Multicast: true}
		starting := base
		starting.Phase = control.StateStarting
		for _, phase := range []control.State{"", "READY", "ready ", "claimed", "open"} {
			s := base
			s.Phase = phase
			if got := Rules(s).String(); got != Rules(starting).String() {
				t.Errorf("form %d, state %q: not closed as while starting:\n%s", form, phase, got)
			}
		}
		if strings.Contains(Rules(starting).String(), WebOnLink) || strings.Contains(Rules(starting).String(), WebOpen) ||
			strings.Contains(Rules(starting).String(), `"`+MDNS+`"`) {
			t.Errorf("form %d: starting lets someone in", form)
		}
	}
}

// TestNET1_EveryPacketHasAVerdict shows that each chain of the web ports ends
// with a verdict for everything, in every state, with and without addresses.
func TestNET1_EveryPacketHasAVerdict(t *testing.T) {
	for name, s := range goldenStates() {
		for _, onLink := range [][]netip.Prefix{nil, s.OnLink} {
			s.OnLink = onLink
			for _, c := range Rules(s).Chains {
				if c.Hook != "" && c.Hook != Input {
					continue
				}
				if s.Form == Hosted && c.Hook == Input {
					continue // judges its ports by going to a chain
				}
				last := c.Rules[len(c.Rules)-1]
				if (last.Verdict != Accept && last.Verdict != Drop) || last != (Rule{Counter: last.Counter, Verdict: last.Verdict}) {
					t.Errorf("%s: chain %s ends with %q, which does not judge everything", name, c.Name, last)
				}
				if s.Phase != control.StateReady && last.Verdict != Drop {
					t.Errorf("%s: chain %s ends with %q, want a drop", name, c.Name, last)
				}
			}
		}
	}
}

func TestNET1_WithoutAddressesNobodyIsOnLink(t *testing.T) {
	for _, phase := range []control.State{control.StateUnclaimed, control.StateLocked} {
		if got := Rules(State{Phase: phase}).String(); strings.Contains(got, WebOnLink) {
			t.Errorf("%s without an address lets someone in:\n%s", phase, got)
		}
	}
}

func TestHostedJudgesOnlyOurPorts(t *testing.T) {
	for _, ports := range []Ports{{}, {HTTP: 8080}, {HTTPS: 8443}, {HTTP: 9000, HTTPS: 9000}} {
		for _, c := range Rules(State{Phase: control.StateUnclaimed, Form: Hosted, Ports: ports}).Chains {
			if c.Drop {
				t.Errorf("ports %v: chain %s drops what is not ours", ports, c.Name)
			}
			if c.Hook == "" {
				continue
			}
			n := 0
			for _, r := range c.Rules {
				switch {
				case r.Verdict == Goto && r.Proto == TCP && r.Port != 0 && (r.Port == ports.HTTP || r.Port == ports.HTTPS) && r.Here == (c.Hook == Prerouting):
					n++
				case r != (Rule{Interface: "lo", Verdict: Accept}):
					t.Errorf("ports %v: %q judges what is not ours", ports, r)
				}
			}
			if want := len(ports.List()); n != want {
				t.Errorf("ports %v: %d rules in %s, want %d", ports, n, c.Name, want)
			}
		}
	}
}

// TestBOX14_PortsOnOneAddress: the same port of another address is not ours.
func TestBOX14_PortsOnOneAddress(t *testing.T) {
	here, other := netip.MustParseAddr("192.0.2.5"), netip.MustParseAddr("192.0.2.6")
	p := Ports{HTTP: 80, HTTPS: 443, HTTPSAt: here}
	for _, c := range []struct {
		at   netip.Addr
		port uint16
		want bool
	}{
		{here, 443, true}, {other, 443, false}, {netip.MustParseAddr("::ffff:192.0.2.5"), 443, true},
		{here, 80, true}, {other, 80, true}, {here, 8443, false}, {here, 0, false},
	} {
		if got := p.Ours(c.at, c.port); got != c.want {
			t.Errorf("%s, port %d: %v", c.at, c.port, got)
		}
	}
	if (Ports{}).Ours(here, 0) {
		t.Error("no port at all is ours")
	}
}

func TestOnLink(t *testing.T) {
	for _, c := range []struct {
		in, want []string
	}{
		{nil, nil},
		{[]string{"127.0.0.1/8", "::1/128", "0.0.0.0/0", "::/0", "224.0.0.1/24", "ff02::1/64", "255.255.255.255/32", "::ffff:127.0.0.1/104"}, nil},
		{[]string{"10.1.2.3/8"}, []string{"10.1.0.0/16"}},
		{[]string{"10.1.2.3/0"}, []string{"10.1.0.0/16"}},
		{[]string{"2001:db8::1/32"}, []string{"2001:db8::/64"}},
		{[]string{"2001:db8::1/0"}, []string{"2001:db8::/64"}},
		{[]string{"::ffff:192.0.2.1/120"}, []string{"192.0.2.0/24"}},
		{[]string{"::ffff:192.0.2.1/64"}, nil},
		{[]string{"192.0.2.9/32", "2001:db8::9/128"}, []string{"192.0.2.9/32", "2001:db8::9/128"}},
		{[]string{"192.0.2.9/24", "192.0.2.77/24", "192.0.2.129/25", "192.0.3.1/24"}, []string{"192.0.2.0/24", "192.0.3.0/24"}},
		{[]string{"169.254.7.7/16", "fe80::7/64"}, []string{"169.254.0.0/16", "fe80::/64"}},
	} {
		if got := OnLink(prefixes(c.in...)); !slices.Equal(got, prefixes(c.want...)) {
			t.Errorf("OnLink(%v) = %v, want %v", c.in, got, c.want)
		}
	}
	if got := OnLink([]netip.Prefix{{}}); len(got) != 0 {
		t.Errorf("OnLink of no prefix = %v", got)
	}
	if got := OnLink([]netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("fe80::1%eth0"), 64)}); !slices.Equal(got, prefixes("fe80::/64")) {
		t.Errorf("OnLink with a zone = %v", got)
	}
	var flood []netip.Prefix
	for i := range 5000 {
		flood = append(flood, netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, byte(i >> 8), byte(i), 0, 0, 0, 0, 1}), 64))
	}
	if got := OnLink(flood); len(got) != mostOnLink {
		t.Errorf("a flood of prefixes makes %d rules, want at most %d", len(got), mostOnLink)
	}
}

// TestNET1_PingsDoNotStarveNeighbours pins the order that facts demand:
// discovery is judged before anything that has a limit or knows connections.
func TestNET1_PingsDoNotStarveNeighbours(t *testing.T) {
	var in Chain
	for _, c := range Rules(State{Phase: control.StateReady}).Chains {
		if c.Hook == Input {
			in = c
		}
	}
	at := func(f func(Rule) bool) int { return slices.IndexFunc(in.Rules, f) }
	neighbour := at(func(r Rule) bool { return r.Type == 135 })
	limit := at(func(r Rule) bool { return r.Rate != 0 })
	known := at(func(r Rule) bool { return r.Conn&Established != 0 })
	tooBig := at(func(r Rule) bool { return r.Proto == ICMPv6 && r.Type == 2 })
	invalid := at(func(r Rule) bool { return r.Conn == Invalid })
	if neighbour < 0 || limit < neighbour || known < limit || invalid < tooBig {
		t.Errorf("order: neighbour %d, limit %d, known connections %d, too big %d, invalid %d", neighbour, limit, known, tooBig, invalid)
	}
	for _, r := range in.Rules {
		if (r.Type == 134 || r.Type == 135 || r.Type == 136) && r.HopLimit != 255 {
			t.Errorf("%q takes neighbour messages from beyond the link", r)
		}
	}
}

func TestCountersAreNamedOnce(t *testing.T) {
	for name, s := range goldenStates() {
		names := Rules(s).Counters()
		sorted := slices.Clone(names)
		slices.Sort(sorted)
		if len(slices.Compact(sorted)) != len(names) || slices.Contains(names, "") {
			t.Errorf("%s: counters %q", name, names)
		}
		for _, c := range Rules(s).Chains {
			for _, r := range c.Rules {
				if r.Verdict == Drop && r.Counter == "" {
					t.Errorf("%s: %q drops without counting", name, r)
				}
			}
		}
	}
}
