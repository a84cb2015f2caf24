package netns

import (
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"gatehouse/appliance/control"
	"gatehouse/netfilter"
)

// datagrams sends packets to port 5353 of an address or group, from a port of
// one's own and, where nobody has it, from 5353. It ends when they are sent.
func datagrams(args []string, _ io.Writer) error {
	var ask struct {
		Link, From, To string
		Count          int
	}
	if err := json.Unmarshal([]byte(args[0]), &ask); err != nil {
		return err
	}
	link, err := net.InterfaceByName(ask.Link)
	if err != nil {
		return err
	}
	from, to := netip.MustParseAddr(ask.From), netip.MustParseAddr(ask.To)
	if from.IsLinkLocalUnicast() || to.IsLinkLocalMulticast() && to.Is6() {
		to = to.WithZone(ask.Link)
	}
	for _, port := range []uint16{0, 5353} {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, port)))
		if err != nil {
			return err
		}
		defer conn.Close()
		if from.Is4() {
			err = ipv4.NewPacketConn(conn).SetMulticastInterface(link)
		} else {
			err = ipv6.NewPacketConn(conn).SetMulticastInterface(link)
		}
		if err != nil {
			return err
		}
		for range ask.Count {
			if _, err := conn.WriteToUDPAddrPort([]byte("a question"), netip.AddrPortFrom(to, 5353)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l lab) datagrams(t *testing.T, from *Host, link, source, to string, count int) {
	t.Helper()
	b, err := json.Marshal(map[string]any{"Link": link, "From": source, "To": to, "Count": count})
	if err != nil {
		t.Fatal(err)
	}
	from.Run(t, "datagrams", string(b))
}

// TestBOX10_UnicastOf5353IsSilent: with mDNS on and a listener on every address
// of the box, only what goes to the groups from the link comes in, and no more
// of it than the limit; every port scanned, 5353 answers nobody.
func TestBOX10_UnicastOf5353IsSilent(t *testing.T) {
	l := newLab(t)
	l.listen(t)
	l.box.Do(t, func() error { // a member of the groups, or the packets end before any rule
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		for network, group := range map[string]string{"udp4": "224.0.0.251", "udp6": "ff02::fb"} {
			conn, err := net.ListenMulticastUDP(network, link, &net.UDPAddr{IP: net.ParseIP(group), Port: 5354})
			if err != nil {
				return err
			}
			t.Cleanup(func() { conn.Close() })
		}
		return nil
	})
	for _, c := range []struct {
		state netfilter.State
		in    bool // to the groups
	}{
		{netfilter.State{Phase: control.StateUnclaimed, Multicast: true}, true},
		{netfilter.State{Phase: control.StateReady, Multicast: true}, true},
		{netfilter.State{Phase: control.StateReady}, false},
		{netfilter.State{Phase: control.StateStarting, Multicast: true}, false},
	} {
		l.apply(t, c.state)
		for _, to := range []struct {
			link, from, to string
			host           *Host
			group, near    bool
		}{
			{"lan", nearV4, "224.0.0.251", l.near, true, true},
			{"lan", nearV6, "ff02::fb", l.near, true, true},
			{"wan", "198.51.100.1", "224.0.0.251", l.near, true, false}, // the wrong side: nothing arrives at all
			{"lan", nearV4, boxV4, l.near, false, true},
			{"lan", nearV6, boxV6, l.near, false, true},
			{"eth0", farV4, boxV4, l.far, false, true},
			{"eth0", farV6, boxV6, l.far, false, true},
		} {
			before := l.counters(t)
			l.datagrams(t, to.host, to.link, to.from, to.to, 5)
			after := l.counters(t)
			in, out := after[netfilter.MDNS]-before[netfilter.MDNS], after[netfilter.MDNSDropped]-before[netfilter.MDNSDropped]
			var wantIn, wantOut uint64
			switch {
			case !to.near:
			case to.group && c.in:
				wantIn = 10
			default:
				wantOut = 10
			}
			if in != wantIn || out != wantOut {
				t.Errorf("%s, multicast %v: %s from %s: %d let in and %d dropped, want %d and %d", c.state.Phase, c.state.Multicast, to.to, to.from, in, out, wantIn, wantOut)
			}
		}
		for _, v6 := range []bool{false, true} {
			if got := l.scan(t, l.near, "udp", v6); len(got) != 0 {
				t.Errorf("%s, multicast %v, %s: %s answered", c.state.Phase, c.state.Multicast, family(v6), got.text())
			}
		}
	}
	// A flood of the group is cut to what one role can read.
	l.apply(t, netfilter.State{Phase: control.StateReady, Multicast: true})
	before := l.counters(t)
	l.datagrams(t, l.near, "lan", nearV4, "224.0.0.251", 2000)
	after := l.counters(t)
	if in, out := after[netfilter.MDNS]-before[netfilter.MDNS], after[netfilter.MDNSDropped]-before[netfilter.MDNSDropped]; in+out < 3000 || in > 1000 {
		t.Errorf("of 4000 packets at once %d were let in and %d dropped, want a few hundred and the rest", in, out)
	}
}
