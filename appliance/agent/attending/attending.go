// Package attending is the agent's sessions: it takes what the hub offers, meets the technician at the gateway, hands the streams on, and tells the hub what became of it.
//
// A session outlives the line to the hub, which is cut whenever the console is
// started anew: what happened meanwhile is told when it is there again.
package attending

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"gatehouse/appliance/carrier"
	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/relay"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/wire"
)

// Limits.
const (
	maxSessions = 256
	maxUntold   = 4096             // events that wait for the line
	meetTime    = 20 * time.Second // to the gateway, and for the other end to come
	usual       = 2 * time.Minute  // of patience
)

// Work is what serves a session: package work.
type Work interface {
	Serve(context.Context, wire.Stream) error
	End(reason string)
	Done() <-chan struct{}
	Kept(attend.Kept)
}

// Browser answers a browser's offer: package browser. Streams are handed to
// serve; onPath is told which way is used, relay or udp, and "" when none is left.
type Browser func(ctx context.Context, g session.Grant, m attend.Material, s attend.Signal, serve func(context.Context, wire.Stream) error, onPath func(string)) (sdp string, err error)

// Session is one to be served.
type Session struct {
	Grant    session.Grant
	Material attend.Material
	Attach   func(ctx context.Context, c net.Conn, kind carrier.Kind) error // of a way without the gateway; nil for a browser's
	Tell     func(attend.FromSite) error
}

// Config is what a Desk is made of.
type Config struct {
	Site        string // whose agent this is
	Certificate tls.Certificate
	Gateway     func(ctx context.Context, g session.Gateway) (net.Conn, error)
	Serve       func(Session) (Work, error)
	Browser     Browser           // nil: browsers are refused
	Kept        func(attend.Kept) // about a recording of a session that is over; nil: none
	Patience    time.Duration     // without any way to the technician; 0: two minutes
	Now         func() time.Time
	Log         *slog.Logger
}

// Desk holds the agent's sessions. Its methods may run at the same time.
type Desk struct {
	cfg Config
	key session.Key // SHA-256 of the public key

	mu     sync.Mutex
	held   map[session.ID]*held
	line   chan<- attend.FromSite // nil while it is cut
	untold []attend.FromSite
}

// held is a session.
type held struct {
	grant    session.Grant
	material attend.Material
	work     Work
	way      string           // that carries, as the hub was told last; "": none
	carrier  *carrier.Session // nil for a browser's
	alone    *time.Timer      // of a browser's: runs while there is no way to it
	ctx      context.Context
	stop     context.CancelFunc
}

// New makes a Desk.
func New(cfg Config) (*Desk, error) {
	if cfg.Certificate.Leaf == nil {
		return nil, errors.New("the agent's end needs a certificate with its leaf")
	}
	if cfg.Patience == 0 {
		cfg.Patience = usual
	}
	return &Desk{cfg: cfg, key: session.KeyOf(cfg.Certificate.Leaf), held: make(map[session.ID]*held)}, nil
}

// Hello is how a line begins.
func (d *Desk) Hello() attend.Hello {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := attend.Hello{Key: d.key, Certificate: sha256.Sum256(d.cfg.Certificate.Certificate[0]), Sessions: []session.ID{}}
	for id := range d.held {
		h.Sessions = append(h.Sessions, id)
	}
	return h
}

var errNoLine = errors.New("there is no line to the hub")

// Tell tells the hub. Events wait while there is no line; parts of recordings
// and answers do not: who sends them tries again, or has lost who asked.
func (d *Desk) Tell(m attend.FromSite) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.tell(m)
}

// tell is Tell with mu held. No event overtakes one that waits.
func (d *Desk) tell(m attend.FromSite) error {
	waits := m.Event != nil || m.HostKey != nil
	d.flush()
	if d.line != nil && (!waits || len(d.untold) == 0) {
		select {
		case d.line <- m:
			return nil
		default:
		}
	}
	if !waits {
		return errNoLine
	}
	if len(d.untold) >= maxUntold {
		return fmt.Errorf("%w, and %d messages wait for it", errNoLine, maxUntold)
	}
	d.untold = append(d.untold, m)
	return nil
}

// connected gives Tell a line, with what waited for it first. The ways of all
// sessions are told again, since a console that was started anew knows none. Of
// recordings, what was on the line before is sent again.
func (d *Desk) connected(line chan<- attend.FromSite) {
	d.mu.Lock()
	d.line = line
	d.flush()
	var sessions []Work
	for _, h := range d.held {
		sessions = append(sessions, h.work)
		if h.way != "" {
			d.tellWay(h)
		}
	}
	d.mu.Unlock()
	for _, w := range sessions {
		if w, ok := w.(interface{ LineBack() }); ok {
			w.LineBack()
		}
	}
}

