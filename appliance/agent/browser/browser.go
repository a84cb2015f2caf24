// Package browser is the agent's end of a session with a browser: WebRTC data channels, through the gateway or directly, each of which is a stream.
//
// A browser knows no other way to be encrypted end to end with somebody who is
// not a web server. It trusts the agent by the certificate in the grant, which
// the page compares with the agent's answer, and the agent trusts the browser by
// the one in its offer, which must be that of the grant. What stands between,
// gateway and hub's line too, can drop and delay, and no more.
//
// Of WebRTC this is ICE, DTLS, SCTP and data channels, without sound, picture
// and their negotiation.
package browser

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/relay"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/wire"
)

// Limits of one session.
const (
	MaxStreams = 8 // at a time, of one connection

	maxPeers     = 3 // connections: one that is used, one that comes in its place, one that was given up
	maxTickets   = 4
	maxHosts     = 4
	registerTime = 5 * time.Second  // to wait at the gateway
	arriveTime   = 40 * time.Second // for the browser to come, and to agree on keys
	restTime     = 10 * time.Second // for further connections of a browser that has come
)

// Config is a session with a browser.
type Config struct {
	Grant       session.Grant
	Certificate tls.Certificate // the agent's, named by the grant; gateways know its key
	// Dial connects to the grant's first gateway.
	Dial func(context.Context) (net.Conn, error)
	// Serve serves one stream and returns when it is done with it.
	Serve func(context.Context, wire.Stream)
	// OnPath is told which way is used: relay or udp, and "" when none is left.
	OnPath func(string)
	// Source is the technician's address where the ends may look for a way
	// without the gateway; else it is not valid.
	Source netip.Addr
	Log    *slog.Logger
}

// Session answers the offers of one session's browser. A browser that has lost
// its connection makes a new offer; what the streams led to lives on elsewhere.
type Session struct {
	cfg    Config
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	peers   []*peer // oldest first
	current *peer   // the newest that has connected
	path    string
}

// New makes the agent's end of a session, which lasts as long as ctx or until Close.
func New(ctx context.Context, cfg Config) (*Session, error) {
	switch {
	case cfg.Grant.Transport != session.WebRTC:
		return nil, fmt.Errorf("the session %s is not a browser's", cfg.Grant.ID)
	case len(cfg.Certificate.Certificate) == 0 || session.Key(sha256.Sum256(cfg.Certificate.Certificate[0])) != cfg.Grant.Agent:
		return nil, fmt.Errorf("%w: the session %s was granted to an agent with another certificate", session.ErrOther, cfg.Grant.ID)
	case len(cfg.Grant.Gateways) == 0:
		return nil, fmt.Errorf("the session %s names no gateway", cfg.Grant.ID)
	}
	s := &Session{cfg: cfg}
	s.ctx, s.cancel = context.WithCancel(ctx)
	return s, nil
}

// Answer takes a browser's offer, and returns the answer once the gateway is
// ready for the browser.
func (s *Session) Answer(ctx context.Context, sig attend.Signal) (string, error) {
	if sig.Session != s.cfg.Grant.ID {
		return "", fmt.Errorf("%w: the offer is for session %s", session.ErrOther, sig.Session)
	}
	o, err := readOffer(sig.SDP, s.cfg.Grant.Key)
	if err != nil {
		return "", err
	}
	hosts, err := readHosts(sig)
	if err != nil {
		return "", err
	}
	p, err := newPeer(s, o, hosts)
	if err != nil {
		return "", err
	}
	if !s.enter(p) {
		p.end(context.Canceled)
		p.close()
		return "", errors.New("the session is over")
	}
	s.wg.Go(func() {
		defer s.leave(p)
		if err := p.run(); err != nil {
			s.cfg.Log.Debug("a browser's connection has ended", "session", s.cfg.Grant.ID, "err", err)
		}
	})
	waits, err := s.register(ctx, p, sig.Tickets)
	faces := p.direct
	for _, h := range hosts {
		if waits > 0 {
			faces = append(faces, face{true, h})
		}
	}
	if len(faces) == 0 {
		err = fmt.Errorf("no way to the browser: %w", err)
		p.end(err)
		return "", err
	}
	return writeAnswer(o, p.ufrag, p.password, s.cfg.Grant.Agent, faces), nil
}

