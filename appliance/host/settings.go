package host

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
	"gatehouse/appliance/netconf"
)

// ourAlias marks the links that Configure made: it removes no others.
const ourAlias = "gatehouse"

// configured is what Configure did last.
type configured struct {
	settings control.NetworkSettings // by the names that links had then
	mtu      map[string]int          // of links whose MTU was changed, as it was before
	hand     map[string]bool         // links that addresses were set on, whatever was wished
}

// Own lists the links that the machine has by itself: no VLANs, bonds or
// tunnels, and with the MAC address that is in the card, which a bond hides.
func (h *Host) Own() ([]control.Link, error) {
	list, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("listing network interfaces: %w", err)
	}
	var own []control.Link
	for _, l := range list {
		if !isOwn(l) {
			continue
		}
		a := l.Attrs()
		mac := a.HardwareAddr
		if len(a.PermHWAddr) == 6 && !bytes.Equal(a.PermHWAddr, make([]byte, 6)) {
			mac = a.PermHWAddr
		}
		own = append(own, control.Link{Index: a.Index, Name: a.Name, MAC: mac.String(), Carrier: a.RawFlags&unix.IFF_LOWER_UP != 0})
	}
	return own, nil
}

func isOwn(l netlink.Link) bool {
	a, kind := l.Attrs(), l.Type()
	return a.EncapType == "ether" && a.Flags&net.FlagLoopback == 0 && (kind == "device" || kind == "veth")
}

// Configure brings all links into the state that checked settings name, and
// takes away what it set before and they do not. What is right already is not
// touched, so that it can be called again at any time. A link that is not
// there is passed over: it may come. Anything that fails is reported at the
// end, when all that could be done is.
func (h *Host) Configure(s control.NetworkSettings) error {
	own, err := h.Own()
	if err != nil {
		return err
	}
	s = netconf.Named(s, own)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.configured.mtu == nil {
		h.configured.mtu, h.configured.hand = make(map[string]int), make(map[string]bool)
	}
	// Remembered first: from here on Apply does not touch what is set by hand.
	h.configured.settings = s
	errs := []error{h.unmake(s)}
	for _, b := range s.Bonds {
		errs = append(errs, h.makeBond(b))
	}
	for _, l := range own {
		if netconf.BondOf(s, l.Name) == "" {
			errs = append(errs, h.bring(l.Name))
		}
	}
	for _, b := range s.Bonds {
		errs = append(errs, h.bring(b.Name))
	}
	for _, v := range s.VLANs { // last: they need what they are on to be up
		err := h.makeVLAN(v)
		if err == nil {
			err = h.bring(v.Name)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// unmake removes links of ours that are not wanted as they are. VLANs go
// first, though one goes with what it is on.
func (h *Host) unmake(s control.NetworkSettings) error {
	list, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("listing network interfaces: %w", err)
	}
	slices.SortStableFunc(list, func(a, b netlink.Link) int { return strings.Compare(b.Type(), a.Type()) }) // "vlan", "bond"
	var errs []error
	for _, l := range list {
		a := l.Attrs()
		if a.Alias != ourAlias || (l.Type() != "vlan" && l.Type() != "bond") || asWanted(s, l, list) {
			continue
		}
		if err := netlink.LinkDel(l); err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("removing the link %s: %w", a.Name, err))
			continue
		}
		delete(h.ours, a.Name)
		delete(h.configured.mtu, a.Name)
		delete(h.configured.hand, a.Name)
	}
	return errors.Join(errs...)
}

func gone(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.Is(err, unix.ENODEV) || errors.As(err, &missing)
}

// asWanted says whether a link is one that the settings make, as it is.
func asWanted(s control.NetworkSettings, l netlink.Link, all []netlink.Link) bool {
	switch l := l.(type) {
	case *netlink.Vlan:
		return slices.ContainsFunc(s.VLANs, func(v control.VLAN) bool {
			return v.Name == l.Name && int(v.ID) == l.VlanId && slices.ContainsFunc(all, func(on netlink.Link) bool {
				return on.Attrs().Index == l.ParentIndex && on.Attrs().Name == v.On
			})
		})
	case *netlink.Bond:
		return slices.ContainsFunc(s.Bonds, func(b control.Bond) bool { return b.Name == l.Name && b.Mode == l.Mode.String() })
	}
	return false
}

// add makes a link and marks it as ours.
func add(l netlink.Link) error {
	name := l.Attrs().Name
	if err := netlink.LinkAdd(l); err != nil {
		return fmt.Errorf("making the link %s: %w", name, err)
	}
	made, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetAlias(made, ourAlias)
	}
	if err != nil {
		return fmt.Errorf("marking the link %s as ours: %w", name, errors.Join(err, netlink.LinkDel(l)))
	}
	return nil
}

// carrierEvery is how often a bond asks its parts for a carrier, in ms.
const carrierEvery = 100

