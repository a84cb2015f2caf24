package brake

import (
	"net/netip"
	"testing"
	"time"
)

func from(n byte) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, n}), 32) }

func TestEachSourceAndAllTogetherAreBounded(t *testing.T) {
	now := time.Unix(1e9, 0)
	b := New(Rate{3, time.Second}, Rate{7, 10 * time.Second})
	took := func(n byte) (count int) {
		for range 20 {
			if b.Take(now, from(n)) {
				count++
			}
		}
		return count
	}
	if n := took(1); n != 3 {
		t.Errorf("one source had %d tries, want 3", n)
	}
	if n := took(2) + took(3); n != 4 {
		t.Errorf("two more had %d, want the 4 that are left of 7", n)
	}
	now = now.Add(10 * time.Second)
	if n := took(1); n != 1 {
		t.Errorf("later there were %d, want 1", n)
	}
}

// More sources than are counted each by itself are still counted together.
func TestManySourcesAreBoundedTogether(t *testing.T) {
	now := time.Unix(1e9, 0)
	b := New(Rate{1, time.Hour}, Rate{5, time.Hour})
	count := 0
	for i := range 3 * maxSources {
		if b.Take(now, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32)) {
			count++
		}
	}
	if count != 5 || len(b.bySource) > maxSources {
		t.Errorf("%d tries, %d sources kept", count, len(b.bySource))
	}
}