// readHosts reads where the browser reaches the gateway.
func readHosts(sig attend.Signal) ([]netip.AddrPort, error) {
	var hosts []netip.AddrPort
	for _, h := range sig.Hosts[:min(len(sig.Hosts), maxHosts)] {
		a, err := netip.ParseAddr(h)
		if err != nil || a.Zone() != "" || sig.Port == 0 {
			return nil, fmt.Errorf("the gateway's face %.60q, port %d, is not an address", h, sig.Port)
		}
		hosts = append(hosts, netip.AddrPortFrom(a.Unmap(), sig.Port))
	}
	return hosts, nil
}

// register waits at the gateway for as many connections of the browser as there
// are tickets, and returns how many wait.
func (s *Session) register(ctx context.Context, p *peer, tickets [][]byte) (int, error) {
	tickets = tickets[:min(len(tickets), maxTickets)]
	results := make(chan error, 2*len(tickets))
	for _, ticket := range tickets {
		s.wg.Go(func() { results <- s.expect(p, ticket, func() { results <- nil }) })
	}
	timeout := time.NewTimer(registerTime)
	defer timeout.Stop()
	waits, problem := 0, errors.New("the hub gave no ticket for the gateway")
	for range tickets {
		select {
		case err := <-results:
			if err == nil {
				waits++
			} else {
				problem = err
			}
		case <-timeout.C:
			return waits, errors.New("the gateway does not answer in time")
		case <-ctx.Done():
			return waits, ctx.Err()
		}
	}
	return waits, problem
}

// expect waits at the gateway for one connection of the browser. Waiting is
// called once the gateway has the registration; before that an error is told.
func (s *Session) expect(p *peer, ticket []byte, waiting func()) error {
	c, err := s.cfg.Dial(p.expects)
	if err != nil {
		return fmt.Errorf("connecting to the gateway: %w", err)
	}
	c, from, err := relay.Expose(p.expects, c, s.cfg.Grant.Gateways[0].Key, s.cfg.Certificate, ticket, p.ufrag, p.password, waiting)
	if err != nil {
		return err
	}
	if err := p.add(c, from); err != nil {
		s.cfg.Log.Debug("a browser's connection was not taken", "session", s.cfg.Grant.ID, "err", err)
	}
	return nil
}

// enter takes a new peer in, in the place of the oldest if there are too many.
func (s *Session) enter(p *peer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return false
	}
	s.peers = append(s.peers, p)
	if len(s.peers) > maxPeers {
		s.peers[0].end(errors.New("the browser has made newer offers"))
		s.peers = s.peers[1:]
	}
	return true
}

func (s *Session) leave(p *peer) {
	s.mu.Lock()
	for i, other := range s.peers {
		if other == p {
			s.peers = append(s.peers[:i:i], s.peers[i+1:]...)
			break
		}
	}
	s.mu.Unlock()
	s.changed(p, "")
}

// connected makes a peer the one that is used, and ends those before it.
func (s *Session) connected(p *peer) {
	s.mu.Lock()
	s.current = p
	for _, other := range s.peers {
		if other == p {
			break
		}
		other.end(errors.New("the browser has connected anew"))
	}
	s.mu.Unlock()
	s.changed(p, p.way())
}

// changed tells which way is used, if that is another than before.
func (s *Session) changed(p *peer, path string) {
	s.mu.Lock()
	defer s.mu.Unlock() // held, so that the newest word is the last
	if s.current != p || s.path == path {
		return
	}
	s.path = path
	if s.cfg.OnPath != nil {
		s.cfg.OnPath(path)
	}
}

// Close ends all connections and waits for what they served.
func (s *Session) Close() {
	s.cancel()
	s.wg.Wait()
}

// names makes the name under which the gateway finds a peer, which nobody can
// guess, and the password that ICE proves.
func names() (ufrag, password string) {
	var b [40]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:16]), base64.RawStdEncoding.EncodeToString(b[16:])
}
