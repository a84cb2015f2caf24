package xdp

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"gatehouse/netfilter/allowlist"
)

// policy is of so many prefixes, or of ranges with ends at random, evenly spread.
func policy(n int, v6, aligned bool) allowlist.Policy {
	at := func(x uint64) netip.Addr {
		if v6 {
			return netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: byte(x >> 24), 3: byte(x >> 16), 4: byte(x >> 8), 5: byte(x)})
		}
		return netip.AddrFrom4([4]byte{byte(x >> 24), byte(x >> 16), byte(x >> 8), byte(x)})
	}
	room := uint64(1<<32-1) / uint64(n)
	l := allowlist.List{Name: "office", Enabled: true, Scopes: allowlist.Everything}
	for i := range uint64(n) {
		first := i * room
		last := first + 1 + rand.Uint64N(room-4)
		if aligned {
			first = (first + 255) &^ 255
			last = first + 255
		}
		r := allowlist.Range{First: at(first), Last: at(last)}
		if aligned && v6 { // a whole /40
			end := r.Last.As16()
			for i := 5; i < 16; i++ {
				end[i] = 0xff
			}
			r.Last = netip.AddrFrom16(end)
		}
		l.Ranges = append(l.Ranges, r)
	}
	return allowlist.Policy{Enabled: true, Lists: []allowlist.List{l}}
}

// BenchmarkNET8_EarlyLoad fills the tries and gives them back.
func BenchmarkNET8_EarlyLoad(b *testing.B) {
	for _, aligned := range []bool{true, false} {
		for _, v6 := range []bool{false, true} {
			for _, n := range []int{1000, 10_000, 100_000, 1_000_000} {
				b.Run(fmt.Sprintf("ranges=%d/v6=%t/prefixes=%t", n, v6, aligned), func(b *testing.B) {
					p := policy(n, v6, aligned)
					var entries uint32
					exact := 0.0
					for b.Loop() {
						f, err := Fill(p)
						if err != nil {
							b.Fatal(err)
						}
						entries = max(f.v4.MaxEntries(), f.v6.MaxEntries())
						if f.Exact {
							exact++
						}
						if err := f.Release(); err != nil {
							b.Fatal(err)
						}
					}
					b.ReportMetric(float64(entries), "prefixes")
					b.ReportMetric(exact/float64(b.N), "exact")
				})
			}
		}
	}
}
