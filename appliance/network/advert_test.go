package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
)

// message is what the kernel sends of an option.
func message(index int32, option []byte) []byte {
	b := make([]byte, userOptionHead)
	b[0], b[8] = unix.AF_INET6, typeAdvert
	binary.NativeEndian.PutUint16(b[2:], uint16(len(option)))
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	return append(b, option...)
}

// option has a type, a lifetime, and a body whose length is a multiple of eight.
func option(kind byte, life uint32, body []byte) []byte {
	o := []byte{kind, byte(1 + len(body)/8), 0, 0}
	return append(binary.BigEndian.AppendUint32(o, life), body...)
}

func address(s string) []byte { b := netip.MustParseAddr(s).As16(); return b[:] }

// padded are domains as they are on the wire.
func padded(domains ...string) []byte {
	var b []byte
	for _, d := range domains {
		for l := range strings.SplitSeq(d, ".") {
			b = append(append(b, byte(len(l))), l...)
		}
		b = append(b, 0)
	}
	for len(b)%8 != 0 {
		b = append(b, 0)
	}
	return b
}

func TestBOX7_NamesByAdvertisement(t *testing.T) {
	two := slices.Concat(address("2001:db8::53"), address("fd00::54"))
	for name, c := range map[string]struct {
		option []byte
		want   string
	}{
		"resolvers":          {option(optionRDNSS, 600, two), "{10m0s [2001:db8::53 fd00::54] []}"},
		"taken back":         {option(optionRDNSS, 0, two), "{0s [2001:db8::53 fd00::54] []}"},
		"for ever is a week": {option(optionRDNSS, forEver, two), "{168h0m0s [2001:db8::53 fd00::54] []}"},
		"no resolvers":       {option(optionRDNSS, 600, slices.Concat(address("::1"), address("ff02::1"), address("::"), address("fe80::1"), address("::ffff:192.0.2.1"))), "{10m0s [] []}"},
		"at most three":      {option(optionRDNSS, 600, slices.Concat(two, address("fd00::55"), address("fd00::56"))), "{10m0s [2001:db8::53 fd00::54 fd00::55] []}"},
		"domains":            {option(optionDNSSL, 600, padded("Lan.Example", "example.net")), "{10m0s [] [lan.example example.net]}"},
		"strange domains":    {option(optionDNSSL, 600, padded("a\nb.example", "-x.example", "ok.example")), "{10m0s [] [ok.example]}"},
	} {
		index, got, err := parseUserOption(message(7, c.option))
		if err != nil || index != 7 || fmt.Sprint(got) != c.want {
			t.Errorf("%s: link %d, %v, %v; want %s", name, index, got, err, c.want)
		}
	}
	whole := message(7, option(optionRDNSS, 600, two))
	for name, b := range map[string][]byte{
		"nothing":            nil,
		"cut":                whole[:len(whole)-1],
		"half an address":    message(7, option(optionRDNSS, 600, two[:8])),
		"no address":         message(7, option(optionRDNSS, 600, nil)),
		"length":             message(7, append([]byte{optionRDNSS, 9}, option(optionRDNSS, 600, two)[2:]...)),
		"no length":          message(7, append([]byte{optionRDNSS, 0}, option(optionRDNSS, 600, two)[2:]...)),
		"another option":     message(7, option(38, 600, two)),
		"no link":            message(0, option(optionRDNSS, 600, two)),
		"compressed domain":  message(7, option(optionDNSSL, 600, []byte{3, 'l', 'a', 'n', 0xc0, 8, 0, 0})),
		"label over the end": message(7, option(optionDNSSL, 600, []byte{60, 'l', 'a', 'n', 0, 0, 0, 0})),
		"without an end":     message(7, option(optionDNSSL, 600, []byte{7, 'e', 'x', 'a', 'm', 'p', 'l', 'e'})),
		"behind the end":     message(7, option(optionDNSSL, 600, []byte{3, 'l', 'a', 'n', 0, 0, 0, 1})),
	} {
		if index, got, err := parseUserOption(b); err == nil {
			t.Errorf("%s: link %d, %v", name, index, got)
		}
	}
}

