package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"gatehouse/netfilter"
)

const forgetAttempts = 5

// Forget deletes the connection-tracking entries of TCP connections to our
// ports whose source is not to be kept, and returns how many. Packets of such a
// source are dropped already, by the rules; what is left would only hold memory
// and show in lists. Hosted, the port may be ours only after a redirection, so
// the port that the machine answers from counts too.
func Forget(ports netfilter.Ports, keep func(netip.Addr) bool) (int, error) {
	n := 0
	for _, family := range []netlink.InetFamily{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		var err error
		for range forgetAttempts {
			var deleted uint
			deleted, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, cut{ports, keep})
			n += int(deleted)
			// The kernel's table changed while it was read: what it skipped may be
			// just what has to go.
			if !errors.Is(err, netlink.ErrDumpInterrupted) {
				break
			}
		}
		if err != nil {
			return n, fmt.Errorf("forgetting the connections of sources that are not let in any more: %w", sentinel(err))
		}
	}
	return n, nil
}

// cut matches the connections to be forgotten.
type cut struct {
	ports netfilter.Ports
	keep  func(netip.Addr) bool
}

func (c cut) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if netfilter.Proto(flow.Forward.Protocol) != netfilter.TCP {
		return false
	}
	ours := c.ports.List()
	if !slices.Contains(ours, flow.Forward.DstPort) && !slices.Contains(ours, flow.Reverse.SrcPort) {
		return false
	}
	source, ok := netip.AddrFromSlice(flow.Forward.SrcIP)
	return ok && !c.keep(source.Unmap())
}
