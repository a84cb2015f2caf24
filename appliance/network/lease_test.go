package network

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
)

// good is an acknowledgement that is believed; tests spoil one thing of it.
func good(mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{
		dhcpv4.WithMessageType(dhcpv4.MessageTypeAck),
		dhcpv4.WithYourIP(net.IPv4(192, 0, 2, 77)),
		dhcpv4.WithNetmask(net.CIDRMask(24, 32)),
		dhcpv4.WithOption(dhcpv4.OptRouter(net.IPv4(192, 0, 2, 1))),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(192, 0, 2, 1))),
		dhcpv4.WithLeaseTime(3600),
	}, mods...)...)
	if err != nil {
		panic(err)
	}
	return m
}

func router(ip ...byte) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptRouter(net.IP(ip)))
}

func yours(ip ...byte) dhcpv4.Modifier { return dhcpv4.WithYourIP(net.IP(ip)) }

func mask(m ...byte) dhcpv4.Modifier { return dhcpv4.WithNetmask(net.IPMask(m)) }

func TestHostileLeasesAreRefused(t *testing.T) {
	for name, mod := range map[string]dhcpv4.Modifier{
		"no address":               yours(0, 0, 0, 0),
		"this network":             yours(0, 1, 2, 3),
		"loopback":                 yours(127, 0, 0, 1),
		"multicast":                yours(224, 0, 0, 5),
		"reserved":                 yours(240, 0, 0, 1),
		"broadcast":                yours(255, 255, 255, 255),
		"link-local":               yours(169, 254, 3, 3),
		"broadcast of the network": yours(192, 0, 2, 255),
		"name of the network":      yours(192, 0, 2, 0),
		"mask of everything":       mask(0, 0, 0, 0),
		"mask of half":             mask(128, 0, 0, 0),
		"mask with a hole":         mask(255, 0, 255, 0),
		"mask of one":              mask(255, 255, 255, 255),
		"short mask":               mask(255, 255),
		"no mask":                  dhcpv4.WithoutOption(dhcpv4.OptionSubnetMask),
		"gateway off the link":     router(198, 51, 100, 1),
		"gateway is us":            router(192, 0, 2, 77),
		"gateway is everyone":      router(192, 0, 2, 255),
		"gateway is nobody":        router(0, 0, 0, 0),
		"gateway is loopback":      router(127, 0, 0, 1),
		"no lease time":            dhcpv4.WithoutOption(dhcpv4.OptionIPAddressLeaseTime),
		"zero lease":               dhcpv4.WithLeaseTime(0),
		"lease of a second":        dhcpv4.WithLeaseTime(1),
		"no server":                dhcpv4.WithoutOption(dhcpv4.OptionServerIdentifier),
		"server is everyone":       dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4bcast)),
	} {
		if l, err := leaseFromAck(good(mod)); err == nil {
			t.Errorf("%s: believed as %+v", name, l)
		}
	}
	if l, err := leaseFromAck(good()); err != nil || l.Address.String() != "192.0.2.77/24" || l.Gateway.String() != "192.0.2.1" {
		t.Fatalf("a sound lease: %+v, %v", l, err)
	}
}

