package nft

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"gatehouse/netfilter"
	"gatehouse/netfilter/allowlist"
)

// TestNET8_MessagesFitTheirLengths shows what the library does not look at: the
// longest list of elements fits the 16 bits of its length, and every element
// of a message can be read back.
func TestNET8_MessagesFitTheirLengths(t *testing.T) {
	longest := netfilter.SetName{List: "a23456789-123456789-123456789-12", V6: true, Generation: 1<<64 - 1}
	var ranges []allowlist.Range
	for i := range rangesPerMessage {
		a := netip.AddrFrom16([16]byte{0: 0x20, 14: byte(i >> 8), 15: byte(i)})
		ranges = append(ranges, allowlist.Range{First: a, Last: a})
	}
	b := appendElements([]byte{0, 0, 0, 0}, longest, ranges)
	if len(b) >= 1<<16 {
		t.Fatalf("a message of %d bytes", len(b))
	}
	n := 0
	elements(message{data: b}, func(key []byte, intervalEnd bool) {
		want := ranges[n/2].First
		if n%2 == 1 {
			want = want.Next()
		}
		if !bytes.Equal(key, want.AsSlice()) || intervalEnd != (n%2 == 1) {
			t.Errorf("element %d is %x, end %t", n, key, intervalEnd)
		}
		n++
	})
	if n != 2*rangesPerMessage {
		t.Errorf("%d elements, want %d", n, 2*rangesPerMessage)
	}
}

// TestRangesToTheLastAddressHaveNoEnd: behind it there is no address.
func TestRangesToTheLastAddressHaveNoEnd(t *testing.T) {
	for _, last := range []string{"255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"} {
		a := netip.MustParseAddr(last)
		n := 0
		b := appendElements([]byte{0, 0, 0, 0}, netfilter.SetName{List: "x", V6: a.Is6()}, []allowlist.Range{{First: a, Last: a}})
		elements(message{data: b}, func(_ []byte, intervalEnd bool) {
			if intervalEnd {
				t.Errorf("%s has an end", last)
			}
			n++
		})
		if n != 1 {
			t.Errorf("%s: %d elements, want 1", last, n)
		}
	}
}

// FuzzElements: what the kernel answers is read without reaching past its end.
func FuzzElements(f *testing.F) {
	a := netip.MustParseAddr("192.0.2.1")
	f.Add(appendElements([]byte{0, 0, 0, 0}, netfilter.SetName{List: "x"}, []allowlist.Range{{First: a, Last: a}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		total := 0
		elements(message{data: b}, func(key []byte, _ bool) { total += len(key) })
		if total > len(b) {
			t.Errorf("%d bytes of keys in %d", total, len(b))
		}
	})
}

func TestAttributesEndAtTheFirstThatIsWrong(t *testing.T) {
	good := attribute(nil, 1, []byte{1, 2, 3})
	long := binary.NativeEndian.AppendUint16(nil, 9)
	long = binary.NativeEndian.AppendUint16(long, 2)
	n := 0
	attributes(append(good, long...), func(kind uint16, value []byte) bool {
		if kind != 1 || len(value) != 3 {
			t.Errorf("attribute %d with %x", kind, value)
		}
		n++
		return true
	})
	if n != 1 {
		t.Errorf("%d attributes, want 1", n)
	}
	if got := (message{kind: unix.NLMSG_ERROR, data: []byte{1}}).failure(); got == nil {
		t.Error("an acknowledgement of one byte is taken for a good one")
	}
}
