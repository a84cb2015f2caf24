package relay

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/cert/certtest"
	"gatehouse/appliance/session"
)

// ends are how the two ends of a session speak with each other.
type ends struct {
	agent      func(context.Context, net.Conn, session.Grant, tls.Certificate) (net.Conn, uint16, error)
	technician func(context.Context, net.Conn, session.Grant, tls.Certificate) (net.Conn, error)
}

var real = ends{
	agent: func(ctx context.Context, c net.Conn, g session.Grant, own tls.Certificate) (net.Conn, uint16, error) {
		t, err := Agent(ctx, c, g, own)
		if err != nil {
			return nil, 0, err
		}
		return t, t.ConnectionState().Version, nil
	},
	technician: func(ctx context.Context, c net.Conn, g session.Grant, own tls.Certificate) (net.Conn, error) {
		t, err := Technician(ctx, c, g, own)
		if err != nil {
			return nil, err
		}
		return t, nil
	},
}

// weakened are TLS ends from which something was taken.
func weakened(change func(g session.Grant, own tls.Certificate, agent, technician *tls.Config), wrap func(net.Conn) net.Conn) ends {
	configs := func(g session.Grant, own tls.Certificate) (agent, technician *tls.Config) {
		agent, technician = AgentTLS(g, own), TechnicianTLS(g, own)
		change(g, own, agent, technician)
		return agent, technician
	}
	return ends{
		agent: func(ctx context.Context, c net.Conn, g session.Grant, own tls.Certificate) (net.Conn, uint16, error) {
			config, _ := configs(g, own)
			t := tls.Server(wrap(c), config)
			err := t.HandshakeContext(ctx)
			return t, t.ConnectionState().Version, err
		},
		technician: func(ctx context.Context, c net.Conn, g session.Grant, own tls.Certificate) (net.Conn, error) {
			_, config := configs(g, own)
			t := tls.Client(wrap(c), config)
			return t, t.HandshakeContext(ctx)
		},
	}
}

func keepWhole(c net.Conn) net.Conn { return &whole{Conn: c} }

var (
	// strangers take anybody's key.
	strangers = weakened(func(_ session.Grant, _ tls.Certificate, agent, technician *tls.Config) {
		agent.VerifyConnection, technician.VerifyConnection = nil, nil
	}, keepWhole)
	// nameless does not look which session the technician means.
	nameless = weakened(func(g session.Grant, own tls.Certificate, agent, _ *tls.Config) {
		agent.VerifyConnection = pinned(g.Key, own, SessionProtocol, "").VerifyConnection
	}, keepWhole)
	// trusting takes the end of a connection for that of what is said.
	trusting = weakened(func(session.Grant, tls.Certificate, *tls.Config, *tls.Config) {}, func(c net.Conn) net.Conn { return c })
)

// inClear are ends that write records as TLS does, and have nothing but a
// greeting that says which versions they speak.
var inClear = ends{
	agent: func(ctx context.Context, c net.Conn, _ session.Grant, _ tls.Certificate) (net.Conn, uint16, error) {
		p := &plain{Conn: c, agent: true}
		for range handshakeRecords {
			if _, err := p.Write(versions); err != nil {
				return nil, 0, err
			}
		}
		hello := make([]byte, len(versions))
		if _, err := io.ReadFull(p, hello); err != nil {
			return nil, 0, err
		}
		return p, uint16(hello[5])<<8 | uint16(hello[6]), nil
	},
	technician: func(ctx context.Context, c net.Conn, _ session.Grant, _ tls.Certificate) (net.Conn, error) {
		p := &plain{Conn: c}
		if _, err := p.Write(versions); err != nil {
			return nil, err
		}
		_, err := io.ReadFull(p, make([]byte, len(versions)))
		return p, err
	},
}

// versions is as in a ClientHello.
var versions = []byte{0, 43, 0, 3, 2, 3, 4}

// plain reads what records hold, whatever their kind.
type plain struct {
	net.Conn
	agent bool
	left  bytes.Buffer
	seen  int
}

func (p *plain) Write(b []byte) (int, error) {
	_, err := p.Conn.Write(append([]byte{23, 3, 3, byte(len(b) >> 8), byte(len(b))}, b...))
	return len(b), err
}