func FuzzUserOption(f *testing.F) {
	f.Add(message(7, option(optionRDNSS, 600, address("2001:db8::53"))))
	f.Add(message(7, option(optionDNSSL, 600, padded("lan.example"))))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, o, err := parseUserOption(b)
		if err != nil {
			return
		}
		if len(o.Resolvers) > mostResolvers || len(o.Search) > mostSearch || o.Life < 0 || o.Life > forEver*time.Second {
			t.Errorf("%+v", o)
		}
		for _, s := range o.Search {
			if strings.ContainsAny(s, " \n\x00") {
				t.Errorf("%q goes to resolv.conf", s)
			}
		}
		for _, a := range o.Resolvers {
			if !a.Is6() || a.Is4In6() || a.IsLoopback() || a.IsMulticast() {
				t.Errorf("%v as a resolver", a)
			}
		}
	})
}

func TestBOX7_AdvertisedNamesEnd(t *testing.T) {
	var a advertised
	hear := func(life time.Duration, at time.Duration, list ...string) {
		a.hear(advice{Life: life, Resolvers: addrs(list...)}, epoch.Add(at))
	}
	want := func(what, list string) {
		t.Helper()
		if got := fmt.Sprint(values(a.resolvers)); got != list {
			t.Errorf("%s: %s, want %s", what, got, list)
		}
	}
	hear(time.Hour, 0, "fd00::1", "fd00::2")
	hear(time.Minute, 0, "fd00::3")
	hear(time.Hour, time.Second, "fd00::2", "fd00::1")
	want("heard again", "[fd00::1 fd00::2 fd00::3]")
	hear(time.Hour, time.Second, "fd00::4")
	want("one too many", "[fd00::1 fd00::2 fd00::4]")
	hear(0, time.Second, "fd00::1")
	want("taken back", "[fd00::2 fd00::4]")
	hear(time.Second, time.Second, "fd00::2")
	a.expire(epoch.Add(time.Second + shortestLease - 1))
	want("a second is not less than a lease", "[fd00::2 fd00::4]")
	a.expire(epoch.Add(time.Second + shortestLease))
	want("ended", "[fd00::4]")
	hear(1<<32*time.Second, 0, "fd00::5")
	a.expire(epoch.Add(longestLease))
	want("after a week", "[]")
}

// Names of three sources together are not more than the privileged process takes.
func TestBOX7_ResolversTogetherAreBounded(t *testing.T) {
	k := learnt{v4: &lease{Resolvers: addrs("192.0.2.1", "192.0.2.2", "192.0.2.3")}, v6: &lease{Resolvers: addrs("fd00::1", "fd00::2", "fd00::3")}}
	k.ra.hear(advice{Life: time.Hour, Resolvers: addrs("fd00::1", "fd00::8", "fd00::9"), Search: []string{"lan"}}, epoch)
	r := k.request("eth0", epoch)
	if len(r.Resolvers) != 6 || r.Source != "dhcp" || !slices.Equal(r.Search, []string{"lan"}) {
		t.Errorf("%+v", r)
	}
	if r := (learnt{ra: k.ra}).request("eth0", epoch); r.Source != "slaac" || len(r.Resolvers) != 3 || r.Seconds != 0 {
		t.Errorf("of advertisements alone: %+v", r)
	}
}

