// Package handover passes an accepted connection, with the bytes already read from it, from one process to another.
//
// The wire is one end each of a SEQPACKET socketpair that the supervisor made
// and keeps open itself: a restart of either side loses nothing, what was sent
// while the receiver was away waits in the socket. One message is one
// connection: the head described at Meta, the peeked bytes, and one descriptor
// by SCM_RIGHTS (unix(7)).
//
// The receiver does not trust the sender: the sender faces the network. It
// takes exactly one stream socket per message, checks every length, and takes
// the peer's address from the socket.
package handover

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Kind says what the first bytes asked for.
type Kind string

// The kinds of connection that are handed over.
const (
	Web   Kind = "web"   // TLS with ALPN h2, http/1.1 or none
	ACME  Kind = "acme"  // TLS with ALPN acme-tls/1 alone (RFC 8737)
	Agent Kind = "agent" // the box's own agent, over the local socket
)

// Meta is what the sender knows about a connection.
type Meta struct {
	Kind   Kind
	Remote netip.AddrPort // zero for the local socket
	Local  netip.AddrPort // zero for the local socket
	Scopes []string       // the scopes that the source has
	// Accepted is when the sender accepted it, in ns of CLOCK_BOOTTIME, which
	// all processes share: a change can be confirmed only over a younger one.
	Accepted int64
}

// Limits of one message.
const (
	// MaxPeeked is the most bytes that may have been read before the handover.
	MaxPeeked = 64 << 10
	maxScopes = 8
	maxScope  = 32
	maxHead   = 3 + 2*(1+64) + 1 + maxScopes*(1+maxScope) + 8 + 4
)

const version = 2

var errMalformed = errors.New("the handed-over message is malformed")

var kinds = []Kind{Web, ACME, Agent} // the index is the byte on the wire

// appendMessage writes: version, kind, remote and local (each a length byte
// and netip's binary form), the count of scopes and each with a length byte,
// the time (8, big-endian), the length of the peeked bytes (4), the peeked bytes.
func appendMessage(b []byte, m Meta, peeked []byte) ([]byte, error) {
	kind := slices.Index(kinds, m.Kind)
	if kind < 0 {
		return nil, fmt.Errorf("handing over: unknown kind %q", m.Kind)
	}
	if len(peeked) > MaxPeeked {
		return nil, fmt.Errorf("handing over: %d bytes were read before, the limit is %d", len(peeked), MaxPeeked)
	}
	if len(m.Scopes) > maxScopes {
		return nil, fmt.Errorf("handing over: %d scopes, the limit is %d", len(m.Scopes), maxScopes)
	}
	b = append(b, version, byte(kind))
	for _, a := range []netip.AddrPort{m.Remote, m.Local} {
		raw, err := a.MarshalBinary()
		if err != nil || len(raw) > 64 {
			return nil, fmt.Errorf("handing over: address %s cannot be written", a)
		}
		b = append(append(b, byte(len(raw))), raw...)
	}
	b = append(b, byte(len(m.Scopes)))
	for _, s := range m.Scopes {
		if s == "" || len(s) > maxScope {
			return nil, fmt.Errorf("handing over: scope %q is empty or longer than %d bytes", s, maxScope)
		}
		b = append(append(b, byte(len(s))), s...)
	}
	b = binary.BigEndian.AppendUint64(b, uint64(m.Accepted))
	b = binary.BigEndian.AppendUint32(b, uint32(len(peeked)))
	return append(b, peeked...), nil
}

// cursor takes pieces off a message; after the first failure it gives nothing.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if c.bad || n > len(c.b) {
		c.bad = true
		return nil
	}
	p := c.b[:n]
	c.b = c.b[n:]
	return p
}

func (c *cursor) byte() int {
	if p := c.take(1); p != nil {
		return int(p[0])
	}
	return 0
}

func (c *cursor) address() netip.AddrPort {
	var a netip.AddrPort
	if err := a.UnmarshalBinary(c.take(c.byte())); err != nil {
		c.bad = true
	}
	return a
}

// parseMessage is the reverse of appendMessage and takes nothing else. The
// peeked bytes share b's memory.
func parseMessage(b []byte) (Meta, []byte, error) {
	c := cursor{b: b}
	if c.byte() != version {
		return Meta{}, nil, fmt.Errorf("%w: version is not %d", errMalformed, version)
	}
	var m Meta
	kind := c.byte()
	if kind >= len(kinds) {
		return Meta{}, nil, fmt.Errorf("%w: kind %d", errMalformed, kind)
	}
	m.Kind = kinds[kind]
	m.Remote, m.Local = c.address(), c.address()
	n := c.byte()
	if n > maxScopes {
		return Meta{}, nil, fmt.Errorf("%w: %d scopes", errMalformed, n)
	}
	for range n {
		s := c.take(c.byte())
		if len(s) == 0 || len(s) > maxScope {
			return Meta{}, nil, fmt.Errorf("%w: scope of %d bytes", errMalformed, len(s))
		}
		m.Scopes = append(m.Scopes, string(s))
	}
	accepted, size := c.take(8), c.take(4)
	if c.bad {
		return Meta{}, nil, fmt.Errorf("%w: it ends too early", errMalformed)
	}
	m.Accepted = int64(binary.BigEndian.Uint64(accepted))
	if want := binary.BigEndian.Uint32(size); want > MaxPeeked || int(want) != len(c.b) {
		return Meta{}, nil, fmt.Errorf("%w: %d peeked bytes announced, %d sent", errMalformed, want, len(c.b))
	}
	return m, c.b, nil
}
