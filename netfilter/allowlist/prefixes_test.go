package allowlist

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

func randomRanges(v6 bool, n int) []Range {
	var ranges []Range
	at := func() netip.Addr {
		x := rand.Uint64N(1 << 16)
		if v6 {
			return netip.AddrFrom16([16]byte{0: 0x20, 6: byte(x >> 12), 7: byte(x >> 4), 8: byte(x << 4), 15: byte(x)})
		}
		return netip.AddrFrom4([4]byte{10, byte(x >> 8), byte(x), byte(rand.Uint32())})
	}
	for range n {
		a, b := at(), at()
		if b.Less(a) {
			a, b = b, a
		}
		if rand.IntN(2) == 0 {
			b = a
		}
		ranges = append(ranges, Range{a, b})
	}
	return Merge(ranges)
}

// TestNET8_PrefixesCoverTheRanges asks the prefixes and the ranges about the
// same addresses: exact ones agree, coarse ones admit more and never less.
func TestNET8_PrefixesCoverTheRanges(t *testing.T) {
	for round := range 300 {
		v6 := round%2 == 0
		ranges := randomRanges(v6, 1+rand.IntN(40))
		most := 1 << 20
		if round%3 == 0 {
			most = 1 + rand.IntN(60)
		}
		prefixes, exact := Prefixes(ranges, most)
		if len(prefixes) > most {
			t.Fatalf("%d prefixes, at most %d were asked for", len(prefixes), most)
		}
		if most == 1<<20 && !exact {
			t.Fatal("not exact, with room for all")
		}
		has := func(a netip.Addr) bool {
			for _, p := range prefixes {
				if p.Contains(a) {
					return true
				}
			}
			return false
		}
		l := List{Ranges: ranges}
		for _, r := range ranges {
			for _, a := range []netip.Addr{r.First.Prev(), r.First, r.First.Next(), r.Last.Prev(), r.Last, r.Last.Next()} {
				if in := l.Contains(a); in && !has(a) || exact && in != has(a) {
					t.Fatalf("%s: in the ranges: %t, in the prefixes: %t (exact: %t)\n%v\n%v", a, in, has(a), exact, ranges, prefixes)
				}
			}
		}
	}
}

func TestNET8_PrefixesOfWholeFamilies(t *testing.T) {
	for _, all := range []string{"0.0.0.0/0", "::/0"} {
		p := netip.MustParsePrefix(all)
		got, exact := Prefixes([]Range{{p.Addr(), last(p)}}, 10)
		if len(got) != 1 || got[0] != p || !exact {
			t.Errorf("%s became %v, exact %t", all, got, exact)
		}
	}
	if got, exact := Prefixes(nil, 10); len(got) != 0 || !exact {
		t.Errorf("nothing became %v, exact %t", got, exact)
	}
	a := netip.MustParseAddr
	if got, exact := Prefixes([]Range{{a("0.0.0.1"), a("0.0.0.1")}, {a("255.0.0.0"), a("255.0.0.2")}}, 1); len(got) != 1 || got[0].Bits() != 0 || exact {
		t.Errorf("with room for one: %v, exact %t", got, exact)
	}
}