func TestHostileOptionsAreLeftOut(t *testing.T) {
	long := strings.Repeat("a", 63)
	l, err := leaseFromAck(good(
		dhcpv4.WithOption(dhcpv4.OptDNS(net.IPv4(127, 0, 0, 1), net.IPv4(0, 0, 0, 0), net.IPv4(224, 0, 0, 1), net.IPv4bcast,
			net.IPv4(9, 9, 9, 9), net.IPv4(9, 9, 9, 9), net.IPv4(192, 0, 2, 2), net.IPv4(192, 0, 2, 3), net.IPv4(192, 0, 2, 4))),
		dhcpv4.WithOption(dhcpv4.OptNTPServers(net.IPv4(127, 0, 0, 1), net.IPv4(192, 0, 2, 1), net.IPv4(192, 0, 2, 2), net.IPv4(192, 0, 2, 3), net.IPv4(192, 0, 2, 4), net.IPv4(192, 0, 2, 5))),
		dhcpv4.WithDomainSearchList("Example.com", "-x.example", "x-.example", "bad_name\n.example", long+"."+long+"."+long+"."+long+".example", "a.example", "b.example", "c.example", "d.example", "e.example", "f.example"),
		dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, []byte{0, 68}),
	))
	if err != nil {
		t.Fatal(err)
	}
	if got := text(l.Resolvers); got != "9.9.9.9 192.0.2.2 192.0.2.3" {
		t.Errorf("resolvers %s", got)
	}
	if got := text(l.Times); got != "192.0.2.1 192.0.2.2 192.0.2.3 192.0.2.4" {
		t.Errorf("time servers %s", got)
	}
	if want := []string{"example.com", "a.example", "b.example", "c.example", "d.example", "e.example"}; !slices.Equal(l.Search, want) {
		t.Errorf("search %q, want %q", l.Search, want)
	}
	if l.MTU != 0 {
		t.Errorf("an MTU of 68 was believed: %d", l.MTU)
	}
	for _, c := range []struct {
		hi, lo byte
		want   int
	}{{5, 0, 1280}, {0xff, 0xff, 0}, {0x23, 0x28, 9000}} {
		if l, err := leaseFromAck(good(dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, []byte{c.hi, c.lo}))); err != nil || l.MTU != c.want {
			t.Errorf("MTU %d: %d, %v, want %d", int(c.hi)<<8|int(c.lo), l.MTU, err, c.want)
		}
	}
}

func text(addrs []netip.Addr) string {
	var s []string
	for _, a := range addrs {
		s = append(s, a.String())
	}
	return strings.Join(s, " ")
}

func TestLeaseTimes(t *testing.T) {
	seconds := func(n byte, code dhcpv4.OptionCode) dhcpv4.Modifier {
		return dhcpv4.WithGeneric(code, []byte{0, 0, 0, n})
	}
	t1, t2 := dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue
	for _, c := range []struct {
		name                 string
		mods                 []dhcpv4.Modifier
		renew, rebind, valid time.Duration
	}{
		{"defaults", nil, 30 * time.Minute, 52*time.Minute + 30*time.Second, time.Hour},
		{"its own", []dhcpv4.Modifier{seconds(100, t1), seconds(200, t2)}, 100 * time.Second, 200 * time.Second, time.Hour},
		{"a storm of renewals", []dhcpv4.Modifier{seconds(1, t1), seconds(2, t2)}, 30 * time.Minute, 52*time.Minute + 30*time.Second, time.Hour},
		{"backwards", []dhcpv4.Modifier{seconds(200, t1), seconds(100, t2)}, 30 * time.Minute, 52*time.Minute + 30*time.Second, time.Hour},
		{"for ever", []dhcpv4.Modifier{dhcpv4.WithLeaseTime(0xffffffff)}, longestLease / 2, longestLease * 7 / 8, longestLease},
	} {
		l, err := leaseFromAck(good(c.mods...))
		if err != nil || l.Renew != c.renew || l.Rebind != c.rebind || l.Valid != c.valid {
			t.Errorf("%s: %v %v %v %v, want %v %v %v", c.name, l.Renew, l.Rebind, l.Valid, err, c.renew, c.rebind, c.valid)
		}
	}
}

func TestNames(t *testing.T) {
	bad := []string{"", ".", "a..example", ".example", "-a.example", "a-.example", "a b.example", "a_b.example", "a\nnameserver 6.6.6.6", strings.Repeat("a", 64) + ".example"}
	if got := names(bad); len(got) != 0 {
		t.Errorf("names(%q) = %q", bad, got)
	}
	if got := names([]string{"LAN.", "lan", "a-b.example"}); !slices.Equal(got, []string{"lan", "a-b.example"}) {
		t.Errorf("names = %q", got)
	}
}

