package netns

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/netfilter"
	"gatehouse/netfilter/nft"
)

// lab is a box, a router on its link, and a host behind the router.
type lab struct {
	box, near, far *Host
}

const (
	boxV4, boxV6   = "192.0.2.5", "2001:db8:1::5"
	nearV4, nearV6 = "192.0.2.1", "2001:db8:1::1"
	farV4, farV6   = "198.51.100.9", "2001:db8:2::9"
)

func newLab(t *testing.T) lab {
	t.Helper()
	l := lab{New(t, "box"), New(t, "near"), New(t, "far")}
	Connect(t, l.box, "eth0", l.near, "lan")
	Connect(t, l.near, "wan", l.far, "eth0")
	l.near.Forward(t)
	l.box.Up(t, "eth0", boxV4+"/24", boxV6+"/64")
	l.near.Up(t, "lan", nearV4+"/24", nearV6+"/64")
	l.near.Up(t, "wan", "198.51.100.1/24", "2001:db8:2::1/64")
	l.far.Up(t, "eth0", farV4+"/24", farV6+"/64")
	l.box.Route(t, "0.0.0.0/0", nearV4, 0)
	l.box.Route(t, "::/0", nearV6, 0)
	l.far.Route(t, "0.0.0.0/0", "198.51.100.1", 0)
	l.far.Route(t, "::/0", "2001:db8:2::1", 0)
	for _, h := range []*Host{l.box, l.near, l.far} { // or a scan would see a thousandth of the answers
		h.Sysctl(t, "net/ipv4/icmp_ratelimit", "0")
		h.Sysctl(t, "net/ipv6/icmp/ratelimit", "0")
	}
	return l
}

// everywhere are listeners on more ports than may ever answer.
var everywhere = []string{"tcp/22", "tcp/80", "tcp/443", "tcp/3000", "tcp/8080", "tcp/8443", "udp/53", "udp/80", "udp/161", "udp/443", "udp/546", "udp/5353", "udp/68"}

func (l lab) listen(t *testing.T) {
	t.Helper()
	waitLine(t, l.box.Start(t, "listen", everywhere...))
}

func (l lab) apply(t *testing.T, s netfilter.State) netfilter.RuleSet {
	t.Helper()
	s.OnLink = l.box.Addresses(t, "eth0")
	if len(s.Lists.Names) == 0 {
		s.Lists.Off = true
	}
	rs := netfilter.Rules(s)
	l.box.Do(t, func() error { return nft.Apply(rs) })
	return rs
}

func (l lab) counters(t *testing.T) map[string]uint64 {
	t.Helper()
	got := make(map[string]uint64)
	l.box.Do(t, func() error {
		all, err := nft.Counters()
		for _, c := range all {
			got[c.Name] = c.Packets
		}
		return err
	})
	return got
}

var source = uint16(30000)

// scan scans all ports of the box from a host and returns what answered.
func (l lab) scan(t *testing.T, from *Host, proto string, v6 bool) Found {
	t.Helper()
	source++ // a fresh one, so that no old connection is continued
	ask := Scan{Proto: proto, Source: source}
	switch {
	case from == l.near && v6:
		ask.Link, ask.From, ask.To = "lan", nearV6, boxV6
	case from == l.near:
		ask.Link, ask.From, ask.To = "lan", nearV4, boxV4
	case v6:
		ask.Link, ask.From, ask.To = "eth0", farV6, boxV6
	default:
		ask.Link, ask.From, ask.To = "eth0", farV4, boxV4
	}
	b, err := json.Marshal(ask)
	if err != nil {
		t.Fatal(err)
	}
	var got Found
	if err := json.Unmarshal([]byte(from.Run(t, "scan", string(b))), &got); err != nil {
		t.Fatal(err)
	}
	return got
}

// arrived is how many packets the box has judged, by any rule.
func arrived(c map[string]uint64) uint64 {
	return c[netfilter.WebOnLink] + c[netfilter.WebOpen] + c[netfilter.WebRefused] + c[netfilter.WebUDP] + c[netfilter.OtherDropped] + c[netfilter.DHCP] + c[netfilter.MDNS] + c[netfilter.MDNSDropped] + c[netfilter.InvalidPackets]
}

