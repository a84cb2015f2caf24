package netconf

import (
	"net/netip"
	"slices"
	"strings"

	"gatehouse/appliance/control"
)

// Usable says whether a may be an address of a host on a network.
func Usable(a netip.Addr) bool {
	if !a.IsValid() || a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() {
		return false
	}
	return !a.Is4() || a.As4()[0] != 0 && a.As4()[0] < 240
}

// addresses judges those of a static link.
func (c *checker) addresses(l control.LinkSettings) {
	if len(l.Addresses) > mostAddresses {
		c.problem(l.Name, "addresses", "there are %d, and at most %d are possible", len(l.Addresses), mostAddresses)
		return
	}
	for i, p := range l.Addresses {
		// The filter counts the networks of our own addresses as near: a wider
		// one than any real network would let strangers in.
		least := 8
		if p.Addr().Is6() {
			least = 64
		}
		switch a := p.Addr(); {
		case !p.IsValid() || !Usable(a):
			c.problem(l.Name, "addresses", "%s is not an address that a box can have", p)
		case p.Bits() < least:
			c.problem(l.Name, "addresses", "the network of %s is wider than any that a box is in: use /%d or longer", p, least)
		case a.Is6() && a.IsLinkLocalUnicast():
			c.problem(l.Name, "addresses", "%s is an address of the link alone; each link has one by itself", p)
		case a.Is4() && p.Bits() < 31 && (a == p.Masked().Addr() || a == last(p)):
			c.problem(l.Name, "addresses", "%s names the network or all of its hosts, not one of them", p)
		case slices.ContainsFunc(l.Addresses[:i], func(q netip.Prefix) bool { return q.Addr() == a }):
			c.problem(l.Name, "addresses", "%s is there twice", a)
		default:
			// Answers leave by one link alone, and the kernel does not hear a
			// sender whose answer would leave by another.
			network, card := p.Masked(), l.MAC != ""
			if card && c.there != nil && !c.physical(l.Name) {
				continue // nobody has it: a card that was replaced has given it to another
			}
			for _, other := range c.networks {
				if c.there == nil && (card || other.card) {
					continue // nobody knows whether both cards are there
				}
				if other.link != l.Name && other.network.Overlaps(network) {
					c.problem(l.Name, "addresses", "%s overlaps %s, which is the network of %s: join the two links to a bond, or give them networks of their own", network, other.network, other.link)
					break
				}
			}
			c.networks = append(c.networks, taken{network, l.Name, card})
		}
	}
}

// last is the broadcast address of an IPv4 network.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// neighbour says whether a is another host on the link, by its addresses.
func neighbour(l control.LinkSettings, a netip.Addr) bool {
	if !Usable(a) || slices.ContainsFunc(l.Addresses, func(p netip.Prefix) bool { return p.Addr() == a }) {
		return false
	}
	if a.Is6() && a.IsLinkLocalUnicast() {
		return true
	}
	return slices.ContainsFunc(l.Addresses, func(p netip.Prefix) bool {
		return p.Contains(a) && !(a.Is4() && p.Bits() < 31 && (a == p.Masked().Addr() || a == last(p)))
	})
}

// ways judges gateways and routes.
func (c *checker) ways(l control.LinkSettings) {
	var have [2]bool
	for _, g := range l.Gateways {
		family := 0
		if g.Is6() {
			family = 1
		}
		switch {
		case !neighbour(l, g):
			c.problem(l.Name, "gateways", "%s is not another host on this link: a gateway is in the network of one of its addresses", g)
		case have[family]:
			c.problem(l.Name, "gateways", "%s is the second of its family: a link has at most one for IPv4 and one for IPv6", g)
		}
		have[family] = true
	}
	if len(l.Routes) > mostRoutes {
		c.problem(l.Name, "routes", "there are %d, and at most %d are possible", len(l.Routes), mostRoutes)
		return
	}
	for i, r := range l.Routes {
		switch {
		case !r.To.IsValid() || r.To.Addr().Is4In6() || r.To != r.To.Masked():
			c.problem(l.Name, "routes", "%s is not a network: the bits behind its length are zero, as in 198.51.100.0/24", r.To)
		case r.To.Bits() == 0:
			c.problem(l.Name, "routes", "%s is everywhere: that is what gateways are for", r.To)
		case r.To.Addr().IsLoopback() || r.To.Addr().IsMulticast() || r.To.Addr().IsLinkLocalUnicast():
			c.problem(l.Name, "routes", "%s is no network that is reached by a route", r.To)
		case r.To.Addr().Is4() != r.Via.Is4() || !neighbour(l, r.Via):
			c.problem(l.Name, "routes", "the way to %s goes by %s, which is not another host on this link", r.To, r.Via)
		case slices.ContainsFunc(l.Routes[:i], func(q control.Route) bool { return q.To == r.To }):
			c.problem(l.Name, "routes", "%s is there twice", r.To)
		}
	}
}

// servers judges what is not of one link.
func (c *checker) servers() {
	for i, r := range c.s.Resolvers {
		switch {
		case !Usable(r) || r.IsLinkLocalUnicast():
			c.problem("", "resolvers", "%s is not an address of a resolver", r)
		case slices.Contains(c.s.Resolvers[:i], r):
			c.problem("", "resolvers", "%s is there twice", r)
		}
	}
	for i, n := range c.s.Search {
		if !HostName(n) {
			c.problem("", "search", "%q is not a domain: write it as in example.net", printable(n))
		} else if slices.Contains(c.s.Search[:i], n) {
			c.problem("", "search", "%s is there twice", n)
		}
	}
	for i, n := range c.s.Time {
		a, err := netip.ParseAddr(n)
		switch {
		case err == nil && (!Usable(a) || a.String() != n) || err != nil && !HostName(n):
			c.problem("", "time", "%q is neither a host name nor an address of a time server", printable(n))
		case slices.Contains(c.s.Time[:i], n):
			c.problem("", "time", "%s is there twice", n)
		}
	}
}

// HostName says whether s is a host name, RFC 1123 section 2.1, in lower case
// and without a last dot: it ends in a file that other programs parse.
func HostName(s string) bool {
	if len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return false
		}
	}
	// What has a number last is an address to some programs.
	return strings.Trim(s[strings.LastIndexByte(s, '.')+1:], "0123456789") != ""
}
