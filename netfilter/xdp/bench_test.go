package xdp

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

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
					held := 0
					for b.Loop() {
						before := slab(b)
						f, err := Fill(p)
						if err != nil {
							b.Fatal(err)
						}
						held = max(held, slab(b)-before)
						entries = max(f.v4.MaxEntries(), f.v6.MaxEntries())
						if f.Exact {
							exact++
						}
						if err := f.Release(); err != nil {
							b.Fatal(err)
						}
					}
					b.ReportMetric(float64(entries), "prefixes")
					b.ReportMetric(float64(held)/1024, "slab-MB")
					b.ReportMetric(exact/float64(b.N), "exact")
				})
			}
		}
	}
}

// slab is the kernel's own memory in KB, other work on the machine included.
func slab(b *testing.B) (n int) {
	b.Helper()
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "SUnreclaim:"); ok {
			fmt.Sscan(rest, &n)
		}
	}
	return n
}

// BenchmarkNET8_Program is the time of the program alone, as the kernel's own
// test run measures it, for strangers all over the address space.
func BenchmarkNET8_Program(b *testing.B) {
	mac := [6]byte{2, 0, 0, 0, 0, 1}
	for _, n := range []int{1000, 100_000, 1_000_000} {
		b.Run(fmt.Sprintf("ranges=%d", n), func(b *testing.B) {
			f, err := Fill(policy(n, false, true))
			if err != nil {
				b.Fatal(err)
			}
			defer f.Release()
			m := newMaps(b, f)
			p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "BSD", Instructions: program(mac, []uint16{80, 443}, m)})
			if err != nil {
				b.Fatal(err)
			}
			defer p.Close()
			var total time.Duration
			const sources, repeat = 16, 2048
			for b.Loop() {
				for range sources {
					answer, took, err := p.Benchmark(frame(mac, rand.Uint32()&^0xff|0xff-1), repeat, nil)
					if err != nil {
						b.Fatal(err)
					}
					_ = answer
					total += took
				}
			}
			b.ReportMetric(float64(total.Nanoseconds())/float64(b.N*sources), "program-ns/packet")
		})
	}
}

func newMaps(b *testing.B, f *Filled) maps {
	b.Helper()
	var m maps
	var err error
	for _, w := range []struct {
		to   **ebpf.Map
		spec *ebpf.MapSpec
	}{{&m.v4, slot(4)}, {&m.v6, slot(16)}, {&m.drops, &ebpf.MapSpec{Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 16, MaxEntries: 1}}} {
		if *w.to, err = ebpf.NewMap(w.spec); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { (*w.to).Close() })
	}
	if err := m.v4.Put(uint32(0), f.v4); err != nil {
		b.Fatal(err)
	}
	return m
}

// frame is a SYN to 443.
func frame(mac [6]byte, from uint32) []byte {
	b := append(mac[:], 2, 0, 0, 0, 0, 2, 8, 0)
	b = append(b, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0)
	b = binary.BigEndian.AppendUint32(b, from)
	b = append(b, 192, 0, 2, 5, 0x9c, 0x40, 1, 0xbb)
	return append(b, make([]byte, 16)...)
}
