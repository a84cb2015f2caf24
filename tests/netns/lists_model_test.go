package netns

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
	"gatehouse/netfilter"
	"gatehouse/netfilter/allowlist"
	"gatehouse/netfilter/nft"
)

// some random addresses of a family, edges of ranges and their neighbours first.
func sources(ranges []allowlist.Range, v6 bool, n int) []netip.Addr {
	seen := make(map[netip.Addr]bool)
	var out []netip.Addr
	add := func(a netip.Addr) {
		if a.IsValid() && a.Is6() == v6 && reachesRules(a) && !seen[a] {
			seen[a] = true
			out = append(out, a)
		}
	}
	for _, i := range rand.Perm(len(ranges)) {
		if len(out) > n/2 {
			break
		}
		r := ranges[i]
		for _, a := range []netip.Addr{r.First.Prev(), r.First, r.First.Next(), r.Last.Prev(), r.Last, r.Last.Next()} {
			add(a)
		}
	}
	for len(out) < n {
		add(number(rand.Uint64N(1<<32), v6))
	}
	return out
}

// reachesRules says whether the kernel takes a packet from the address as far
// as the first rule: RFC 4291, 2.7 forbids IPv6 groups as a source, and the
// loopback address may not come by a link.
func reachesRules(a netip.Addr) bool {
	return !a.Is6() || !a.IsMulticast() && !a.IsLoopback() && !a.Is4In6()
}

// messy is a policy of three lists that overlap, with ranges at the ends of
// both families, single addresses and neighbours.
func messy(ranges int) allowlist.Policy {
	a := netip.MustParseAddr
	p := allowlist.Policy{Enabled: true, Lists: []allowlist.List{
		{Name: "edges", Enabled: true, Scopes: allowlist.Sites, Ranges: []allowlist.Range{
			{First: a("0.0.0.0"), Last: a("0.0.0.3")}, {First: a("0.0.0.5"), Last: a("0.0.0.5")},
			{First: a("127.255.255.255"), Last: a("128.0.0.0")},
			{First: a("255.255.255.253"), Last: a("255.255.255.255")},
			{First: a("::"), Last: a("::2")}, {First: a("2001::"), Last: a("2001::ff")},
			{First: a("fffe:ffff:ffff:ffff:ffff:ffff:ffff:fff0"), Last: a("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")}}},
		{Name: "off", Scopes: allowlist.Everything, Ranges: []allowlist.Range{{First: a("0.0.0.0"), Last: a("255.255.255.255")}}},
	}}
	for _, name := range []string{"one", "two"} {
		l := allowlist.List{Name: name, Enabled: true, Scopes: allowlist.Console}
		for _, v6 := range []bool{false, true} {
			c := crowd{v6: v6, ranges: ranges}
			for i := range ranges {
				first := uint64(i)*c.room() + rand.Uint64N(c.room()/2)
				l.Ranges = append(l.Ranges, allowlist.Range{First: number(first, v6), Last: number(first+rand.Uint64N(c.room()/2-2), v6)})
			}
		}
		p.Lists = append(p.Lists, l)
	}
	return p
}

// one sends a packet and says what became of it: 443's counters before and after.
func (o observer) one(t *testing.T, g gun, datagrams ...[]byte) (arrived, passed, delivered bool) {
	t.Helper()
	before := o.counts(t)
	for _, d := range datagrams {
		if err := g.shoot(d); err != nil {
			t.Fatal(err)
		}
	}
	// A packet is judged in the sender's own call, unless the kernel is busy.
	after := o.counts(t)
	if after[arrivedAt(443)] == before[arrivedAt(443)] {
		after = o.settled(t)
	}
	for after[passedAt(443)] == before[passedAt(443)] && after[arrivedAt(443)] != before[arrivedAt(443)] {
		again := o.counts(t)
		if fmt.Sprint(again) == fmt.Sprint(after) {
			break
		}
		after = again
	}
	return after[arrivedAt(443)] > before[arrivedAt(443)], after[passedAt(443)] > before[passedAt(443)], after[deliveredAt(443)] > before[deliveredAt(443)]
}

