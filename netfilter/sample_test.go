package netfilter

import (
	"encoding/binary"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"
)

var noon = time.Unix(1_800_000_000, 0)

// wrap makes a message of nflog of attributes.
func wrap(attrs ...[]byte) []byte {
	body := append([]byte{2, 0, 0, SampleGroup}, slices.Concat(attrs...)...)
	b := binary.NativeEndian.AppendUint32(nil, uint32(netlinkHeader+len(body)))
	b = binary.NativeEndian.AppendUint16(b, logPacket)
	return append(append(b, make([]byte, 10)...), body...)
}

func attr(kind uint16, value ...byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

func prefixed(s string) []byte { return attr(attrPrefix, append([]byte(s), 0)...) }

var (
	ours = prefixed("gatehouse:no-list")
	ip4  = []byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 203, 0, 113, 9, 192, 0, 2, 5, 0x9c, 0x40, 1, 187, 0, 0, 0, 0}
	ip6  = func(next byte, rest ...byte) []byte {
		h := make([]byte, 40)
		h[0], h[6] = 0x60, next
		from := netip.MustParseAddr("2001:db8::9").As16()
		copy(h[8:], from[:])
		return append(h, rest...)
	}
	ports = []byte{0x9c, 0x40, 0, 80}
)

func TestNET6_DamagedSamplesAreRefused(t *testing.T) {
	good := wrap(ours, attr(attrPayload, ip4...))
	short := slices.Clone(good)
	binary.NativeEndian.PutUint32(short, 8)
	long := slices.Clone(good)
	binary.NativeEndian.PutUint32(long, uint32(len(good)+1))
	other := slices.Clone(good)
	binary.NativeEndian.PutUint16(other[4:], 0xa00)
	for name, b := range map[string][]byte{
		"half a header": good[:9], "cut short": good[:len(good)-1], "a length too small": short, "a length too large": long, "another subsystem": other,
		"no family":             wrap()[:netlinkHeader+2],
		"half an attribute":     wrap(ours, []byte{9}),
		"an attribute of 2":     wrap(ours, []byte{2, 0, 9, 0}),
		"an attribute too long": wrap(ours, []byte{99, 0, 9, 0}),
		"no packet":             wrap(ours),
		"an empty packet":       wrap(ours, attr(attrPayload)),
		"half an IPv4 header":   wrap(ours, attr(attrPayload, ip4[:19]...)),
		"half an IPv6 header":   wrap(ours, attr(attrPayload, ip6(6)[:39]...)),
		"IPv5":                  wrap(ours, attr(attrPayload, append([]byte{0x55}, ip4[1:]...)...)),
		"an IPv4 header of 16":  wrap(ours, attr(attrPayload, append([]byte{0x44}, ip4[1:]...)...)),
		"a link of 2 bytes":     wrap(ours, attr(attrLink, 0, 1), attr(attrPayload, ip4...)),
		"a time of 8 bytes":     wrap(ours, attr(attrTime, make([]byte, 8)...), attr(attrPayload, ip4...)),
		"good, then damaged":    append(slices.Clone(good), 1, 2, 3),
	} {
		if name == "no family" {
			binary.NativeEndian.PutUint32(b, uint32(len(b)))
		}
		if got, err := DecodeSamples(b, noon); err == nil {
			t.Errorf("%s reads as %+v", name, got)
		}
	}
}

