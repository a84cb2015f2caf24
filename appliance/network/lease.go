package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
)

// Bounds of what is believed of a DHCP server. Anyone on the link can be one:
// a lease outside of them is refused as a whole, an option outside of them is
// left out.
const (
	shortestLease = 20 * time.Second
	longestLease  = 7 * 24 * time.Hour // also what "infinite" is treated as: asked again each few days
	shortestRenew = 10 * time.Second
	mostResolvers = 3
	mostTimes     = 4
	mostSearch    = 6
	smallestMTU   = 1280 // RFC 8200; less would end IPv6
	largestMTU    = 9216
)

// lease is what was learnt from a DHCP server, checked.
type lease struct {
	Address   netip.Prefix // invalid when only options were learnt (stateless DHCPv6)
	Gateway   netip.Addr   // invalid when there is none
	Resolvers []netip.Addr
	Times     []netip.Addr // NTP servers
	Search    []string
	MTU       int // 0: leave
	Server    netip.Addr
	Renew     time.Duration // T1
	Rebind    time.Duration // T2
	Valid     time.Duration
}

// errRefused says that a server took the lease back: a NAK, or in DHCPv6 a
// status that is not success.
var errRefused = errors.New("the DHCP server refuses the address")

// unicast4 says whether a may be a host's address on a network.
func unicast4(a netip.Addr) bool {
	if !a.Is4() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() {
		return false
	}
	b := a.As4()
	return b[0] != 0 && b[0] < 224 // 0/8 is this network, 240/4 is reserved and holds the broadcast
}

// leaseFromAck checks an acknowledgement (or an offer) and takes from it what
// the box uses.
func leaseFromAck(m *dhcpv4.DHCPv4) (lease, error) {
	var l lease
	addr, ok := netip.AddrFromSlice(m.YourIPAddr.To4())
	if !ok || !unicast4(addr) || addr.IsLinkLocalUnicast() {
		return l, fmt.Errorf("the DHCP server offers %v, which no host can have", m.YourIPAddr)
	}
	mask := m.SubnetMask()
	bits, size := mask.Size()
	if len(mask) != net.IPv4len || size != 32 || bits < 8 || bits > 31 {
		return l, fmt.Errorf("the DHCP server gives the network mask %v, want one of 8 to 31 bits", mask)
	}
	l.Address = netip.PrefixFrom(addr, bits)
	if bits < 31 && (addr == l.Address.Masked().Addr() || addr == lastOf(l.Address)) {
		return l, fmt.Errorf("the DHCP server offers %v, which names the network or all of its hosts", l.Address)
	}
	if l.Server, ok = netip.AddrFromSlice(m.ServerIdentifier().To4()); !ok || !unicast4(l.Server) {
		return l, errors.New("the DHCP server does not say who it is")
	}
	if routers := m.Router(); len(routers) > 0 {
		gw, ok := netip.AddrFromSlice(routers[0].To4())
		if !ok || !unicast4(gw) || !l.Address.Contains(gw) || gw == addr || (bits < 31 && (gw == l.Address.Masked().Addr() || gw == lastOf(l.Address))) {
			return l, fmt.Errorf("the DHCP server gives the gateway %v, which is not a host of the network %v", routers[0], l.Address.Masked())
		}
		l.Gateway = gw
	}
	if err := l.setTimes(m.IPAddressLeaseTime(0), m.IPAddressRenewalTime(0), m.IPAddressRebindingTime(0)); err != nil {
		return l, err
	}
	l.Resolvers = hosts(m.DNS(), mostResolvers)
	l.Times = hosts(m.NTPServers(), mostTimes)
	var search []string
	if s := m.DomainSearch(); s != nil {
		search = s.Labels
	} else if d := m.DomainName(); d != "" {
		search = []string{d}
	}
	l.Search = names(search)
	if mtu, err := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, m.Options); err == nil && mtu >= smallestMTU && mtu <= largestMTU {
		l.MTU = int(mtu)
	}
	return l, nil
}

// setTimes checks the lease time and sets T1 and T2, RFC 2131 section 4.4.5.
func (l *lease) setTimes(valid, t1, t2 time.Duration) error {
	if valid < shortestLease {
		return fmt.Errorf("the DHCP server gives a lease of %v, want %v or more", valid, shortestLease)
	}
	l.Valid = min(valid, longestLease)
	l.Renew, l.Rebind = l.Valid/2, l.Valid*7/8
	if t1 >= shortestRenew && t2 > t1 && t2 < l.Valid {
		l.Renew, l.Rebind = t1, t2
	}
	return nil
}

// leaseFromReply checks a DHCPv6 reply. want says whether an address was asked for.
func leaseFromReply(m *dhcpv6.Message, want bool) (lease, error) {
	var l lease
	l.Resolvers = hosts(m.Options.DNS(), mostResolvers)
	l.Times = hosts(m.Options.NTPServers(), mostTimes)
	if s := m.Options.DomainSearchList(); s != nil {
		l.Search = names(s.Labels)
	}
	if !want {
		// RFC 8415 section 21.23: asked again after this time, no sooner than
		// 600 s; without the option a day.
		refresh := m.Options.InformationRefreshTime(24 * time.Hour)
		return l, l.setTimes(max(refresh, 10*time.Minute), 0, 0)
	}
	ia := m.Options.OneIANA()
	if ia == nil {
		return l, errors.New("the DHCPv6 server gives no address")
	}
	if s := ia.Options.Status(); s != nil && s.StatusCode != 0 {
		return l, fmt.Errorf("%w: %v", errRefused, s.StatusCode)
	}
	given := ia.Options.OneAddress()
	if given == nil {
		return l, errors.New("the DHCPv6 server gives no address")
	}
	addr, ok := netip.AddrFromSlice(given.IPv6Addr)
	if !ok || !addr.Is6() || addr.Is4In6() || !addr.IsGlobalUnicast() {
		return l, fmt.Errorf("the DHCPv6 server offers %v, which no host can have", given.IPv6Addr)
	}
	l.Address = netip.PrefixFrom(addr, 128) // what is on the link, router advertisements say
	return l, l.setTimes(given.ValidLifetime, ia.T1, ia.T2)
}

// lastOf is the broadcast address of an IPv4 network.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// hosts keeps at most n addresses of servers that can be one; the loopback and
// groups are left out, or a server could point the box at itself.
func hosts(ips []net.IP, n int) []netip.Addr {
	var out []netip.Addr
	for _, ip := range ips {
		a, ok := netip.AddrFromSlice(ip)
		if !ok {
			continue
		}
		a = a.Unmap()
		if a.Is4() && !unicast4(a) || a.Is6() && !a.IsGlobalUnicast() || slices.Contains(out, a) {
			continue
		}
		if out = append(out, a); len(out) == n {
			break
		}
	}
	return out
}

// names keeps at most mostSearch names of letters, digits, hyphens and dots:
// they end in a file that other programs parse.
func names(in []string) []string {
	var out []string
	for _, s := range in {
		s = strings.ToLower(strings.TrimSuffix(s, "."))
		if len(s) > 253 || slices.Contains(out, s) || strings.IndexFunc(s, notHost) >= 0 || slices.ContainsFunc(strings.Split(s, "."), notLabel) {
			continue
		}
		if out = append(out, s); len(out) == mostSearch {
			break
		}
	}
	return out
}

func notHost(r rune) bool {
	return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '.'
}

// notLabel says that a part between dots cannot be one, RFC 1123 section 2.1.
func notLabel(s string) bool {
	return s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-'
}
