package network

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/server6"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"
)

// lanConfig is what the other end of the cable does.
type lanConfig struct {
	Lease   time.Duration
	NakFrom int                      // this and later renewals are refused; 0: none
	Clocks  map[string]time.Duration // time servers by address, and how far they are off
	Managed bool                     // router advertisements ask for DHCPv6
}

// seen is what it was asked.
type seen struct {
	Kind, Host, Requested, Client string
}

// lan plays router, DHCP servers and time servers, and writes what it is asked.
func lan(args []string, w io.Writer) error {
	var c lanConfig
	if err := json.Unmarshal([]byte(args[0]), &c); err != nil {
		return err
	}
	var mu sync.Mutex
	tell := func(s seen) {
		mu.Lock()
		defer mu.Unlock()
		json.NewEncoder(w).Encode(s)
	}
	renewals := 0
	s4, err := server4.NewServer("lan", &net.UDPAddr{IP: net.IPv4zero, Port: 67}, func(conn net.PacketConn, _ net.Addr, m *dhcpv4.DHCPv4) {
		tell(seen{Kind: m.MessageType().String(), Host: m.HostName(), Requested: m.RequestedIPAddress().String(), Client: m.ClientIPAddr.String()})
		for _, r := range c.answers4(m, &renewals) {
			conn.WriteTo(r.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: 68})
		}
	})
	if err != nil {
		return err
	}
	for addr, off := range c.Clocks {
		if err := timeServer(addr, off); err != nil {
			return err
		}
	}
	if c.Managed {
		if err := managedLAN(tell); err != nil {
			return err
		}
	}
	fmt.Fprintln(w, `{"Kind":"ready"}`)
	return s4.Serve()
}

// answers4 answers each discovery with a hostile offer first, then a sound one.
func (c lanConfig) answers4(m *dhcpv4.DHCPv4, renewals *int) []*dhcpv4.DHCPv4 {
	var times []net.IP
	for a := range c.Clocks {
		times = append(times, net.ParseIP(a))
	}
	// What the hostile server offers it also gives: whoever asks for .66 is lost.
	hostile := m.RequestedIPAddress().Equal(net.IPv4(192, 0, 2, 66))
	make4 := func(t dhcpv4.MessageType, hostile bool) *dhcpv4.DHCPv4 {
		address, gateway := net.IPv4(192, 0, 2, 77), net.IPv4(192, 0, 2, 1)
		if hostile {
			address, gateway = net.IPv4(192, 0, 2, 66), net.IPv4(203, 0, 113, 1)
		}
		r, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(t), dhcpv4.WithYourIP(address),
			dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithOption(dhcpv4.OptRouter(gateway)),
			dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(192, 0, 2, 1))),
			dhcpv4.WithOption(dhcpv4.OptNTPServers(times...)), dhcpv4.WithLeaseTime(uint32(c.Lease/time.Second)))
		if err != nil {
			panic(err)
		}
		return r
	}
	switch m.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		return []*dhcpv4.DHCPv4{make4(dhcpv4.MessageTypeOffer, true), make4(dhcpv4.MessageTypeOffer, false)}
	case dhcpv4.MessageTypeRequest:
		if !m.ClientIPAddr.IsUnspecified() {
			if *renewals++; c.NakFrom > 0 && *renewals >= c.NakFrom {
				return []*dhcpv4.DHCPv4{make4(dhcpv4.MessageTypeNak, false)}
			}
		}
		return []*dhcpv4.DHCPv4{make4(dhcpv4.MessageTypeAck, hostile)}
	}
	return nil
}

// timeServer answers SNTP, off by as much as given.
func timeServer(addr string, off time.Duration) error {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 123)))
	if err != nil {
		return err
	}
	stamp := func(p []byte, t time.Time) {
		binary.BigEndian.PutUint32(p, uint32(t.Unix()+2208988800)) // seconds from 1900, RFC 5905
		binary.BigEndian.PutUint32(p[4:], uint32(uint64(t.Nanosecond())<<32/1e9))
	}
	go func() {
		b := make([]byte, 512)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if n < 48 {
				continue
			}
			now := time.Now().Add(off)
			p := make([]byte, 48)
			p[0], p[1], p[2], p[3] = 4<<3|4, 2, 6, 0xec
			copy(p[12:], "TEST")
			stamp(p[16:], now.Add(-time.Minute))
			copy(p[24:32], b[40:48])
			stamp(p[32:], now)
			stamp(p[40:], now)
			conn.WriteToUDPAddrPort(p, from)
		}
	}()
	return nil
}

// managedLAN advertises a router that asks for DHCPv6, and serves it.
func managedLAN(tell func(seen)) error {
	duid := &dhcpv6.DUIDLL{HWType: 1, LinkLayerAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
	s6, err := server6.NewServer("lan", &net.UDPAddr{IP: net.ParseIP("ff02::1:2"), Port: 547}, func(conn net.PacketConn, peer net.Addr, d dhcpv6.DHCPv6) {
		m, err := d.GetInnerMessage()
		if err != nil {
			return
		}
		host := ""
		if f := m.Options.FQDN(); f != nil && len(f.DomainName.Labels) == 1 {
			host = f.DomainName.Labels[0]
		}
		tell(seen{Kind: m.MessageType.String(), Client: peer.String(), Host: host})
		mods := []dhcpv6.Modifier{dhcpv6.WithServerID(duid), dhcpv6.WithDNS(net.ParseIP("2001:db8:1::53"))}
		if ia := m.Options.OneIANA(); ia != nil {
			mods = append(mods, dhcpv6.WithIAID(ia.IaId), dhcpv6.WithIANA(dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP("2001:db8:1::77"), PreferredLifetime: 20 * time.Second, ValidLifetime: 20 * time.Second}))
		}
		var r *dhcpv6.Message
		if m.MessageType == dhcpv6.MessageTypeSolicit {
			r, err = dhcpv6.NewAdvertiseFromSolicit(m, mods...)
		} else {
			r, err = dhcpv6.NewReplyFromMessage(m, mods...)
		}
		if err == nil {
			conn.WriteTo(r.ToBytes(), peer)
		}
	})
	if err != nil {
		return err
	}
	go s6.Serve()
	ifi, err := net.InterfaceByName("lan")
	if err != nil {
		return err
	}
	conn, err := icmp.ListenPacket("ip6:ipv6-icmp", "fe80::1%lan")
	if err != nil {
		return err
	}
	if err := conn.IPv6PacketConn().SetMulticastHopLimit(255); err != nil {
		return err
	}
	// Hop limit 64, flags M and O, lifetime 60 s, no timers, no prefix; then a
	// resolver and a search domain, RFC 8106, for 30 s.
	body := []byte{64, 0xc0, 0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 25, 3, 0, 0, 0, 0, 0, 30}
	body = append(body, net.ParseIP("2001:db8:1::54")...)
	body = append(body, []byte{31, 3, 0, 0, 0, 0, 0, 30, 3, 'l', 'a', 'n', 7, 'e', 'x', 'a', 'm', 'p', 'l', 'e', 0, 0, 0, 0}...)
	ra := icmp.Message{Type: ipv6.ICMPTypeRouterAdvertisement, Body: &icmp.RawBody{Data: body}}
	b, err := ra.Marshal(nil)
	if err != nil {
		return err
	}
	go func() {
		for {
			conn.WriteTo(b, &net.IPAddr{IP: net.ParseIP("ff02::1"), Zone: ifi.Name})
			time.Sleep(time.Second)
		}
	}()
	return nil
}