func TestNET6_Samples(t *testing.T) {
	a4, a6 := netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8::9")
	fragment := slices.Clone(ip4)
	fragment[7] = 1
	options := append([]byte{0x46}, ip4[1:20]...)
	options = append(append(options, 1, 1, 1, 1), 0x9c, 0x40, 1, 187)
	at := append(binary.BigEndian.AppendUint64(nil, 1_700_000_000), binary.BigEndian.AppendUint64(nil, 250_000)...)
	never := append(binary.BigEndian.AppendUint64(nil, 1<<63), binary.BigEndian.AppendUint64(nil, 7)...)
	for name, c := range map[string]struct {
		b    []byte
		want []Sample
	}{
		"nothing": {nil, nil},
		"IPv4": {wrap(ours, attr(attrLink, 0, 0, 0, 7), attr(attrTime, at...), attr(attrPayload, ip4...)),
			[]Sample{{At: time.Unix(1_700_000_000, 250_000_000), Source: a4, SourcePort: 40000, Port: 443, Proto: TCP, Reason: ReasonNoList, Link: 7}}},
		"a time that cannot be": {wrap(ours, attr(attrTime, never...), attr(attrPayload, ip4...)),
			[]Sample{{At: noon, Source: a4, SourcePort: 40000, Port: 443, Proto: TCP, Reason: ReasonNoList}}},
		"IPv4 with options": {wrap(prefixed("gatehouse:off-link"), attr(attrPayload, options...)),
			[]Sample{{At: noon, Source: a4, SourcePort: 40000, Port: 443, Proto: TCP, Reason: ReasonOffLink}}},
		"a later fragment": {wrap(ours, attr(attrPayload, fragment...)), []Sample{{At: noon, Source: a4, Proto: TCP, Reason: ReasonNoList}}},
		"header alone":     {wrap(ours, attr(attrPayload, ip4[:20]...)), []Sample{{At: noon, Source: a4, Proto: TCP, Reason: ReasonNoList}}},
		"IPv6": {wrap(prefixed("gatehouse:starting"), attr(attrPayload, ip6(6, ports...)...)),
			[]Sample{{At: noon, Source: a6, SourcePort: 40000, Port: 80, Proto: TCP, Reason: ReasonStarting}}},
		"IPv6 behind options": {wrap(ours, attr(attrPayload, ip6(0, append([]byte{6, 0, 1, 4, 0, 0, 0, 0}, ports...)...)...)),
			[]Sample{{At: noon, Source: a6, SourcePort: 40000, Port: 80, Proto: TCP, Reason: ReasonNoList}}},
		"IPv6, later fragment": {wrap(ours, attr(attrPayload, ip6(44, append([]byte{6, 0, 0, 8, 0, 0, 0, 1}, ports...)...)...)),
			[]Sample{{At: noon, Source: a6, Proto: TCP, Reason: ReasonNoList}}},
		"IPv6, options cut short": {wrap(ours, attr(attrPayload, ip6(60, 6)...)), []Sample{{At: noon, Source: a6, Reason: ReasonNoList}}},
		"somebody else's":         {wrap(prefixed("firewall: dropped"), attr(attrPayload, ip4...)), nil},
		"a reason unknown":        {wrap(prefixed("gatehouse:no-lists"), attr(attrPayload, ip4...)), nil},
		"our word without prefix": {wrap(prefixed("no-list"), attr(attrPayload, ip4...)), nil},
		"two in one": {append(wrap(ours, attr(attrPayload, ip4...)), wrap(ours, attr(attrPayload, ip6(6, ports...)...))...),
			[]Sample{{At: noon, Source: a4, SourcePort: 40000, Port: 443, Proto: TCP, Reason: ReasonNoList}, {At: noon, Source: a6, SourcePort: 40000, Port: 80, Proto: TCP, Reason: ReasonNoList}}},
	} {
		got, err := DecodeSamples(c.b, noon)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, c.want)
		}
	}
}

// FuzzNET6_Samples: whatever the kernel or a stranger's packet says, it is read
// or refused, and what is read makes sense.
func FuzzNET6_Samples(f *testing.F) {
	f.Add(wrap(ours, attr(attrLink, 0, 0, 0, 7), attr(attrPayload, ip4...)))
	f.Add(wrap(ours, attr(attrPayload, ip6(0, 44, 0, 1, 4, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 1, 0x9c, 0x40, 0, 80)...)))
	f.Add(wrap(ours, attr(attrPayload, ip6(51, 6, 4, 0, 0)...)))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := DecodeSamples(b, noon)
		if err != nil && got != nil {
			t.Errorf("refused, and yet %+v", got)
		}
		for _, s := range got {
			if !s.Source.IsValid() || s.Reason == "" || s.At.IsZero() {
				t.Errorf("%+v", s)
			}
		}
	})
}
