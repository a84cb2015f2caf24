package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
	"gatehouse/appliance/netconf"
)

// A Link is one network interface; loopback is not among them.
type Link struct {
	Index     int
	Name      string
	MAC       net.HardwareAddr
	MTU       int
	Up        bool // administratively
	Carrier   bool // a cable, or a radio, is there
	Addresses []netip.Prefix
	Gateways  []netip.Addr // of default routes
}

// applied is what Apply set on one interface: the next Apply takes away what
// is no longer in it, and touches nothing that came by SLAAC.
type applied struct {
	addresses []netip.Prefix
	gateways  []netip.Addr
	refused   int // the MTU that the link refused, and that was said
}

// mostLeft bounds what calls that failed can leave to be taken away.
const mostLeft = 32

// Links lists the network interfaces, by index.
func (h *Host) Links() ([]Link, error) {
	list, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("listing network interfaces: %w", err)
	}
	ways, err := defaultWays()
	if err != nil {
		return nil, err
	}
	var links []Link
	for _, l := range list {
		a := l.Attrs()
		if a.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := netlink.AddrList(l, unix.AF_UNSPEC)
		if err != nil {
			return nil, fmt.Errorf("listing addresses of %s: %w", a.Name, err)
		}
		links = append(links, Link{
			Index: a.Index, Name: a.Name, MAC: a.HardwareAddr, MTU: a.MTU,
			Up:        a.Flags&net.FlagUp != 0,
			Carrier:   a.RawFlags&unix.IFF_LOWER_UP != 0,
			Addresses: prefixes(addrs), Gateways: ways[a.Index],
		})
	}
	slices.SortFunc(links, func(a, b Link) int { return a.Index - b.Index })
	return links, nil
}

// defaultWays are the gateways of the default routes, by the index of their link.
func defaultWays() (map[int][]netip.Addr, error) {
	list, err := netlink.RouteList(nil, unix.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("listing routes: %w", err)
	}
	ways := make(map[int][]netip.Addr)
	for _, r := range list {
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones > 0 || !r.Dst.IP.IsUnspecified() {
				continue
			}
		}
		if gw, ok := netip.AddrFromSlice(r.Gw); ok && !slices.Contains(ways[r.LinkIndex], gw.Unmap()) {
			ways[r.LinkIndex] = append(ways[r.LinkIndex], gw.Unmap())
		}
	}
	return ways, nil
}

// prefixes leaves out what cannot be used yet or any more: tentative
// addresses and those found double.
func prefixes(addrs []netlink.Addr) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range addrs {
		if a.IPNet == nil || a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 {
			continue
		}
		ip, ok := netip.AddrFromSlice(a.IP)
		ones, _ := a.Mask.Size()
		if ok {
			out = append(out, netip.PrefixFrom(ip.Unmap(), ones))
		}
	}
	return out
}

// LoopbackUp brings lo up; the kernel gives it its addresses.
func (h *Host) LoopbackUp() error { return h.SetUp("lo", true) }

