package mdns

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// seeds are packets of all kinds.
func seeds(t testing.TB) [][]byte {
	box, err := NewResponder(service("gatehouse-7f3k", "192.0.2.40"), beginning, most)
	if err != nil {
		t.Fatal(err)
	}
	var list [][]byte
	for i := range 30 {
		for _, p := range box.Due(beginning.Add(time.Duration(i) * 250 * time.Millisecond)) {
			list = append(list, p.Data)
		}
	}
	for _, p := range box.Goodbye() {
		list = append(list, p.Data)
	}
	b, err := Question()
	if err != nil {
		t.Fatal(err)
	}
	return append(list, b)
}

// FuzzReceive gives a box, in each of its phases, any packet, from either kind
// of port: it stays whole, and what it sends can be read.
func FuzzReceive(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b, uint16(Port), byte(20))
		f.Add(b, uint16(40000), byte(2))
	}
	f.Fuzz(func(t *testing.T, packet []byte, port uint16, steps byte) {
		r, err := NewResponder(service("gatehouse-7f3k", "192.0.2.40"), beginning, most)
		if err != nil {
			t.Fatal(err)
		}
		now := beginning
		records := len(r.records)
		for i := range int(steps%40) + 4 {
			now = now.Add(250 * time.Millisecond)
			if i%3 == 2 {
				r.Receive(packet, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.9"), port), now)
			}
			out := r.Due(now)
			if len(out) > 3 || len(r.records) != records {
				t.Fatalf("%d packets, %d records", len(out), len(r.records))
			}
			for _, p := range out {
				if _, err := parse(p.Data); err != nil {
					t.Fatalf("sent what cannot be read: %v", err)
				}
			}
		}
	})
}

// FuzzFinder: whatever answers, what is shown is names, addresses and words.
func FuzzFinder(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		var find Finder
		find.Receive(packet, "eth0")
		for _, b := range find.Boxes() {
			for _, c := range b.Name + b.State + b.Version {
				if c <= ' ' || c > '~' {
					t.Fatalf("%q is shown", b.Name+b.State+b.Version)
				}
			}
			if len(b.Addresses) == 0 || b.Port == 0 {
				t.Fatalf("%+v cannot be reached", b)
			}
		}
	})
}

func TestParseRefuses(t *testing.T) {
	good := seeds(t)[0]
	for name, b := range map[string][]byte{
		"nothing":        {},
		"half a header":  good[:7],
		"cut":            good[:len(good)-3],
		"too long":       append(slices.Clone(good), make([]byte, MaxPacket)...),
		"an opcode":      append([]byte{0, 0, 0x28, 0}, good[4:]...),
		"an error":       append([]byte{0, 0, 0x84, 3}, good[4:]...),
		"a cut question": {0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0},
		"many, empty":    {0, 0, 0x84, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	} {
		if m, err := parse(b); err == nil {
			t.Errorf("%s: read as %+v", name, m)
		}
	}
	// A name that is a loop is no name; the rest is read.
	if m, err := parse([]byte{0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1}); err != nil || len(m.Questions) != 0 {
		t.Errorf("a loop is read as %+v, %v", m, err)
	}
	// Somebody else's service has a dot in its label: the rest is read.
	c := content{header: dnsmessage.Header{Response: true}, answers: []record{
		{Name: TypeBox, Type: dnsmessage.TypePTR, TTL: 1, Data: append([]byte("\x03a.b"), appendName(nil, TypeBox)...)},
		{Name: "other.local.", Type: dnsmessage.TypeA, TTL: 1, Data: []byte{192, 0, 2, 1}},
	}}
	b, err := c.pack()
	if err != nil {
		t.Fatal(err)
	}
	if m, err := parse(b); err != nil || types(m.Answers) != "A" {
		t.Errorf("%v, %s: want the A record alone", err, types(m.Answers))
	}
}

// TestHostileAnswersAreBounded: a link full of liars costs a fixed amount, for
// the box and for who looks for boxes.
func TestHostileAnswersAreBounded(t *testing.T) {
	l, box := settledBox(t)
	var find Finder
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := range 2000 {
		name := fmt.Sprintf("liar-%d", i)
		s := service(name, "192.0.2.9")
		data := binary.BigEndian.AppendUint32(nil, 0xc0000200|uint32(i))
		c := content{header: dnsmessage.Header{Response: true}}
		for _, o := range s.records() {
			if o.Type == dnsmessage.TypeA {
				o.Data = data
			}
			c.answers = append(c.answers, o.record)
		}
		b, err := c.pack()
		if err != nil {
			t.Fatal(err)
		}
		if err := find.Receive(b, "eth0"); err != nil {
			t.Fatal(err)
		}
		if err := box.Receive(b, netip.MustParseAddrPort("192.0.2.9:5353"), l.now); err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if n := len(find.Boxes()); n != mostFound {
		t.Errorf("%d boxes are kept, want %d", n, mostFound)
	}
	if len(find.records) > mostRecords {
		t.Errorf("%d records are kept, want at most %d", len(find.records), mostRecords)
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 4<<20 {
		t.Errorf("%d bytes are kept", grown)
	}
	runtime.KeepAlive(&find)
	if !box.Settled() || len(box.records) != len(box.service.records()) {
		t.Error("other people's answers changed the box")
	}
}

func TestFinder(t *testing.T) {
	var find Finder
	for i, address := range []string{"192.0.2.40", "192.0.2.41"} {
		s := service([]string{"gatehouse-7f3k", "gatehouse-7f3k-2"}[i], address)
		s.Addresses = append([]netip.Addr{netip.MustParseAddr("fe80::40"), netip.MustParseAddr("2001:db8::40")}, s.Addresses...)
		s.Text = append(s.Text, "version=evil\x1b[31m")
		c := content{header: dnsmessage.Header{Response: true}}
		for _, o := range s.records() {
			c.answers = append(c.answers, o.record)
		}
		b, err := c.pack()
		if err != nil {
			t.Fatal(err)
		}
		find.Receive(b, "eth0")
	}
	got := find.Boxes()
	if len(got) != 2 || got[0].Name != "gatehouse-7f3k.local" || got[1].Name != "gatehouse-7f3k-2.local" {
		t.Fatalf("%+v", got)
	}
	b := got[0]
	if b.State != "unclaimed" || b.Version != "0.1.0" || b.Port != 443 {
		t.Errorf("%+v", b)
	}
	if len(b.Addresses) != 3 || b.Addresses[0] != netip.MustParseAddr("192.0.2.40") || b.Addresses[2] != netip.MustParseAddr("fe80::40%eth0") {
		t.Errorf("addresses %v, want IPv4 first and the link of link-local ones", b.Addresses)
	}
}
