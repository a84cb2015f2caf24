package host

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Neighbour says whether a machine on one of our links answers: the kernel has its
// hardware address. Where it has none, or an old one, a packet to the discard port
// has it ask; the answer is there at the next call.
func (h *Host) Neighbour(a netip.Addr) (bool, error) {
	family := unix.AF_INET
	if a.Is6() {
		family = unix.AF_INET6
	}
	list, err := netlink.NeighList(0, family)
	if err != nil {
		return false, fmt.Errorf("listing neighbours: %w", err)
	}
	good := false
	for _, n := range list {
		ip, ok := netip.AddrFromSlice(n.IP)
		if !ok || ip.Unmap() != a.WithZone("") || len(n.HardwareAddr) == 0 {
			continue
		}
		switch n.State {
		case unix.NUD_REACHABLE, unix.NUD_PERMANENT:
			return true, nil
		case unix.NUD_STALE, unix.NUD_DELAY, unix.NUD_PROBE:
			good = true
		}
	}
	// Nobody has to listen there: that the kernel looks for the address is all.
	const discard = 9
	if c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, discard))); err == nil {
		_, _ = c.Write([]byte{0})
		_ = c.Close()
	}
	return good, nil
}
