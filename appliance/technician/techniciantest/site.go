// Package techniciantest doubles hub and agent of a site, so that the technician's end can be tested by itself.
//
// Its contract: sessions are granted as docs/sessions.md says, signed by an
// organisation of its own; the gateway is the real one (package relay), and so
// is what carries the streams (package carrier). What the agent does with a
// stream a test says.
package techniciantest

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/carrier"
	"gatehouse/appliance/cert/certtest"
	"gatehouse/appliance/relay"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
	"gatehouse/appliance/session/wire"
)

// Site is a hub, its gateway and an agent.
type Site struct {
	Target  session.Target
	Address string // of the gateway
	// Serve is what the agent does with a stream; it closes it.
	Serve func(o wire.Open, st wire.Stream)

	t       testing.TB
	signer  ed25519.PrivateKey
	relay   *relay.Relay
	agent   tls.Certificate
	ctx     context.Context
	work    sync.WaitGroup
	mu      sync.Mutex
	refuse  error // what the hub answers
	live    map[session.ID]*end
	joined  []net.Conn // of the gateway, to be cut
	asked   []api.Ask
	meeting int
}

// end is the agent's end of a session.
type end struct {
	grant session.Grant
	*carrier.Session
}

// New starts one for a target.
func New(t testing.TB, target session.Target) *Site {
	t.Helper()
	public, signer, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := &Site{t: t, Target: target, signer: signer, agent: certtest.Self(t), live: make(map[session.ID]*end)}
	s.relay, err = relay.New(relay.Config{
		Certificate: certtest.Self(t), Organisation: func() ed25519.PublicKey { return public }, Admitted: func(netip.Addr) bool { return true },
		Now: time.Now, Log: slog.New(slog.DiscardHandler), MaxWaiting: 100, MaxJoined: 100, Idle: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Address = l.Addr().String()
	var stop context.CancelFunc
	s.ctx, stop = context.WithCancel(context.Background())
	s.work.Go(func() { s.gateway(l) })
	t.Cleanup(func() {
		stop()
		l.Close()
		s.Cut()
		s.mu.Lock()
		ends := s.live
		s.live = nil
		s.mu.Unlock()
		for _, e := range ends {
			e.Close("the test is over")
		}
		s.work.Wait()
	})
	return s
}

func (s *Site) gateway(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.joined = append(s.joined, c)
		s.mu.Unlock()
		s.work.Go(func() {
			defer c.Close()
			hello := make([]byte, 5) // the gateway has read the ClientHello before
			if _, err := io.ReadFull(c, hello); err == nil {
				s.relay.Handle(s.ctx, c.(*net.TCPConn), hello, func() {})
			}
		})
	}
}

// Cut ends every connection at the gateway.
func (s *Site) Cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.joined {
		c.Close()
	}
	s.joined = nil
}

// Refuse has the hub answer so; nil: it grants again.
func (s *Site) Refuse(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = err
}

// Asked is what the hub was asked for.
func (s *Site) Asked() []api.Ask {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]api.Ask(nil), s.asked...)
}

// Meetings is how often the two ends were to meet.
func (s *Site) Meetings() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.meeting
}

// End ends every session at the agent.
func (s *Site) End(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.live {
		s.work.Go(func() { e.Close(reason) })
	}
}

// Ask grants a session.
func (s *Site) Ask(_ context.Context, q api.Ask) (api.Granted, error) {
	s.mu.Lock()
	refuse := s.refuse
	s.asked = append(s.asked, q)
	s.mu.Unlock()
	if refuse != nil {
		return api.Granted{}, refuse
	}
	id, err := session.NewID(rand.Reader)
	if err != nil {
		return api.Granted{}, err
	}
	var f right.Functions
	for _, name := range q.Functions {
		var one right.Functions
		if err := one.UnmarshalText([]byte(name)); err != nil {
			return api.Granted{}, err
		}
		f |= one
	}
	if f == 0 {
		f = right.AllFunctions
	}
	now := time.Now().Truncate(time.Second)
	g := session.Grant{
		ID: id, Site: strings.Repeat("5e", 16), Technician: "ada@example.org", Transport: q.Transport, Key: q.Key, Agent: session.KeyOf(s.agent.Leaf),
		Target: s.Target, Functions: f, Recording: session.RecordingOff, From: now, Until: now.Add(time.Hour),
		Gateways: []session.Gateway{{Address: s.Address, Key: s.relay.Key()}},
	}
	signed, err := g.Sign(s.signer)
	if err != nil {
		return api.Granted{}, err
	}
	e := &end{g, carrier.New(carrier.Agent, carrier.Config{Patience: 20 * time.Second})}
	s.mu.Lock()
	s.live[id] = e
	s.mu.Unlock()
	s.work.Go(func() { s.serve(e) })
	m, err := s.meet(e)
	return api.Granted{Session: id, Grant: signed, Until: g.Until, Meeting: m}, err
}

// Meet has the two ends of a session meet again.
func (s *Site) Meet(_ context.Context, q api.MeetAsk) (api.Meeting, error) {
	s.mu.Lock()
	e, refuse := s.live[q.Session], s.refuse
	s.mu.Unlock()
	if refuse != nil {
		return api.Meeting{}, refuse
	}
	if e == nil {
		return api.Meeting{}, errors.New("there is no such session")
	}
	return s.meet(e)
}

func (s *Site) meet(e *end) (api.Meeting, error) {
	id, err := session.NewID(rand.Reader)
	if err != nil {
		return api.Meeting{}, err
	}
	agent, err := e.grant.Ticket(id, session.AgentSide, s.relay.Key(), time.Now()).Sign(s.signer)
	if err != nil {
		return api.Meeting{}, err
	}
	technician, err := e.grant.Ticket(id, session.TechnicianSide, s.relay.Key(), time.Now()).Sign(s.signer)
	if err != nil {
		return api.Meeting{}, err
	}
	s.mu.Lock()
	s.meeting++
	s.mu.Unlock()
	s.work.Go(func() { s.join(e, agent) })
	return api.Meeting{Ticket: technician, Gateway: e.grant.Gateways[0]}, nil
}

// join is the agent's way to a meeting. That it fails is seen at the other end.
func (s *Site) join(e *end, ticket []byte) {
	ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
	defer cancel()
	c, err := net.Dial("tcp", s.Address)
	if err == nil {
		c, err = relay.Meet(ctx, c, s.relay.Key(), s.agent, ticket)
	}
	if err != nil {
		return
	}
	t, err := relay.Agent(ctx, c, e.grant, s.agent)
	if err == nil {
		err = e.Attach(ctx, t, carrier.Relay)
	}
	if err != nil {
		c.Close()
	}
}

func (s *Site) serve(e *end) {
	for {
		st, err := e.Accept(s.ctx)
		if err != nil {
			return
		}
		s.work.Go(func() {
			o, err := wire.ReadOpen(st)
			if err != nil {
				st.Close()
				return
			}
			s.Serve(o, st)
		})
	}
}
