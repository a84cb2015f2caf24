package xdp

import (
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Answers of the program (linux/bpf.h, enum xdp_action).
const (
	drop = 1
	pass = 2
)

// Places in a frame: Ethernet, then RFC 791 or RFC 8200, then RFC 9293.
const (
	etherType = 12
	ip        = 14
	v4Length  = ip + 2
	v4Place   = ip + 6
	v4Proto   = ip + 9
	v4Source  = ip + 12
	v6Length  = ip + 4
	v6Next    = ip + 6
	v6Source  = ip + 8
	v6Head    = 40
	tcpHead   = 20
	tcpPort   = 2 // destination, of the TCP header
	tcp       = 6
)

// Places on the program's stack.
const (
	keyV4 = -8  // struct bpf_lpm_trie_key with 4 bytes
	keyV6 = -24 // the same with 16
	index = -28
)

// onWire is what a load gives for bytes in the order of the network.
func onWire(n uint16) int32 {
	return int32(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n)))
}

// program drops a frame if all of it is certain: it is for the link's own
// address, untagged, an IP packet that is no fragment, with a whole TCP header
// right behind the IP header, to one of the ports, and there is a trie that has
// not the source. Whatever it cannot tell (tags, extension headers, fragments,
// short packets, no trie) goes on to nftables, which judges everything.
func program(mac [6]byte, ports []uint16, m maps) asm.Instructions {
	r := asm.Instructions{
		asm.LoadMem(asm.R6, asm.R1, 0, asm.Word), // data
		asm.LoadMem(asm.R3, asm.R1, 4, asm.Word), // data_end
		asm.Mov.Reg(asm.R4, asm.R6), asm.Add.Imm(asm.R4, ip+20),
		asm.JGT.Reg(asm.R4, asm.R3, "pass"),
		asm.LoadMem(asm.R5, asm.R6, 0, asm.Word),
		asm.JNE.Imm32(asm.R5, int32(binary.NativeEndian.Uint32(mac[:4])), "pass"),
		asm.LoadMem(asm.R5, asm.R6, 4, asm.Half),
		asm.JNE.Imm(asm.R5, int32(binary.NativeEndian.Uint16(mac[4:])), "pass"),
		asm.LoadMem(asm.R5, asm.R6, etherType, asm.Half),
		asm.JEq.Imm(asm.R5, onWire(0x0800), "v4"),
		asm.JEq.Imm(asm.R5, onWire(0x86dd), "v6"),
		asm.Mov.Imm(asm.R0, pass).WithSymbol("pass"),
		asm.Return(),
	}
	r = append(r, v4(ports)...)
	r = append(r, judge(m.v4, keyV4)...)
	r = append(r, v6(ports)...)
	r = append(r, judge(m.v6, keyV6)...)
	return append(r, count(m.drops)...)
}

