package netns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// An observer is a table of the test beside ours: it counts packets to 443 and
// to 80 before our first rule and after our last, so that what a full queue
// lost on its way is not taken for what a rule dropped.
type observer struct {
	box  *Host
	conn *nftables.Conn
}

// The names of its counters: of a port's packets that arrived, that passed the
// raw rules, and that were delivered to the box.
func arrivedAt(port uint16) string   { return fmt.Sprintf("arrived%d", port) }
func passedAt(port uint16) string    { return fmt.Sprintf("passed%d", port) }
func deliveredAt(port uint16) string { return fmt.Sprintf("delivered%d", port) }

var observed = &nftables.Table{Name: "observer", Family: nftables.TableFamilyINet}

// observe begins to count. When it swallows, packets end after the raw rules.
func observe(t testing.TB, box *Host, swallow bool) observer {
	t.Helper()
	o := observer{box: box}
	box.Do(t, func() (err error) {
		o.conn, err = nftables.New(nftables.AsLasting())
		if err != nil {
			return err
		}
		o.conn.AddTable(observed)
		for _, at := range []struct {
			name     func(uint16) string
			hook     *nftables.ChainHook
			priority nftables.ChainPriority
		}{{arrivedAt, nftables.ChainHookPrerouting, -310}, {passedAt, nftables.ChainHookPrerouting, -250}, {deliveredAt, nftables.ChainHookInput, 300}} {
			chain := o.conn.AddChain(&nftables.Chain{Name: at.name(0), Table: observed, Type: nftables.ChainTypeFilter,
				Hooknum: at.hook, Priority: nftables.ChainPriorityRef(at.priority)})
			for _, port := range []uint16{80, 443} {
				o.conn.AddObj(&nftables.CounterObj{Table: observed, Name: at.name(port)})
				o.conn.AddRule(&nftables.Rule{Table: observed, Chain: chain, Exprs: []expr.Any{
					&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
					&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
					&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
					&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
					&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: at.name(port)}}})
			}
			if swallow && at.priority == -250 {
				o.conn.AddRule(&nftables.Rule{Table: observed, Chain: chain, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}})
			}
		}
		return o.conn.Flush()
	})
	t.Cleanup(func() { o.conn.CloseLasting() })
	return o
}

// counts reads all counters.
func (o observer) counts(t testing.TB) map[string]uint64 {
	t.Helper()
	objs, err := o.conn.GetObjects(observed)
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]uint64)
	for _, obj := range objs {
		if c, ok := obj.(*nftables.CounterObj); ok {
			got[c.Name] = c.Packets
		}
	}
	return got
}

// settled reads them once nothing moves any more.
func (o observer) settled(t testing.TB) map[string]uint64 {
	t.Helper()
	last := o.counts(t)
	for {
		time.Sleep(50 * time.Millisecond)
		now := o.counts(t)
		if fmt.Sprint(now) == fmt.Sprint(last) {
			return now
		}
		last = now
	}
}

// A gun sends frames to the box from whatever source.
type gun struct {
	fd       int
	from, to net.HardwareAddr
	link     int
}

func newGun(t testing.TB, box, peer *Host, link string) gun {
	t.Helper()
	g := gun{to: box.link(t, link).Attrs().HardwareAddr, from: peer.link(t, link).Attrs().HardwareAddr, link: peer.link(t, link).Attrs().Index}
	peer.Do(t, func() (err error) {
		g.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	t.Cleanup(func() { unix.Close(g.fd) })
	return g
}

// frame puts an Ethernet header before an IP packet.
func (g gun) frame(p []byte) []byte {
	kind := uint16(unix.ETH_P_IP)
	if p[0]>>4 == 6 {
		kind = unix.ETH_P_IPV6
	}
	return append(binary.BigEndian.AppendUint16(slices.Concat(g.to, g.from), kind), p...)
}

// shoot sends one IP packet; a queue that is full is the sender's to wait for.
func (g gun) shoot(p []byte) error {
	frame := g.frame(p)
	for {
		err := unix.Sendto(g.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: g.link})
		if !errors.Is(err, unix.ENOBUFS) {
			return err
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// syn is a TCP segment that begins a connection; the data is of even length.
func syn(from, to netip.Addr, sport, dport uint16, data ...byte) []byte {
	p := append(make([]byte, 20), data...)
	binary.BigEndian.PutUint16(p[0:], sport)
	binary.BigEndian.PutUint16(p[2:], dport)
	binary.BigEndian.PutUint32(p[4:], 0x67617465)
	p[12], p[13] = 5<<4, 0x02
	binary.BigEndian.PutUint16(p[14:], 1024)
	pseudo := binary.BigEndian.AppendUint16([]byte{0, unix.IPPROTO_TCP}, uint16(len(p)))
	binary.BigEndian.PutUint16(p[16:], sum(from.AsSlice(), to.AsSlice(), pseudo, p))
	return p
}

// sum is the checksum of RFC 1071 over parts of even length.
func sum(parts ...[]byte) uint16 {
	var s uint32
	for _, b := range parts {
		for i := 0; i < len(b); i += 2 {
			s += uint32(binary.BigEndian.Uint16(b[i:]))
		}
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}

// datagram puts an IP header before a payload; offset and more are a fragment's
// place, in bytes (IPv4 only: IPv6 has a header of its own for that).
func datagram(from, to netip.Addr, proto byte, payload []byte, id, offset uint16, more bool) []byte {
	if from.Is6() {
		h := make([]byte, 40)
		h[0], h[6], h[7] = 6<<4, proto, 64
		binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
		copy(h[8:], from.AsSlice())
		copy(h[24:], to.AsSlice())
		return append(h, payload...)
	}
	h := make([]byte, 20)
	h[0], h[8], h[9] = 4<<4|5, 64, proto
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
	binary.BigEndian.PutUint16(h[4:], id)
	place := offset / 8
	if more {
		place |= 0x2000
	}
	binary.BigEndian.PutUint16(h[6:], place)
	copy(h[12:], from.AsSlice())
	copy(h[16:], to.AsSlice())
	binary.BigEndian.PutUint16(h[10:], sum(h))
	return append(h, payload...)
}

// knockAt is a whole packet that begins a connection.
func knockAt(from, to netip.Addr, sport, dport uint16) []byte {
	return datagram(from, to, unix.IPPROTO_TCP, syn(from, to, sport, dport), 0, 0, false)
}
