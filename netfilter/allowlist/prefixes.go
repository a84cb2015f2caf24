package allowlist

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// Prefixes covers sorted, disjoint ranges of one family with prefixes, at most
// so many. Where an exact cover needs more, ranges are rounded outwards until
// it does not: the result has every address of the ranges, and exact says
// whether it has no other.
func Prefixes(ranges []Range, most int) (prefixes []netip.Prefix, exact bool) {
	if len(ranges) == 0 || most <= 0 {
		return nil, len(ranges) == 0
	}
	size := ranges[0].First.BitLen()
	for coarse := 0; coarse < size; coarse++ {
		if out, ok := cover(ranges, coarse, most); ok {
			return out, coarse == 0
		}
	}
	return []netip.Prefix{netip.PrefixFrom(ranges[0].First, 0).Masked()}, false
}

// cover gives up when there would be more than so many.
func cover(ranges []Range, coarse, most int) ([]netip.Prefix, bool) {
	v6 := ranges[0].First.Is6()
	mask := number{^uint64(0), ^uint64(0)}.shiftLeft(coarse)
	out := make([]netip.Prefix, 0, min(len(ranges)+len(ranges)/4, most))
	for i := 0; i < len(ranges); {
		first := numberOf(ranges[i].First).and(mask)
		last := numberOf(ranges[i].Last).or(mask.not())
		for i++; i < len(ranges) && coarse > 0; i++ {
			if last.less(numberOf(ranges[i].First).and(mask)) {
				break
			}
			last = numberOf(ranges[i].Last).or(mask.not())
		}
		for {
			// The largest block that begins at first and ends at or before last.
			host := first.trailingZeros()
			for host > 0 && last.less(first.or(number{^uint64(0), ^uint64(0)}.shiftLeft(host).not())) {
				host--
			}
			if !v6 && host > 32 {
				host = 32
			}
			if len(out) == most {
				return nil, false
			}
			out = append(out, netip.PrefixFrom(first.addr(v6), last.width(v6)-host))
			end := first.or(number{^uint64(0), ^uint64(0)}.shiftLeft(host).not())
			if !end.less(last) {
				break
			}
			first = end.next()
		}
	}
	return out, true
}

// number is an address as 128 bits; IPv4 has the low 32 alone.
type number struct{ high, low uint64 }

func numberOf(a netip.Addr) number {
	if a.Is4() {
		b := a.As4()
		return number{0, uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := a.As16()
	return number{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

func (number) width(v6 bool) int {
	if v6 {
		return 128
	}
	return 32
}

func (n number) addr(v6 bool) netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], n.high)
	binary.BigEndian.PutUint64(b[8:], n.low)
	if !v6 {
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return netip.AddrFrom16(b)
}

func (n number) and(o number) number { return number{n.high & o.high, n.low & o.low} }
func (n number) or(o number) number  { return number{n.high | o.high, n.low | o.low} }
func (n number) not() number         { return number{^n.high, ^n.low} }
func (n number) less(o number) bool {
	return n.high < o.high || n.high == o.high && n.low < o.low
}

func (n number) next() number {
	low, carry := bits.Add64(n.low, 1, 0)
	return number{n.high + carry, low}
}

func (n number) shiftLeft(k int) number {
	if k >= 64 {
		return number{n.low << (k - 64), 0}
	}
	return number{n.high<<k | n.low>>(64-k), n.low << k}
}

func (n number) trailingZeros() int {
	if n.low != 0 {
		return bits.TrailingZeros64(n.low)
	}
	return 64 + bits.TrailingZeros64(n.high)
}
