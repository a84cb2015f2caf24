package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
	"unicode"

	"gatehouse/appliance/session"
)

// Refused is the gateway's answer to an end that it does not join. The reason
// is the gateway's text: for people, and not to be believed.
type Refused struct{ Reason string }

func (r *Refused) Error() string {
	clean := strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return ' '
		}
		return c
	}, strings.ToValidUTF8(r.Reason, "?"))
	return "the gateway does not join this session: " + clean
}

// Meet takes a connection to a gateway and returns it as one to the other end,
// once that is there: not trusted yet, and without a byte read too many. The
// gateway must prove the key of pin; own is this end's, for which the ticket
// was made. On an error the connection is closed.
func Meet(ctx context.Context, c net.Conn, pin session.Key, own tls.Certificate, ticket []byte) (net.Conn, error) {
	err := meet(ctx, c, pin, own, ticket)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("meeting the other end at the gateway: %w", err), c.Close())
	}
	return c, nil
}

func meet(ctx context.Context, c net.Conn, pin session.Key, own tls.Certificate, ticket []byte) error {
	if len(ticket) > maxFrame {
		return fmt.Errorf("a ticket of %d bytes, the limit is %d", len(ticket), maxFrame)
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	rec := &records{Conn: c}
	outer := tls.Client(rec, pinned(pin, own, Protocol, ""))
	if err := outer.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("the handshake: %w", err)
	}
	if err := writeFrame(outer, frameTicket, ticket); err != nil {
		return err
	}
	kind, err := nextFrame(outer)
	if err == nil && kind == frameWait {
		kind, err = nextFrame(outer)
	}
	switch {
	case err != nil:
		return because(ctx, err)
	case kind != frameJoined:
		return fmt.Errorf("a frame of kind %d, want %d", kind, frameJoined)
	case !rec.clean():
		return errors.New("bytes of the session came before the switch")
	}
	if err := writeFrame(outer, frameGo, nil); err != nil {
		return because(ctx, err)
	}
	if !stop() {
		return ctx.Err()
	}
	return nil
}

// nextFrame reads an empty frame of any kind but no.
func nextFrame(c *tls.Conn) (byte, error) {
	kind, b, err := anyFrame(c)
	if err == nil && len(b) > 0 {
		err = fmt.Errorf("a frame of kind %d with %d bytes, want none", kind, len(b))
	}
	return kind, err
}

// because prefers the context's reason: the deadline was set by it.
func because(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// pinned is TLS 1.3 to whoever holds the key pin, and to nobody else. Names and
// chains of certificates count for nothing.
func pinned(pin session.Key, own tls.Certificate, protocol, name string) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{own}, MinVersion: tls.VersionTLS13, NextProtos: []string{protocol}, ServerName: name,
		InsecureSkipVerify: true, // VerifyConnection does what counts
		VerifyConnection: func(cs tls.ConnectionState) error {
			if cs.NegotiatedProtocol != protocol {
				return fmt.Errorf("it speaks %q, want %q", cs.NegotiatedProtocol, protocol)
			}
			if len(cs.PeerCertificates) == 0 || session.KeyOf(cs.PeerCertificates[0]) != pin {
				return fmt.Errorf("%w: it does not hold the key that is pinned", session.ErrOther)
			}
			return nil
		},
	}
}
