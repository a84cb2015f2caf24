package nft_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
	"gatehouse/netfilter"
	"gatehouse/netfilter/allowlist"
	"gatehouse/netfilter/nft"
	"gatehouse/tests/netns"
)

func TestMain(m *testing.M) {
	netns.Main(m, map[string]func([]string, io.Writer) error{"unprivileged": unprivileged, "knock": knock, "hold": hold, "timed": timed})
}

// unprivileged gives up its rights and tries all three.
func unprivileged(_ []string, w io.Writer) error {
	if err := unix.Setresuid(65534, 65534, 65534); err != nil {
		return err
	}
	_, err := nft.Counters()
	for what, err := range map[string]error{"apply": nft.Apply(netfilter.Rules(netfilter.State{})), "counters": err, "remove": nft.Remove()} {
		if !errors.Is(err, nft.ErrNotInKernel) {
			return fmt.Errorf("%s without CAP_NET_ADMIN: %v, want ErrNotInKernel", what, err)
		}
	}
	_, err = fmt.Fprint(w, "refused")
	return err
}

func TestWithoutRightsItSaysSo(t *testing.T) {
	if got := netns.New(t, "box").Run(t, "unprivileged"); got != "refused" {
		t.Errorf("unprivileged: %q", got)
	}
}

func TestCountersWithoutTable(t *testing.T) {
	netns.New(t, "box").Do(t, func() error {
		if _, err := nft.Counters(); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("counters before any rules: %v, want fs.ErrNotExist", err)
		}
		return nil
	})
}

func states() map[string]netfilter.State {
	onLink := []netip.Prefix{netip.MustParsePrefix("192.0.2.5/24"), netip.MustParsePrefix("2001:db8:1::5/64"), netip.MustParsePrefix("fe80::5/64")}
	m := make(map[string]netfilter.State)
	for _, phase := range []control.State{control.StateStarting, control.StateUnclaimed, control.StateLocked, control.StateReady} {
		m["box-"+string(phase)] = netfilter.State{Phase: phase, OnLink: onLink, Lists: netfilter.Lists{Off: true}}
		m["hosted-"+string(phase)] = netfilter.State{Phase: phase, OnLink: onLink, Form: netfilter.Hosted, Ports: netfilter.Ports{HTTP: 8080, HTTPS: 8443}, Lists: netfilter.Lists{Off: true}}
	}
	lists := netfilter.Lists{Generation: 17, Names: []string{"office", "branch-2"}}
	m["box-lists"] = netfilter.State{Phase: control.StateReady, OnLink: onLink, Lists: lists}
	lists.Generation = 18
	m["hosted-lists"] = netfilter.State{Phase: control.StateReady, OnLink: onLink, Form: netfilter.Hosted, Ports: netfilter.Ports{HTTP: 8080, HTTPS: 8443}, Lists: lists}
	m["hosted-address"] = netfilter.State{Phase: control.StateUnclaimed, OnLink: onLink, Form: netfilter.Hosted,
		Ports: netfilter.Ports{HTTP: 8080, HTTPS: 8443, HTTPAt: netip.MustParseAddr("192.0.2.5"), HTTPSAt: netip.MustParseAddr("2001:db8:1::5")}}
	m["box-nobody"] = netfilter.State{Phase: control.StateReady, OnLink: onLink}
	return m
}

// TestKernelHoldsTheGoldenRules loads every golden state twice, over each
// other, and compares what nft reads from the kernel with the golden text.
func TestKernelHoldsTheGoldenRules(t *testing.T) {
	h := netns.New(t, "box")
	for name, s := range states() {
		want, err := os.ReadFile(filepath.Join("..", "testdata", name+".nft"))
		if err != nil {
			t.Fatal(err)
		}
		fresh := netns.New(t, "fresh")
		for _, h := range []*netns.Host{fresh, h} {
			h.Do(t, func() error { return nft.Fill(some(netfilter.Rules(s).Sets())) })
			for range 2 {
				h.Do(t, func() error { return nft.Apply(netfilter.Rules(s)) })
				got := h.Command(t, "nft", "--stateless", "--terse", "list", "ruleset")
				if canonical(got) != canonical(string(want)) {
					t.Fatalf("%s in the kernel is\n%s", name, got)
				}
			}
		}
		if got := fresh.Command(t, "nft", "--stateless", "--terse", "list", "ruleset"); got != string(want) {
			t.Errorf("%s in a fresh kernel is not byte for byte the golden text:\n%s", name, got)
		}
	}
}