// flush sends what waits as far as the line takes it.
func (d *Desk) flush() {
	for d.line != nil && len(d.untold) > 0 {
		select {
		case d.line <- d.untold[0]:
			d.untold = d.untold[1:]
		default:
			return
		}
	}
}

// disconnected keeps what the line did not take.
func (d *Desk) disconnected(line chan attend.FromSite) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.line == line {
		d.line = nil
	}
	var left []attend.FromSite
	for {
		select {
		case m := <-line:
			if m.Event != nil || m.HostKey != nil {
				left = append(left, m)
			}
			continue
		default:
		}
		d.untold = append(left, d.untold...)
		return
	}
}

// hear takes one message of the hub. Only what could be a mistake of this side
// ends the line; a session that cannot be served is told as over.
func (d *Desk) hear(ctx context.Context, organisation ed25519.PublicKey, m attend.ToSite) {
	switch {
	case m.Offer != nil:
		d.offered(ctx, organisation, *m.Offer)
	case m.Meet != nil:
		if h := d.find(m.Meet.Session); h != nil && h.carrier != nil {
			go d.meet(h, m.Meet.Ticket)
		}
	case m.Signal != nil:
		go d.signalled(*m.Signal)
	case m.End != nil:
		if h := d.find(m.End.Session); h != nil {
			h.work.End(m.End.Reason)
		}
	case m.Kept != nil:
		if h := d.find(m.Kept.Session); h != nil {
			h.work.Kept(*m.Kept)
		} else if d.cfg.Kept != nil {
			d.cfg.Kept(*m.Kept)
		}
	}
}

func (d *Desk) find(id session.ID) *held {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.held[id]
}

// offered takes a session in, if it is for this agent and signed.
func (d *Desk) offered(ctx context.Context, organisation ed25519.PublicKey, o attend.Offer) {
	g, err := session.OpenGrant(organisation, o.Grant, d.cfg.Now())
	if err != nil {
		d.cfg.Log.Warn("an offered session is refused", "err", err)
		return
	}
	h, err := d.take(ctx, g, o.Material)
	if err != nil {
		d.cfg.Log.Warn("an offered session is refused", "session", g.ID, "err", err)
		d.ended(g.ID, fmt.Sprintf("the agent refuses it: %v", err))
		return
	}
	if h.carrier != nil {
		go d.meet(h, o.Ticket)
	}
}

