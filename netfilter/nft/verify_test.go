package nft

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"gatehouse/appliance/control"
	"gatehouse/netfilter"
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
