package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gatehouse/appliance/network/mdns"
)

// segment is a link on which hosts can find each other.
type segment struct {
	name  string
	index int
	own   []netip.Prefix // addresses of the box there
}

// segments lists the links with a carrier that take multicasts, as far as the
// box has an address there that is in use and stays. A link that is part of
// another one (of a bond) is that one.
func segments() ([]segment, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("listing the network links: %w", err)
	}
	const want, not = unix.IFF_UP | unix.IFF_LOWER_UP | unix.IFF_MULTICAST, unix.IFF_LOOPBACK | unix.IFF_POINTOPOINT
	const passing = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED | unix.IFA_F_DEPRECATED | unix.IFA_F_TEMPORARY
	var list []segment
	for _, l := range links {
		a := l.Attrs()
		if a.EncapType != "ether" || a.MasterIndex != 0 || a.RawFlags&want != want || a.RawFlags&not != 0 {
			continue
		}
		addresses, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return nil, fmt.Errorf("listing the addresses of %s: %w", a.Name, err)
		}
		s := segment{name: a.Name, index: a.Index}
		for _, one := range addresses {
			ip, ok := netip.AddrFromSlice(one.IP)
			bits, _ := one.Mask.Size()
			if ok && one.Flags&passing == 0 {
				s.own = append(s.own, netip.PrefixFrom(ip.Unmap(), bits))
			}
		}
		slices.SortFunc(s.own, func(a, b netip.Prefix) int { return a.Compare(b) })
		list = append(list, s)
	}
	return list, nil
}

// groups are those in which the box can speak on a segment.
func (s segment) groups() (list []netip.AddrPort) {
	if slices.ContainsFunc(s.own, func(p netip.Prefix) bool { return p.Addr().Is4() }) {
		list = append(list, mdns.Group4)
	}
	if slices.ContainsFunc(s.own, func(p netip.Prefix) bool { return p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() }) {
		list = append(list, mdns.Group6)
	}
	return list
}

func (s segment) addresses() (list []netip.Addr) {
	for _, p := range s.own {
		list = append(list, p.Addr())
	}
	return list
}

// join opens a socket that hears what goes to the group on one link, and
// nothing else: it is bound to the group itself, so that whatever the packet
// filter does no datagram to an address of the box finds it.
func join(s segment, group netip.AddrPort) (*net.UDPConn, error) {
	family := unix.AF_INET
	if group.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a socket for mDNS on %s: %w", s.name, err)
	}
	file := os.NewFile(uintptr(fd), "mdns")
	defer file.Close() // the connection has a copy
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), // one for each link
		unix.BindToDevice(fd, s.name))
	if family == unix.AF_INET {
		err = errors.Join(err, join4(fd, s, group))
	} else {
		err = errors.Join(err, join6(fd, s, group))
	}
	if err != nil {
		return nil, fmt.Errorf("joining %v on %s: %w", group.Addr(), s.name, err)
	}
	conn, err := net.FilePacketConn(file)
	if err != nil {
		return nil, fmt.Errorf("joining %v on %s: %w", group.Addr(), s.name, err)
	}
	return conn.(*net.UDPConn), nil
}

// Packets go out with a TTL of 255, and not to ourselves (RFC 6762 section 11).
func join4(fd int, s segment, group netip.AddrPort) error {
	at := &unix.IPMreqn{Multiaddr: group.Addr().As4(), Ifindex: int32(s.index)}
	return errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, 255),
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, 255),
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 0),
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0),
		unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(s.index)}),
		unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, at),
		unix.Bind(fd, &unix.SockaddrInet4{Port: int(group.Port()), Addr: group.Addr().As4()}))
}

func join6(fd int, s segment, group netip.AddrPort) error {
	at := &unix.IPv6Mreq{Multiaddr: group.Addr().As16(), Interface: uint32(s.index)}
	return errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 255),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, 0),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, s.index),
		unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, at),
		unix.Bind(fd, &unix.SockaddrInet6{Port: int(group.Port()), ZoneId: uint32(s.index), Addr: group.Addr().As16()}))
}
