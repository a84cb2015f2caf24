package netns

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
	"gatehouse/netfilter"
	"gatehouse/netfilter/allowlist"
	"gatehouse/netfilter/nft"
	"gatehouse/netfilter/xdp"
)

// newStage is an early stage for a host, kept in a bpf file system of the test's own.
func newStage(t testing.TB, box *Host, ports ...uint16) xdp.Stage {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		t.Fatalf("mounting a bpf file system: %v", err)
	}
	s := xdp.Stage{Dir: filepath.Join(dir, "gatehouse"), Ports: ports, Generic: true}
	if err := os.Mkdir(s.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(xdp.Remove(s.Dir), unix.Unmount(dir, 0)); err != nil {
			t.Error(err)
		}
	})
	return s
}

// installEarly is what the filter role does.
func installEarly(s xdp.Stage, p allowlist.Policy, generation uint64) error {
	lists, sets := netfilter.Sets(p, generation)
	if err := nft.Fill(sets); err != nil {
		return err
	}
	f, err := xdp.Fill(p)
	if err != nil {
		return err
	}
	if !f.Exact {
		return errors.New("the tries are not exact")
	}
	if err := xdp.Open(s.Dir, 0); err != nil {
		return err
	}
	if err := nft.Apply(netfilter.Rules(netfilter.State{Phase: control.StateReady, Lists: lists})); err != nil {
		return err
	}
	links, err := s.Close(f, generation)
	if err == nil && (len(links.With) != 1 || len(links.Without) != 0) {
		err = fmt.Errorf("the stage is at %v and not at %v; want one link", links.With, links.Without)
	}
	return errors.Join(err, f.Release())
}

// early sends a packet to 443 and waits until one of the stages has seen it.
func (o observer) early(t testing.TB, s xdp.Stage, g gun, datagram []byte) (dropped, arrived, passed bool) {
	t.Helper()
	n, before := early(t, s), o.counts(t)
	if err := g.shoot(datagram); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		dropped = early(t, s) > n
		now := o.counts(t)
		if arrived = now[arrivedAt(443)] > before[arrivedAt(443)]; arrived || dropped {
			now = o.counts(t) // it may have been between the two
			return dropped, arrived, now[passedAt(443)] > before[passedAt(443)]
		}
	}
	t.Fatal("the packet was seen by neither stage")
	return false, false, false
}

func early(t testing.TB, s xdp.Stage) uint64 {
	t.Helper()
	c, err := xdp.Counter(s.Dir)
	if err != nil {
		t.Fatal(err)
	}
	return c.Packets
}

