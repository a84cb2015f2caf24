// Package direct lets the two ends of a session find a way without the gateway.
//
// They are joined already, through the gateway and a carrier, and say to each
// other on a stream of that where they can be found: a gateway cannot read or
// change it. The agent calls the technician by TCP, since a box answers nobody
// on a port of its own; both send datagrams to all of the other's candidates at
// once, so that packet filters and NATs on the way take them for a flow that
// began inside. What is found first carries the session's own TLS, with the keys
// that the grant pins, over TCP or in QUIC, and is handed to the carrier. When
// it dies they look again, with growing pauses.
//
// An end is sent to the addresses that its own lists admit and to no other,
// whatever the other end says: an agent is no scanner of its site's network.
// docs/sessions.md has the messages.
package direct

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"gatehouse/appliance/carrier"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/wire"
)

// Config is what an end looks with.
type Config struct {
	Side        session.Side
	Grant       session.Grant
	Certificate tls.Certificate
	Addresses   func() []netip.Addr   // all addresses of this machine's links
	Seen        netip.Addr            // of the other end, as this side's gateway or hub sees it; the zero Addr if not known
	Admitted    func(netip.Addr) bool // whether the other end may be there; asked before anything is sent, and all the time after
	// Attach takes a way into the session and returns when that is agreed, or
	// refused. The carrier closes what it has taken when it has no more use for it.
	Attach func(ctx context.Context, c net.Conn, kind carrier.Kind) error
	Log    *slog.Logger

	loopback bool // of tests of this package, which have no other network
}

// Times. A round is what both ends do between two offers.
const (
	roundTime   = 10 * time.Second
	headStart   = 600 * time.Millisecond // of TCP before UDP: it costs both ends less
	firstPause  = 2 * time.Second        // after a round that found nothing, or a way that died; doubled each time
	longPause   = 5 * time.Minute
	provenAfter = 30 * time.Second       // a way that lived so long was a good one: the next pause is the first again
	guardEvery  = 100 * time.Millisecond // how often the lists are asked about the way in use
	// lastWord is what a way has left once they do not admit it, or its session
	// is over: there may be no other way to tell the other end why.
	lastWord = 400 * time.Millisecond
)

// Search is one end's, for one session.
type Search struct {
	Config
	one  sync.Mutex     // held by Run
	wg   sync.WaitGroup // of what outlives a round
	next time.Time      // of the agent: when the next round may be

	mu   sync.Mutex
	fail int // rounds since the last good way
}

// Run looks for a way until ctx ends, the stream does, or the other end says
// what it must not. The technician's side opens with it (wire.Open), the
// agent's is called when that was read. The ways it found end with it: what
// nobody guards does not live. There is one at a time, and an end that begins
// anew does not get new patience by it.
func (e *Search) Run(ctx context.Context, s wire.Stream) error {
	if !e.one.TryLock() {
		err := wire.Refuse(wire.Invalid, "this session looks for a direct way already")
		if e.Side == session.AgentSide {
			wire.WriteRefusal(s, err) // as far as it listens
		}
		return errors.Join(err, s.Close())
	}
	defer e.one.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { s.Close() })
	var err error
	if e.Side == session.AgentSide {
		err = e.agent(ctx, s)
	} else {
		err = e.technician(ctx, s)
	}
	err = because(ctx, err)
	cancel()
	stop()
	e.wg.Wait()
	s.Close() // it may be closed, or its session gone
	if errors.Is(err, io.EOF) {
		err = errors.New("the other end looks for no direct way any more")
	}
	return fmt.Errorf("looking for a direct way: %w", err)
}

// New makes a Search, which Run begins.
func New(cfg Config) (*Search, error) {
	switch {
	case cfg.Side != session.AgentSide && cfg.Side != session.TechnicianSide:
		return nil, fmt.Errorf("looking for a direct way: %.20q is not a side", cfg.Side)
	case cfg.Grant.Transport != session.TLS:
		return nil, fmt.Errorf("looking for a direct way: the ends of this session speak %s, which finds its ways itself", cfg.Grant.Transport)
	case cfg.Addresses == nil || cfg.Admitted == nil || cfg.Attach == nil || cfg.Log == nil:
		return nil, errors.New("looking for a direct way: addresses, lists, carrier and log are all needed")
	}
	return &Search{Config: cfg}, nil
}