// SetUp writes an interface's settings, then brings it up; or takes it down.
// The filter must be in the kernel before the first call for a real link.
func (h *Host) SetUp(name string, up bool) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("finding interface %q: %w", name, err)
	}
	if !up {
		if err := netlink.LinkSetDown(link); err != nil {
			return fmt.Errorf("taking %s down: %w", name, err)
		}
		return nil
	}
	if name != "lo" {
		if err := h.writeSysctls(LinkSysctls(name)); err != nil {
			return fmt.Errorf("%s stays down: %w", name, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bringing %s up: %w", name, err)
	}
	return nil
}

// Apply sets what the network role learnt for one link and takes away what an
// earlier call set there. The asker is not trusted: a request that could
// shadow loopback, send our traffic to an address that is not on the link or
// touch another kind of interface is refused whole, and nothing changes.
// Resolvers and search domains are set with SetResolvers.
func (h *Host) Apply(want control.NetworkApply) error {
	link, err := netlink.LinkByName(want.Interface)
	if err != nil {
		return fmt.Errorf("finding interface %q: %w", want.Interface, err)
	}
	if link.Attrs().Flags&net.FlagLoopback != 0 {
		return fmt.Errorf("%s is the loopback interface: its addresses are not the network's to set", want.Interface)
	}
	if err := CheckApply(want); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if mode := netconf.Mode(h.configured.settings, want.Interface); mode != netconf.Automatic {
		if len(want.Addresses)+len(want.Gateways) == 0 {
			return nil // nothing of a lease is left there
		}
		return fmt.Errorf("%s is %s: nothing is learnt for it", want.Interface, mode)
	}
	if l := netconf.Of(h.configured.settings, want.Interface); l != nil && l.MTU != 0 {
		want.MTU = 0 // what a person set counts
	}
	old := h.ours[want.Interface]
	if len(old.addresses) > mostLeft { // calls that fail one after the other: mend before more is set
		if err := removeAddresses(link, old.addresses, nil); err != nil {
			return err
		}
		old.addresses = nil
	}
	if len(old.gateways) > mostLeft {
		if err := removeGateways(link, old.gateways, nil); err != nil {
			return err
		}
		old.gateways = nil
	}
	refused := 0
	if want.MTU != 0 && want.MTU != link.Attrs().MTU {
		if err := netlink.LinkSetMTU(link, want.MTU); err != nil {
			// Of the server's choosing: one that the link cannot have must not
			// cost the address. Each renewal asks for it again, and is not news.
			if refused = want.MTU; refused != old.refused || !slices.Equal(want.Addresses, old.addresses[:min(len(want.Addresses), len(old.addresses))]) {
				h.log.Warn("the link cannot have the MTU that the network names; it keeps its own", "link", want.Interface, "mtu", want.MTU, "keeps", link.Attrs().MTU, "err", err)
			}
		}
	}
	// Remembered before the first address: a call that fails half-way is mended
	// by the next one, which takes away all that this one may have set.
	h.ours[want.Interface] = applied{
		addresses: append(slices.Clone(want.Addresses), old.addresses...),
		gateways:  append(slices.Clone(want.Gateways), old.gateways...),
		refused:   refused,
	}
	if err := applyAddresses(link, old.addresses, want); err != nil {
		return err
	}
	if err := applyGateways(link, old.gateways, want.Gateways); err != nil {
		return err
	}
	h.ours[want.Interface] = applied{slices.Clone(want.Addresses), slices.Clone(want.Gateways), refused}
	return nil
}

// applyAddresses adds before it removes, so that an address that stays never
// goes. The kernel removes an address whose lease ran out by itself, so a
// network role that died does not leave us on another's address.
func applyAddresses(link netlink.Link, old []netip.Prefix, want control.NetworkApply) error {
	name := link.Attrs().Name
	for _, p := range want.Addresses {
		a := address(p)
		if want.Seconds != 0 {
			a.ValidLft, a.PreferedLft = lifetime(want.Seconds), lifetime(want.Seconds)
		}
		if err := netlink.AddrReplace(link, a); err != nil {
			return fmt.Errorf("adding %s to %s: %w", p, name, err)
		}
	}
	return removeAddresses(link, old, want.Addresses)
}

func removeAddresses(link netlink.Link, old, want []netip.Prefix) error {
	name := link.Attrs().Name
	for _, p := range old {
		if slices.Contains(want, p) {
			continue
		}
		if err := netlink.AddrDel(link, address(p)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("removing %s from %s: %w", p, name, err)
		}
	}
	return nil
}

func lifetime(seconds uint32) int { return int(min(seconds, 1<<31-1)) }

func applyGateways(link netlink.Link, old, want []netip.Addr) error {
	name := link.Attrs().Name
	for _, gw := range want {
		if err := netlink.RouteReplace(defaultRoute(link, gw)); err != nil {
			return fmt.Errorf("setting the default route of %s to %s: %w", name, gw, err)
		}
	}
	return removeGateways(link, old, want)
}

func removeGateways(link netlink.Link, old, want []netip.Addr) error {
	name := link.Attrs().Name
	for _, gw := range old {
		if slices.Contains(want, gw) {
			continue
		}
		if err := netlink.RouteDel(defaultRoute(link, gw)); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("removing the default route of %s to %s: %w", name, gw, err)
		}
	}
	return nil
}

