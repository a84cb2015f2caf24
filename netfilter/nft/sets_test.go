package nft_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gatehouse/appliance/control"
	"gatehouse/netfilter"
	"gatehouse/netfilter/allowlist"
	"gatehouse/netfilter/nft"
	"gatehouse/tests/netns"
)

// ranges makes n that are neither adjacent nor overlapping, in ascending order.
func ranges(n int, v6 bool) []allowlist.Range {
	out := make([]allowlist.Range, n)
	step := uint64(1<<32-1) / uint64(n)
	for i := range out {
		first := uint64(i)*step + rand.Uint64N(step/2)
		last := first + rand.Uint64N(step/2-1)
		out[i] = allowlist.Range{First: address(first, v6), Last: address(last, v6)}
	}
	return out
}

// address puts 32 bits into an address of either family.
func address(n uint64, v6 bool) netip.Addr {
	if !v6 {
		return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
	}
	return netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: byte(n >> 24), 3: byte(n >> 16), 4: byte(n >> 8), 15: byte(n)})
}

func policy(n int) allowlist.Policy {
	return allowlist.Policy{Enabled: true, Lists: []allowlist.List{
		{Name: "office", Enabled: true, Scopes: allowlist.Everything, Ranges: slices.Concat(ranges(n, false), ranges(n, true))},
		{Name: "old", Scopes: allowlist.Everything, Ranges: ranges(3, false)},
		{Name: "home", Enabled: true, Scopes: allowlist.Sites, Ranges: ranges(7, true)},
	}}
}

func install(p allowlist.Policy, generation uint64) error {
	lists, sets := netfilter.Sets(p, generation)
	return nft.Install(netfilter.Rules(netfilter.State{Phase: control.StateReady, Lists: lists}), sets)
}

// setNames are those that nft sees in our table.
func setNames(t *testing.T, h *netns.Host) []string {
	t.Helper()
	var names []string
	for line := range strings.Lines(h.Command(t, "nft", "--terse", "list", "table", "inet", "gatehouse")) {
		if name, ok := strings.CutPrefix(line, "\tset "); ok {
			names = append(names, strings.TrimSuffix(name, " {\n"))
		}
	}
	slices.Sort(names)
	return names
}

// script is what nft -f takes to make the set and fill it, in the same table.
func script(s netfilter.Set) string {
	var b strings.Builder
	key := "ipv4_addr"
	if s.V6 {
		key = "ipv6_addr"
	}
	fmt.Fprintf(&b, "add table inet gatehouse\nadd set inet gatehouse %s { type %s; flags interval; }\n", s.SetName, key)
	for chunk := range slices.Chunk(s.Ranges, 1000) {
		fmt.Fprintf(&b, "add element inet gatehouse %s {", s.SetName)
		for _, r := range chunk {
			if r.First == r.Last {
				fmt.Fprintf(&b, " %s,", r.First)
				continue
			}
			fmt.Fprintf(&b, " %s-%s,", r.First, r.Last)
		}
		b.WriteString(" }\n")
	}
	return b.String()
}