// v4 leaves the packet's length in R9 and the source on the stack; so does v6.
//
// The header may have options. Each length has a branch of its own, since a
// place in a packet that is only known at run time needs CAP_PERFMON.
func v4(ports []uint16) asm.Instructions {
	r := asm.Instructions{
		asm.LoadMem(asm.R4, asm.R6, v4Proto, asm.Byte).WithSymbol("v4"),
		asm.JNE.Imm(asm.R4, tcp, "pass"),
		asm.LoadMem(asm.R4, asm.R6, v4Place, asm.Half),
		asm.And.Imm(asm.R4, onWire(0x3fff)), // more fragments, or a place
		asm.JNE.Imm(asm.R4, 0, "pass"),
		asm.LoadMem(asm.R9, asm.R6, v4Length, asm.Half), asm.HostTo(asm.BE, asm.R9, asm.Half),
		asm.LoadMem(asm.R5, asm.R6, ip, asm.Byte),
	}
	const shortest, longest = 5, 15 // of a header, in words
	label := func(words int32) string { return fmt.Sprintf("v4 of %d", words) }
	for words := int32(shortest); words <= longest; words++ {
		r = append(r, asm.JEq.Imm(asm.R5, 0x40|words, label(words)))
	}
	r = append(r, asm.Ja.Label("pass"))
	for words := int32(shortest); words <= longest; words++ {
		r = append(r,
			asm.JLT.Imm(asm.R9, 4*words+tcpHead, "pass").WithSymbol(label(words)),
			asm.Mov.Reg(asm.R4, asm.R6), asm.Add.Imm(asm.R4, ip+4*words+tcpHead),
			asm.JGT.Reg(asm.R4, asm.R3, "pass"),
			asm.LoadMem(asm.R5, asm.R6, int16(ip+4*words+tcpPort), asm.Half),
			asm.Ja.Label("v4 port"),
		)
	}
	r = append(r, asm.Mov.Reg(asm.R4, asm.R5).WithSymbol("v4 port"))
	for _, p := range ports {
		r = append(r, asm.JEq.Imm(asm.R4, onWire(p), "v4 ours"))
	}
	return append(r,
		asm.Ja.Label("pass"),
		asm.LoadMem(asm.R5, asm.R6, v4Source, asm.Word).WithSymbol("v4 ours"),
		asm.StoreMem(asm.RFP, keyV4+4, asm.R5, asm.Word),
		asm.StoreImm(asm.RFP, keyV4, 32, asm.Word),
	)
}

func v6(ports []uint16) asm.Instructions {
	r := asm.Instructions{
		asm.Mov.Reg(asm.R4, asm.R6).WithSymbol("v6"), asm.Add.Imm(asm.R4, ip+v6Head+tcpHead),
		asm.JGT.Reg(asm.R4, asm.R3, "pass"),
		asm.LoadMem(asm.R5, asm.R6, ip, asm.Byte), asm.And.Imm(asm.R5, 0xf0),
		asm.JNE.Imm(asm.R5, 0x60, "pass"),
		asm.LoadMem(asm.R5, asm.R6, v6Next, asm.Byte),
		asm.JNE.Imm(asm.R5, tcp, "pass"),
		asm.LoadMem(asm.R9, asm.R6, v6Length, asm.Half), asm.HostTo(asm.BE, asm.R9, asm.Half),
		asm.JLT.Imm(asm.R9, tcpHead, "pass"),
		asm.Add.Imm(asm.R9, v6Head),
		asm.LoadMem(asm.R5, asm.R6, ip+v6Head+tcpPort, asm.Half),
	}
	for _, p := range ports {
		r = append(r, asm.JEq.Imm(asm.R5, onWire(p), "v6 ours"))
	}
	r = append(r,
		asm.Ja.Label("pass"),
		asm.StoreImm(asm.RFP, keyV6, 128, asm.Word).WithSymbol("v6 ours"),
	)
	for i := int16(0); i < 16; i += 4 {
		r = append(r, asm.LoadMem(asm.R5, asm.R6, v6Source+i, asm.Word), asm.StoreMem(asm.RFP, keyV6+4+i, asm.R5, asm.Word))
	}
	return r
}

// judge looks for the source in the trie, if there is one.
func judge(trie *ebpf.Map, key int32) asm.Instructions {
	return asm.Instructions{
		asm.StoreImm(asm.RFP, index, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, trie.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, index),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.Mov.Reg(asm.R1, asm.R0),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, key),
		asm.FnMapLookupElem.Call(),
		asm.JNE.Imm(asm.R0, 0, "pass"),
		asm.Ja.Label("count"),
	}
}

func count(drops *ebpf.Map) asm.Instructions {
	return asm.Instructions{
		asm.StoreImm(asm.RFP, index, 0, asm.Word).WithSymbol("count"),
		asm.LoadMapPtr(asm.R1, drops.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, index),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "drop"),
		// Each processor has its own: no other writes meanwhile.
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord), asm.Add.Imm(asm.R1, 1), asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, asm.R0, 8, asm.DWord), asm.Add.Reg(asm.R1, asm.R9), asm.StoreMem(asm.R0, 8, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, drop).WithSymbol("drop"),
		asm.Return(),
	}
}
