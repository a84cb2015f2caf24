// Package technician is the technician's end of a session: asked of the hub, met at a gateway, carried over whatever ways there are.
//
// Begin returns when the other end is there. Streams are opened with Open; the
// session goes on over further meetings when its ways are lost, and over a way
// without the gateway when one is found, without a byte lost or doubled
// (package carrier). The package shows nothing and asks nobody: Attend, Forward
// and Exchange are given what they read and write.
package technician

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"gatehouse/appliance/carrier"
	"gatehouse/appliance/relay"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
	"gatehouse/appliance/session/wire"
)

// Times of a meeting.
const (
	meetTime  = 30 * time.Second       // for one: the agent has to come as well
	firstWait = 200 * time.Millisecond // before the second try for a further one
	mostWait  = 5 * time.Second
)

// ErrOver wraps what a Hub answers when a session has no further meetings: it
// is over, or nobody is signed in any more.
var ErrOver = errors.New("the session is over")

// Hub is what grants sessions.
type Hub interface {
	Ask(context.Context, api.Ask) (api.Granted, error)
	Meet(context.Context, api.MeetAsk) (api.Meeting, error)
}

// Config is what a session is made with.
type Config struct {
	Hub  Hub
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Near is where the hub was reached, host:port: a gateway that is the same
	// box answers there too, and does not know every address it is reached by.
	Near string
	// Patience is how long the session waits without any way.
	Patience time.Duration
	// OnWay hears which way is the best one now, and whether there is any.
	OnWay func(best carrier.Kind, any bool)
	// Direct looks for a way without the gateway while the session lasts; nil: none is looked for.
	Direct func(context.Context, *Session)
}

// Session is one that has begun.
type Session struct {
	Grant    session.Grant
	cfg      Config
	own      tls.Certificate
	carrier  *carrier.Session
	lost     chan struct{} // has room for one
	stop     context.CancelFunc
	work     sync.WaitGroup
	refused  atomic.Pointer[error] // why there is no further meeting
	activity atomic.Uint64
}

