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
	count := func(coarse int) (n int) {
		cover(ranges, coarse, func(netip.Prefix) bool { n++; return n <= most })
		return n
	}
	n, coarse := count(0), 0
	for low, high := 0, size; n > most; { // too many at low, few enough at high
		if coarse = (low + high) / 2; coarse == low {
			coarse = high
		}
		switch m := count(coarse); {
		case m > most:
			low = coarse
		case coarse-low > 1:
			high = coarse
		default:
			n = m
		}
	}
	prefixes = make([]netip.Prefix, 0, n)
	cover(ranges, coarse, func(p netip.Prefix) bool { prefixes = append(prefixes, p); return true })
	return prefixes, coarse == 0
}

var ones = number{^uint64(0), ^uint64(0)}

// cover gives the prefixes of ranges whose ends are rounded outwards to so many
// bits, until yield says that it is enough.
func cover(ranges []Range, coarse int, yield func(netip.Prefix) bool) {
	v6 := ranges[0].First.Is6()
	size := ranges[0].First.BitLen()
	mask := ones.shiftLeft(coarse)
	for i := 0; i < len(ranges); {
		first := numberOf(ranges[i].First).and(mask)
		last := numberOf(ranges[i].Last).or(mask.not())
		for i++; i < len(ranges) && coarse > 0; i++ {
			if last.less(numberOf(ranges[i].First).and(mask)) {
				break
			}
			last = numberOf(ranges[i].Last).or(mask.not())
		}
		if !v6 {
			last.high, last.low = 0, last.low&(1<<32-1)
		}
		for {
			// The largest block that begins at first and ends at or before last.
			host := min(first.trailingZeros(), size)
			for host > 0 && last.less(first.or(ones.shiftLeft(host).not())) {
				host--
			}
			if !yield(netip.PrefixFrom(first.addr(v6), size-host)) {
				return
			}
			end := first.or(ones.shiftLeft(host).not())
			if !end.less(last) {
				break
			}
			first = end.next()
		}
	}
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
