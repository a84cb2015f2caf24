package network

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

func ports(p ...port) map[string]port {
	m := make(map[string]port)
	for _, x := range p {
		m[x.Name] = x
	}
	return m
}

func TestPlan(t *testing.T) {
	eth0 := port{Name: "eth0", Index: 2, MAC: "aaaaaa", Carrier: true}
	dark, other, eth1 := eth0, eth0, port{Name: "eth1", Index: 3, MAC: "bbbbbb", Carrier: true}
	dark.Carrier = false
	other.Index = 9
	for _, c := range []struct {
		name          string
		running, seen map[string]port
		want          string
	}{
		{"nothing", nil, nil, ""},
		{"no carrier", nil, ports(dark), ""},
		{"a cable comes", nil, ports(eth0), "+eth0"},
		{"nothing new", ports(eth0), ports(eth0), ""},
		{"the cable goes", ports(eth0), ports(dark), "-eth0"},
		{"the card goes", ports(eth0), nil, "-eth0"},
		{"another card of the name", ports(eth0), ports(other), "-eth0+eth0"},
		{"moved over", ports(eth0), ports(dark, eth1), "-eth0+eth1"},
		{"both", nil, ports(eth1, eth0), "+eth0+eth1"},
	} {
		got := ""
		for _, ch := range plan(c.running, c.seen) {
			got += map[bool]string{true: "+", false: "-"}[ch.Start] + ch.Port.Name
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestRequest(t *testing.T) {
	v4 := &lease{Address: netip.MustParsePrefix("192.0.2.7/24"), Gateway: netip.MustParseAddr("192.0.2.1"),
		Resolvers: []netip.Addr{netip.MustParseAddr("192.0.2.53")}, Search: []string{"b.example", "a.example"}, MTU: 1400}
	v6 := &lease{Address: netip.MustParsePrefix("2001:db8::7/128"), Resolvers: []netip.Addr{netip.MustParseAddr("2001:db8::53")}, Search: []string{"a.example"}}
	options := &lease{Resolvers: v6.Resolvers}
	own := netip.MustParsePrefix("169.254.9.9/16")
	for _, c := range []struct {
		name string
		k    learnt
		want string
	}{
		{"nothing takes all back", learnt{}, "{eth0 [] [] [] [] 0  0}"},
		{"fallback", learnt{linkLocal: own}, "{eth0 [169.254.9.9/16] [] [] [] 0 link-local 0}"},
		{"lease", learnt{v4: v4, end4: epoch.Add(time.Hour)}, "{eth0 [192.0.2.7/24] [192.0.2.1] [192.0.2.53] [a.example b.example] 1400 dhcp 3600}"},
		{"lease beats fallback", learnt{v4: v4, end4: epoch.Add(time.Hour), linkLocal: own}, "{eth0 [192.0.2.7/24] [192.0.2.1] [192.0.2.53] [a.example b.example] 1400 dhcp 3600}"},
		{"both, the shorter time", learnt{v4: v4, end4: epoch.Add(time.Hour), v6: v6, end6: epoch.Add(time.Minute)},
			"{eth0 [192.0.2.7/24 2001:db8::7/128] [192.0.2.1] [192.0.2.53 2001:db8::53] [a.example b.example] 1400 dhcp 60}"},
		{"options of DHCPv6 alone", learnt{v6: options, end6: epoch.Add(time.Minute)}, "{eth0 [] [] [2001:db8::53] [] 0 dhcp 0}"},
		{"over already is not for ever", learnt{v4: v4, end4: epoch.Add(-time.Hour)}, "{eth0 [192.0.2.7/24] [192.0.2.1] [192.0.2.53] [a.example b.example] 1400 dhcp 1}"},
	} {
		if got := fmt.Sprint(c.k.request("eth0", epoch)); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
	if !slices.Equal(v4.Search, []string{"b.example", "a.example"}) {
		t.Errorf("making a request sorted the lease itself: %v", v4.Search)
	}
	six := &lease{Search: []string{"1.example", "2.example", "3.example", "4.example", "5.example", "6.example"}}
	if got := (learnt{v4: v4, v6: six}).request("eth0", epoch); len(got.Search) != mostSearch {
		t.Errorf("two leases together make %d search domains, want at most %d: more are refused as a whole", len(got.Search), mostSearch)
	}
	a := learnt{v4: v4, end4: epoch.Add(time.Hour)}.request("eth0", epoch)
	b := learnt{v4: v4, end4: epoch.Add(time.Hour)}.request("eth0", epoch.Add(time.Minute))
	if !sameRequest(a, b) || sameRequest(a, learnt{}.request("eth0", epoch)) {
		t.Error("sameRequest does not tell new settings from time that passes")
	}
}
