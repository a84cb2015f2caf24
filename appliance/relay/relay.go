// Package relay joins the two ends of a session at a gateway, which learns that they belong together and nothing else.
//
// An end speaks TLS 1.3 to the gateway, whose key it pins, under the protocol
// Protocol, with its own key as client certificate; it sends its ticket and
// waits. When both ends are there the gateway says so, each end answers, and
// that answer is the last record of the outer TLS: from then on the gateway
// copies bytes from one TCP connection to the other in the kernel, and the ends
// run a TLS of their own through it, with keys that the gateway does not have.
//
// The gateway is not trusted by the ends. It can drop, delay and count; what it
// changes the inner TLS finds. docs/sessions.md has the frames.
package relay

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"gatehouse/appliance/session"
)

// Protocol is the ALPN name under which ends and gateway speak.
const Protocol = "gatehouse-relay/1"

// Frames inside the outer TLS: a kind, the length of what follows (2,
// big-endian), and that.
const (
	frameTicket = 1 // end → gateway: the ticket
	frameWait   = 2 // gateway → end: the ticket counts, the other end is not here yet
	frameJoined = 3 // gateway → end: the other end is here; to one that expects a browser, its address
	frameGo     = 4 // end → gateway: the last record of the outer TLS
	frameNo     = 5 // gateway → end: why not, in words
	frameICE    = 6 // agent → gateway, before the ticket: ufrag, a colon, password; a browser will come by ICE
)

// Limits.
const (
	helloTime = 10 * time.Second // handshake and ticket, or the answer to joined
	maxFrame  = session.MaxTicket
)

// Config is what a Relay is made of.
type Config struct {
	Certificate  tls.Certificate          // of the gateway's own key
	Organisation func() ed25519.PublicKey // whose tickets count; nil: none
	Admitted     func(netip.Addr) bool    // whether a source may be here, asked again when both ends are
	Now          func() time.Time         // steady: it never goes back
	Log          *slog.Logger
	MaxWaiting   int           // ends that wait for their other
	MaxJoined    int           // sessions that flow
	Idle         time.Duration // a session without a byte for so long is ended
}

// Relay is the joining part of a gateway.
type Relay struct {
	cfg     Config
	key     session.Key
	tickets *session.Tickets
	outer   *tls.Config
	flow    func(to, from *net.TCPConn) (int64, error)

	mu      sync.Mutex
	waiting map[session.ID]*end
	ice     map[string][]*end // by ufrag: agents that wait for a browser
	exposed int               // how many these are
	joined  map[*pair]struct{}
	total   Counts
}

// Counts is what went through since the start.
type Counts struct {
	Waiting, Joined int    // now
	Sessions        uint64 // joined in all
	Refused         uint64
	Bytes           uint64 // both ways, of sessions that ended
}

// end is one side that has shown its ticket.
type end struct {
	ticket session.Ticket
	conn   *net.TCPConn
	tls    *tls.Conn
	rec    *records
	source netip.Addr
	expect *expected // a browser is expected
	first  []byte    // of a browser: what it has sent already

	taken chan struct{} // closed when the second end has found this first one
	still chan bool     // whether it is still there
	done  chan struct{} // closed when the session has ended
}

// New makes a Relay.
func New(cfg Config) (*Relay, error) {
	if cfg.Certificate.Leaf == nil {
		return nil, errors.New("a relay needs a certificate with its leaf")
	}
	return &Relay{
		cfg: cfg, key: session.KeyOf(cfg.Certificate.Leaf), waiting: make(map[session.ID]*end), ice: make(map[string][]*end), joined: make(map[*pair]struct{}),
		// What is remembered is a few dozen bytes; a flood of good tickets is the organisation's own.
		tickets: session.NewTickets(16 * (cfg.MaxWaiting + cfg.MaxJoined)),
		outer: &tls.Config{
			Certificates: []tls.Certificate{cfg.Certificate}, NextProtos: []string{Protocol}, MinVersion: tls.VersionTLS13,
			ClientAuth: tls.RequireAnyClientCert, SessionTicketsDisabled: true,
		},
		flow: new(pipes).flow,
	}, nil
}

// Key is the gateway's own, as ends pin it.
func (r *Relay) Key() session.Key { return r.key }

// Counts are the figures now.
func (r *Relay) Counts() Counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.total
	c.Waiting, c.Joined = len(r.waiting)+r.exposed, len(r.joined)
	return c
}

