package gateway

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"

	"gatehouse/appliance/control"
)

func TestNET1_WithoutTheKernelTheGatewayJudges(t *testing.T) {
	links := []control.Link{{Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/24"), netip.MustParsePrefix("2001:db8::7/64")}}}
	for _, c := range []struct {
		state    control.State
		inKernel bool
		from     string
		want     bool
	}{
		{control.StateUnclaimed, false, "198.51.100.1", false},
		{control.StateUnclaimed, false, "2001:db8:1::1", false},
		{control.StateStarting, false, "198.51.100.1", false},
		{control.StateLocked, false, "::ffff:198.51.100.1", false},
		{control.StateUnclaimed, false, "192.0.2.9", true},
		{control.StateUnclaimed, false, "::ffff:192.0.2.9", true},
		{control.StateUnclaimed, false, "2001:db8::9", true},
		{control.StateUnclaimed, false, "127.0.0.1", true},
		{control.StateReady, false, "198.51.100.1", true},
		{control.StateUnclaimed, true, "198.51.100.1", true}, // the kernel judged it
	} {
		d := &door{ask: func(context.Context) (control.Status, error) {
			return control.Status{State: c.state, Links: links, Firewall: control.Firewall{InKernel: c.inKernel}}, nil
		}}
		if d.admits(netip.MustParseAddr(c.from)) && c.from != "127.0.0.1" {
			t.Errorf("%s was admitted before anything was known", c.from)
		}
		if err := d.look(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := d.admits(netip.MustParseAddr(c.from)); got != c.want {
			t.Errorf("%s, in kernel %v, from %s: admitted %v, want %v", c.state, c.inKernel, c.from, got, c.want)
		}
	}
}

// TestNET2_ListsNotInForceCloseTheDoor: claimed, and still nobody but the box's
// own networks, until there are lists that judge.
func TestNET2_ListsNotInForceCloseTheDoor(t *testing.T) {
	closed := true
	d := &door{ask: func(context.Context) (control.Status, error) {
		return control.Status{State: control.StateReady, Firewall: control.Firewall{Closed: closed},
			Links: []control.Link{{Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/24")}}}}, nil
	}}
	near, far := netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("198.51.100.1")
	for _, closed = range []bool{true, false, true} {
		if err := d.look(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !d.admits(near) || d.admits(far) == closed {
			t.Errorf("closed %v: near %v, far %v", closed, d.admits(near), d.admits(far))
		}
	}
}

func TestDoorEndsTheRoleWhenNobodyAnswers(t *testing.T) {
	lost := errors.New("gone")
	d := &door{ask: func(context.Context) (control.Status, error) { return control.Status{}, lost }}
	if err := d.look(t.Context()); !errors.Is(err, lost) {
		t.Errorf("look = %v", err)
	}
}

// strange is a connection from an address that is not this machine's.
type strange struct {
	net.Conn
	from   net.Addr
	closed chan struct{}
}

func (s strange) RemoteAddr() net.Addr { return s.from }
func (s strange) Close() error         { close(s.closed); return nil }

type queue struct {
	net.Listener
	conns []net.Conn
}

func (q *queue) Accept() (net.Conn, error) {
	if len(q.conns) == 0 {
		return nil, net.ErrClosed
	}
	c := q.conns[0]
	q.conns = q.conns[1:]
	return c, nil
}

func TestGuardedClosesStrangersUnread(t *testing.T) {
	out := strange{from: &net.TCPAddr{IP: net.IPv4(198, 51, 100, 1), Port: 1}, closed: make(chan struct{})}
	in := strange{from: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 2}, closed: make(chan struct{})}
	g := guarded{&queue{conns: []net.Conn{out, in}}, &door{}}
	c, err := g.Accept()
	if err != nil || c.RemoteAddr() != in.from {
		t.Fatalf("Accept = %v, %v; want the one from this machine", c, err)
	}
	select {
	case <-out.closed:
	default:
		t.Error("the stranger's connection was left open")
	}
	if _, err := g.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept at the end = %v", err)
	}
}
