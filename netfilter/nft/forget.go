package nft

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"

	"gatehouse/netfilter"
)

const forgetAttempts = 5

// Forget deletes the connection-tracking entries of TCP connections to our
// ports whose source is not to be kept, and returns how many. Packets of such a
// source are dropped already, by the rules; what is left would only hold memory
// and show in lists. Ours is what this machine itself answers from a port of
// ours, whatever its NAT made of the way there: a connection that is forwarded
// to the same port of a container, or out of one, is somebody else's.
func Forget(ports netfilter.Ports, keep func(netip.Addr) bool) (int, error) {
	here, err := addresses()
	if err != nil {
		return 0, fmt.Errorf("looking for the machine's own addresses: %w", err)
	}
	n := 0
	for _, family := range []netlink.InetFamily{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		var err error
		for range forgetAttempts {
			var deleted uint
			deleted, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, cut{ports, here, keep})
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

func addresses() (map[netip.Addr]bool, error) {
	here := make(map[netip.Addr]bool)
	for range forgetAttempts {
		all, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		for _, a := range all {
			if addr, ok := netip.AddrFromSlice(a.IP); ok {
				here[addr.Unmap()] = true
			}
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return here, err
		}
	}
	return here, nil // what changed all the while is the newest of them
}

// cut matches the connections to be forgotten.
type cut struct {
	ports netfilter.Ports
	here  map[netip.Addr]bool
	keep  func(netip.Addr) bool
}

func (c cut) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if netfilter.Proto(flow.Forward.Protocol) != netfilter.TCP {
		return false
	}
	answers, ok := netip.AddrFromSlice(flow.Reverse.SrcIP)
	if !ok || !c.here[answers.Unmap()] || !c.ports.Ours(answers, flow.Reverse.SrcPort) {
		return false
	}
	source, ok := netip.AddrFromSlice(flow.Forward.SrcIP)
	return ok && !c.keep(source.Unmap())
}