func writeScript(t testing.TB, s netfilter.Set) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "set.nft")
	if err := os.WriteFile(file, []byte(script(s)), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestNET2_InstallRefuses(t *testing.T) {
	h := netns.New(t, "box")
	h.Do(t, func() error { return install(policy(5), 1) })
	before := h.Command(t, "nft", "list", "ruleset")
	bad := func(r ...allowlist.Range) []netfilter.Set {
		return []netfilter.Set{{SetName: netfilter.SetName{List: "office", Generation: 2}, Ranges: r}}
	}
	a := netip.MustParseAddr
	for what, sets := range map[string][]netfilter.Set{
		"overlapping": bad(allowlist.Range{First: a("10.0.0.0"), Last: a("10.0.0.9")}, allowlist.Range{First: a("10.0.0.5"), Last: a("10.0.0.20")}),
		"v6 in v4":    bad(allowlist.Range{First: a("2001:db8::"), Last: a("2001:db8::1")}),
	} {
		h.Do(t, func() error {
			rs := netfilter.Rules(netfilter.State{Phase: control.StateReady, Lists: netfilter.Lists{Generation: 2, Names: []string{"office"}}})
			if err := nft.Install(rs, sets); err == nil {
				return fmt.Errorf("%s ranges were taken", what)
			}
			return nil
		})
		if after := h.Command(t, "nft", "list", "ruleset"); after != before {
			t.Errorf("after refused %s ranges the kernel holds\n%s\nwant\n%s", what, after, before)
		}
	}
	h.Do(t, func() error {
		if err := install(policy(5), 1); err == nil || !strings.Contains(err.Error(), "generation") {
			return fmt.Errorf("a generation that is in use: %v", err)
		}
		rs := netfilter.Rules(netfilter.State{Phase: control.StateReady, Lists: netfilter.Lists{Generation: 9, Names: []string{"office"}}})
		if err := nft.Apply(rs); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "office_4_9") {
			return fmt.Errorf("rules that ask sets that are not there: %v", err)
		}
		return nil
	})
	if after := h.Command(t, "nft", "list", "ruleset"); after != before {
		t.Errorf("after refusals the kernel holds\n%s\nwant\n%s", after, before)
	}
}

