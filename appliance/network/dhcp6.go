package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/nclient6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// dhcp6 asks DHCPv6 servers on one link, RFC 8415: for options only when the
// router's advertisements say O, for an address too when they say M.
type dhcp6 struct {
	link   *net.Interface
	name   string     // of the box, option 39
	source netip.Addr // our link-local address
	last   *dhcpv6.Message
}

func (d *dhcp6) exchange(wantAddress bool, do func(*nclient6.Client) (*dhcpv6.Message, error)) (lease, error) {
	raw, err := packet.Listen(d.link, packet.Datagram, unix.ETH_P_IPV6, &packet.Config{Filter: filter6})
	if err != nil {
		return lease{}, fmt.Errorf("opening a packet socket on %s: %w", d.link.Name, err)
	}
	c, err := nclient6.NewWithConn(&conn6{PacketConn: raw, source: d.source}, d.link.HardwareAddr,
		nclient6.WithTimeout(exchangeTime), nclient6.WithRetry(1))
	if err != nil {
		raw.Close()
		return lease{}, fmt.Errorf("starting DHCPv6 on %s: %w", d.link.Name, err)
	}
	defer c.Close()
	reply, err := do(c)
	if err != nil {
		return lease{}, err
	}
	l, err := leaseFromReply(reply, wantAddress)
	if err == nil {
		d.last = reply
	}
	return l, err
}

func (d *dhcp6) id() dhcpv6.DUID {
	return &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: d.link.HardwareAddr}
}

func (d *dhcp6) options() []dhcpv6.Modifier {
	return []dhcpv6.Modifier{
		dhcpv6.WithClientID(d.id()),
		dhcpv6.WithRequestedOptions(dhcpv6.OptionDNSRecursiveNameServer, dhcpv6.OptionDomainSearchList, dhcpv6.OptionNTPServer),
	}
}

// named says what the box is called; a name that does not end is completed by
// the server, with the domain of the network (RFC 4704 section 4.2).
func (d *dhcp6) named() dhcpv6.Modifier {
	return dhcpv6.WithOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionFQDN, OptionData: append([]byte{0, byte(len(d.name))}, d.name...)})
}

// inform asks for options alone.
func (d *dhcp6) inform(ctx context.Context) (lease, error) {
	return d.exchange(false, func(c *nclient6.Client) (*dhcpv6.Message, error) {
		m, err := dhcpv6.NewMessage(d.options()...)
		if err != nil {
			return nil, fmt.Errorf("making a DHCPv6 question: %w", err)
		}
		m.MessageType = dhcpv6.MessageTypeInformationRequest
		m.AddOption(dhcpv6.OptElapsedTime(0))
		return c.SendAndRead(ctx, nclient6.AllDHCPRelayAgentsAndServers, m, nclient6.IsMessageType(dhcpv6.MessageTypeReply))
	})
}

// discover finds a server and takes an address.
func (d *dhcp6) discover(ctx context.Context) (lease, error) {
	return d.exchange(true, func(c *nclient6.Client) (*dhcpv6.Message, error) {
		advertise, err := c.Solicit(ctx, append(d.options(), d.named())...)
		if err != nil {
			return nil, err
		}
		return c.Request(ctx, advertise, d.named(), dhcpv6.WithRequestedOptions(dhcpv6.OptionDNSRecursiveNameServer, dhcpv6.OptionDomainSearchList, dhcpv6.OptionNTPServer))
	})
}

// extend asks for more time: of the server of the lease, or of any.
func (d *dhcp6) extend(ctx context.Context, anyServer bool) (lease, error) {
	return d.exchange(true, func(c *nclient6.Client) (*dhcpv6.Message, error) {
		ia := d.last.Options.OneIANA()
		if ia == nil {
			return nil, errors.New("the lease holds no address to extend")
		}
		m, err := dhcpv6.NewMessage(append(d.options(), d.named())...)
		if err != nil {
			return nil, fmt.Errorf("making a DHCPv6 question: %w", err)
		}
		m.MessageType = dhcpv6.MessageTypeRebind
		if !anyServer {
			m.MessageType = dhcpv6.MessageTypeRenew
			m.AddOption(dhcpv6.OptServerID(d.last.Options.ServerID()))
		}
		m.AddOption(dhcpv6.OptElapsedTime(0))
		m.AddOption(ia)
		return c.SendAndRead(ctx, nclient6.AllDHCPRelayAgentsAndServers, m, nclient6.IsMessageType(dhcpv6.MessageTypeReply))
	})
}