// Handle serves one connection, of which ahead was read before, until it ends;
// entered is called once its ticket counts. The caller closes it.
func (r *Relay) Handle(ctx context.Context, c *net.TCPConn, ahead []byte, entered func()) error {
	var e *end
	var err error
	apart(func() { e, err = r.admit(ctx, c, ahead) })
	if err != nil {
		r.mu.Lock()
		r.total.Refused++
		r.mu.Unlock()
		return err
	}
	entered()
	other, first, err := r.meet(e)
	if err != nil {
		return errors.Join(err, e.refuse(err))
	}
	if first {
		return r.wait(ctx, e)
	}
	return r.join(ctx, other, e)
}

// apart runs f in a goroutine of its own. A handshake needs a large stack, and
// the one who waits for hours afterwards should not keep it.
func apart(f func()) {
	var wg sync.WaitGroup
	wg.Go(f)
	wg.Wait()
}

// admit speaks the outer TLS and judges the ticket.
func (r *Relay) admit(ctx context.Context, c *net.TCPConn, ahead []byte) (*end, error) {
	if err := c.SetDeadline(time.Now().Add(helloTime)); err != nil {
		return nil, err
	}
	rec := &records{Conn: c, ahead: ahead}
	outer := tls.Server(rec, r.outer)
	if err := outer.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("an end's handshake: %w", err)
	}
	e := &end{conn: c, tls: outer, rec: rec, taken: make(chan struct{}), still: make(chan bool, 1), done: make(chan struct{})}
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		e.source = a.AddrPort().Addr().Unmap()
	}
	shown, err := session.PeerKey(outer.ConnectionState())
	if err != nil {
		return nil, err
	}
	b, err := e.readTicket()
	if err != nil {
		return nil, fmt.Errorf("reading an end's ticket: %w", err)
	}
	organisation := r.cfg.Organisation()
	if organisation == nil {
		err = errors.New("this gateway knows no organisation yet: there are no sessions here")
	} else if e.ticket, err = session.OpenTicket(organisation, b, r.cfg.Now(), r.key, shown); err == nil {
		if err = r.tickets.Use(e.ticket, r.cfg.Now()); err == nil && e.expect != nil && e.ticket.Side != session.AgentSide {
			err = fmt.Errorf("%w: only an agent waits for a browser", session.ErrOther)
		}
	}
	if err != nil {
		return nil, errors.Join(err, e.refuse(err))
	}
	return e, nil
}

// meet finds the other end, or makes this one wait for it.
func (r *Relay) meet(e *end) (other *end, first bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.waiting)+r.exposed >= r.cfg.MaxWaiting && (e.expect != nil || r.waiting[e.ticket.ID] == nil) {
		return nil, false, fmt.Errorf("%d ends wait here already: try another gateway", r.cfg.MaxWaiting)
	}
	if e.expect != nil {
		return nil, true, r.expose(e)
	}
	if other = r.waiting[e.ticket.ID]; other != nil {
		if other.ticket.Side == e.ticket.Side || other.ticket.End != e.ticket.End {
			return nil, false, fmt.Errorf("%w: this ticket does not fit the one that waits", session.ErrOther)
		}
		if len(r.joined) >= r.cfg.MaxJoined {
			return nil, false, fmt.Errorf("this gateway joins %d sessions already: try another one", len(r.joined))
		}
		delete(r.waiting, e.ticket.ID)
		return other, false, nil
	}
	r.waiting[e.ticket.ID] = e
	return nil, true, nil
}

// wait holds the first end until its session has ended, or its time is up.
// It watches the connection: one that is gone must not be joined.
func (r *Relay) wait(ctx context.Context, e *end) error {
	left := e.ticket.Until.Sub(r.cfg.Now())
	timeout := time.NewTimer(left)
	defer timeout.Stop()
	w, err := e.watch()
	if err != nil {
		if !r.leave(e) {
			e.still <- false
			<-e.done
		}
		return err
	}
	var reason error
	select {
	case <-e.taken:
	case <-ctx.Done():
		reason = ctx.Err()
	case <-w.gone:
		reason = errors.New("the end went away, or spoke, while it waited")
	case <-timeout.C:
		reason = fmt.Errorf("%w: the other end did not come in %s", session.ErrExpired, left.Round(time.Second))
	}
	here := w.stop()
	if reason != nil && r.leave(e) {
		return errors.Join(reason, e.refuse(reason))
	}
	e.still <- here // the second one's Handle does the work; this one ends with it
	<-e.done
	return nil
}

// leave takes an end out of those that wait; false: the other one has it.
func (r *Relay) leave(e *end) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.expect != nil {
		return r.unexpose(e)
	}
	if r.waiting[e.ticket.ID] != e {
		return false
	}
	delete(r.waiting, e.ticket.ID)
	return true
}