// TestNET2_KernelAgainstModel asks the kernel, by packets, about addresses that
// the policy judges too.
func TestNET2_KernelAgainstModel(t *testing.T) {
	n := 2500 // of each family
	if soak() {
		n = 50_000
	}
	box, peer := New(t, "box"), New(t, "peer")
	Connect(t, box, "eth0", peer, "eth0")
	box.Up(t, "eth0", "192.0.2.5/24", "2001:db8:1::5/64")
	peer.Up(t, "eth0")
	o := observe(t, box, true)
	g := newGun(t, box, peer, "eth0")
	p := messy(500)
	box.Do(t, func() error { return installLists(p, 1) })
	var all []allowlist.Range
	for _, l := range p.Lists {
		all = append(all, l.Ranges...)
	}
	in, out := 0, 0
	for _, to := range []netip.Addr{netip.MustParseAddr("192.0.2.5"), netip.MustParseAddr("2001:db8:1::5")} {
		for _, from := range sources(all, to.Is6(), n) {
			want := p.Admits(from) != 0
			arrived, passed, _ := o.one(t, g, knockAt(from, to, 40000, 443))
			if !arrived {
				t.Fatalf("a packet from %s never reached the rules", from)
			}
			if passed != want {
				t.Errorf("%s: the kernel lets it in: %t, the model: %t", from, passed, want)
			}
			if want {
				in++
			} else {
				out++
			}
		}
	}
	if in < n/10 || out < n/10 {
		t.Errorf("%d sources let in and %d not: too few of a kind to prove anything", in, out)
	}
}

// TestNET2_FragmentsAndHeaders shows that neither fragments nor extension
// headers bring a stranger past the lists, and that they keep no friend out; on
// a box, where connection tracking puts fragments together before our rules,
// and hosted, where nothing may.
func TestNET2_FragmentsAndHeaders(t *testing.T) {
	for name, machine := range map[string]netfilter.State{"box": {}, "hosted": {Form: netfilter.Hosted, Ports: netfilter.Ports{HTTP: 80, HTTPS: 443}}} {
		t.Run(name, func(t *testing.T) { fragmentsAndHeaders(t, machine) })
	}
}

func fragmentsAndHeaders(t *testing.T, s netfilter.State) {
	box, peer := New(t, "box"), New(t, "peer")
	Connect(t, box, "eth0", peer, "eth0")
	box.Up(t, "eth0", "192.0.2.5/24", "2001:db8:1::5/64")
	peer.Up(t, "eth0", "192.0.2.1/24", "2001:db8:1::1/64")
	for _, key := range []string{"all", "eth0"} {
		box.Sysctl(t, "net/ipv4/conf/"+key+"/rp_filter", "0")
	}
	box.Route(t, "0.0.0.0/0", "192.0.2.1", 0)
	box.Route(t, "::/0", "2001:db8:1::1", 0)
	a := netip.MustParseAddr
	p := allowlist.Policy{Enabled: true, Lists: []allowlist.List{{Name: "friends", Enabled: true, Ranges: []allowlist.Range{
		{First: a("198.51.100.0"), Last: a("198.51.100.255")}, {First: a("2001:db8:2::"), Last: a("2001:db8:2::ffff")}}}}}
	o := observe(t, box, false)
	g := newGun(t, box, peer, "eth0")
	box.Do(t, func() error {
		lists, sets := netfilter.Sets(p, 1)
		s.Phase, s.Lists = control.StateReady, lists
		return nft.Install(netfilter.Rules(s), sets)
	})
	port := uint16(20000)
	for _, c := range []struct {
		friend, stranger, to netip.Addr
	}{{a("198.51.100.9"), a("203.0.113.9"), a("192.0.2.5")}, {a("2001:db8:2::9"), a("2001:db8:3::9"), a("2001:db8:1::5")}} {
		for name, form := range forms(c.to.Is6()) {
			port++
			// The kernel puts no IPv6 fragments together that a link need not
			// have made: all but the last are 1280 bytes long or more.
			tiny := strings.HasPrefix(name, "tiny") && c.to.Is6()
			if arrived, passed, delivered := o.one(t, g, form(c.friend, c.to, port)...); !tiny && (!arrived || !passed || !delivered) {
				t.Errorf("%s from %s: arrived %t, passed %t, delivered %t; want all", name, c.friend, arrived, passed, delivered)
			}
			if arrived, passed, delivered := o.one(t, g, form(c.stranger, c.to, port)...); !arrived || passed || delivered {
				t.Errorf("%s from %s: arrived %t, passed %t, delivered %t; want it dropped", name, c.stranger, arrived, passed, delivered)
			}
		}
		// A friend's first fragment and a stranger's last make no packet. Without
		// connection tracking the kernel puts IPv6 together behind the last rule,
		// where this cannot see, by the same addresses.
		begin, rest := fragments(c.friend, c.to, port, 1, 1288), fragments(c.stranger, c.to, port, 1, 1288)
		if _, _, delivered := o.one(t, g, begin[0], rest[1]); delivered && !(s.Form == netfilter.Hosted && c.to.Is6()) {
			t.Errorf("fragments of %s and %s became one packet", c.friend, c.stranger)
		}
		// What ends before its transport header is nobody's.
		if _, passed, delivered := o.one(t, g, datagram(c.friend, c.to, unix.IPPROTO_TCP, []byte{1, 2}, 0, 0, false)); passed || delivered {
			t.Error("a packet without ports passed")
		}
	}
}

