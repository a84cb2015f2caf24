package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Links are read anew after every message of the kernel about one, and now and
// then without: messages can be lost, the list cannot.
const (
	settle   = 200 * time.Millisecond
	relistAt = 30 * time.Second
)

// watchLinks calls changed with all Ethernet links, at once and after each change.
// Wake says when something else wants them looked at.
func watchLinks(ctx context.Context, wake func() <-chan struct{}, changed func(map[string]port)) error {
	events := make(chan netlink.LinkUpdate, 64)
	done := make(chan struct{})
	defer close(done)
	if err := netlink.LinkSubscribeWithOptions(events, done, netlink.LinkSubscribeOptions{}); err != nil {
		return fmt.Errorf("watching the network links: %w", err)
	}
	for {
		awake := wake()
		seen, err := ethernets()
		if err != nil {
			return err
		}
		changed(seen)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-awake:
		case _, ok := <-events:
			if !ok {
				return fmt.Errorf("watching the network links: the kernel ended the messages")
			}
		case <-time.After(relistAt):
		}
		// A link coming up makes a burst of messages; one look is enough.
		if err := sleepUntil(ctx, time.Now().Add(settle)); err != nil {
			return err
		}
		for len(events) > 0 {
			<-events
		}
	}
}

// ethernets lists the Ethernet links that stand for hardware (or are the end of
// a virtual cable), and bonds and VLANs, which only a person's settings make:
// not the loopback, not bridges or tunnels, and not the parts of a bond.
func ethernets() (map[string]port, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("listing the network links: %w", err)
	}
	seen := make(map[string]port)
	for _, l := range links {
		a := l.Attrs()
		own := l.Type() == "device" || l.Type() == "veth"
		if a.EncapType != "ether" || a.RawFlags&unix.IFF_LOOPBACK != 0 || len(a.HardwareAddr) != 6 || a.MasterIndex != 0 ||
			(!own && l.Type() != "bond" && l.Type() != "vlan") {
			continue
		}
		p := port{Name: a.Name, Index: a.Index, MAC: string(a.HardwareAddr), Carrier: a.RawFlags&unix.IFF_UP != 0 && a.RawFlags&unix.IFF_LOWER_UP != 0}
		if own {
			p.Card = a.HardwareAddr.String()
			if len(a.PermHWAddr) == 6 && a.PermHWAddr.String() != "00:00:00:00:00:00" {
				p.Card = a.PermHWAddr.String()
			}
		}
		seen[a.Name] = p
	}
	return seen, nil
}

// raFlags is what the newest router advertisement says of DHCPv6, RFC 4861 section 4.2.
type raFlags struct {
	managed, other bool
}

// The kernel's bits of IFLA_INET6_FLAGS, include/net/if_inet6.h.
const (
	ifRAManaged     = 0x40
	ifRAOtherConfig = 0x80
	iflaProtinfo    = 12
	iflaInet6Flags  = 1
	nlaTypeMask     = 0x3fff
)

func routerFlags(index int) (raFlags, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfInfomsg(unix.AF_INET6))
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return raFlags{}, fmt.Errorf("reading the IPv6 flags of the links: %w", err)
	}
	for _, m := range msgs {
		if len(m) < unix.SizeofIfInfomsg || int(nl.DeserializeIfInfomsg(m).Index) != index {
			continue
		}
		return flagsOf(m[unix.SizeofIfInfomsg:])
	}
	return raFlags{}, nil
}

// flagsOf finds the flags among the attributes of a link.
func flagsOf(b []byte) (raFlags, error) {
	attrs, err := nl.ParseRouteAttr(b)
	if err != nil {
		return raFlags{}, fmt.Errorf("parsing the IPv6 flags of a link: %w", err)
	}
	for _, a := range attrs {
		if a.Attr.Type&nlaTypeMask != iflaProtinfo {
			continue
		}
		inner, err := nl.ParseRouteAttr(a.Value)
		if err != nil {
			return raFlags{}, fmt.Errorf("parsing the IPv6 flags of a link: %w", err)
		}
		for _, i := range inner {
			if i.Attr.Type == iflaInet6Flags && len(i.Value) == 4 {
				f := nl.NativeEndian().Uint32(i.Value)
				return raFlags{managed: f&ifRAManaged != 0, other: f&ifRAOtherConfig != 0}, nil
			}
		}
	}
	return raFlags{}, nil
}

// linkLocal6 is the link's own link-local address once nobody else has it.
func linkLocal6(link *net.Interface) netip.Addr {
	addrs, err := netlink.AddrList(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: link.Index}}, netlink.FAMILY_V6)
	if err != nil {
		return netip.Addr{}
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.IsLinkLocalUnicast() && a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0 {
			return ip
		}
	}
	return netip.Addr{}
}