// TestNET8_EarlyStageAgainstModel asks both stages, by packets, about addresses
// that the policy judges too: the early one drops every stranger, the lists
// behind it stay as they are, and together they let in whom the policy does.
func TestNET8_EarlyStageAgainstModel(t *testing.T) {
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
	s := newStage(t, box, 80, 443)
	p := messy(500)
	box.Do(t, func() error { return installEarly(s, p, 1) })
	var all []allowlist.Range
	for _, l := range p.Lists {
		all = append(all, l.Ranges...)
	}
	in, out := 0, 0
	for _, to := range []netip.Addr{netip.MustParseAddr("192.0.2.5"), netip.MustParseAddr("2001:db8:1::5")} {
		for _, from := range sources(all, to.Is6(), n) {
			want := p.Admits(from) != 0
			dropped, arrived, passed := o.early(t, s, g, knockAt(from, to, 40000, 443))
			if passed != want || arrived != want || dropped == want {
				t.Errorf("%s: the early stage drops it: %t, it reaches the lists: %t, they let it in: %t, the model: %t", from, dropped, arrived, passed, want)
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

// TestNET8_EarlyStagePassesWhatItCannotTell shows that everything the early
// stage is unsure of goes on to the lists, which drop it.
func TestNET8_EarlyStagePassesWhatItCannotTell(t *testing.T) {
	box, peer := New(t, "box"), New(t, "peer")
	Connect(t, box, "eth0", peer, "eth0")
	box.Up(t, "eth0", "192.0.2.5/24", "2001:db8:1::5/64")
	peer.Up(t, "eth0", "192.0.2.1/24", "2001:db8:1::1/64")
	o := observe(t, box, false)
	g := newGun(t, box, peer, "eth0")
	s := newStage(t, box, 80, 443)
	a := netip.MustParseAddr
	p := allowlist.Policy{Enabled: true, Lists: []allowlist.List{{Name: "friends", Enabled: true, Ranges: []allowlist.Range{
		{First: a("198.51.100.0"), Last: a("198.51.100.255")}, {First: a("2001:db8:2::"), Last: a("2001:db8:2::ffff")}}}}}
	box.Do(t, func() error { return installEarly(s, p, 1) })
	port := uint16(20000)
	for _, c := range []struct{ stranger, to netip.Addr }{{a("203.0.113.9"), a("192.0.2.5")}, {a("2001:db8:3::9"), a("2001:db8:1::5")}} {
		for name, form := range forms(c.to.Is6()) {
			port++
			before := early(t, s)
			arrived, passed, delivered := o.one(t, g, form(c.stranger, c.to, port)...)
			if dropped := early(t, s) != before; dropped != (name == "whole") || arrived == dropped || passed || delivered {
				t.Errorf("%s from %s: the early stage drops it: %t, arrived %t, passed %t, delivered %t", name, c.stranger, dropped, arrived, passed, delivered)
			}
		}
		quiet := func(what string, frames ...[]byte) {
			t.Helper()
			before := early(t, s)
			for _, f := range frames {
				if err := unix.Sendto(g.fd, f, 0, &unix.SockaddrLinklayer{Ifindex: g.link}); err != nil {
					t.Fatal(err)
				}
			}
			o.settled(t)
			if early(t, s) != before {
				t.Errorf("%s from %s is dropped by the early stage", what, c.stranger)
			}
		}
		whole := g.frame(knockAt(c.stranger, c.to, port, 443))
		quiet("another port", g.frame(knockAt(c.stranger, c.to, port, 8443)))
		quiet("UDP", g.frame(datagram(c.stranger, c.to, unix.IPPROTO_UDP, syn(c.stranger, c.to, port, 443), 0, 0, false)))
		quiet("a tagged frame", append(append(append([]byte{}, whole[:12]...), 0x81, 0, 0, 5), whole[12:]...))
		quiet("a frame for somebody else", append([]byte{2, 9, 9, 9, 9, 9}, whole[6:]...))
		quiet("half a TCP header", g.frame(datagram(c.stranger, c.to, unix.IPPROTO_TCP, syn(c.stranger, c.to, port, 443)[:12], 0, 0, false)))
		for n := 14; n < len(whole); n++ {
			quiet(fmt.Sprintf("a frame of %d bytes", n), whole[:n])
			if n > 40 && n < len(whole)-4 {
				n += 3
			}
		}
	}
	// Options before the TCP header are read over.
	options := knockAt(a("203.0.113.9"), a("192.0.2.5"), port, 443)
	options = append(append(append([]byte{}, options[:20]...), 1, 1, 1, 0), options[20:]...)
	options[0], options[3], options[10], options[11] = 4<<4|6, options[3]+4, 0, 0
	check := sum(options[:24])
	options[10], options[11] = byte(check>>8), byte(check)
	before := early(t, s)
	if arrived, _, _ := o.one(t, g, options); arrived || early(t, s) != before+1 {
		t.Errorf("with IP options: arrived %t, the early stage drops %d", arrived, early(t, s)-before)
	}
}

// TestNET8_EarlyStageSwapLosesNobody replaces lists in both stages under live
// traffic. The stage is for one port at a time: friends knock at 443, strangers
// at 80, so whatever it counts is of one kind.
func TestNET8_EarlyStageSwapLosesNobody(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, n := range earlySizes() {
			for _, port := range []uint16{443, 80} {
				var s xdp.Stage
				got := raceAt(t, newCrowd(n, v6), func(box *Host) reload {
					s = newStage(t, box, port)
					return func(c crowd, generation uint64) error { return installEarly(s, c.policy(), generation) }
				}, reloads())
				dropped := early(t, s)
				t.Logf("%s, %d ranges, stage at port %d: %v; %d dropped early", family(v6), n, port, got, dropped)
				if got.lost != 0 || got.wrong != 0 || port == 443 && dropped != 0 {
					t.Errorf("%s, %d ranges: %v; %d dropped early at port %d", family(v6), n, got, dropped, port)
				}
				if port == 80 && dropped == 0 {
					t.Errorf("%s, %d ranges: the early stage dropped nothing: the race proves nothing", family(v6), n)
				}
			}
		}
	}
}

// earlySizes are of lists that the race replaces; random ranges of them take ten
// times as many prefixes, and all of it shares two processors with a flood.
func earlySizes() []int {
	if soak() {
		return []int{1000, 10_000}
	}
	return []int{1000}
}

// TestNET8_EarlyStageOpensForOtherRules shows that a stage never outlives the
// rules that it stands before: other lists, another state, or none.
func TestNET8_EarlyStageOpensForOtherRules(t *testing.T) {
	box, peer := New(t, "box"), New(t, "peer")
	Connect(t, box, "eth0", peer, "eth0")
	box.Up(t, "eth0", "192.0.2.5/24")
	peer.Up(t, "eth0")
	o := observe(t, box, true)
	g := newGun(t, box, peer, "eth0")
	s := newStage(t, box, 80, 443)
	if err := xdp.Open(s.Dir, 0); err != nil {
		t.Errorf("opening a stage that is not there: %v", err)
	}
	a := netip.MustParseAddr
	p := allowlist.Policy{Enabled: true, Lists: []allowlist.List{{Name: "friends", Enabled: true, Ranges: []allowlist.Range{{First: a("198.51.100.1"), Last: a("198.51.100.9")}}}}}
	knock := knockAt(a("203.0.113.9"), a("192.0.2.5"), 40000, 443)
	reaches := func() bool { arrived, _, _ := o.one(t, g, knock); return arrived }
	box.Do(t, func() error { return installEarly(s, p, 7) })
	if reaches() {
		t.Error("closed, a stranger reaches the lists")
	}
	for _, c := range []struct {
		unless uint64
		want   bool
	}{{7, false}, {8, true}, {7, true}} {
		if err := xdp.Open(s.Dir, c.unless); err != nil {
			t.Fatal(err)
		}
		if got := reaches(); got != c.want {
			t.Errorf("opened unless it is %d: a stranger reaches the lists: %t, want %t", c.unless, got, c.want)
		}
	}
	// Where a link came in its place, the stage is put there anew.
	box.Do(t, func() error { return installEarly(s, p, 9) })
	if reaches() {
		t.Error("closed anew, a stranger reaches the lists")
	}
	if err := xdp.Remove(s.Dir); err != nil {
		t.Fatal(err)
	}
	if !reaches() {
		t.Error("the stage is removed, and still drops")
	}
	if left, err := os.ReadDir(s.Dir); err != nil || len(left) != 0 {
		t.Errorf("removed, it leaves %v, %v", left, err)
	}
}