func (f Found) text() string {
	var parts []string
	for kind, ports := range f {
		if len(ports) > 12 {
			parts = append(parts, fmt.Sprintf("%s: %d ports, %v…", kind, len(ports), ports[:12]))
			continue
		}
		parts = append(parts, fmt.Sprintf("%s: %v", kind, ports))
	}
	slices.Sort(parts)
	return strings.Join(parts, "; ")
}

func family(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}

func TestNET1_OnlyTwoPorts(t *testing.T) {
	l := newLab(t)
	l.listen(t)

	// Without rules everything answers: the scanner can see what it looks for.
	for _, v6 := range []bool{false, true} {
		if got := l.scan(t, l.far, "tcp", v6); !slices.Equal(got["syn-ack"], []uint16{22, 80, 443, 3000, 8080, 8443}) || len(got["rst"]) < 65000 {
			t.Fatalf("%s without rules: %s; the scanner is blind", family(v6), got.text())
		}
		if got := l.scan(t, l.near, "udp", v6); !slices.Equal(got["udp"], []uint16{53, 68, 80, 161, 443, 546, 5353}) || len(got["unreachable"]) < 100 {
			t.Fatalf("%s without rules: %s; the scanner is blind", family(v6), got.text())
		}
	}

	for _, phase := range []control.State{control.StateStarting, control.StateUnclaimed, control.StateLocked, control.StateReady} {
		l.apply(t, netfilter.State{Phase: phase})
		for _, from := range []*Host{l.near, l.far} {
			open := from == l.near && (phase == control.StateUnclaimed || phase == control.StateLocked) || phase == control.StateReady
			for _, v6 := range []bool{false, true} {
				for _, proto := range []string{"tcp", "udp"} {
					before := arrived(l.counters(t))
					got := l.scan(t, from, proto, v6)
					where := fmt.Sprintf("%s, from %s, %s %s", phase, from.Name, proto, family(v6))
					if n := arrived(l.counters(t)) - before; n < 65535 {
						t.Errorf("%s: only %d of 65535 packets reached the rules; the scan proves nothing", where, n)
					}
					want := "" // silence
					if open && proto == "tcp" {
						want = "syn-ack: [80 443]"
					}
					if got.text() != want {
						t.Errorf("%s: answered %q, want %q", where, got.text(), want)
					}
				}
			}
		}
	}
}

