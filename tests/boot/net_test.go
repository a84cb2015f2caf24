package boot

import (
	"context"
	"encoding/hex"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"

	"gatehouse/tests/netns"
)

// The network that the box is put into, and who looks at it from there.
const (
	hostV4, hostV6, hostLocal = "192.0.2.1", "2001:db8:1::1", "fe80::1"
	boxV4                     = "192.0.2.77"
)

// lan is a host in a namespace with the other end of the box's cable.
type lan struct {
	*netns.Host
	tap             *os.File
	boxV6, boxLocal string // which follow from the box's card
	source          uint16
}

// newLAN makes it for a machine, before that is started.
func newLAN(t testing.TB, s stage) *lan {
	t.Helper()
	l := &lan{Host: netns.New(t, "neighbour"), source: 40000}
	l.tap = l.Tap(t, "lan")
	l.Sysctl(t, "net/ipv6/conf/lan/accept_ra", "0") // its own, from which it would make another address
	l.Up(t, "lan", hostV4+"/24", hostV6+"/64", hostLocal+"/64")
	id, err := hex.DecodeString(strings.ReplaceAll(s.uuid(t), "-", ""))
	if err != nil {
		t.Fatal(err)
	}
	mac := net.HardwareAddr{0x52, 0x54, 0, id[0], id[1], id[2]}
	// RFC 4291, appendix A: the card's address with its seventh bit flipped.
	eui := net.IP{0xfe, 0x80, 15: 0}
	copy(eui[8:], []byte{mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
	l.boxLocal = eui.String()
	copy(eui, net.ParseIP(hostV6)[:8])
	l.boxV6 = eui.String()
	for _, a := range []string{boxV4, l.boxV6, l.boxLocal} {
		l.Neighbour(t, "lan", a, mac.String()) // knocked at before it is there
	}
	return l
}

// serve begins to give the box an address by DHCP and by router advertisement.
func (l *lan) serve(t testing.TB) {
	t.Helper()
	var server *server4.Server
	var router *icmp.PacketConn
	l.Do(t, func() (err error) {
		if server, err = server4.NewServer("lan", &net.UDPAddr{IP: net.IPv4zero, Port: 67}, lease); err != nil {
			return err
		}
		router, err = icmp.ListenPacket("ip6:ipv6-icmp", hostLocal+"%lan")
		return err
	})
	go server.Serve()
	t.Cleanup(func() { server.Close() })
	if err := router.IPv6PacketConn().SetMulticastHopLimit(255); err != nil {
		t.Fatal(err)
	}
	// RFC 4861, 4.2 and 4.6.2: no managed addresses, no default router; one
	// prefix, on-link and for addresses, for an hour.
	prefix := append([]byte{3, 4, 64, 0xc0, 0, 0, 14, 16, 0, 0, 14, 16, 0, 0, 0, 0}, net.ParseIP(hostV6)[:8]...)
	body := slices.Concat([]byte{64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, prefix, make([]byte, 8))
	advert, err := (&icmp.Message{Type: ipv6.ICMPTypeRouterAdvertisement, Body: &icmp.RawBody{Data: body}}).Marshal(nil)
	if err != nil {
		t.Fatal(err)
	}
	end := make(chan struct{})
	t.Cleanup(func() { close(end); router.Close() })
	go func() {
		for {
			// The box may be off at the moment; the next one will reach it.
			_, _ = router.WriteTo(advert, &net.IPAddr{IP: net.ParseIP("ff02::1"), Zone: "lan"})
			select {
			case <-end:
				return
			case <-time.After(3 * time.Second):
			}
		}
	}()
}

// lease gives the one address to whoever asks.
func lease(conn net.PacketConn, _ net.Addr, m *dhcpv4.DHCPv4) {
	kind := dhcpv4.MessageTypeOffer
	if m.MessageType() == dhcpv4.MessageTypeRequest {
		kind = dhcpv4.MessageTypeAck
	}
	r, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(net.ParseIP(boxV4)),
		dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.ParseIP(hostV4))),
		dhcpv4.WithLeaseTime(86400))
	if err != nil {
		return
	}
	// A lost answer is asked for again.
	_, _ = conn.WriteTo(r.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: 68})
}