func TestPointToPointLease(t *testing.T) {
	l, err := leaseFromAck(good(yours(192, 0, 2, 0), mask(255, 255, 255, 254), router(192, 0, 2, 1)))
	if err != nil || l.Address.String() != "192.0.2.0/31" || l.Gateway.String() != "192.0.2.1" {
		t.Errorf("a network of two (RFC 3021): %+v, %v", l, err)
	}
}

func reply(t *testing.T, addr string, valid time.Duration, mods ...dhcpv6.Modifier) *dhcpv6.Message {
	t.Helper()
	m, err := dhcpv6.NewMessage(mods...)
	if err != nil {
		t.Fatal(err)
	}
	m.MessageType = dhcpv6.MessageTypeReply
	if addr != "" {
		dhcpv6.WithIANA(dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(addr), PreferredLifetime: valid, ValidLifetime: valid})(m)
	}
	return m
}

func TestHostileDHCPv6IsRefused(t *testing.T) {
	for name, m := range map[string]*dhcpv6.Message{
		"no address":   reply(t, "", 0),
		"loopback":     reply(t, "::1", time.Hour),
		"unspecified":  reply(t, "::", time.Hour),
		"multicast":    reply(t, "ff02::1", time.Hour),
		"link-local":   reply(t, "fe80::1", time.Hour),
		"IPv4 in IPv6": reply(t, "::ffff:192.0.2.1", time.Hour),
		"zero lease":   reply(t, "2001:db8::7", 0),
		"a second":     reply(t, "2001:db8::7", time.Second),
	} {
		if l, err := leaseFromReply(m, true); err == nil {
			t.Errorf("%s: believed as %+v", name, l)
		}
	}
	refused := reply(t, "2001:db8::7", time.Hour)
	refused.Options.OneIANA().Options.Add(&dhcpv6.OptStatusCode{StatusCode: 3, StatusMessage: "no binding"})
	if _, err := leaseFromReply(refused, true); !errors.Is(err, errRefused) {
		t.Errorf("a status of no binding: %v, want errRefused", err)
	}
	l, err := leaseFromReply(reply(t, "2001:db8::7", time.Hour, dhcpv6.WithDNS(net.ParseIP("::1"), net.ParseIP("2001:db8::53"), net.ParseIP("ff02::1"))), true)
	if err != nil || l.Address.String() != "2001:db8::7/128" || text(l.Resolvers) != "2001:db8::53" {
		t.Errorf("a sound reply: %+v, %v", l, err)
	}
	if l, err := leaseFromReply(reply(t, "", 0), false); err != nil || l.Valid < 10*time.Minute {
		t.Errorf("options alone: %+v, %v", l, err)
	}
}

func FuzzLeaseFromAck(f *testing.F) {
	f.Add(good().ToBytes())
	f.Add(good(yours(127, 0, 0, 1)).ToBytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := dhcpv4.FromBytes(b)
		if err != nil {
			return
		}
		l, err := leaseFromAck(m)
		if err != nil {
			return
		}
		a := l.Address.Addr()
		if !unicast4(a) || l.Address.Bits() < 8 || l.Valid < shortestLease || l.Renew >= l.Rebind || l.Rebind >= l.Valid ||
			len(l.Resolvers) > mostResolvers || (l.Gateway.IsValid() && !l.Address.Contains(l.Gateway)) {
			t.Errorf("believed %+v", l)
		}
	})
}

func FuzzReply6(f *testing.F) {
	us := netip.MustParseAddr("fe80::2")
	f.Add(make([]byte, 60))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, _, ok := reply6(b, us); ok && len(p) > len(b) {
			t.Errorf("a payload of %d bytes out of %d", len(p), len(b))
		}
	})
}
