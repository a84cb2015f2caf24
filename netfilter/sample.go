package netfilter

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Reason is why a packet was dropped, as samples tell it.
type Reason string

// The reasons.
const (
	ReasonNoList   Reason = "no-list"  // no enabled list has the source
	ReasonOffLink  Reason = "off-link" // unclaimed or locked: not of the box's own networks
	ReasonStarting Reason = "starting" // nobody is let in yet
)

// What rules hand to who listens: the heads of few packets. A flood costs no
// more samples than a knock.
const (
	SampleGroup  = 80 // of nflog
	SampleLength = 64 // bytes: both IP headers, with the ports behind them
	sampleRate   = 20 // a second, and at once
	samplePrefix = "gatehouse:"
)

// Prefix is what the kernel puts before a sample for this reason.
func (r Reason) Prefix() string { return samplePrefix + string(r) }

// Sample is a packet that was dropped.
type Sample struct {
	At         time.Time
	Source     netip.Addr
	SourcePort uint16 // 0: not in the part of the packet that was kept
	Port       uint16
	Proto      Proto // 0: behind headers that are not read
	Reason     Reason
	Link       int // index of the link that it came in by
}

// Of linux/netlink.h, linux/netfilter/nfnetlink.h and nfnetlink_log.h.
const (
	netlinkHeader  = 16
	netlinkNoop    = 1
	netlinkError   = 2
	netlinkDone    = 3
	netlinkOverrun = 4
	logPacket      = 4 << 8 // NFNL_SUBSYS_ULOG, and NFULNL_MSG_PACKET is 0
	familyHeader   = 4      // struct nfgenmsg
	attrHeader     = 4
	attrTypeMask   = 0x3fff // without NLA_F_NESTED and NLA_F_NET_BYTEORDER
	attrTime       = 3      // NFULA_TIMESTAMP
	attrLink       = 4      // NFULA_IFINDEX_INDEV
	attrPayload    = 9      // NFULA_PAYLOAD
	attrPrefix     = 10     // NFULA_PREFIX
)

// DecodeSamples reads one datagram of the samples' socket; now is the time of a
// packet that has none. Samples for reasons that are not ours are left out:
// hosted, others may use the same group. A damaged datagram is refused whole.
func DecodeSamples(b []byte, now time.Time) ([]Sample, error) {
	var samples []Sample
	for len(b) > 0 {
		if len(b) < netlinkHeader {
			return nil, fmt.Errorf("samples of dropped packets: %d bytes where a netlink header should be", len(b))
		}
		length := binary.NativeEndian.Uint32(b)
		kind := binary.NativeEndian.Uint16(b[4:])
		if length < netlinkHeader || uint64(length) > uint64(len(b)) {
			return nil, fmt.Errorf("samples of dropped packets: a message of %d bytes in %d", length, len(b))
		}
		body := b[netlinkHeader:length]
		switch kind {
		case netlinkNoop, netlinkError, netlinkDone, netlinkOverrun:
		case logPacket:
			s, ours, err := decodePacket(body, now)
			if err != nil {
				return nil, fmt.Errorf("samples of dropped packets: %w", err)
			}
			if ours {
				samples = append(samples, s)
			}
		default:
			return nil, fmt.Errorf("samples of dropped packets: a message of type %#x", kind)
		}
		b = b[min(align(uint64(length)), uint64(len(b))):]
	}
	return samples, nil
}

// align is NLMSG_ALIGN and NLA_ALIGN.
func align(n uint64) uint64 { return (n + 3) &^ 3 }

func decodePacket(b []byte, now time.Time) (s Sample, ours bool, err error) {
	if len(b) < familyHeader {
		return s, false, fmt.Errorf("%d bytes where a family should be", len(b))
	}
	s.At = now
	var payload []byte
	for b = b[familyHeader:]; len(b) > 0; {
		if len(b) < attrHeader {
			return s, false, fmt.Errorf("%d bytes where an attribute should be", len(b))
		}
		length := binary.NativeEndian.Uint16(b)
		if length < attrHeader || int(length) > len(b) {
			return s, false, fmt.Errorf("an attribute of %d bytes in %d", length, len(b))
		}
		value := b[attrHeader:length]
		switch binary.NativeEndian.Uint16(b[2:]) & attrTypeMask {
		case attrTime:
			if len(value) != 16 {
				return s, false, fmt.Errorf("a time of %d bytes", len(value))
			}
			// Seconds and microseconds; what does not fit is no time.
			sec, usec := binary.BigEndian.Uint64(value), binary.BigEndian.Uint64(value[8:])
			if sec < 1<<40 && usec < 1_000_000 {
				s.At = time.Unix(int64(sec), int64(usec)*1000)
			}
		case attrLink:
			if len(value) != 4 {
				return s, false, fmt.Errorf("a link of %d bytes", len(value))
			}
			s.Link = int(int32(binary.BigEndian.Uint32(value)))
		case attrPayload:
			payload = value
		case attrPrefix:
			reason, found := strings.CutPrefix(strings.TrimRight(string(value), "\x00"), samplePrefix)
			s.Reason, ours = Reason(reason), found
		}
		b = b[min(align(uint64(length)), uint64(len(b))):]
	}
	switch s.Reason {
	case ReasonNoList, ReasonOffLink, ReasonStarting:
	default:
		return s, false, nil
	}
	if !ours {
		return s, false, nil
	}
	return s, true, s.head(payload)
}

// head reads addresses and ports of the packet's first bytes.
func (s *Sample) head(p []byte) error {
	var rest []byte
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		s.Source, s.Proto = netip.AddrFrom4([4]byte(p[12:16])), Proto(p[9])
		length := int(p[0]&15) * 4
		if length < 20 {
			return fmt.Errorf("an IPv4 header of %d bytes", length)
		}
		if fragment := binary.BigEndian.Uint16(p[6:]) & 0x1fff; fragment == 0 {
			rest = p[min(length, len(p)):]
		}
	case len(p) >= 40 && p[0]>>4 == 6:
		s.Source = netip.AddrFrom16([16]byte(p[8:24]))
		s.Proto, rest = extensions(Proto(p[6]), p[40:])
	default:
		return fmt.Errorf("%d bytes that are no IP header", len(p))
	}
	if (s.Proto == TCP || s.Proto == UDP) && len(rest) >= 4 {
		s.SourcePort, s.Port = binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])
	}
	return nil
}

// extensions goes over the headers of RFC 8200, section 4, that may stand
// before the transport's. What ends before it has no protocol.
func extensions(next Proto, p []byte) (Proto, []byte) {
	for {
		length := 0
		switch next {
		case 0, 43, 60: // hop by hop, routing, destination
			if len(p) >= 2 {
				length = 8 * (int(p[1]) + 1)
			}
		case 44: // fragment
			length = 8
			if len(p) >= 8 && binary.BigEndian.Uint16(p[2:])&0xfff8 != 0 {
				return Proto(p[0]), nil
			}
		case 51: // authentication, RFC 4302
			if len(p) >= 2 {
				length = 4 * (int(p[1]) + 2)
			}
		default:
			return next, p
		}
		if length == 0 || len(p) < length {
			return 0, nil
		}
		next, p = Proto(p[0]), p[length:]
	}
}