// TestNET2_KernelHoldsTheRanges compares the sets with what nft itself makes
// of the same ranges, edges included.
func TestNET2_KernelHoldsTheRanges(t *testing.T) {
	a := netip.MustParseAddr
	p := policy(2000)
	p.Lists = append(p.Lists,
		allowlist.List{Name: "edges", Enabled: true, Ranges: []allowlist.Range{
			{First: a("0.0.0.0"), Last: a("0.0.0.0")}, {First: a("10.0.0.0"), Last: a("10.0.0.0")}, {First: a("10.0.0.2"), Last: a("10.0.0.3")},
			{First: a("255.255.255.0"), Last: a("255.255.255.255")},
			{First: a("::"), Last: a("::1")}, {First: a("::ffff:0:0"), Last: a("::ffff:ffff:ffff")},
			{First: a("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), Last: a("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")},
		}},
		allowlist.List{Name: "all", Enabled: true, Ranges: []allowlist.Range{
			{First: a("0.0.0.0"), Last: a("255.255.255.255")}, {First: a("::"), Last: a("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")},
		}})
	h, theirs := netns.New(t, "box"), netns.New(t, "theirs")
	h.Do(t, func() error { return install(p, 3) })
	_, sets := netfilter.Sets(p, 3)
	if got := h.Command(t, "sh", "-c", "nft list ruleset | grep -c elements"); strings.TrimSpace(got) != fmt.Sprint(len(sets)-1) { // home has no IPv4
		t.Errorf("%s sets with elements, want %d", strings.TrimSpace(got), len(sets)-1)
	}
	for _, s := range sets {
		theirs.Command(t, "nft", "-f", writeScript(t, s))
		want := theirs.Command(t, "nft", "list", "set", "inet", "gatehouse", s.String())
		if got := h.Command(t, "nft", "list", "set", "inet", "gatehouse", s.String()); got != want {
			t.Errorf("%s in the kernel is\n%.2000s\nand nft makes\n%.2000s", s.SetName, got, want)
		}
	}
}

// TestNET2_SwapLeavesOnlyWhatIsUsed shows that neither a swap nor a fill that
// was never asked leaves anything behind, and that applying rules leaves the
// sets alone.
func TestNET2_SwapLeavesOnlyWhatIsUsed(t *testing.T) {
	h := netns.New(t, "box")
	names := func(generation uint64) []string {
		var out []string
		_, sets := netfilter.Sets(policy(1), generation)
		for _, s := range sets {
			out = append(out, s.String())
		}
		slices.Sort(out)
		return out
	}
	expect := func(when string, want []string) {
		t.Helper()
		if got := setNames(t, h); !slices.Equal(got, want) {
			t.Errorf("%s there are %q, want %q", when, got, want)
		}
	}
	h.Do(t, func() error { return install(policy(10), 1) })
	expect("at first", names(1))
	h.Do(t, func() error { return install(policy(10), 2) })
	expect("after a swap", names(2))
	lists, sets := netfilter.Sets(policy(10), 3)
	h.Do(t, func() error { return nft.Fill(sets) })
	expect("filled and not asked", slices.Sorted(slices.Values(append(names(2), names(3)...))))
	two := netfilter.Rules(netfilter.State{Phase: control.StateReady, Lists: netfilter.Lists{Generation: 2, Names: lists.Names}})
	h.Do(t, func() error { return nft.Apply(two) })
	expect("with the old rules applied again while another fills", slices.Sorted(slices.Values(append(names(2), names(3)...))))
	h.Do(t, func() error {
		got, err := nft.InForce()
		if err != nil || got.Generation != 2 || !slices.Equal(got.Names, lists.Names) {
			return fmt.Errorf("in force are %+v, %v", got, err)
		}
		return install(policy(10), 4)
	})
	expect("after the next swap", names(4))
	h.Command(t, "nft", "add chain inet gatehouse extra { type filter hook input priority -500; }")
	four := netfilter.Rules(netfilter.State{Phase: control.StateReady, Lists: netfilter.Lists{Generation: 4, Names: lists.Names}})
	h.Do(t, func() error { return nft.Apply(four) })
	expect("after mending the chains", names(4))
	h.Do(t, func() error { return install(allowlist.Policy{}, 5) })
	expect("with the lists off", nil)
}

// TestNET6_ListCountersSurviveASwap shows that the numbers beside a list go on.
func TestNET6_ListCountersSurviveASwap(t *testing.T) {
	h, peer := netns.New(t, "box"), netns.New(t, "peer")
	netns.Connect(t, h, "eth0", peer, "eth0")
	h.Up(t, "eth0", "192.0.2.5/24")
	peer.Up(t, "eth0", "192.0.2.1/24")
	p := allowlist.Policy{Enabled: true, Lists: []allowlist.List{{Name: "peer", Enabled: true, Ranges: []allowlist.Range{
		{First: netip.MustParseAddr("192.0.2.1"), Last: netip.MustParseAddr("192.0.2.1")}}}}}
	count := func() (n uint64) {
		h.Do(t, func() error {
			all, err := nft.Counters()
			for _, c := range all {
				if c.Name == netfilter.ListCounter("peer") {
					n = c.Packets
				}
			}
			return err
		})
		return n
	}
	// One knock gives up soon, maybe before a busy machine has found the neighbour.
	knock := func(over uint64) (n uint64) {
		for range 50 {
			peer.Run(t, "knock", "192.0.2.5:443")
			if n = count(); n > over {
				break
			}
		}
		return n
	}
	h.Do(t, func() error { return install(p, 1) })
	first := knock(0)
	if first == 0 {
		t.Fatal("the list counted nothing")
	}
	h.Do(t, func() error { return install(p, 2) })
	if got := count(); got < first {
		t.Errorf("%d packets before the swap, %d after", first, got)
	}
	if got := knock(first); got <= first {
		t.Errorf("%d packets after another knock, %d before", got, first)
	}
}

// TestNET2_ManyRanges fills more than one transaction holds, and finds it whole.
func TestNET2_ManyRanges(t *testing.T) {
	h := netns.New(t, "box")
	h.Do(t, func() error { return install(policy(60_000), 1) })
	h.Do(t, func() error { return install(policy(10), 2) })
}

// TestUnsampledRefusesTheSame: who is refused counts, not who looks on.
func TestUnsampledRefusesTheSame(t *testing.T) {
	rs := netfilter.Rules(netfilter.State{Phase: control.StateReady, Lists: netfilter.Lists{Names: []string{"office"}}})
	plain := rs.Unsampled()
	if slices.Equal(rs.Chains[1].Rules, plain.Chains[1].Rules) || strings.Contains(plain.String(), "log prefix") {
		t.Errorf("unsampled is\n%s", plain)
	}
	var kept []netfilter.Rule
	for _, r := range rs.Chains[1].Rules {
		if r.Verdict != netfilter.None {
			kept = append(kept, r)
		}
	}
	if !slices.Equal(kept, plain.Chains[1].Rules) {
		t.Errorf("judging rules %v, want %v", plain.Chains[1].Rules, kept)
	}
}