// technician begins each round.
func (e *Search) technician(ctx context.Context, s wire.Stream) error {
	if err := wire.WriteOpen(s, wire.Open{Do: wire.Direct}); err != nil {
		return err
	}
	if _, err := wire.ReadReply(s); err != nil {
		return err
	}
	for n := uint32(1); ; n++ {
		r, err := e.open(n)
		if err != nil {
			return err
		}
		w, err := e.ask(ctx, s, r)
		if err != nil {
			return err // of the signalling; that nothing was found is no error
		}
		e.wait(ctx, w)
		if err := pause(ctx, e.pause()); err != nil {
			return err
		}
	}
}

// ask is one round of the technician's.
func (e *Search) ask(ctx context.Context, s wire.Stream, r *round) (*way, error) {
	defer r.close()
	if err := writeOffer(s, r.own); err != nil {
		return nil, err
	}
	their, err := readOffer(s)
	if err != nil {
		return nil, err
	}
	if their.Round != r.own.Round || their.TCP != 0 {
		return nil, fmt.Errorf("%w: an answer to round %d with the port %d, to round %d", session.ErrMalformed, their.Round, their.TCP, r.own.Round)
	}
	return r.search(ctx, their), nil
}

// agent answers rounds. A new one ends the one before, not the way in use: the
// carrier knows better whether that still lives.
func (e *Search) agent(ctx context.Context, s wire.Stream) error {
	if err := wire.WriteReply(s, wire.Reply{}); err != nil {
		return err
	}
	last := uint32(0)
	var now running
	defer now.end()
	for {
		their, err := readOffer(s)
		if err != nil {
			return err
		}
		if their.Round <= last {
			return fmt.Errorf("%w: round %d after round %d", session.ErrMalformed, their.Round, last)
		}
		last = their.Round
		now.end()
		if err := pause(ctx, time.Until(e.next)); err != nil { // a technician's end that asks too soon waits
			return err
		}
		e.next = time.Now().Add(e.pause() / 2)
		r, err := e.open(their.Round)
		if err != nil {
			return err
		}
		r.own.TCP = 0
		r.knock(their) // before the technician's end knows where to send
		if err := writeOffer(s, r.own); err != nil {
			r.close()
			return err
		}
		now.begin(ctx, func(one context.Context) {
			defer r.close()
			if w := r.search(one, their); w != nil {
				e.wg.Go(func() { e.wait(ctx, w) })
			}
		})
	}
}

// running is the agent's round that goes on while the next may be asked for.
type running struct {
	wg   sync.WaitGroup
	stop context.CancelFunc
}

func (r *running) begin(ctx context.Context, f func(context.Context)) {
	ctx, r.stop = context.WithCancel(ctx)
	r.wg.Go(func() { f(ctx) })
}

func (r *running) end() {
	if r.stop != nil {
		r.stop()
	}
	r.wg.Wait()
}

// wait is over when the way is, and counts what it was worth.
func (e *Search) wait(ctx context.Context, w *way) {
	if w == nil {
		return
	}
	since := time.Now()
	why := e.guard(ctx, w)
	e.Log.Info("the direct way is over", "kind", w.kind, "other", w.other, "err", why)
	if time.Since(since) >= provenAfter {
		e.mu.Lock()
		e.fail = 0
		e.mu.Unlock()
	}
}

// pause is how long not to look, counted up by each call.
func (e *Search) pause() time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	d := longPause
	if e.fail < 8 {
		d = min(firstPause<<e.fail, longPause)
		e.fail++
	}
	return d
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(max(d, 0))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// because prefers the context's reason: it is what closed the stream, or ended the wait.
func because(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