// join switches both ends and copies until one of them, or the session, ends.
func (r *Relay) join(ctx context.Context, first, second *end) error {
	close(first.taken)
	defer close(first.done)
	if !<-first.still {
		err := errors.New("the other end went away at this moment: ask for a new session")
		return errors.Join(err, second.refuse(err))
	}
	for _, e := range []*end{first, second} {
		if r.cfg.Admitted != nil && !r.cfg.Admitted(e.source) {
			err := errors.New("no list admits the source of an end any more")
			return errors.Join(err, first.refuse(err), second.refuse(err))
		}
	}
	var wg sync.WaitGroup
	var errs [2]error
	for i, e := range []*end{first, second} {
		wg.Go(func() { errs[i] = e.release(second) })
	}
	wg.Wait()
	if second.tls == nil && errs[0] == nil { // a browser: what it said first belongs to the session
		_, errs[0] = first.conn.Write(second.first)
	}
	if err := errors.Join(errs[:]...); err != nil {
		first.conn.Close()
		return fmt.Errorf("switching to the session: %w", err)
	}
	p := &pair{ends: [2]*net.TCPConn{first.conn, second.conn}, sources: [2]netip.Addr{first.source, second.source}, flow: r.flow}
	first.tls, first.rec, second.tls, second.rec, second.first = nil, nil, nil, nil, nil // an idle session keeps no TLS state
	r.mu.Lock()
	r.joined[p] = struct{}{}
	r.total.Sessions++
	r.mu.Unlock()
	if r.cfg.Admitted != nil && (!r.cfg.Admitted(first.source) || !r.cfg.Admitted(second.source)) {
		p.cut() // the lists changed while the ends switched, when Cut did not see them
	}
	n, err := p.run(ctx, first.ticket.End.Sub(r.cfg.Now()), r.cfg.Idle)
	r.mu.Lock()
	delete(r.joined, p)
	r.total.Bytes += n
	r.mu.Unlock()
	return err
}

// Cut ends every session and every wait of sources that may not be here any more.
func (r *Relay) Cut(admitted func(netip.Addr) bool) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for p := range r.joined {
		if !admitted(p.sources[0]) || !admitted(p.sources[1]) {
			p.cut()
			n++
		}
	}
	gone := func(e *end) {
		if !admitted(e.source) {
			e.conn.Close() // its watcher finds it gone
			n++
		}
	}
	for _, e := range r.waiting {
		gone(e)
	}
	for _, same := range r.ice {
		for _, e := range same {
			gone(e)
		}
	}
	return n
}

// release tells an end that the other is here, and reads its last record. A
// browser knows nothing of either; the agent needs to know where it comes from.
func (e *end) release(second *end) error {
	if e.tls == nil {
		return e.conn.SetDeadline(time.Time{})
	}
	if err := e.conn.SetDeadline(time.Now().Add(helloTime)); err != nil {
		return err
	}
	var from []byte
	if second.tls == nil {
		from = []byte(second.conn.RemoteAddr().String())
	}
	if err := writeFrame(e.tls, frameJoined, from); err != nil {
		return err
	}
	if _, err := readFrame(e.tls, frameGo); err != nil {
		return err
	}
	if !e.rec.clean() {
		return errors.New("bytes of the session came before the switch")
	}
	return e.conn.SetDeadline(time.Time{})
}

// refuse tells an end why not, as far as it listens.
func (e *end) refuse(reason error) error {
	if e.tls == nil {
		return nil // a browser, which is not told
	}
	if err := e.conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	text := []byte(reason.Error())
	return errors.Join(writeFrame(e.tls, frameNo, text[:min(len(text), maxFrame)]), e.tls.Close())
}

func writeFrame(w io.Writer, kind byte, content []byte) error {
	b := append(make([]byte, 0, 3+len(content)), kind, 0, 0)
	binary.BigEndian.PutUint16(b[1:], uint16(len(content)))
	_, err := w.Write(append(b, content...)) // one write, one record
	return err
}

// readFrame reads a frame of one kind.
func readFrame(r io.Reader, kind byte) ([]byte, error) {
	got, b, err := anyFrame(r)
	if err == nil && got != kind {
		err = fmt.Errorf("a frame of kind %d, want %d", got, kind)
	}
	return b, err
}

// anyFrame reads a frame; one that says no is its error.
func anyFrame(r io.Reader) (kind byte, content []byte, err error) {
	var head [3]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := int(binary.BigEndian.Uint16(head[1:]))
	if n > maxFrame {
		return 0, nil, fmt.Errorf("a frame of %d bytes, the limit is %d", n, maxFrame)
	}
	content = make([]byte, n)
	if _, err := io.ReadFull(r, content); err != nil {
		return 0, nil, err
	}
	if head[0] == frameNo {
		return 0, nil, &Refused{Reason: string(content)}
	}
	return head[0], content, nil
}
