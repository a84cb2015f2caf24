package direct

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"gatehouse/appliance/carrier"
	"gatehouse/appliance/direct/probe"
	"gatehouse/appliance/session"
)

// round is one search of one end.
type round struct {
	*Search
	own  offer
	self []netip.Addr // all addresses of this machine
	udp  *probe.Socket
	tcp  *net.TCPListener // the technician's; nil: there is none
}

// open makes what one round needs: the sockets that the offer names.
func (e *Search) open(number uint32) (*round, error) {
	r := &round{Search: e, own: offer{Round: number, Addresses: []netip.Addr{}, Secret: probe.NewSecret()}}
	for _, a := range e.Addresses() {
		a = a.Unmap().WithZone("")
		r.self = append(r.self, a)
		if e.usable(a) && len(r.own.Addresses) < maxCandidates && !slices.Contains(r.own.Addresses, a) {
			r.own.Addresses = append(r.own.Addresses, a)
		}
	}
	if len(r.self) == 0 { // or our own services would count as somebody else's
		return nil, errors.New("the addresses of this machine are not known")
	}
	var err error
	if r.udp, err = probe.Listen(); err != nil {
		return nil, err
	}
	r.own.UDP = r.udp.Port()
	if e.Side != session.TechnicianSide {
		return r, nil
	}
	if r.tcp, err = net.ListenTCP("tcp", nil); err != nil {
		return nil, errors.Join(fmt.Errorf("listening for the agent: %w", err), r.udp.Close())
	}
	r.own.TCP = r.tcp.Addr().(*net.TCPAddr).AddrPort().Port()
	return r, nil
}

// close ends what is open still. A socket that became a way was taken out.
func (r *round) close() {
	if r.udp != nil {
		r.udp.Close()
	}
	if r.tcp != nil {
		r.tcp.Close()
	}
}

// LinkAddresses are all of this machine's, as Config.Addresses needs them.
func LinkAddresses() []netip.Addr {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var all []netip.Addr
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			all = append(all, p.Addr().Unmap())
		}
	}
	return all
}

// usable says whether an address can be one of an end's at all.
func (e *Search) usable(a netip.Addr) bool {
	return session.Reachable(a) || e.loopback && a.IsLoopback()
}

// may says whether the other end may be at an address: this machine is not, and
// behind its own addresses are its own services.
func (r *round) may(a netip.Addr) bool {
	return r.usable(a) && (r.loopback || !slices.Contains(r.self, a)) && r.Admitted(a)
}

// targets are where the other end may be, at a port of its.
func (r *round) targets(their offer, port uint16) []netip.AddrPort {
	var all []netip.AddrPort
	add := func(a netip.Addr) {
		at := netip.AddrPortFrom(a, port)
		if port >= lowestPort && len(all) < maxCandidates && !slices.Contains(all, at) && r.may(a) {
			all = append(all, at)
		}
	}
	if r.Seen.IsValid() {
		add(r.Seen.Unmap().WithZone("")) // first, that a long list does not push it out
	}
	for _, a := range their.Addresses {
		add(a)
	}
	return all
}

// found is a connection with the session's TLS in it, or why there is none.
type found struct {
	net.Conn
	kind carrier.Kind
	err  error
}

// search looks by TCP and UDP at once until one is found, or the time is up.
func (r *round) search(ctx context.Context, their offer) *way {
	ctx, cancel := context.WithTimeout(ctx, roundTime)
	defer cancel()
	var mu sync.Mutex
	claimed := carrier.Kind(0)
	results := make(chan found, 2)
	seek := func(kind carrier.Kind, f func(context.Context, offer, func() bool) (net.Conn, error)) context.CancelFunc {
		one, stop := context.WithCancel(ctx)
		// Both ends must not take different ways: the technician's end claims one
		// before it speaks TLS, and lets the other be. The agent follows.
		claim := func() bool {
			mu.Lock()
			defer mu.Unlock()
			if r.Side == session.AgentSide || claimed == 0 {
				claimed = kind
			}
			return claimed == kind
		}
		go func() { // ends with ctx; search waits for it
			c, err := f(one, their, claim)
			results <- found{c, kind, err}
		}()
		return stop
	}
	var stops [2]context.CancelFunc
	if r.Side == session.TechnicianSide {
		stops[0], stops[1] = seek(carrier.TCP, r.answer), seek(carrier.UDP, r.reach)
	} else {
		stops[0], stops[1] = seek(carrier.TCP, r.call), seek(carrier.UDP, r.hear)
	}
	var w *way
	for range stops {
		f := <-results
		switch {
		case f.err != nil:
			r.Log.Debug("no direct way", "kind", f.kind, "round", their.Round, "err", f.err)
		case w != nil:
			f.Close() // the other was quicker
		default:
			stops[0]()
			stops[1]()
			w = r.attach(ctx, f)
		}
	}
	return w
}

// way is a connection that the carrier has.
type way struct {
	net.Conn
	kind   carrier.Kind
	other  netip.Addr
	once   sync.Once
	closed chan struct{}
	err    error
}

// Close ends the way; the carrier does it when it has no more use for it.
func (w *way) Close() error {
	w.once.Do(func() {
		close(w.closed)
		w.err = w.Conn.Close()
	})
	return w.err
}

func (r *round) attach(ctx context.Context, f found) *way {
	at, err := netip.ParseAddrPort(f.RemoteAddr().String())
	if err != nil {
		f.Close()
		return nil
	}
	w := &way{Conn: f.Conn, kind: f.kind, other: at.Addr().Unmap().WithZone(""), closed: make(chan struct{})}
	if err := r.Attach(ctx, w, w.kind); err != nil {
		r.Log.Info("the session does not take the direct way", "kind", w.kind, "other", w.other, "err", err)
		w.Close()
		return nil
	}
	r.Log.Info("a direct way", "kind", w.kind, "other", w.other)
	return w
}

var (
	errGivenUp  = errors.New("the session has given it up")
	errUnlisted = errors.New("no list admits the other end's address any more")
)

// guard waits for the end of a way, and ends it when the lists do.
func (e *Search) guard(ctx context.Context, w *way) error {
	defer w.Close()
	t := time.NewTicker(guardEvery)
	defer t.Stop()
	var unlisted time.Time
	for {
		select {
		case <-ctx.Done():
			select { // the session ends, and it is for the carrier to say why
			case <-w.closed:
			case <-time.After(lastWord):
			}
			return ctx.Err()
		case <-w.closed:
			return errGivenUp
		case <-t.C:
			switch {
			case e.Admitted(w.other):
				unlisted = time.Time{}
			case unlisted.IsZero():
				unlisted = time.Now()
			case time.Since(unlisted) >= lastWord:
				return errUnlisted
			}
		}
	}
}
