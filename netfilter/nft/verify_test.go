package nft

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"gatehouse/appliance/control"
	"gatehouse/netfilter"
	"gatehouse/netfilter/allowlist"
	"gatehouse/tests/netns"
)

// TestReadBackFindsChanges shows that verify compares rules, not only counts.
func TestReadBackFindsChanges(t *testing.T) {
	rs := netfilter.Rules(netfilter.State{Phase: control.StateUnclaimed, OnLink: []netip.Prefix{netip.MustParsePrefix("192.0.2.5/24")}})
	for tamper, says := range map[string]string{
		"flush chain inet gatehouse forward":    "chain forward has 0 rules, want 1",
		"add rule inet gatehouse output accept": "chain output has 2 rules, want 1",
		"flush chain inet gatehouse forward; add rule inet gatehouse forward counter name forward_dropped accept": "rule 1 of chain forward",
		"flush chain inet gatehouse web; add rule inet gatehouse web ip saddr 192.0.0.0/16 counter name web_on_link accept; add rule inet gatehouse web limit rate 20/second log prefix \"gatehouse:off-link\" group 80 snaplen 64; add rule inet gatehouse web counter name web_refused drop": "rule 1 of chain web",
		"add chain inet gatehouse input { policy accept; }":              "another policy",
		"add chain inet gatehouse more":                                  "6 chains, want 5",
		"add counter inet gatehouse more":                                "counters",
		"delete table inet gatehouse":                                    "no table",
		"flush table inet gatehouse; delete chain inet gatehouse output": "4 chains, want 5",
	} {
		h := netns.New(t, "box")
		h.Do(t, func() error { return Apply(rs) })
		h.Do(t, func() error { return verify(rs) })
		h.Do(t, func() error {
			out, err := exec.Command("nft", tamper).CombinedOutput()
			if err != nil {
				t.Errorf("%s: %s", tamper, out)
			}
			return nil
		})
		h.Do(t, func() error {
			if err := verify(rs); err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("after %q the read-back says %v, want %q", tamper, err, says)
			}
			return nil
		})
	}
}

// TestNET8_ReadBackFindsWhatIsMissing shows that a set that is not what was
// sent is found, small or large: the first, the last, one too many, an end.
func TestNET8_ReadBackFindsWhatIsMissing(t *testing.T) {
	for _, n := range []int{1000, wholeReadBack + 1000} {
		var ranges []allowlist.Range
		for i := range n { // 10.0.0.0-10.0.0.3, 10.0.0.16-10.0.0.19, …
			first := [4]byte{10, byte(i >> 12), byte(i >> 4), byte(i << 4)}
			last := first
			last[3] += 3
			ranges = append(ranges, allowlist.Range{First: netip.AddrFrom4(first), Last: netip.AddrFrom4(last)})
		}
		sets := []netfilter.Set{{SetName: netfilter.SetName{List: "x", Generation: 1}, Ranges: ranges}}
		end := ranges[n-1]
		for _, tamper := range []string{
			"flush set inet gatehouse x_4_1",
			"delete element inet gatehouse x_4_1 { 10.0.0.0-10.0.0.3 }",
			fmt.Sprintf("delete element inet gatehouse x_4_1 { %s-%s }", end.First, end.Last),
			"delete element inet gatehouse x_4_1 { 10.0.0.0-10.0.0.3 }; add element inet gatehouse x_4_1 { 10.0.0.0-10.0.0.4 }",
			fmt.Sprintf("delete element inet gatehouse x_4_1 { %s-%s }; add element inet gatehouse x_4_1 { %s-%s }", end.First, end.Last, end.First, end.First),
			"add element inet gatehouse x_4_1 { 192.0.2.0/24 }",
		} {
			if n > wholeReadBack && strings.HasPrefix(tamper, "add") {
				continue // only the kernel's count, since Linux 6.16, would tell
			}
			h := netns.New(t, "box")
			h.Do(t, func() error {
				if err := fill(sets); err != nil {
					return err
				}
				if err := readBack(sets); err != nil {
					return err
				}
				if out, err := exec.Command("nft", tamper).CombinedOutput(); err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
				if err := readBack(sets); err == nil {
					t.Errorf("%d ranges, after %q: nothing was found", n, tamper)
				}
				return nil
			})
		}
	}
}
