package network

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
)

// Without a DHCP server the box gives itself an address of 169.254/16, RFC
// 3927, so that a laptop on the same cable can open the page.
const (
	linkLocalAfter   = 20 * time.Second
	linkLocalProbes  = 3
	linkLocalWait    = time.Second
	linkLocalChoices = 10 // conflicts before giving up until the next round
)

// candidate is the n-th address that a card tries: the same each time, so that
// a box keeps its address, and spread over 169.254.1.0 to 169.254.254.255.
func candidate(mac net.HardwareAddr, n int) netip.Addr {
	h := sha256.Sum256(binary.BigEndian.AppendUint32(bytes.Clone(mac), uint32(n)))
	return netip.AddrFrom4([4]byte{169, 254, 1 + h[0]%254, h[1]})
}

// claimLinkLocal probes candidates until one is free. It is not defended
// afterwards: the kernel answers for it, and a conflict ends at the next
// carrier or lease.
func claimLinkLocal(ctx context.Context, link *net.Interface) (netip.Prefix, error) {
	conn, err := packet.Listen(link, packet.Datagram, unix.ETH_P_ARP, nil)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("opening a packet socket for ARP on %s: %w", link.Name, err)
	}
	defer conn.Close()
	for n := range linkLocalChoices {
		a := candidate(link.HardwareAddr, n)
		free, err := probe(ctx, conn, link.HardwareAddr, a)
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("looking for a free link-local address on %s: %w", link.Name, err)
		}
		if free {
			return netip.PrefixFrom(a, 16), nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("no free link-local address on %s after %d tries", link.Name, linkLocalChoices)
}

// probe asks the link for a; it is free when nobody has it or probes for it too.
func probe(ctx context.Context, conn *packet.Conn, mac net.HardwareAddr, a netip.Addr) (bool, error) {
	b := make([]byte, 1500)
	for range linkLocalProbes {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		if _, err := conn.WriteTo(arpProbe(mac, a), &packet.Addr{HardwareAddr: net.HardwareAddr{255, 255, 255, 255, 255, 255}}); err != nil {
			return false, err
		}
		if err := conn.SetReadDeadline(time.Now().Add(linkLocalWait)); err != nil {
			return false, err
		}
		for {
			n, _, err := conn.ReadFrom(b)
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				break
			}
			if err != nil {
				return false, err
			}
			if arpConflict(b[:n], mac, a) {
				return false, nil
			}
		}
	}
	return true, nil
}

// ARP over Ethernet for IPv4, RFC 826.
const (
	arpLength  = 28
	arpRequest = 1
)

var arpHead = []byte{0, 1, 8, 0, 6, 4}

// arpProbe is a request with an empty sender address, RFC 5227 section 2.1.1.
func arpProbe(mac net.HardwareAddr, a netip.Addr) []byte {
	p := make([]byte, arpLength)
	copy(p, arpHead)
	binary.BigEndian.PutUint16(p[6:], arpRequest)
	copy(p[8:14], mac)
	copy(p[24:28], a.AsSlice())
	return p
}

// arpConflict says whether an ARP message shows that another host has a, or
// probes for it at the same time.
func arpConflict(p []byte, mac net.HardwareAddr, a netip.Addr) bool {
	if len(p) < arpLength || !bytes.Equal(p[:6], arpHead) || bytes.Equal(p[8:14], mac) {
		return false
	}
	sender, target := netip.AddrFrom4([4]byte(p[14:18])), netip.AddrFrom4([4]byte(p[24:28]))
	return sender == a || (target == a && sender.IsUnspecified() && binary.BigEndian.Uint16(p[6:]) == arpRequest)
}
