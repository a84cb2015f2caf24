package netns

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/lists"
	"gatehouse/netfilter/allowlist"
)

// benchSizes are of lists; 0 is no list.
func benchSizes() []int {
	sizes := []int{0, 1000, 10_000, 100_000}
	if soak() {
		sizes = append(sizes, 1_000_000)
	}
	return sizes
}

// prefixes is a policy with a friend's network in each room, as lists of
// providers and countries are.
func (c crowd) prefixes() allowlist.Policy {
	l := allowlist.List{Name: "friends", Enabled: true, Scopes: allowlist.Everything}
	size := uint64(1)
	for size*2 < c.room() {
		size *= 2
	}
	for i := range uint64(c.ranges) {
		first := (i*c.room() + size/2 - 1) &^ (size/2 - 1)
		if r := (allowlist.Range{First: number(first, c.v6), Last: number(first+size/2-1, c.v6)}); i*c.room() != 0 {
			if c.v6 { // whole networks
				end := r.Last.As16()
				for k := 5; k < 16; k++ {
					end[k] = 0xff
				}
				r.Last = netip.AddrFrom16(end)
			}
			l.Ranges = append(l.Ranges, r)
		}
	}
	return allowlist.Policy{Enabled: true, Lists: []allowlist.List{l}}
}

// BenchmarkNET8_DropCost is the time of one packet of a stranger, sending
// included, without our table and with lists of each size, which judge alone or
// behind an early stage (in the kernel's generic place, and in the driver of the
// virtual cable). Only the differences between them mean something.
func BenchmarkNET8_DropCost(b *testing.B) {
	for _, v6 := range []bool{false, true} {
		for _, n := range benchSizes() {
			for _, stage := range []string{"none", "generic", "driver"} {
				if n == 0 && stage != "none" {
					continue
				}
				b.Run(fmt.Sprintf("%s/ranges=%d/early=%s", family(v6), n, stage), func(b *testing.B) { dropCost(b, n, v6, stage) })
			}
		}
	}
}

func dropCost(b *testing.B, n int, v6 bool, stage string) {
	box, peer := New(b, "box"), New(b, "peer")
	Connect(b, box, "eth0", peer, "eth0")
	box.Up(b, "eth0", "192.0.2.5/24", "2001:db8:1::5/64")
	peer.Up(b, "eth0")
	to := netip.MustParseAddr("192.0.2.5")
	if v6 {
		to = netip.MustParseAddr("2001:db8:1::5")
	}
	c := newCrowd(max(n, 1000), v6)
	p := c.prefixes()
	switch {
	case n == 0:
		box.Command(b, "nft", "add table inet swallow; add chain inet swallow pre { type filter hook prerouting priority -500; policy drop; }")
	case stage == "none":
		box.Do(b, func() error { return installLists(p, 1) })
	default:
		s := newStage(b, box, 80, 443)
		s.Generic = stage == "generic"
		box.Do(b, func() error { return installEarly(s, p, 1) })
		defer func() {
			if early(b, s) == 0 {
				b.Error("the early stage dropped nothing")
			}
		}()
	}
	g := newGun(b, box, peer, "eth0")
	var frames [][]byte
	for _, from := range c.strangers {
		if p.Admits(from) == 0 {
			frames = append(frames, g.frame(knockAt(from, to, 40000, 443)))
		}
	}
	// What the tables before left behind is freed in the background.
	time.Sleep(time.Second)
	var before, after unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &before); err != nil {
		b.Fatal(err)
	}
	i := 0
	for b.Loop() {
		if err := unix.Sendto(g.fd, frames[i%len(frames)], 0, &unix.SockaddrLinklayer{Ifindex: g.link}); err != nil {
			b.Fatal(err)
		}
		i++
	}
	if err := unix.Getrusage(unix.RUSAGE_SELF, &after); err != nil {
		b.Fatal(err)
	}
	// On a machine with other work the time on the wall is theirs, too.
	used := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(used)/float64(b.N), "cpu-ns/op")
}

// BenchmarkNET8_Connections is one connection of a friend after the other,
// opened, read from and closed, before lists and with lists of each size.
func BenchmarkNET8_Connections(b *testing.B) {
	for _, n := range benchSizes() {
		for _, stage := range []bool{false, true} {
			if n == 0 && stage {
				continue
			}
			b.Run(fmt.Sprintf("ranges=%d/early=%t", n, stage), func(b *testing.B) {
				box, peer := New(b, "box"), New(b, "peer")
				Connect(b, box, "eth0", peer, "eth0")
				box.Up(b, "eth0", "10.9.0.5/24")
				peer.Up(b, "eth0", "10.9.0.1/24")
				p := newCrowd(max(n, 1000), false).prefixes()
				p.Lists[0].Ranges = allowlist.Merge(append(p.Lists[0].Ranges, allowlist.Range{First: netip.MustParseAddr("10.9.0.0"), Last: netip.MustParseAddr("10.9.0.255")}))
				switch {
				case n == 0:
					box.Do(b, applyReady)
				case stage:
					s := newStage(b, box, 80, 443)
					box.Do(b, func() error { return installEarly(s, p, 1) })
				default:
					box.Do(b, func() error { return installLists(p, 1) })
				}
				l := box.Start(b, "listen", "tcp/443")
				if _, err := l.Stdout().Read(make([]byte, 64)); err != nil {
					b.Fatal(err)
				}
				peer.Do(b, func() error {
					one := make([]byte, 1)
					for b.Loop() {
						c, err := net.Dial("tcp", "10.9.0.5:443")
						if err != nil {
							return err
						}
						if _, err := c.Read(one); err != nil {
							return err
						}
						c.(*net.TCPConn).SetLinger(0)
						c.Close()
					}
					return nil
				})
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "connections/s")
			})
		}
	}
}

// BenchmarkNET8_FileToEnforcement is the whole of the filter role, from the
// start of its process over the reading of the files to the swapped rules.
func BenchmarkNET8_FileToEnforcement(b *testing.B) {
	for _, n := range benchSizes()[1:] {
		for _, word := range []string{"off", "on"} {
			b.Run(fmt.Sprintf("ranges=%d/xdp=%s", n, word), func(b *testing.B) {
				box, peer := New(b, "box"), New(b, "peer")
				Connect(b, box, "eth0", peer, "eth0")
				box.Up(b, "eth0", "192.0.2.5/24")
				f := newFiles(b, newStage(b, box, 80, 443))
				var text strings.Builder
				for _, r := range newCrowd(n, false).prefixes().Lists[0].Ranges {
					text.WriteString(r.String() + "\n")
				}
				f.put(b, "office.list", text.String())
				for b.Loop() {
					if a := f.run(b, box, word, lists.Order{Stage: f.stage.Dir}); (len(a.Early.Links) == 1) != (word == "on") {
						b.Fatalf("the role says %+v", a.Early)
					}
				}
			})
		}
	}
}