// conn6 is UDP over a packet socket: from port 546 of our link-local address to
// the servers' group. A client of DHCPv6 sends nowhere else, so no neighbour
// has to be found; and no UDP port is open, which the host would answer on.
type conn6 struct {
	net.PacketConn
	source netip.Addr
}

const (
	ip6Header = 40
	udpHeader = 8
)

// WriteTo wraps b in UDP and IPv6 and sends it to the group's Ethernet address
// (RFC 2464 section 7).
func (c *conn6) WriteTo(b []byte, to net.Addr) (int, error) {
	u, ok := to.(*net.UDPAddr)
	if !ok || !u.IP.IsMulticast() {
		return 0, fmt.Errorf("sending DHCPv6 to %v: only to the servers' group", to)
	}
	dst := u.IP.To16()
	p := make([]byte, ip6Header+udpHeader, ip6Header+udpHeader+len(b))
	p[0] = 6 << 4
	binary.BigEndian.PutUint16(p[4:], uint16(udpHeader+len(b)))
	p[6], p[7] = unix.IPPROTO_UDP, 1
	copy(p[8:], c.source.AsSlice())
	copy(p[24:], dst)
	binary.BigEndian.PutUint16(p[40:], dhcpv6.DefaultClientPort)
	binary.BigEndian.PutUint16(p[42:], dhcpv6.DefaultServerPort)
	binary.BigEndian.PutUint16(p[44:], uint16(udpHeader+len(b)))
	p = append(p, b...)
	binary.BigEndian.PutUint16(p[46:], checksum6(p))
	mac := net.HardwareAddr{0x33, 0x33, dst[12], dst[13], dst[14], dst[15]}
	if _, err := c.PacketConn.WriteTo(p, &packet.Addr{HardwareAddr: mac}); err != nil {
		return 0, err
	}
	return len(b), nil
}

// ReadFrom returns the payload of the next reply that came from a link-local
// server to us. The checksum is not looked at: the card may have done so, and
// on virtual links nobody has filled it in.
func (c *conn6) ReadFrom(b []byte) (int, net.Addr, error) {
	p := make([]byte, ip6Header+udpHeader+len(b))
	for {
		n, _, err := c.PacketConn.ReadFrom(p)
		if err != nil {
			return 0, nil, err
		}
		payload, from, ok := reply6(p[:n], c.source)
		if ok {
			return copy(b, payload), from, nil
		}
	}
}

// reply6 takes the payload out of a packet, if it is one for us.
func reply6(p []byte, us netip.Addr) ([]byte, *net.UDPAddr, bool) {
	if len(p) < ip6Header+udpHeader || p[0]>>4 != 6 || p[6] != unix.IPPROTO_UDP {
		return nil, nil, false
	}
	src, dst := netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40]))
	length := int(binary.BigEndian.Uint16(p[44:]))
	if !src.IsLinkLocalUnicast() || dst != us.WithZone("") || length < udpHeader || ip6Header+length > len(p) ||
		binary.BigEndian.Uint16(p[40:]) != dhcpv6.DefaultServerPort || binary.BigEndian.Uint16(p[42:]) != dhcpv6.DefaultClientPort {
		return nil, nil, false
	}
	return p[ip6Header+udpHeader : ip6Header+length], &net.UDPAddr{IP: src.AsSlice(), Port: dhcpv6.DefaultServerPort}, true
}

// checksum6 is the UDP checksum of a packet without extension headers, RFC 8200 section 8.1.
func checksum6(p []byte) uint16 {
	sum := uint32(unix.IPPROTO_UDP) + uint32(len(p)-ip6Header)
	add := func(b []byte) {
		for ; len(b) >= 2; b = b[2:] {
			sum += uint32(binary.BigEndian.Uint16(b))
		}
		if len(b) == 1 {
			sum += uint32(b[0]) << 8
		}
	}
	add(p[8:40])
	add(p[40:])
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	if c := ^uint16(sum); c != 0 {
		return c
	}
	return 0xffff
}

// filter6 lets UDP to port 546 through to the packet socket.
var filter6 = assemble(
	bpf.LoadAbsolute{Off: 6, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 3},
	bpf.LoadAbsolute{Off: 42, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: dhcpv6.DefaultClientPort, SkipTrue: 1},
	bpf.RetConstant{Val: 1 << 16},
	bpf.RetConstant{Val: 0},
)
