package gateway

import (
	"net/netip"
	"testing"
	"time"
)

func TestNET7_OneSourceIsPaced(t *testing.T) {
	now := time.Unix(1e9, 0)
	b := newBudget(func() time.Time { return now })
	flood, other := netip.MustParseAddr("192.0.2.66"), netip.MustParseAddr("192.0.2.7")
	open := func(a netip.Addr, n int) (free, waiting, refused int, longest time.Duration) {
		for range n {
			switch wait, ok := b.take(a); {
			case !ok:
				refused++
			case wait > 0:
				waiting++
				longest = max(longest, wait)
			default:
				free++
			}
		}
		return
	}
	free, waiting, refused, longest := open(flood, 10_000)
	if free != sourceBurst || waiting != 2*sourcePace || refused != 10_000-free-waiting || longest > sourcePatience {
		t.Errorf("of 10,000 at once %d come in, %d wait up to %s, %d are refused", free, waiting, longest, refused)
	}
	if free, _, _, _ := open(other, sourceBurst); free != sourceBurst {
		t.Errorf("somebody else gets %d of %d", free, sourceBurst)
	}
	now = now.Add(10 * time.Second)
	if free, waiting, _, _ := open(flood, 10_000); free != sourceBurst {
		t.Errorf("ten seconds later %d come in and %d wait", free, waiting)
	}
	// One subscriber's /64 is one source.
	six := 0
	for i := range 1000 {
		if wait, ok := b.take(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: byte(i >> 8), 15: byte(i)})); ok && wait == 0 {
			six++
		}
	}
	if six != sourceBurst {
		t.Errorf("a /64 opens %d at once, want %d", six, sourceBurst)
	}
	if wait, ok := b.take(netip.Addr{}); wait != 0 || !ok {
		t.Error("the local socket is paced")
	}
}

func TestNET7_SourcesAreForgotten(t *testing.T) {
	now := time.Unix(1e9, 0)
	b := newBudget(func() time.Time { return now })
	for i := range 3 * maxPaced {
		if _, ok := b.take(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})); !ok {
			t.Fatal("one connection of a source is refused")
		}
		if len(b.all) > maxPaced {
			t.Fatalf("%d sources are kept", len(b.all))
		}
	}
	now = now.Add(time.Hour)
	b.take(netip.MustParseAddr("192.0.2.1"))
	if len(b.all) != 1 {
		t.Errorf("an hour later %d sources are kept", len(b.all))
	}
}
