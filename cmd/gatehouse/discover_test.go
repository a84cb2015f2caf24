package main

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/network/mdns"
)

func boxAt(name, state string, port uint16, addresses ...string) mdns.Found {
	b := mdns.Found{Name: name + ".local", State: state, Version: "0.1.0", Port: port}
	for _, a := range addresses {
		b.Addresses = append(b.Addresses, netip.MustParseAddr(a))
	}
	return b
}

// TestBOX10_SetupOffersWhatItFinds: one box needs Enter, several a number; one
// that is owned, or that no URL reaches, is not offered; an address always goes.
func TestBOX10_SetupOffersWhatItFinds(t *testing.T) {
	one := boxAt("gatehouse-7f3k", "unclaimed", 443, "192.0.2.40", "fe80::40%eth0")
	two := boxAt("gatehouse-7f3k-2", "unclaimed", 8443, "fe80::41%eth0", "2001:db8::41")
	owned := boxAt("gatehouse-owned", "ready", 443, "192.0.2.50")
	far := boxAt("gatehouse-far", "unclaimed", 443, "fe80::42%eth0")
	for _, c := range []struct {
		found       []mdns.Found
		types, want string
		says        string
	}{
		{nil, "192.0.2.9", "192.0.2.9", "No box that waits"},
		{[]mdns.Found{owned, far}, "192.0.2.9", "192.0.2.9", "No box that waits"},
		{[]mdns.Found{owned, one}, "", "192.0.2.40", "gatehouse-7f3k.local at 192.0.2.40"},
		{[]mdns.Found{one}, "192.0.2.9", "192.0.2.9", "Enter for this one"},
		{[]mdns.Found{one, two}, "2", "[2001:db8::41]:8443", "Which one, 1 to 2"},
		{[]mdns.Found{one, two}, "3", "3", ""},
		{[]mdns.Found{one, two}, "", "", ""}, // no choice is none
	} {
		s, out, diag := person("", c.types)
		s.find = func(context.Context, time.Duration) ([]mdns.Found, error) { return c.found, nil }
		got, err := s.which(t.Context())
		if err != nil || got != c.want || !strings.Contains(diag.String(), c.says) || out.Len() > 0 {
			t.Errorf("found %v, typed %q: %q, %v; want %q\n%s", c.found, c.types, got, err, c.want, diag)
		}
		if strings.Contains(diag.String(), "owned") || strings.Contains(diag.String(), "far") {
			t.Errorf("a box is offered that cannot be taken: %s", diag)
		}
	}
	s, _, diag := person("", "192.0.2.9")
	s.find = func(context.Context, time.Duration) ([]mdns.Found, error) { return nil, errors.New("no network") }
	if got, err := s.which(t.Context()); got != "192.0.2.9" || err != nil || !strings.Contains(diag.String(), "no network") {
		t.Errorf("without a network: %q, %v, %s", got, err, diag)
	}
	s.person = false // nobody to ask: nothing is looked for
	s.find = nil
	if _, err := s.which(t.Context()); codeOf(err) != exitUsage {
		t.Errorf("without a person: %v", err)
	}
}

func TestDiscoverPrints(t *testing.T) {
	for _, args := range []string{"discover extra", "discover --timeout 0s", "discover --timeout 2m", "discover --timeout soon"} {
		var out, diag bytes.Buffer
		if code := execute(t.Context(), strings.Fields(args), strings.NewReader(""), &out, &diag); code != exitUsage || out.Len() > 0 {
			t.Errorf("%s: exit %d, %s", args, code, &diag)
		}
	}
	var b bytes.Buffer
	found := []mdns.Found{boxAt("gatehouse-7f3k", "unclaimed", 443, "192.0.2.40"), {Name: "a.local", Port: 8443, Addresses: []netip.Addr{netip.MustParseAddr("2001:db8::1")}}}
	if err := printFound(&b, found, false); err != nil {
		t.Fatal(err)
	}
	want := "NAME                  ADDRESS             STATE      VERSION\n" +
		"gatehouse-7f3k.local  192.0.2.40          unclaimed  0.1.0\n" +
		"a.local               [2001:db8::1]:8443  -          -\n"
	if b.String() != want {
		t.Errorf("printed\n%swant\n%s", &b, want)
	}
	b.Reset()
	if err := printFound(&b, nil, true); err != nil || b.String() != "[]\n" {
		t.Errorf("nothing found prints %q, %v", &b, err)
	}
}