// dial connects from inside the namespace.
func (l *lan) dial(t testing.TB) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		var failed error
		l.Do(t, func() error {
			conn, failed = (&net.Dialer{}).DialContext(ctx, network, addr)
			return nil
		})
		return conn, failed
	}
}

// echo is the answer to a ping, as the scanner names it (by whether it is IPv4).
var echo = map[bool]string{true: "protocol 1 type 0", false: "protocol 58 type 129"}

// scan asks every port, both protocols and both families.
func (l *lan) scan(t testing.TB, when string) {
	t.Helper()
	for _, proto := range []string{"tcp", "udp"} {
		for _, to := range []string{boxV4, l.boxV6} {
			from := hostV4
			if strings.Contains(to, ":") {
				from = hostV6
			}
			l.source++
			before := l.Dropped(t, "lan")
			got := l.Scan(t, netns.Scan{Link: "lan", From: from, To: to, Proto: proto, Source: l.source, Settled: func() {
				// The queue is in order: the answer to this comes after all others.
				l.Command(t, "ping", "-c", "1", "-w", "90", to)
			}})
			delete(got, echo[to == boxV4])

			if n := l.Dropped(t, "lan") - before; n > 0 {
				t.Errorf("%s, %s to %s: %d packets were dropped on the way; the scan proves less", when, proto, to, n)
			}
			if proto == "tcp" {
				if !slices.Equal(got["syn-ack"], []uint16{80, 443}) {
					t.Errorf("%s, %s to %s: connections to %v, want 80 and 443", when, proto, to, got["syn-ack"])
				}
				delete(got, "syn-ack")
			}
			if slices.Equal(got["tcp"], []uint16{443}) {
				delete(got, "tcp") // the end of a visit to the page
			}
			for kind, ports := range got {
				t.Errorf("%s, %s to %s: %d answers of kind %s, the first from port %d", when, proto, to, len(ports), kind, ports[0])
			}
		}
	}
}

// From a second host on the cable: silence from the moment the link is up, then
// 80 and 443/tcp alone, unclaimed and claimed. Without DHCP first.
func TestNET1_OnlyTwoPortsOfABootedBox(t *testing.T) {
	box := stage{disk: newDisk(t), state: t.TempDir()}
	m := box.machine(t)
	m.Forward = nil
	identify(t, box)
	l := newLAN(t, box)
	m.TapFile = l.tap

	var stops []func() []netns.Answer
	for _, pair := range [][2]string{{hostV4, boxV4}, {hostV6, l.boxV6}, {hostLocal, l.boxLocal}} {
		stops = append(stops, l.Knock(t, "lan", pair[0], pair[1], 22, 443))
	}
	guest := start(t, m)
	say(t, guest, `gatehouse: state=starting`)
	started := time.Now()
	first := state(t, guest, "unclaimed", "code")
	say(t, guest, `Open\s+https://169\.254\.\S+\s+no DHCP server answered`)
	l.serve(t)
	say(t, guest, `Open\s+https://192\.0\.2\.77/`)
	p := visit(t, boxV4+":443", l.dial(t))
	p.expect("unclaimed", first)
	opened := 0
	for _, stop := range stops {
		for _, a := range stop() {
			switch {
			case a.Port != 443 || a.Kind != "syn-ack" && a.Kind != "tcp": // the latter from the visit
				t.Errorf("knocking since before the link was up: port %d answered with %s", a.Port, a.Kind)
			case a.At.Before(started):
				t.Errorf("443 answered %v before the box had a state", started.Sub(a.At))
			default:
				opened++
			}
		}
	}
	if opened == 0 {
		t.Error("the knocking was never answered: it proves nothing")
	}
	l.scan(t, "unclaimed")

	c := newTool(t, boxV4)
	line := c.line(c.setup(first["code"])...)
	l.Command(t, line[0], line[1:]...)
	owned := state(t, guest, "ready")
	same(t, "after the claim", owned, first)
	p.expect("ready", owned)
	l.scan(t, "claimed")
	off(t, guest)
}

// identify gives a machine its identity before it is first started.
func identify(t testing.TB, s stage) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.state, "machine-id"), []byte("5a17c0de"+strings.Repeat("0", 23)+"1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}