// A form makes the packets of one connection attempt to 443.
type form func(from, to netip.Addr, sport uint16) [][]byte

// forms are all that a family has.
func forms(v6 bool) map[string]form {
	m := map[string]form{
		"whole":              func(from, to netip.Addr, p uint16) [][]byte { return [][]byte{knockAt(from, to, p, 443)} },
		"tiny fragments":     func(from, to netip.Addr, p uint16) [][]byte { return fragments(from, to, p, 2, 8) },
		"in two fragments":   func(from, to netip.Addr, p uint16) [][]byte { return fragments(from, to, p, 1, 1288) },
		"in three fragments": func(from, to netip.Addr, p uint16) [][]byte { return fragments(from, to, p, 2, 1288) },
		"last fragment first": func(from, to netip.Addr, p uint16) [][]byte {
			f := fragments(from, to, p, 1, 1288)
			return [][]byte{f[1], f[0]}
		},
	}
	if !v6 {
		return m
	}
	chain := func(headers ...byte) form {
		return func(from, to netip.Addr, p uint16) [][]byte {
			next, body := byte(unix.IPPROTO_TCP), syn(from, to, p, 443)
			for _, h := range headers {
				body = append(extension(h, next), body...)
				next = h
			}
			return [][]byte{datagram(from, to, next, body, 0, 0, false)}
		}
	}
	m["hop by hop"] = chain(0)
	m["destination options"] = chain(60)
	m["two destination options"] = chain(60, 60)
	m["hop by hop and destination"] = chain(60, 0)
	m["a fragment that is whole"] = chain(44)
	return m
}

// extension is an 8-byte header of RFC 8200 with padding alone.
func extension(kind, next byte) []byte {
	if kind == 44 {
		return []byte{next, 0, 0, 0, 0, 0, 0, 7}
	}
	return []byte{next, 0, 1, 4, 0, 0, 0, 0} // PadN
}

// fragments cuts a segment n times, each size bytes behind the last; data as
// long as it takes goes with the segment (RFC 9293 allows it).
func fragments(from, to netip.Addr, sport uint16, n, size int) [][]byte {
	body := syn(from, to, sport, 443, make([]byte, max(0, n*size+100-20))...)
	var out [][]byte
	for i := range n + 1 {
		begin, end := i*size, (i+1)*size
		more := i < n
		if !more {
			end = len(body)
		}
		if !from.Is6() {
			out = append(out, datagram(from, to, unix.IPPROTO_TCP, body[begin:end], sport, uint16(begin), more))
			continue
		}
		h := []byte{unix.IPPROTO_TCP, 0, 0, 0, 0, 0, 0, 0}
		place := uint16(begin)
		if more {
			place |= 1
		}
		binary.BigEndian.PutUint16(h[2:], place)
		binary.BigEndian.PutUint32(h[4:], uint32(sport))
		out = append(out, datagram(from, to, unix.IPPROTO_FRAGMENT, append(h, body[begin:end]...), 0, 0, false))
	}
	return out
}