// some fills sets with a range each, up to the last address there is.
func some(names []netfilter.SetName) []netfilter.Set {
	var sets []netfilter.Set
	for _, n := range names {
		r := allowlist.Range{First: netip.MustParseAddr("203.0.113.0"), Last: netip.MustParseAddr("255.255.255.255")}
		if n.V6 {
			r = allowlist.Range{First: netip.MustParseAddr("2001:db8::"), Last: netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")}
		}
		sets = append(sets, netfilter.Set{SetName: n, Ranges: []allowlist.Range{r}})
	}
	return sets
}

// canonical leaves out in which order counters were made, which is history and
// not rules: those that stay keep their place when others come.
func canonical(s string) string {
	lines := strings.Split(s, "\n")
	var counters, rest []string
	for i := 0; i < len(lines); i++ {
		if strings.HasPrefix(lines[i], "\tcounter ") {
			counters = append(counters, lines[i])
			i += 2
			continue
		}
		rest = append(rest, lines[i])
	}
	return fmt.Sprint(len(counters)) + strings.Join(rest, "\n")
}

// TestCountersSurviveAChangeOfState shows that the page does not start from
// zero each time that an address changes.
func TestCountersSurviveAChangeOfState(t *testing.T) {
	h := netns.New(t, "box")
	s := states()
	h.Do(t, func() error { return nft.Apply(netfilter.Rules(s["box-starting"])) })
	h.Command(t, "ping", "-c", "3", "-i", "0.01", "127.0.0.1")
	read := func() (m map[string]uint64) {
		h.Do(t, func() error {
			all, err := nft.Counters()
			m = make(map[string]uint64)
			for _, c := range all {
				m[c.Name] = c.Packets
			}
			return err
		})
		return m
	}
	before := read()
	if before[netfilter.Sent] == 0 {
		t.Fatalf("nothing was counted: %v", before)
	}
	h.Do(t, func() error { return nft.Apply(netfilter.Rules(s["box-ready"])) })
	after := read()
	if after[netfilter.Sent] < before[netfilter.Sent] {
		t.Errorf("sent: %d, then %d", before[netfilter.Sent], after[netfilter.Sent])
	}
	if _, there := after[netfilter.WebRefused]; there {
		t.Errorf("a counter that no rule uses was left: %v", after)
	}
	if len(after) != len(netfilter.Rules(s["box-ready"]).Counters()) {
		t.Errorf("counters %v", after)
	}
}

// TestWhatOthersChangedIsMended shows that the table's content is replaced
// whatever was done to it, and that other tables are not touched.
func TestWhatOthersChangedIsMended(t *testing.T) {
	want := netfilter.Rules(states()["box-unclaimed"])
	for _, tamper := range []string{
		"insert rule inet gatehouse raw accept",
		"flush table inet gatehouse",
		"delete table inet gatehouse",
		"add chain inet gatehouse extra { type filter hook input priority -500; }",
		"add chain inet gatehouse input { policy accept; }",
		"flush chain inet gatehouse web; add rule inet gatehouse web accept",
		"add counter inet gatehouse more",
		"delete table inet gatehouse; add table inet gatehouse; add chain inet gatehouse raw { type filter hook postrouting priority 0; }",
	} {
		h := netns.New(t, "box")
		h.Command(t, "nft", "add table inet theirs; add counter inet theirs kept")
		h.Do(t, func() error { return nft.Apply(want) })
		h.Command(t, "nft", tamper)
		h.Do(t, func() error { return nft.Apply(want) })
		if got := h.Command(t, "nft", "--stateless", "list", "table", "inet", "gatehouse"); canonical(got) != canonical(want.String()) {
			t.Errorf("after %q and a new load the kernel holds\n%s", tamper, got)
		}
		if got := h.Command(t, "nft", "list", "table", "inet", "theirs"); !strings.Contains(got, "counter kept") {
			t.Errorf("after %q the other table is\n%s", tamper, got)
		}
	}
}

// TestManyPrefixes loads more rules than default socket buffers take.
func TestManyPrefixes(t *testing.T) {
	var many []netip.Prefix
	for i := range 300 {
		many = append(many, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), byte(i >> 8), 1}), 32))
	}
	rs := netfilter.Rules(netfilter.State{Phase: control.StateUnclaimed, OnLink: many})
	for i := range rs.Chains { // the rule set itself is bounded; the door must not be
		if rs.Chains[i].Name == "web" {
			r := rs.Chains[i].Rules
			for range 40 {
				rs.Chains[i].Rules = append(r[:len(r)-1:len(r)-1], rs.Chains[i].Rules...)
			}
		}
	}
	h := netns.New(t, "box")
	h.Do(t, func() error { return nft.Apply(rs) })
}