func (d *Desk) take(ctx context.Context, g session.Grant, m attend.Material) (*held, error) {
	want := d.key
	if g.Transport == session.WebRTC {
		want = sha256.Sum256(d.cfg.Certificate.Certificate[0])
	}
	switch {
	case g.Site != d.cfg.Site:
		return nil, errors.New("it is for another site")
	case g.Agent != want:
		return nil, errors.New("it is for another key than this agent's: it was started anew meanwhile")
	case g.Transport == session.WebRTC && d.cfg.Browser == nil:
		return nil, errors.New("browsers are not served here")
	}
	h := &held{grant: g, material: m}
	h.ctx, h.stop = context.WithCancel(context.WithoutCancel(ctx)) // it outlives the line
	s := Session{Grant: g, Material: m, Tell: d.Tell}
	if g.Transport == session.TLS {
		h.carrier = carrier.New(carrier.Agent, carrier.Config{Patience: d.cfg.Patience, OnPath: func(best carrier.Kind, any bool) { d.onPath(h, best, any) }})
		s.Attach = h.carrier.Attach
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.held[g.ID] != nil || len(d.held) >= maxSessions {
		h.stop()
		return nil, fmt.Errorf("it was offered twice, or %d sessions are served here already", maxSessions)
	}
	var err error
	if h.work, err = d.cfg.Serve(s); err != nil {
		h.stop()
		return nil, err
	}
	d.held[g.ID] = h
	if h.carrier == nil {
		h.alone = time.AfterFunc(d.cfg.Patience, func() { h.work.End("there was no way to the browser for " + d.cfg.Patience.String()) })
	}
	go d.watch(h)
	if h.carrier != nil {
		go d.accept(h)
	}
	return h, nil
}

// accept hands on the streams that the technician opens.
func (d *Desk) accept(h *held) {
	for {
		s, err := h.carrier.Accept(h.ctx)
		if err != nil {
			return
		}
		go d.serve(h, s)
	}
}

func (d *Desk) serve(h *held, s wire.Stream) {
	defer s.Close()
	if err := h.work.Serve(h.ctx, s); err != nil {
		d.cfg.Log.Info("a stream of a session ended", "session", h.grant.ID, "err", err)
	}
}

// watch ends both, carrier and work, when one of them has ended. The
// technician is told at once; a recording may take longer to be handed over.
func (d *Desk) watch(h *held) {
	var over <-chan struct{}
	if h.carrier != nil {
		over = h.carrier.Done()
	}
	cut := h.work.Done()
	if w, ok := h.work.(interface{ Over() <-chan struct{} }); ok {
		cut = w.Over()
	}
	select {
	case <-over:
		reason := "its way to the technician is gone"
		var said *carrier.Ended
		if err := h.carrier.Err(); errors.As(err, &said) {
			reason = wire.Printable(said.Reason, 200)
		} else if err != nil {
			reason = err.Error()
		}
		h.work.End(reason)
		<-cut
	case <-cut:
	}
	if h.carrier != nil {
		reason := "the session is over"
		if r, ok := h.work.(interface{ Reason() string }); ok && r.Reason() != "" {
			reason = r.Reason()
		}
		if err := h.carrier.Close(reason); err != nil {
			d.cfg.Log.Debug("the technician was not told that the session ended", "session", h.grant.ID, "err", err)
		}
	}
	h.stop()
	if h.alone != nil {
		h.alone.Stop()
	}
	<-h.work.Done()
	d.mu.Lock()
	delete(d.held, h.grant.ID)
	d.mu.Unlock()
}

func (d *Desk) ended(id session.ID, reason string) {
	if err := d.Tell(attend.FromSite{Event: &attend.Event{Session: id, What: attend.Ended, Text: reason}}); err != nil {
		d.cfg.Log.Warn("the hub was not told that a session ended", "session", id, "err", err)
	}
}

func (d *Desk) onPath(h *held, best carrier.Kind, any bool) {
	way := ""
	if any {
		way = best.String()
	}
	d.goes(h, way)
}

// goes notes by which way a session goes, and tells it.
func (d *Desk) goes(h *held, way string) {
	d.mu.Lock()
	defer d.mu.Unlock() // held, so that a new line is told nothing older after it
	h.way = way
	d.tellWay(h)
}

func (d *Desk) tellWay(h *held) {
	e := attend.Event{Session: h.grant.ID, What: attend.Lost}
	if h.way != "" {
		e.What, e.Text = attend.Way, h.way
	}
	if err := d.tell(attend.FromSite{Event: &e}); err != nil {
		d.cfg.Log.Warn("the hub was not told of a session's way", "session", h.grant.ID, "err", err)
	}
}

// browserPath is told which way a browser uses.
func (d *Desk) browserPath(h *held, path string) {
	if path == "" {
		h.alone.Reset(d.cfg.Patience)
	} else {
		h.alone.Stop()
	}
	d.goes(h, path)
}

// meet makes a way through the gateway.
func (d *Desk) meet(h *held, ticket []byte) {
	ctx, cancel := context.WithTimeout(h.ctx, meetTime)
	defer cancel()
	err := d.join(ctx, h, ticket)
	if err != nil && h.ctx.Err() == nil {
		d.cfg.Log.Warn("a session did not meet", "session", h.grant.ID, "err", err)
	}
}

func (d *Desk) join(ctx context.Context, h *held, ticket []byte) error {
	var errs []error
	for _, g := range h.grant.Gateways {
		c, err := d.cfg.Gateway(ctx, g)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if c, err = relay.Meet(ctx, c, g.Key, d.cfg.Certificate, ticket); err != nil {
			errs = append(errs, err)
			continue
		}
		t, err := relay.Agent(ctx, c, h.grant, d.cfg.Certificate)
		if err != nil {
			return err
		}
		return h.carrier.Attach(ctx, t, carrier.Relay)
	}
	return errors.Join(errs...)
}

// signalled answers a browser.
func (d *Desk) signalled(s attend.Signal) {
	answer := attend.Signalled{Session: s.Session, Number: s.Number}
	h := d.find(s.Session)
	switch {
	case h == nil || h.grant.Transport != session.WebRTC:
		answer.Error = "there is no such session at the agent"
	default:
		sdp, err := d.cfg.Browser(h.ctx, h.grant, h.material, s, func(ctx context.Context, st wire.Stream) error {
			d.serve(h, st)
			return nil
		}, func(path string) { d.browserPath(h, path) })
		if err != nil {
			d.cfg.Log.Warn("a browser's offer is refused", "session", s.Session, "err", err)
			answer.Error = err.Error()
		}
		answer.SDP = sdp
	}
	if err := d.Tell(attend.FromSite{Signalled: &answer}); err != nil {
		d.cfg.Log.Warn("a browser is not answered", "session", s.Session, "err", err)
	}
}

// End ends all sessions and waits for them, as long as ctx lasts.
func (d *Desk) End(ctx context.Context, reason string) {
	d.mu.Lock()
	all := make([]*held, 0, len(d.held))
	for _, h := range d.held {
		all = append(all, h)
	}
	d.mu.Unlock()
	for _, h := range all {
		h.work.End(reason)
	}
	for _, h := range all {
		select {
		case <-h.ctx.Done():
		case <-ctx.Done():
			return
		}
	}
}