func (p *plain) Read(b []byte) (int, error) {
	for p.left.Len() == 0 {
		head := make([]byte, recordHead)
		if _, err := io.ReadFull(p.Conn, head); err != nil {
			return 0, io.EOF
		}
		content := make([]byte, int(head[3])<<8|int(head[4]))
		n, err := io.ReadFull(p.Conn, content)
		if p.seen++; !p.agent && p.seen > 1 && p.seen <= handshakeRecords {
			continue // of the greeting
		}
		if p.left.Write(content[:n]); err != nil && n == 0 {
			return 0, io.EOF
		}
	}
	return p.left.Read(b)
}

// replays: what a gateway was shown opens nothing, not even for who showed it.
func (b *bench) replays(t *testing.T) {
	other := newBench(t, nil) // a gateway of the same organisation
	evil := certtest.Self(t)
	refused := func(what string, own tls.Certificate, ticket []byte) {
		var r *Refused
		m := <-b.meet(own, ticket)
		if !errors.As(m.err, &r) {
			t.Fatalf("%s: %v", what, m.err)
		}
	}
	for range tries() {
		g := b.grant()
		agent, technician := b.tickets(g)
		refused("by the gateway, with a key of its own", evil, technician)
		elsewhere, err := g.Ticket(id(t), session.TechnicianSide, other.key, time.Now()).Sign(b.signer)
		if err != nil {
			t.Fatal(err)
		}
		refused("at another gateway than it is for", b.techn, elsewhere)
		// The same tickets count where they should, once: so that was the reason.
		a, te := b.meet(b.agent, agent), b.meet(b.techn, technician)
		if ma, mt := <-a, <-te; ma.err != nil || mt.err != nil {
			t.Fatalf("%v, %v", ma.err, mt.err)
		} else {
			ma.c.Close()
			mt.c.Close()
		}
		refused("a second time", b.techn, technician)
		refused("a second time", b.agent, agent)
	}
}

// lies: whatever a gateway says before the switch, an end is either told no or
// speaks with its other end.
func (b *bench) lies(t *testing.T) {
	evil := certtest.Self(t)
	g := b.grant()
	_, ticket := b.tickets(g)
	meet := func(say func(*tls.Conn), then func(*net.TCPConn)) error {
		here, there := tcpPair(t)
		defer here.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer there.Close()
			// Record by record, or it would take the start of the session with it.
			c := tls.Server(&records{Conn: there}, &tls.Config{Certificates: []tls.Certificate{evil}, NextProtos: []string{Protocol}, ClientAuth: tls.RequireAnyClientCert, SessionTicketsDisabled: true})
			if _, err := readFrame(c, frameTicket); err != nil {
				return
			}
			if say(c); then != nil {
				if _, err := readFrame(c, frameGo); err == nil {
					then(there)
				}
			}
		}()
		defer func() { there.Close(); <-done }()
		c, err := Meet(ctx, here, keyOf(evil), b.techn, ticket)
		if err != nil {
			return err
		}
		s, err := Technician(ctx, c, g, b.techn)
		if err == nil {
			s.Close()
		}
		return err
	}
	for range tries() {
		noise := make([]byte, random(300))
		rand.Read(noise)
		for what, err := range map[string]error{
			"frames of any kind": meet(func(c *tls.Conn) {
				for range random(4) + 1 {
					writeFrame(c, byte(random(8)), noise[:random(len(noise)+1)])
				}
			}, nil),
			"bytes that are no frames": meet(func(c *tls.Conn) { c.Write(noise) }, nil),
			"joined, with nobody": meet(func(c *tls.Conn) { writeFrame(c, frameJoined, nil) }, func(c *net.TCPConn) {
				c.Write(noise)
			}),
			"joined, with itself": meet(func(c *tls.Conn) { writeFrame(c, frameJoined, nil) }, func(c *net.TCPConn) {
				tls.Server(c, &tls.Config{Certificates: []tls.Certificate{evil}, NextProtos: []string{SessionProtocol}, ClientAuth: tls.RequireAnyClientCert}).Handshake()
			}),
		} {
			if err == nil {
				t.Fatalf("%s: the technician took it for the agent", what)
			}
			if strings.ContainsFunc(err.Error(), func(c rune) bool { return c < ' ' && c != '\n' }) {
				t.Fatalf("%s: %q", what, err)
			}
		}
	}
	// The truth is believed: so those were refused for what they are.
	if err := meet(func(c *tls.Conn) { writeFrame(c, frameWait, nil); writeFrame(c, frameJoined, nil) }, func(c *net.TCPConn) {
		if s, err := Agent(t.Context(), c, g, b.agent); err == nil {
			io.Copy(io.Discard, s)
		}
	}); err != nil {
		t.Errorf("a gateway that does not lie is not believed: %v", err)
	}
}
