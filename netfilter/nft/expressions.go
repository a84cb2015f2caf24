package nft

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"gatehouse/netfilter"
)

// All matches go through register 1, as nft does it.
const register = 1

// Offsets of the fields, RFC 791, RFC 8200, RFC 9293, RFC 768, RFC 792, RFC 4443.
const (
	ip4TTL, ip4Source      = 8, 12
	ip6HopLimit, ip6Source = 7, 8
	ip4Dest, ip6Dest       = 16, 24
	portSource, portDest   = 0, 2
	icmpType               = 0
	ip4Protocol            = 9
)

// expressions compiles a rule to what nft itself would make of its text.
func expressions(r netfilter.Rule) []expr.Any {
	var e []expr.Any
	if r.Interface != "" {
		name := make([]byte, 16) // IFNAMSIZ; all of it, or "lo" would match every name beginning so
		copy(name, r.Interface)
		e = append(e, &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: register}, equal(name))
	}
	if r.Source.IsValid() {
		e = append(e, source(r.Source)...)
	}
	if a := r.Destination; a.IsValid() {
		if !r.Source.IsValid() { // or the family is known
			e = append(e, network(len(a.AsSlice()))...)
		}
		offset := uint32(ip4Dest)
		if a.Is6() {
			offset = ip6Dest
		}
		e = append(e, payload(expr.PayloadBaseNetworkHeader, offset, uint32(len(a.AsSlice()))), equal(a.AsSlice()))
	}
	if r.Set != (netfilter.SetName{}) {
		e = append(e, member(r.Set)...)
	}
	if r.HopLimit != 0 {
		if r.Proto == netfilter.IGMP {
			e = append(e, network(net.IPv4len)...)
			e = append(e, payload(expr.PayloadBaseNetworkHeader, ip4TTL, 1), equal([]byte{r.HopLimit}))
		} else {
			if !r.Source.IsValid() {
				e = append(e, network(net.IPv6len)...)
			}
			e = append(e, payload(expr.PayloadBaseNetworkHeader, ip6HopLimit, 1), equal([]byte{r.HopLimit}))
		}
	}
	e = append(e, transport(r)...)
	if r.Here {
		e = append(e, &expr.Fib{Register: register, ResultADDRTYPE: true, FlagDADDR: true}, equal(binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)))
	}
	if r.Conn != 0 {
		mask := binary.NativeEndian.AppendUint32(nil, uint32(r.Conn))
		e = append(e,
			&expr.Ct{Key: expr.CtKeySTATE, Register: register},
			&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: 4, Mask: mask, Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: make([]byte, 4)})
	}
	if r.Rate != 0 {
		e = append(e, &expr.Limit{Type: expr.LimitTypePkts, Rate: r.Rate, Unit: expr.LimitTimeSecond, Burst: r.Burst})
	}
	if r.Sample != "" {
		e = append(e, sample(r.Sample))
	}
	if r.Counter != "" {
		e = append(e, &expr.Objref{Type: int(nftables.ObjTypeCounter), Name: r.Counter})
	}
	switch r.Verdict {
	case netfilter.Accept:
		e = append(e, &expr.Verdict{Kind: expr.VerdictAccept})
	case netfilter.Drop:
		e = append(e, &expr.Verdict{Kind: expr.VerdictDrop})
	case netfilter.Goto:
		e = append(e, &expr.Verdict{Kind: expr.VerdictGoto, Chain: r.Target})
	}
	return e
}

func transport(r netfilter.Rule) []expr.Any {
	if r.Proto == 0 {
		return nil
	}
	if r.Proto == netfilter.IGMP { // its ttl was matched before, so the family is known
		return []expr.Any{payload(expr.PayloadBaseNetworkHeader, ip4Protocol, 1), equal([]byte{byte(r.Proto)})}
	}
	var e []expr.Any
	switch {
	case r.Proto == netfilter.ICMP:
		e = network(net.IPv4len)
	case r.Proto == netfilter.ICMPv6 && !r.Source.IsValid() && r.HopLimit == 0:
		e = network(net.IPv6len)
	}
	e = append(e, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register}, equal([]byte{byte(r.Proto)}))
	if r.Proto == netfilter.ICMP || r.Proto == netfilter.ICMPv6 {
		return append(e, payload(expr.PayloadBaseTransportHeader, icmpType, 1), equal([]byte{r.Type}))
	}
	if r.SourcePort != 0 {
		e = append(e, payload(expr.PayloadBaseTransportHeader, portSource, 2), equal(binary.BigEndian.AppendUint16(nil, r.SourcePort)))
	}
	if r.Port != 0 {
		e = append(e, payload(expr.PayloadBaseTransportHeader, portDest, 2), equal(binary.BigEndian.AppendUint16(nil, r.Port)))
	}
	return e
}

// network matches the family: 4 bytes of address or 16. The kernel's
// NFPROTO_IPV4 is 2 and NFPROTO_IPV6 is 10.
func network(length int) []expr.Any {
	proto := byte(2)
	if length == net.IPv6len {
		proto = 10
	}
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: register}, equal([]byte{proto})}
}

func source(p netip.Prefix) []expr.Any {
	addr := p.Masked().Addr().AsSlice()
	offset := uint32(ip4Source)
	if len(addr) == net.IPv6len {
		offset = ip6Source
	}
	length := uint32(len(addr))
	e := append(network(len(addr)), payload(expr.PayloadBaseNetworkHeader, offset, length))
	if !p.IsSingleIP() {
		e = append(e, &expr.Bitwise{SourceRegister: register, DestRegister: register, Len: length,
			Mask: net.CIDRMask(p.Bits(), len(addr)*8), Xor: make([]byte, length)})
	}
	return append(e, equal(addr))
}

func payload(base expr.PayloadBase, offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: base, Offset: offset, Len: length}
}

func equal(b []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: b}
}

// member looks the source address up in a set.
func member(n netfilter.SetName) []expr.Any {
	length, offset := net.IPv4len, uint32(ip4Source)
	if n.V6 {
		length, offset = net.IPv6len, ip6Source
	}
	return append(network(length), payload(expr.PayloadBaseNetworkHeader, offset, uint32(length)),
		&expr.Lookup{SourceRegister: register, SetName: n.String()})
}

func sample(r netfilter.Reason) expr.Any {
	return &expr.Log{Key: 1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_PREFIX | 1<<unix.NFTA_LOG_SNAPLEN,
		Group: netfilter.SampleGroup, Snaplen: netfilter.SampleLength, Data: []byte(r.Prefix())}
}
