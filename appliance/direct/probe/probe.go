// Package probe is what the ends of a session say in datagrams before they are sure of each other, and the socket for it.
package probe

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

// The kinds. QUIC's first byte has bit 6 set (RFC 9000, 17), kinds have not.
const (
	kindPing = 1 // both ways: opens the sender's own packet filter and NAT, and says where it is
	kindPong = 2 // agent → technician: the ping came, from where this goes
	kindCall = 3 // agent → technician, first on a TCP connection; the kind itself is not sent

	quicBit  = 0x40
	pongSize = 1 + CallSize
)

// Sizes in bytes.
const (
	SecretSize = 32
	NonceSize  = 16
	CallSize   = 16                       // of what Call returns, and of every proof
	MaxSize    = 1 + NonceSize + CallSize // of a datagram: a ping's
)

// Secret is what an end proves itself with, for one round of a search; the
// other end has it by their session. Who sends chooses the secret, and a proof is
// not what goes in: so no third party gets bytes that its enemy chose, and what
// a stranger sends is no probe.
type Secret []byte

// NewSecret makes one.
func NewSecret() Secret { return random(SecretSize) }

// NewNonce makes what a ping is told from others by.
func NewNonce() []byte { return random(NonceSize) }

func (s Secret) proof(kind byte, nonce []byte) []byte {
	h := hmac.New(sha256.New, s)
	h.Write([]byte("gatehouse/direct/1"))
	h.Write([]byte{kind})
	h.Write(nonce)
	return h.Sum(nil)[:CallSize]
}

// Ping asks the other end whether it is there.
func (s Secret) Ping(nonce []byte) []byte {
	return append(append([]byte{kindPing}, nonce...), s.proof(kindPing, nonce)...)
}

// Pinged returns the nonce of a ping by the holder of the secret.
func (s Secret) Pinged(b []byte) (nonce []byte, ok bool) {
	if len(b) != MaxSize || b[0] != kindPing {
		return nil, false
	}
	nonce = b[1 : 1+NonceSize]
	return nonce, hmac.Equal(b[1+NonceSize:], s.proof(kindPing, nonce))
}

// Pong answers a ping.
func (s Secret) Pong(nonce []byte) []byte {
	return append([]byte{kindPong}, s.proof(kindPong, nonce)...)
}

// Ponged says whether b answers the ping with nonce.
func (s Secret) Ponged(nonce, b []byte) bool {
	return len(b) == pongSize && b[0] == kindPong && hmac.Equal(b[1:], s.proof(kindPong, nonce))
}

// Call is how a TCP connection begins.
func (s Secret) Call() []byte { return s.proof(kindCall, nil) }

// Called says whether b is the Call of the holder of the secret.
func (s Secret) Called(b []byte) bool { return hmac.Equal(b, s.Call()) }

// IsQUIC says whether a datagram is QUIC's, and so no probe.
func IsQUIC(b []byte) bool { return len(b) > 0 && b[0]&quicBit != 0 }

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails: crypto/rand ends the program rather
	return b
}

// Socket is one end's, of one search.
type Socket struct {
	*net.UDPConn
	raw interface {
		Control(func(uintptr)) error
		Read(func(uintptr) bool) error
	}
	v6 bool // of the kernel's socket: both families go through it then
}

// Listen opens a Socket on a port that the system chooses, for both families
// where there are two.
func Listen() (*Socket, error) {
	c, err := net.ListenUDP("udp", nil)
	if err != nil {
		return nil, fmt.Errorf("opening a socket for a way by UDP: %w", err)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	s := &Socket{UDPConn: c, raw: raw}
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

func (s *Socket) control(f func(fd int) error) error {
	var inner error
	if err := s.raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// Port is its own.
func (s *Socket) Port() uint16 { return uint16(s.LocalAddr().(*net.UDPAddr).Port) }

// Hops sets how far datagrams go; -1 is as far as the system lets them.
func (s *Socket) Hops(n int) error {
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

// Next is the next datagram, and who sent it; it is left where it is, for Take or
// for whoever speaks QUIC: else the first one of that handshake would be lost.
func (s *Socket) Next(ctx context.Context, b []byte) (n int, from netip.AddrPort, err error) {
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

// Take drops the datagram that Next has shown.
func (s *Socket) Take() error {
	_, _, err := s.ReadFromUDPAddrPort(make([]byte, 1))
	return err
}

// Settle lets the kernel drop all that others send to this socket from now on.
func (s *Socket) Settle(with netip.AddrPort) error {
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