// defaultRoute is marked as set by DHCP; the metric orders several links by
// their index, so that two default routes never replace each other.
func defaultRoute(link netlink.Link, gw netip.Addr) *netlink.Route {
	bits := gw.BitLen()
	return &netlink.Route{
		LinkIndex: link.Attrs().Index,
		Dst:       &net.IPNet{IP: make(net.IP, bits/8), Mask: net.CIDRMask(0, bits)},
		Gw:        net.IP(gw.AsSlice()),
		Protocol:  unix.RTPROT_DHCP,
		Priority:  1024 + link.Attrs().Index,
	}
}

func address(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: &net.IPNet{
		IP:   net.IP(p.Addr().AsSlice()),
		Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
	}}
	if p.Addr().Is4() && p.Addr().IsLinkLocalUnicast() {
		a.Scope = unix.RT_SCOPE_LINK
	}
	return a
}

// CheckApply refuses what a network may not ask of us.
func CheckApply(want control.NetworkApply) error {
	refuse := func(what string, v any) error {
		return fmt.Errorf("network settings for %s refused: %s: %v", want.Interface, what, v)
	}
	if len(want.Addresses) > 8 || len(want.Gateways) > 2 || len(want.Resolvers) > 8 || len(want.Search) > 8 {
		return refuse("too many values", len(want.Addresses)+len(want.Gateways)+len(want.Resolvers)+len(want.Search))
	}
	if want.MTU != 0 && (want.MTU < 1280 || want.MTU > 9216) { // 1280: the least of IPv6 (RFC 8200, 5)
		return refuse("the MTU is not in 1280–9216", want.MTU)
	}
	for _, p := range want.Addresses {
		// The on-link rule of the filter opens the prefixes of our own
		// addresses: v4 no wider than /8 (10.0.0.0/8 exists), the filter narrows further.
		least := 8
		if p.Addr().Is6() {
			least = 64
		}
		if !usable(p.Addr()) || p.Bits() < least {
			return refuse("not an address for a link", p)
		}
	}
	seen4, seen6 := false, false
	for _, gw := range want.Gateways {
		seen := &seen4
		if gw.Is6() {
			seen = &seen6
		}
		if *seen {
			return refuse("more than one gateway of a family", gw)
		}
		*seen = true
		if !usable(gw) || !onLink(gw, want.Addresses) {
			return refuse("the gateway is not on the link", gw)
		}
	}
	for _, r := range want.Resolvers {
		if !usable(r) {
			return refuse("not an address of a resolver", r)
		}
	}
	for _, s := range want.Search {
		if !domain(s) {
			return refuse("not a search domain", strings.ToValidUTF8(s, "?"))
		}
	}
	return nil
}

func usable(a netip.Addr) bool {
	return a.IsValid() && a.Zone() == "" && !a.Is4In6() && !a.IsUnspecified() && !a.IsLoopback() &&
		!a.IsMulticast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

func onLink(gw netip.Addr, addresses []netip.Prefix) bool {
	if gw.Is6() && gw.IsLinkLocalUnicast() {
		return true
	}
	return slices.ContainsFunc(addresses, func(p netip.Prefix) bool {
		return p.Contains(gw) && p.Addr() != gw
	})
}

// domain accepts letters, digits, hyphens, underscores and dots: what goes
// into resolv.conf must not end its line.
func domain(s string) bool {
	if s == "" || len(s) > 253 || s[0] == '.' || s[0] == '-' {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '.' && r != '_'
	}) < 0
}

// SetResolvers writes /etc/resolv.conf for every process, replacing the file
// as a whole. A short timeout keeps a dead resolver from hanging pages.
func (h *Host) SetResolvers(resolvers []netip.Addr, search []string) error {
	if err := CheckApply(control.NetworkApply{Interface: "resolv.conf", Resolvers: resolvers, Search: search}); err != nil {
		return err
	}
	var b strings.Builder
	b.WriteString("options timeout:2 attempts:2\n")
	for _, r := range resolvers[:min(len(resolvers), 3)] { // resolv.conf(5): MAXNS is 3
		fmt.Fprintf(&b, "nameserver %s\n", r)
	}
	if len(search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	path := h.path("/etc/resolv.conf")
	if err := os.MkdirAll(h.path("/etc"), 0o755); err != nil {
		return fmt.Errorf("making /etc: %w", err)
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("writing the list of resolvers: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("replacing the list of resolvers: %w", err)
	}
	return nil
}