// makeBond makes a bond if it is not there, and gives it exactly its parts.
func (h *Host) makeBond(b control.Bond) error {
	bond, err := netlink.LinkByName(b.Name)
	if gone(err) {
		l := netlink.NewLinkBond(netlink.LinkAttrs{Name: b.Name})
		l.Mode, l.Miimon = netlink.StringToBondMode(b.Mode), carrierEvery
		if b.Mode == netconf.LACP {
			l.XmitHashPolicy = netlink.BOND_XMIT_HASH_POLICY_LAYER2_3
		}
		if err := add(l); err != nil {
			return err
		}
		bond, err = netlink.LinkByName(b.Name)
	}
	if err != nil {
		return fmt.Errorf("finding the bond %s: %w", b.Name, err)
	}
	list, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("listing network interfaces: %w", err)
	}
	var errs []error
	for _, l := range list {
		a, index := l.Attrs(), bond.Attrs().Index
		wanted := slices.Contains(b.Links, a.Name)
		switch {
		case a.MasterIndex == index && !wanted:
			err = netlink.LinkSetNoMaster(l)
		case a.MasterIndex != index && wanted:
			err = h.join(l, bond)
		default:
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("the parts of %s: %s: %w", b.Name, a.Name, err))
		}
	}
	return errors.Join(errs...)
}

// join makes a link a part of a bond, which brings it up; addresses of its own
// would be heard of no more.
func (h *Host) join(l, bond netlink.Link) error {
	if err := h.strip(l); err != nil {
		return err
	}
	if err := h.setMTU(l, 0); err != nil {
		return err
	}
	// It may be a part of another bond, and down is what the kernel asks for.
	return errors.Join(netlink.LinkSetNoMaster(l), netlink.LinkSetDown(l), netlink.LinkSetMaster(l, bond))
}

func (h *Host) makeVLAN(v control.VLAN) error {
	if _, err := netlink.LinkByName(v.Name); !gone(err) {
		if err != nil {
			return fmt.Errorf("finding the link %s: %w", v.Name, err)
		}
		return nil
	}
	on, err := netlink.LinkByName(v.On)
	if gone(err) {
		return nil // it may come, as any link
	}
	if err != nil {
		return fmt.Errorf("finding the link %s, which %s is on: %w", v.On, v.Name, err)
	}
	return add(&netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: v.Name, ParentIndex: on.Attrs().Index}, VlanId: int(v.ID)})
}

// bring gives one link its mode, its MTU, and by hand set ones their addresses and ways.
func (h *Host) bring(name string) error {
	l, err := netlink.LinkByName(name)
	if gone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("finding interface %q: %w", name, err)
	}
	s := h.configured.settings
	want := control.LinkSettings{Name: name, Mode: netconf.Automatic}
	if have := netconf.Of(s, name); have != nil {
		want = *have
	}
	if l.Attrs().MasterIndex != 0 {
		if err := netlink.LinkSetNoMaster(l); err != nil { // of a bond that was
			return fmt.Errorf("freeing %s: %w", name, err)
		}
	}
	if want.Mode == netconf.Off {
		if err := h.strip(l); err != nil {
			return err
		}
		return h.SetUp(name, false)
	}
	if err := h.setMTU(l, want.MTU); err != nil {
		return err
	}
	if want.Mode == netconf.Automatic && h.configured.hand[name] {
		// By hand set ones go, and the kernel asks for routers when a link comes
		// up. A wish that came to nothing has cost the link nothing, and a lease stays.
		if err := h.strip(l); err != nil {
			return err
		}
		if err := h.SetUp(name, false); err != nil {
			return err
		}
		delete(h.configured.hand, name)
	}
	if err := h.up(l, want.Mode); err != nil {
		return err
	}
	if want.Mode != netconf.Static {
		return nil
	}
	if !h.configured.hand[name] {
		h.configured.hand[name] = true
		h.takeLearnt(name) // what DHCP gave is taken away as anything else is
	}
	if err := setAddresses(l, want.Addresses); err != nil {
		return err
	}
	return setRoutes(l, want)
}

// byHand are the settings of a link that listens to no router.
func byHand(name string) []Sysctl {
	v6 := "net.ipv6.conf." + name + "."
	return []Sysctl{
		{v6 + "accept_ra", "0", "its addresses and ways are set by hand", true},
		{v6 + "autoconf", "0", "the same", true},
	}
}

