package netns

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkNET8_DropCost is the time of one packet of a stranger, sending
// included, without our table and with lists of each size. Only the
// differences between them mean something.
func BenchmarkNET8_DropCost(b *testing.B) {
	sizes := []int{0, 1000, 10_000, 100_000}
	if soak() {
		sizes = append(sizes, 1_000_000)
	}
	for _, v6 := range []bool{false, true} {
		for _, n := range sizes {
			b.Run(fmt.Sprintf("%s/ranges=%d", family(v6), n), func(b *testing.B) {
				box, peer := New(b, "box"), New(b, "peer")
				Connect(b, box, "eth0", peer, "eth0")
				box.Up(b, "eth0", "192.0.2.5/24", "2001:db8:1::5/64")
				peer.Up(b, "eth0")
				to := netip.MustParseAddr("192.0.2.5")
				if v6 {
					to = netip.MustParseAddr("2001:db8:1::5")
				}
				c := newCrowd(max(n, 1000), v6)
				if n > 0 {
					box.Do(b, func() error { return fillThenSwap(c, 1) })
				} else {
					box.Command(b, "nft", "add table inet swallow; add chain inet swallow pre { type filter hook prerouting priority -500; policy drop; }")
				}
				g := newGun(b, box, peer, "eth0")
				var frames [][]byte
				for _, from := range c.strangers {
					frames = append(frames, g.frame(knockAt(from, to, 40000, 443)))
				}
				i := 0
				for b.Loop() {
					if err := unix.Sendto(g.fd, frames[i%len(frames)], 0, &unix.SockaddrLinklayer{Ifindex: g.link}); err != nil {
						b.Fatal(err)
					}
					i++
				}
			})
		}
	}
}