// TestNET1_RulesBeforeLink shows that a box never answers before it has rules,
// even to someone who knocks from the moment the cable is in.
func TestNET1_RulesBeforeLink(t *testing.T) {
	for _, filtered := range []bool{true, false} {
		t.Run("filtered="+strconv.FormatBool(filtered), func(t *testing.T) {
			l := newLab(t)
			l.listen(t)
			l.box.Down(t, "eth0")
			ask, err := json.Marshal(map[string]any{"Link": "lan", "From": nearV4, "To": boxV4, "Port": 443, "For": 6 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			p := l.near.Start(t, "knock", string(ask))
			var line string
			if _, err := fmt.Fscanln(p.Stdout(), &line); err != nil || line != "knocking" {
				t.Fatalf("knocking did not begin: %v %q", err, line)
			}
			if filtered {
				rs := netfilter.Rules(netfilter.State{Phase: control.StateStarting, OnLink: []netip.Prefix{netip.MustParsePrefix(boxV4 + "/24")}})
				l.box.Do(t, func() error { return nft.Apply(rs) })
			}
			l.box.Up(t, "eth0")
			time.Sleep(2500 * time.Millisecond) // the knocker's neighbour entry may take a second to recover
			opened := time.Now()
			l.apply(t, netfilter.State{Phase: control.StateUnclaimed})
			var first int64
			if _, err := fmt.Fscanln(p.Stdout(), &first); err != nil {
				t.Fatal(err)
			}
			switch at := time.Unix(0, first); {
			case first == 0:
				t.Error("443 never answered; the knocking proves nothing")
			case filtered && at.Before(opened):
				t.Errorf("443 answered %v before it was opened", opened.Sub(at))
			case !filtered && !at.Before(opened):
				t.Error("without rules 443 did not answer at once; the knocking proves nothing")
			}
		})
	}
}

// TestNET1_NeighboursAndBigPackets shows that closing the box does not end IPv6
// or path MTU discovery.
func TestNET1_NeighboursAndBigPackets(t *testing.T) {
	l := newLab(t)
	l.listen(t)
	l.apply(t, netfilter.State{Phase: control.StateReady})
	for _, to := range []string{"[" + boxV6 + "]:443", boxV4 + ":443"} {
		l.near.FlushNeighbours(t, "lan")
		l.box.FlushNeighbours(t, "eth0")
		if got := l.near.Run(t, "fetch", to); got != strconv.Itoa(bulk) {
			t.Errorf("%s with fresh neighbours gave %s bytes, want %d", to, got, bulk)
		}
	}
	if l.counters(t)[netfilter.Neighbour] == 0 {
		t.Error("no neighbour discovery was counted; it went past the rules")
	}

	// The far link takes 1300 bytes, and the far host does not say so.
	l.near.MTU(t, "wan", 1300)
	l.far.MTU(t, "eth0", 1300)
	l.far.Route(t, "192.0.2.0/24", "198.51.100.1", 1460)
	l.far.Route(t, "2001:db8:1::/64", "2001:db8:2::1", 1440)
	for _, to := range []string{"[" + boxV6 + "]:443", boxV4 + ":443"} {
		before := l.counters(t)[netfilter.ICMPErrors]
		if got := l.far.Run(t, "fetch", to); got != strconv.Itoa(bulk) {
			t.Errorf("%s over a narrow link gave %s bytes, want %d", to, got, bulk)
		}
		if l.counters(t)[netfilter.ICMPErrors] == before {
			t.Errorf("%s: no packet-too-big was counted; the link was not narrow", to)
		}
	}
}

// TestNET1_EchoIsLimited shows that pings are answered, but not as many as come,
// and that they do not take neighbour discovery with them.
func TestNET1_EchoIsLimited(t *testing.T) {
	l := newLab(t)
	l.listen(t)
	l.apply(t, netfilter.State{Phase: control.StateReady})
	for _, to := range []string{boxV4, boxV6} {
		out := l.near.Command(t, "ping", "-c", "400", "-i", "0.002", "-W", "1", to)
		var answered int
		for line := range strings.Lines(out) {
			if strings.Contains(line, "packets transmitted") {
				fmt.Sscanf(strings.TrimSpace(strings.Split(line, ",")[1]), "%d received", &answered)
			}
		}
		if answered < 20 || answered > 200 {
			t.Errorf("%d of 400 pings to %s were answered, want some and not most\n%s", answered, to, out)
		}
	}
	if c := l.counters(t); c[netfilter.EchoOver] == 0 {
		t.Errorf("no ping was over the limit: %v", c)
	}
	l.near.FlushNeighbours(t, "lan")
	if got := l.near.Run(t, "fetch", "["+boxV6+"]:443"); got != strconv.Itoa(bulk) {
		t.Errorf("after the pings IPv6 gave %s bytes, want %d", got, bulk)
	}
}

// TestNET1_RevokedClientIsCut shows that a connection let in while ready does
// not outlive the state.
func TestNET1_RevokedClientIsCut(t *testing.T) {
	l := newLab(t)
	l.listen(t)
	l.apply(t, netfilter.State{Phase: control.StateReady})
	if got := l.far.Run(t, "fetch", boxV4+":443"); got != strconv.Itoa(bulk) {
		t.Fatalf("ready: %s bytes, want %d", got, bulk)
	}
	l.apply(t, netfilter.State{Phase: control.StateLocked})
	before := l.counters(t)
	if got := l.scan(t, l.far, "tcp", false); len(got) != 0 {
		t.Errorf("locked, with connections known from before: %s", got.text())
	}
	if after := l.counters(t); after[netfilter.WebRefused]-before[netfilter.WebRefused] < 2 {
		t.Errorf("refusals were not counted: %v then %v", before, after)
	}
}

func TestHostedLeavesOtherPortsAlone(t *testing.T) {
	l := newLab(t)
	l.listen(t)
	foreign := "table inet theirs {\n\tchain input {\n\t\ttype filter hook input priority filter; policy accept;\n\t\ttcp dport 3000 counter packets 0 bytes 0 accept\n\t}\n}\n"
	l.box.Command(t, "sh", "-c", "printf '%s' '"+foreign+"' | nft -f -")
	ours := netfilter.Ports{HTTP: 8080, HTTPS: 8443}
	for _, phase := range []control.State{control.StateUnclaimed, control.StateReady, control.StateStarting} {
		l.apply(t, netfilter.State{Phase: phase, Form: netfilter.Hosted, Ports: ours})
		for _, from := range []*Host{l.near, l.far} {
			got := l.scan(t, from, "tcp", from == l.far)
			want := []uint16{22, 80, 443, 3000}
			if phase == control.StateReady || (phase == control.StateUnclaimed && from == l.near) {
				want = append(want, 8080, 8443)
			}
			if !slices.Equal(got["syn-ack"], want) || len(got["rst"]) < 65000 {
				t.Errorf("%s, from %s: %s, want connections to %v and closed ports that say so", phase, from.Name, got.text(), want)
			}
		}
	}
	if got := l.scan(t, l.near, "udp", false); len(got["udp"]) != 7 {
		t.Errorf("hosted, UDP: %s, want all seven listeners", got.text())
	}
	// A redirection of the machine's own leads to our port past the first look.
	l.box.Command(t, "nft", "add table ip nat; add chain ip nat pre { type nat hook prerouting priority -100; }; add rule ip nat pre tcp dport 9999 redirect to :8443")
	l.apply(t, netfilter.State{Phase: control.StateUnclaimed, Form: netfilter.Hosted, Ports: ours})
	if got := l.scan(t, l.near, "tcp", false); !slices.Contains(got["syn-ack"], 9999) {
		t.Errorf("on-link, redirected: %s, want 9999 too", got.text())
	}
	if got := l.scan(t, l.far, "tcp", false); slices.Contains(got["syn-ack"], 9999) || l.counters(t)[netfilter.WebLate] == 0 {
		t.Errorf("off-link, redirected: %s; counters %v", got.text(), l.counters(t))
	}
	l.box.Do(t, nft.Remove)
	l.box.Do(t, nft.Remove) // nothing there is no error
	if out := l.box.Command(t, "nft", "--stateless", "list", "table", "inet", "theirs"); !strings.Contains(out, "tcp dport 3000") {
		t.Errorf("after removing ours, theirs is\n%s", out)
	}
	l.box.Do(t, func() error {
		if _, err := nft.Counters(); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("counters of a table that is gone: %v", err)
		}
		return nil
	})
}

// TestOnLinkIsNarrow shows that a wide prefix on the link does not let half of
// the world in.
func TestOnLinkIsNarrow(t *testing.T) {
	rs := netfilter.Rules(netfilter.State{Phase: control.StateUnclaimed, OnLink: []netip.Prefix{netip.MustParsePrefix("192.0.2.5/0"), netip.MustParsePrefix("2001:db8:1::5/3")}})
	l := newLab(t)
	l.listen(t)
	l.box.Do(t, func() error { return nft.Apply(rs) })
	for _, v6 := range []bool{false, true} {
		if got := l.scan(t, l.far, "tcp", v6); len(got) != 0 {
			t.Errorf("a prefix as wide as the world, %s from far: %s", family(v6), got.text())
		}
		if got := l.scan(t, l.near, "tcp", v6); got.text() != "syn-ack: [80 443]" {
			t.Errorf("%s from near: %s", family(v6), got.text())
		}
	}
}