// Begin asks for a session and meets the agent. The key that is pinned for this
// end is made here and never leaves.
func Begin(ctx context.Context, cfg Config, q api.Ask) (*Session, error) {
	own, key, err := identity()
	if err != nil {
		return nil, err
	}
	q.Transport, q.Key = session.TLS, key
	granted, err := cfg.Hub.Ask(ctx, q)
	if err != nil {
		return nil, err
	}
	g, err := session.ReceivedGrant(granted.Grant)
	if err == nil && (g.ID != granted.Session || g.Key != key || g.Transport != session.TLS) {
		err = fmt.Errorf("%w: the hub answered with the grant of another session", session.ErrOther)
	}
	if err != nil {
		return nil, err
	}
	s := &Session{Grant: g, cfg: cfg, own: own, lost: make(chan struct{}, 1)}
	s.carrier = carrier.New(carrier.Technician, carrier.Config{Patience: cfg.Patience, OnPath: s.onPath})
	if err := s.meet(ctx, granted.Meeting); err != nil {
		return nil, errors.Join(err, s.carrier.Close("the technician's end could not come"))
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.work.Go(func() { s.keep(running) })
	if cfg.Direct != nil {
		s.work.Go(func() { cfg.Direct(running, s) })
	}
	return s, nil
}

// identity makes a key for one session. Of its certificate only the key counts.
func identity() (tls.Certificate, session.Key, error) {
	fail := func(err error) (tls.Certificate, session.Key, error) {
		return tls.Certificate{}, session.Key{}, fmt.Errorf("making a key for the session: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fail(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return fail(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return fail(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, session.KeyOf(leaf), nil
}

// meet comes to a meeting and gives the session the connection.
func (s *Session) meet(ctx context.Context, m api.Meeting) error {
	ctx, cancel := context.WithTimeout(ctx, meetTime)
	defer cancel()
	c, err := s.reach(ctx, m)
	if err != nil {
		return err
	}
	t, err := relay.Technician(ctx, c, s.Grant, s.own)
	if err != nil {
		return err
	}
	if err := s.carrier.Attach(ctx, t, carrier.Relay); err != nil {
		return errors.Join(fmt.Errorf("the session with the agent: %w", err), t.Close())
	}
	return nil
}

// reach finds the gateway: where the hub was reached, or at the address that it
// is known by. Trying costs nothing but time, since the ticket is shown to the
// holder of the pinned key alone.
func (s *Session) reach(ctx context.Context, m api.Meeting) (net.Conn, error) {
	places := []string{s.cfg.Near, m.Gateway.Address}
	if places[0] == places[1] || places[0] == "" {
		places = places[1:]
	}
	var all error
	for _, place := range places {
		c, err := s.cfg.Dial(ctx, "tcp", place)
		if err == nil {
			c, err = relay.Meet(ctx, c, m.Gateway.Key, s.own, m.Ticket)
		}
		if err == nil {
			return c, nil
		}
		all = errors.Join(all, fmt.Errorf("%s: %w", place, err))
		var refused *relay.Refused
		if errors.As(err, &refused) || ctx.Err() != nil {
			break // a ticket is shown once
		}
	}
	return nil, all
}

// onPath is called by the carrier, which must not wait for it.
func (s *Session) onPath(best carrier.Kind, any bool) {
	if s.cfg.OnWay != nil {
		s.cfg.OnWay(best, any)
	}
	if any {
		return
	}
	select {
	case s.lost <- struct{}{}:
	default:
	}
}

// keep asks for a further meeting whenever no way is left. It looks besides
// being told: of a way that was lost before it was told of, nothing is told.
func (s *Session) keep(ctx context.Context) {
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.carrier.Done():
			return
		case <-s.lost:
		case <-look.C:
		}
		for wait := firstWait; len(s.carrier.Paths()) == 0; wait = min(2*wait, mostWait) {
			err := s.again(ctx)
			if err == nil {
				break
			}
			if errors.Is(err, ErrOver) {
				s.refused.Store(&err)
				s.carrier.Close(err.Error())
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-s.carrier.Done():
				return
			case <-time.After(wait):
			}
		}
	}
}

func (s *Session) again(ctx context.Context) error {
	m, err := s.cfg.Hub.Meet(ctx, api.MeetAsk{Session: s.Grant.ID})
	if err != nil {
		return err
	}
	return s.meet(ctx, m)
}

// Attach gives the session a further connection; a better kind takes over.
func (s *Session) Attach(ctx context.Context, c net.Conn, kind carrier.Kind) error {
	return s.carrier.Attach(ctx, c, kind)
}

// Stream opens one that is not said to be for anything yet, for Direct.
func (s *Session) Stream(ctx context.Context) (wire.Stream, error) { return s.carrier.Open(ctx) }

// Own is what this end proves to hold, for connections made by Direct.
func (s *Session) Own() tls.Certificate { return s.own }

// Done is closed when the session is over; Err says why.
func (s *Session) Done() <-chan struct{} { return s.carrier.Done() }

// Err is why the session is over.
func (s *Session) Err() error {
	if why := s.refused.Load(); why != nil {
		return *why
	}
	return s.carrier.Err()
}

// Activity grows whenever somebody is at work: something is opened or sent from
// here, or comes where nobody types. A terminal that only prints is no work.
func (s *Session) Activity() uint64 { return s.activity.Load() }

// Close ends the session at both ends.
func (s *Session) Close(reason string) error {
	err := s.carrier.Close(reason)
	s.stop()
	s.work.Wait()
	return err
}

// Open opens a stream for a function. A refusal is a *wire.Refusal, in the
// agent's words.
func (s *Session) Open(ctx context.Context, o wire.Open) (wire.Stream, wire.Reply, error) {
	s.activity.Add(1)
	st, err := s.carrier.Open(ctx)
	if err != nil {
		return nil, wire.Reply{}, s.because(err)
	}
	stop := context.AfterFunc(ctx, func() { st.Close() })
	err = wire.WriteOpen(st, o)
	var r wire.Reply
	if err == nil {
		r, err = wire.ReadReply(st)
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		st.Close() // what went wrong is said already
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, r, s.because(err)
	}
	return &counted{st, &s.activity, o.Do != wire.Terminal && o.Do != wire.Console}, r, nil
}

// because prefers the reason of the session's end to how a stream noticed it.
func (s *Session) because(err error) error {
	var r *wire.Refusal
	if errors.As(err, &r) {
		return err
	}
	select {
	case <-s.Done():
		if why := s.Err(); why != nil {
			return why
		}
	default:
	}
	return err
}

// counted notes what is sent, and what comes if that is work, too.
type counted struct {
	wire.Stream
	activity *atomic.Uint64
	comes    bool
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Stream.Read(b)
	if c.comes && n > 0 {
		c.activity.Add(1)
	}
	return n, err
}

func (c *counted) Write(b []byte) (int, error) {
	c.activity.Add(1)
	return c.Stream.Write(b)
}
