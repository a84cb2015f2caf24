package direct

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"gatehouse/appliance/direct/flow"
	"gatehouse/appliance/direct/probe"
)

// Datagrams of a search. All candidates of an end together get some 70 bytes
// each pingEvery for a round, at most twice maxCandidates of them.
const (
	pingEvery = 250 * time.Millisecond
	// knockHops lets a datagram leave our own site and not arrive at the other.
	// There, come too early, it would make a flow of its own in a NAT that has
	// none yet, and take the port that the other end is about to get.
	knockHops = 3
	// politely is how long the agent leaves the first word to the technician's
	// end, for the same reason. It speaks at all in case that its own NAT has
	// given it a port that nobody could foresee.
	politely = time.Second
)

var errLate = errors.New("the other kind of way was found first")

// target is a place where the other end may be, and what it is asked there.
type target struct {
	at    netip.AddrPort
	nonce []byte
}

// punch is the search by datagrams of one end.
type punch struct {
	*round
	their offer

	mu    sync.Mutex
	tried []target
}

func (r *round) punch(their offer) *punch {
	p := &punch{round: r, their: their}
	for _, at := range r.targets(their, their.UDP) {
		p.add(at)
	}
	return p
}

// add has one more place tried; false: it is already, or there is no room.
func (p *punch) add(at netip.AddrPort) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.tried) >= 2*maxCandidates || slices.ContainsFunc(p.tried, func(t target) bool { return t.at == at }) {
		return false
	}
	p.tried = append(p.tried, target{at, probe.NewNonce()})
	return true
}

// ping asks at every place. That one cannot be reached is no news.
func (p *punch) ping() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.tried {
		if p.Admitted(t.at.Addr()) {
			p.udp.WriteToUDPAddrPort(p.own.Secret.Ping(t.nonce), t.at)
		}
	}
}

// keep pings until ctx ends.
func (p *punch) keep(ctx context.Context, first time.Duration) {
	for wait := first; pause(ctx, wait) == nil; wait = pingEvery {
		p.ping()
	}
}

// knock opens the agent's own packet filter and NAT for what the technician's
// end sends as soon as it has the offer.
func (r *round) knock(their offer) {
	if err := r.udp.Hops(knockHops); err != nil {
		r.Log.Debug("no knock before the search by UDP", "err", err)
		return
	}
	r.punch(their).ping()
	if err := r.udp.Hops(-1); err != nil {
		r.Log.Warn("datagrams of this search do not go far", "err", err)
	}
}

// each gives every datagram of admitted senders to f until that says that it is
// done, and returns the sender of the last. One that f leaves stays in the socket.
func (p *punch) each(ctx context.Context, f func(from netip.AddrPort, b []byte) (done, leave bool)) (netip.AddrPort, error) {
	b := make([]byte, probe.MaxSize+1)
	for {
		n, from, err := p.udp.Next(ctx, b)
		if err != nil {
			return from, err
		}
		done, leave := false, false
		if from.Port() >= lowestPort && p.may(from.Addr()) {
			done, leave = f(from, b[:n])
		}
		if !leave {
			if err := p.udp.Take(); err != nil {
				return from, because(ctx, err)
			}
		}
		if done {
			return from, nil
		}
	}
}

// reach is the technician's half: where the agent answers, QUIC is dialled.
func (r *round) reach(ctx context.Context, their offer, claim func() bool) (net.Conn, error) {
	since := time.Now()
	p := r.punch(their)
	at, err := p.run(ctx, 0, func(from netip.AddrPort, b []byte) (done, leave bool) {
		if _, ok := their.Secret.Pinged(b); ok {
			if p.add(from) { // the agent's NAT has given it another port
				p.ping()
			}
			return false, false
		}
		return p.answered(from, b), false
	})
	if err != nil {
		return nil, err
	}
	if err := pause(ctx, time.Until(since.Add(headStart))); err != nil {
		return nil, err
	}
	if !claim() {
		return nil, errLate
	}
	if err := r.udp.Settle(at); err != nil {
		return nil, err
	}
	return flow.Dial(ctx, r.takeUDP(), at, r.Grant, r.Certificate)
}

// answered says whether b is the agent's answer to what was asked there.
func (p *punch) answered(from netip.AddrPort, b []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.tried {
		if t.at == from && p.their.Secret.Ponged(t.nonce, b) {
			return true
		}
	}
	return false
}

// hear is the agent's half: it answers pings, and the QUIC of who pinged.
func (r *round) hear(ctx context.Context, their offer, claim func() bool) (net.Conn, error) {
	p := r.punch(their)
	var heard []netip.AddrPort
	at, err := p.run(ctx, politely, func(from netip.AddrPort, b []byte) (done, leave bool) {
		if probe.IsQUIC(b) {
			known := slices.Contains(heard, from)
			return known, known
		}
		nonce, ok := their.Secret.Pinged(b)
		if !ok {
			return false, false
		}
		if !slices.Contains(heard, from) {
			if len(heard) >= 2*maxCandidates {
				return false, false
			}
			heard = append(heard, from)
		}
		r.udp.WriteToUDPAddrPort(r.own.Secret.Pong(nonce), from) // a lost one is asked for again
		return false, false
	})
	if err != nil {
		return nil, err
	}
	claim()
	if err := r.udp.Settle(at); err != nil {
		return nil, err
	}
	return flow.Answer(ctx, r.takeUDP(), at, r.Grant, r.Certificate)
}

// run pings from first on while each reads.
func (p *punch) run(ctx context.Context, first time.Duration, f func(netip.AddrPort, []byte) (done, leave bool)) (netip.AddrPort, error) {
	ctx, cancel := context.WithCancel(ctx)
	var pings sync.WaitGroup
	pings.Go(func() { p.keep(ctx, first) })
	at, err := p.each(ctx, f)
	cancel()
	pings.Wait()
	return at, err
}

// takeUDP makes the socket QUIC's, which closes it.
func (r *round) takeUDP() *net.UDPConn {
	c := r.udp.UDPConn
	r.udp = nil
	return c
}
