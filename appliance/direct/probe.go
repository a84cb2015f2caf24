package direct

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Probes, the datagrams before QUIC: a kind, and for a ping a nonce, and a
// proof. The proof is by the secret of whoever sends it, which the other end
// has from the offer. So no third party gets bytes that its enemy chose, and
// what a stranger sends is no probe. QUIC's first byte has bit 6 set (RFC 9000,
// 17), kinds have not.
const (
	kindPing = 1 // both ways: opens the sender's own packet filter and NAT, and says where it is
	kindPong = 2 // agent → technician: the ping came, from where this goes
	kindCall = 3 // agent → technician, first on a TCP connection

	nonceSize = 16
	proofSize = 16
	pingSize  = 1 + nonceSize + proofSize
	pongSize  = 1 + proofSize
	quicBit   = 0x40
)

func proof(secret []byte, kind byte, nonce []byte) []byte {
	h := hmac.New(sha256.New, secret)
	h.Write([]byte("gatehouse/direct/1"))
	h.Write([]byte{kind})
	h.Write(nonce)
	return h.Sum(nil)[:proofSize]
}

func ping(secret, nonce []byte) []byte {
	return append(append([]byte{kindPing}, nonce...), proof(secret, kindPing, nonce)...)
}

// pinged returns the nonce of a ping by the holder of secret.
func pinged(secret, b []byte) (nonce []byte, ok bool) {
	if len(b) != pingSize || b[0] != kindPing {
		return nil, false
	}
	nonce = b[1 : 1+nonceSize]
	return nonce, hmac.Equal(b[1+nonceSize:], proof(secret, kindPing, nonce))
}

func pong(secret, nonce []byte) []byte {
	return append([]byte{kindPong}, proof(secret, kindPong, nonce)...)
}

// ponged says whether b answers the ping with nonce.
func ponged(secret, nonce, b []byte) bool {
	return len(b) == pongSize && b[0] == kindPong && hmac.Equal(b[1:], proof(secret, kindPong, nonce))
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails: crypto/rand ends the program rather
	return b
}

// socket is one end's socket for datagrams.
type socket struct {
	*net.UDPConn
	raw interface {
		Control(func(uintptr)) error
		Read(func(uintptr) bool) error
	}
	v6 bool // of the kernel's socket: both families go through it then
}

func listenUDP() (*socket, error) {
	c, err := net.ListenUDP("udp", nil)
	if err != nil {
		return nil, fmt.Errorf("opening a socket for a way by UDP: %w", err)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	s := &socket{UDPConn: c, raw: raw}
	err = s.control(func(fd int) error {
		own, err := unix.Getsockname(fd)
		if err != nil {
			return err
		}
		_, s.v6 = own.(*unix.SockaddrInet6)
		// Go allows it for every socket; a candidate must not be a whole network.
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 0)
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening a socket for a way by UDP: %w", err), c.Close())
	}
	return s, nil
}

func (s *socket) control(f func(fd int) error) error {
	var inner error
	if err := s.raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

func (s *socket) port() uint16 { return uint16(s.LocalAddr().(*net.UDPAddr).Port) }

// hops sets how far datagrams go; -1 is as far as the system lets them.
func (s *socket) hops(n int) error {
	return s.control(func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, n); err != nil {
			return err
		}
		if !s.v6 {
			return nil
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, n)
	})
}

// next is the next datagram, and who sent it; it is left where it is, for take or
// for whoever speaks QUIC: else the first one of that handshake would be lost.
func (s *socket) next(ctx context.Context, b []byte) (n int, from netip.AddrPort, err error) {
	stop := context.AfterFunc(ctx, func() { s.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var who unix.Sockaddr
	var peeked error
	err = s.raw.Read(func(fd uintptr) bool {
		for {
			n, who, peeked = unix.Recvfrom(int(fd), b, unix.MSG_PEEK|unix.MSG_DONTWAIT)
			if !errors.Is(peeked, unix.EINTR) {
				return !errors.Is(peeked, unix.EAGAIN)
			}
		}
	})
	if err = errors.Join(err, peeked); err != nil {
		return 0, from, because(ctx, err)
	}
	switch who := who.(type) {
	case *unix.SockaddrInet4:
		from = netip.AddrPortFrom(netip.AddrFrom4(who.Addr), uint16(who.Port))
	case *unix.SockaddrInet6:
		from = netip.AddrPortFrom(netip.AddrFrom16(who.Addr).Unmap(), uint16(who.Port)) // without a zone: link-local is never a candidate
	}
	return n, from, nil
}

// take drops the datagram that next has shown.
func (s *socket) take() error {
	_, _, err := s.ReadFromUDPAddrPort(make([]byte, 1))
	return err
}

// settle lets the kernel drop all that others send to this socket from now on.
func (s *socket) settle(with netip.AddrPort) error {
	err := s.control(func(fd int) error {
		if s.v6 {
			return unix.Connect(fd, &unix.SockaddrInet6{Addr: with.Addr().As16(), Port: int(with.Port())})
		}
		return unix.Connect(fd, &unix.SockaddrInet4{Addr: with.Addr().As4(), Port: int(with.Port())})
	})
	return errors.Join(err, s.SetReadDeadline(time.Time{}))
}

// because prefers the context's reason: the deadline was set by it.
func because(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