func (h *Host) up(l netlink.Link, mode string) error {
	name := l.Attrs().Name
	table := LinkSysctls(name)
	if mode == netconf.Static {
		for _, s := range byHand(name) {
			i := slices.IndexFunc(table, func(t Sysctl) bool { return t.Key == s.Key })
			table[i] = s
		}
	}
	if err := h.writeSysctls(table); err != nil {
		return fmt.Errorf("%s stays down: %w", name, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("bringing %s up: %w", name, err)
	}
	return nil
}

// setMTU sets a link's MTU; 0: as it was before it was ever set.
func (h *Host) setMTU(l netlink.Link, want int) error {
	a := l.Attrs()
	old, changed := h.configured.mtu[a.Name]
	if want == 0 && changed {
		want = old
		delete(h.configured.mtu, a.Name)
	} else if want != 0 && !changed {
		h.configured.mtu[a.Name] = a.MTU
	}
	if want == 0 || want == a.MTU {
		return nil
	}
	if err := netlink.LinkSetMTU(l, want); err != nil {
		return fmt.Errorf("setting the MTU of %s to %d (what it is on may have a smaller one): %w", a.Name, want, err)
	}
	return nil
}

// strip takes all addresses and ways of ours and of routers from a link.
func (h *Host) strip(l netlink.Link) error {
	h.takeLearnt(l.Attrs().Name)
	return errors.Join(setRoutes(l, control.LinkSettings{}), setAddresses(l, nil))
}

// takeLearnt notes that what Apply set on a link goes, or went.
func (h *Host) takeLearnt(name string) {
	delete(h.ours, name)
	if h.taken == nil {
		h.taken = make(map[string]int)
	}
	h.taken[name]++
}

// Taken says how often what Apply may have set was taken from each link: who
// learnt it learns anew when that counts on, since a change that failed, and was
// put back, leaves no other trace.
func (h *Host) Taken() map[string]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.taken)
}

// setAddresses gives a link exactly these, but for the link-local address of
// IPv6, which is the kernel's. It adds before it removes, so that an address
// that stays never goes.
func setAddresses(l netlink.Link, want []netip.Prefix) error {
	name := l.Attrs().Name
	have, err := netlink.AddrList(l, unix.AF_UNSPEC)
	if err != nil {
		return fmt.Errorf("listing addresses of %s: %w", name, err)
	}
	for _, p := range want {
		i := slices.IndexFunc(have, func(a netlink.Addr) bool { return prefixOf(a) == p && a.Flags&unix.IFA_F_PERMANENT != 0 })
		if i >= 0 && have[i].Flags&unix.IFA_F_DADFAILED == 0 {
			continue
		}
		if err := netlink.AddrReplace(l, address(p)); err != nil {
			return fmt.Errorf("adding %s to %s: %w", p, name, err)
		}
	}
	for _, a := range have {
		p := prefixOf(a)
		if slices.Contains(want, p) || p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
			continue
		}
		if err := netlink.AddrDel(l, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("removing %s from %s: %w", p, name, err)
		}
	}
	return nil
}

func prefixOf(a netlink.Addr) netip.Prefix {
	if a.IPNet == nil {
		return netip.Prefix{}
	}
	ip, _ := netip.AddrFromSlice(a.IP)
	ones, _ := a.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), ones)
}

// routes are those that a link has by hand. A gateway set by hand goes before
// those learnt on other links.
func routes(l netlink.Link, s control.LinkSettings) []*netlink.Route {
	var out []*netlink.Route
	for _, g := range s.Gateways {
		r := defaultRoute(l, g)
		r.Protocol, r.Priority = unix.RTPROT_STATIC, 512+l.Attrs().Index
		out = append(out, r)
	}
	for _, r := range s.Routes {
		out = append(out, &netlink.Route{
			LinkIndex: l.Attrs().Index, Gw: net.IP(r.Via.AsSlice()), Protocol: unix.RTPROT_STATIC, Priority: 512 + l.Attrs().Index,
			Dst: &net.IPNet{IP: net.IP(r.To.Addr().AsSlice()), Mask: net.CIDRMask(r.To.Bits(), r.To.Addr().BitLen())},
		})
	}
	return out
}

// setRoutes gives a link exactly the routes of its settings, and takes away
// those of DHCP and of router advertisements.
func setRoutes(l netlink.Link, s control.LinkSettings) error {
	name, want := l.Attrs().Name, routes(l, s)
	for _, r := range want {
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("setting the route of %s to %s by %s: %w", name, r.Dst, r.Gw, err)
		}
	}
	have, err := netlink.RouteList(l, unix.AF_UNSPEC)
	if err != nil {
		return fmt.Errorf("listing the routes of %s: %w", name, err)
	}
	for _, r := range have {
		if r.Gw == nil || !slices.Contains([]netlink.RouteProtocol{unix.RTPROT_STATIC, unix.RTPROT_DHCP, unix.RTPROT_RA}, r.Protocol) ||
			slices.ContainsFunc(want, func(w *netlink.Route) bool { return sameRoute(w, r) }) {
			continue
		}
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("removing the route of %s to %s: %w", name, r.Dst, err)
		}
	}
	return nil
}

func sameRoute(w *netlink.Route, r netlink.Route) bool {
	return r.Dst != nil && w.Dst.String() == r.Dst.String() && w.Gw.Equal(r.Gw) && w.Priority == r.Priority && w.Protocol == r.Protocol
}