func TestBOX7_OnlyAutomaticLinksLearn(t *testing.T) {
	seen := ports(port{Name: "eth0", Index: 2, Card: "52:54:00:00:00:01"}, port{Name: "eth1", Index: 3, Card: "52:54:00:00:00:02"},
		port{Name: "eth2", Index: 4, Card: "52:54:00:00:00:03"}, port{Name: "office", Index: 5}, port{Name: "bond0", Index: 6})
	s := control.NetworkSettings{
		Links: []control.LinkSettings{{Name: "wan", MAC: "52:54:00:00:00:01", Mode: "static", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/24")}}, {Name: "office", Mode: "off"}},
		Bonds: []control.Bond{{Name: "bond0", Links: []string{"eth2"}, Mode: "802.3ad"}},
	}
	if got := sortedNames(automatic(s, seen)); !slices.Equal(got, []string{"bond0", "eth1"}) {
		t.Errorf("%v", got)
	}
	if len(seen) != 5 {
		t.Error("the list of links itself was changed")
	}
}

func TestBOX7_WishesAreToldOnce(t *testing.T) {
	answer, failed, told := control.NetworkState{}, error(nil), 0
	w := newWishes(func(control.NetworkSettings) { told++ }, func(context.Context) (control.NetworkState, error) { return answer, failed })
	before := w.changed()
	answer.Settings.Time = []string{"192.0.2.1"}
	for range 3 {
		if err := w.look(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-before:
	default:
		t.Error("nobody was woken")
	}
	failed, answer = errors.New("gone"), control.NetworkState{}
	if err := w.look(t.Context()); err == nil || told != 1 || len(w.get().Time) != 1 {
		t.Errorf("%v, told %d times, %+v", err, told, w.get())
	}
}

// A change that failed and was put back leaves the same wishes, and may have
// cost a link what was learnt there: it is worked on anew, and no other is.
func TestBOX7_WhatWasTakenIsLearntAnew(t *testing.T) {
	answer, told := control.NetworkState{Taken: map[string]int{"eth0": 3}}, 0
	w := newWishes(func(control.NetworkSettings) { told++ }, func(context.Context) (control.NetworkState, error) { return answer, nil })
	look := func() {
		t.Helper()
		if err := w.look(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	seen := ports(port{Name: "eth0", Index: 2, Carrier: true}, port{Name: "eth1", Index: 3, Carrier: true})
	look()
	running, woken := w.marked(seen), w.changed()
	look()
	if p := plan(running, w.marked(seen)); len(p) > 0 {
		t.Errorf("nothing was taken: %+v", p)
	}
	answer.Taken = map[string]int{"eth0": 4}
	look()
	select {
	case <-woken:
	default:
		t.Error("nobody was woken")
	}
	p := plan(running, w.marked(seen))
	if len(p) != 2 || p[0].Port.Name != "eth0" || p[0].Start || p[1].Port.Name != "eth0" || !p[1].Start || told > 0 {
		t.Errorf("%+v; wishes were told %d times", p, told)
	}
}

// TestBOX8_NamedTimeServersAreAskedAlone: those that DHCP names and the pool are
// not, and as many as were named must agree, up to three.
func TestBOX8_NamedTimeServersAreAskedAlone(t *testing.T) {
	s := newSources()
	s.lookup = func(_ context.Context, resolvers []netip.Addr, name string) ([]netip.Addr, error) {
		if name != "ntp.example" || !slices.Equal(resolvers, addrs("192.0.2.53", "192.0.2.54")) {
			t.Errorf("asked %v for %s", resolvers, name)
		}
		return addrs("203.0.113.1"), nil
	}
	s.wished(control.NetworkSettings{Resolvers: addrs("192.0.2.53"), Time: []string{"192.0.2.123", "ntp.example"}})
	if err := s.wait(t.Context()); err != nil {
		t.Error(err) // a box that learns nothing asks, too
	}
	s.told("eth0", leased(addrs("192.0.2.54"), addrs("192.0.2.1")))
	if got, least := s.servers(t.Context()); !slices.Equal(got, addrs("192.0.2.123", "203.0.113.1")) || least != 2 {
		t.Errorf("%v, of which %d must agree", got, least)
	}
	c := newClock(servers{"192.0.2.123": time.Hour, "203.0.113.1": decade}, func(context.Context, time.Time, int) error {
		t.Error("two that do not agree set the clock")
		return nil
	})
	c.sources.wished(control.NetworkSettings{Time: []string{"192.0.2.123", "203.0.113.1"}})
	if err := c.once(t.Context(), true); err == nil {
		t.Error("no error")
	}
}

// A flood on one link leaves another one its word.
func TestBOX7_AdvertisementsArePacedByLink(t *testing.T) {
	var p pace
	now := time.Unix(0, 0)
	taken := 0
	for range 1000 {
		if p.take(1, now) {
			taken++
		}
	}
	if taken != mostAdvices {
		t.Errorf("%d of a flood were looked at, want %d", taken, mostAdvices)
	}
	if !p.take(2, now) {
		t.Error("a flood on one link silenced another")
	}
	if p.take(1, now.Add(999*time.Millisecond)) || !p.take(1, now.Add(time.Second)) {
		t.Error("the next second does not begin anew")
	}
}
