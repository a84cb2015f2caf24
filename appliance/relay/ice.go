package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"gatehouse/appliance/session"
)

// A browser cannot speak the outer TLS, and has no ticket. It comes by ICE-TCP:
// its first message names the agent's end by a ufrag, and proves by an HMAC that
// it knows the password. Both it has from the agent's answer to its offer, by
// way of the hub. The agent waits here under them, with a ticket.

// maxSameUfrag is how many connections of one browser can be waited for.
const maxSameUfrag = 8

// expected is the browser that an end waits for.
type expected struct{ ufrag, password string }

// readTicket reads what an end shows, after what it may say before.
func (e *end) readTicket() ([]byte, error) {
	kind, b, err := anyFrame(e.tls)
	if err == nil && kind == frameICE {
		ufrag, password, _ := strings.Cut(string(b), ":")
		if !isUfrag(ufrag) || !isPassword(password) {
			return nil, errors.New("the names of a registration for ICE are malformed")
		}
		e.expect = &expected{ufrag, password}
		kind, b, err = anyFrame(e.tls)
	}
	if err == nil && kind != frameTicket {
		err = fmt.Errorf("a frame of kind %d, want %d", kind, frameTicket)
	}
	return b, err
}

// expose has an end wait for a browser. The caller holds the lock.
func (r *Relay) expose(e *end) error {
	same := r.ice[e.expect.ufrag]
	switch {
	case len(same) >= maxSameUfrag:
		return fmt.Errorf("%d connections wait for this browser already", len(same))
	case len(same) > 0 && (same[0].ticket.Key != e.ticket.Key || same[0].expect.password != e.expect.password):
		return fmt.Errorf("%w: another end waits under this name", session.ErrOther)
	}
	r.ice[e.expect.ufrag] = append(same, e)
	r.exposed++
	return nil
}

// unexpose takes an end out of those that wait for browsers; false: one has it.
// The caller holds the lock.
func (r *Relay) unexpose(e *end) bool {
	same := r.ice[e.expect.ufrag]
	i := slices.Index(same, e)
	if i < 0 {
		return false
	}
	if same = slices.Delete(same, i, i+1); len(same) == 0 {
		delete(r.ice, e.expect.ufrag)
	} else {
		r.ice[e.expect.ufrag] = same
	}
	r.exposed--
	return true
}

// HandleBrowser serves a browser whose first message has come (FirstICE says
// that it is complete), and whatever came behind it, until the connection ends; entered is called once the
// agent's end is found. The caller closes it.
func (r *Relay) HandleBrowser(ctx context.Context, c *net.TCPConn, first []byte, entered func()) error {
	agent, err := r.pick(first)
	if err != nil {
		r.mu.Lock()
		r.total.Refused++
		r.mu.Unlock()
		return fmt.Errorf("a browser's first message: %w", err)
	}
	entered()
	e := &end{conn: c, first: first, done: make(chan struct{})}
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		e.source = a.AddrPort().Addr().Unmap()
	}
	return r.join(ctx, agent, e)
}

// pick finds the end that a browser means, and takes it out of those that wait.
func (r *Relay) pick(first []byte) (*end, error) {
	b, err := readBinding(first)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	same := r.ice[b.ufrag]
	switch {
	case len(same) == 0:
		return nil, fmt.Errorf("%w: nobody waits for it", session.ErrOther)
	case !b.by(same[0].expect.password):
		return nil, fmt.Errorf("%w: it does not know the password", session.ErrOther)
	case len(r.joined) >= r.cfg.MaxJoined:
		return nil, fmt.Errorf("this gateway joins %d sessions already", len(r.joined))
	}
	e := same[0]
	r.unexpose(e)
	return e, nil
}

// Expose waits at a gateway for a browser's connection by ICE-TCP, as Meet does
// for a tool's. Waiting is called when the gateway has the registration: only
// then may the browser come. It returns the connection, without a byte read, and
// the browser's address as the gateway says it. On an error c is closed.
func Expose(ctx context.Context, c net.Conn, pin session.Key, own tls.Certificate, ticket []byte, ufrag, password string, waiting func()) (net.Conn, netip.AddrPort, error) {
	from, err := expose(ctx, c, pin, own, ticket, ufrag+":"+password, waiting)
	if err != nil {
		return nil, from, errors.Join(fmt.Errorf("waiting for a browser at the gateway: %w", err), c.Close())
	}
	return c, from, nil
}

func expose(ctx context.Context, c net.Conn, pin session.Key, own tls.Certificate, ticket []byte, names string, waiting func()) (netip.AddrPort, error) {
	var from netip.AddrPort
	if len(ticket) > maxFrame || len(names) > maxFrame {
		return from, fmt.Errorf("a ticket of %d bytes, the limit is %d", len(ticket), maxFrame)
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	rec := &records{Conn: c}
	outer := tls.Client(rec, pinned(pin, own, Protocol, ""))
	if err := outer.HandshakeContext(ctx); err != nil {
		return from, fmt.Errorf("the handshake: %w", err)
	}
	if err := errors.Join(writeFrame(outer, frameICE, []byte(names)), writeFrame(outer, frameTicket, ticket)); err != nil {
		return from, because(ctx, err)
	}
	kind, err := nextFrame(outer)
	if err == nil && kind != frameWait {
		err = fmt.Errorf("a frame of kind %d, want %d", kind, frameWait)
	}
	if err != nil {
		return from, because(ctx, err)
	}
	waiting()
	b, err := readFrame(outer, frameJoined)
	if err != nil {
		return from, because(ctx, err)
	}
	if from, err = netip.ParseAddrPort(string(b)); err != nil {
		return from, fmt.Errorf("the gateway does not say where the browser comes from: %w", err)
	}
	from = netip.AddrPortFrom(from.Addr().Unmap().WithZone(""), from.Port())
	if !rec.clean() {
		return from, errors.New("bytes of the session came before the switch")
	}
	if err := writeFrame(outer, frameGo, nil); err != nil {
		return from, because(ctx, err)
	}
	if !stop() {
		return from, ctx.Err()
	}
	return from, nil
}
