// Package carrier carries many streams between the two ends of a session over one connection at a time, and loses no byte when its connections are lost or exchanged.
//
// A connection that is handed in is called a path. It is authenticated already
// and hides what goes through it. The best path carries, the others wait. What
// changes a stream is numbered, and kept until the other end says that it came;
// what had not come when a path ended is sent again over the next. The numbers
// go over all paths, so each frame counts once.
//
// docs/sessions.md has the bytes.
package carrier

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"gatehouse/appliance/session/wire"
)

// Side is an end of a session.
type Side byte

// The sides. Either may open streams; Gatehouse's technician does.
const (
	Technician Side = 1
	Agent      Side = 2
)

// Kind is the way that a path goes; a higher one is better.
type Kind byte

// The kinds of path.
const (
	Relay Kind = 1 // through a gateway
	UDP   Kind = 2 // directly
	TCP   Kind = 3 // directly
)

func (k Kind) String() string {
	switch k {
	case Relay:
		return "relay"
	case UDP:
		return "udp"
	case TCP:
		return "tcp"
	}
	return "none"
}

// Config is what may differ. What is zero has the value that is given here.
type Config struct {
	Patience  time.Duration // without any path, before the session ends: 1 min
	Keepalive time.Duration // how long a path may be silent before it is asked: 1 s
	Misses    int           // how often it may leave that unanswered: 4
	Streams   int           // that the other end may have open: 256
	Untaken   time.Duration // how long one of them waits for Accept, before it is refused: 10 s
	Memory    int           // bytes that windows may grow by, together: 32 MiB

	// OnPath is told when another path carries, or none is left. It may call
	// the session; while it runs it is not called again.
	OnPath func(best Kind, any bool)
}

func (c Config) complete() Config {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&c.Patience, time.Minute)
	set(&c.Keepalive, time.Second)
	set(&c.Untaken, 10*time.Second)
	if c.Misses <= 0 {
		c.Misses = 4
	}
	if c.Streams <= 0 {
		c.Streams = 256
	}
	if c.Memory <= 0 {
		c.Memory = 32 << 20
	}
	return c
}

const (
	// firstWindow is what a stream may have on its way before its reader has shown that it reads.
	firstWindow = 64 << 10
	lastWindow  = 16 << 20
	// leastWindow has room for two frames: a sender waits until a whole one fits.
	leastWindow = 32 << 10
	maxPaths    = 8
	// maxQueued is what a stream holds that was written and not sent.
	maxQueued = 128 << 10
	// maxLog is what is kept until the other end acknowledges it. An honest one
	// does so long before.
	maxLog       = 32 << 20
	maxLogFrames = 64 << 10
	// ackAfter is how much memory the other end holds for what came before it is
	// acknowledged without waiting for company.
	ackAfter = 128 << 10
	ackDelay = 25 * time.Millisecond
	// farewell is how long an end waits to have its last words heard.
	farewell = time.Second
)

// How a session ends beside ErrProtocol and *Ended.
var (
	ErrNoPath    = errors.New("the session has no connection to its other end any more: start a new one")
	ErrRestarted = errors.New("the other end of the session was started anew and knows nothing of it: start a new one")
)

// Ended is the end of a session by Close.
type Ended struct {
	Reason string
	Here   bool // by this end
}

func (e *Ended) Error() string {
	if e.Here {
		return "the session was ended: " + e.Reason
	}
	return "the other end has ended the session: " + e.Reason
}

// Session is one end. All that is in it is kept by mu.
type Session struct {
	side Side
	cfg  Config
	id   instance
	done chan struct{}

	parted chan struct{} // closed when it has ended and has no path any more

	mu      sync.Mutex
	err     error         // why it has ended
	changed chan struct{} // closed when one who waits in Open should look again
	waiting int

	peer        instance // zero until the first greeting
	peerStreams int
	peerWindow  uint64

	greeting []*path // that are not among paths yet
	paths    []*path
	best     *path
	patience *time.Timer
	telling  bool  // OnPath runs
	told     *path // the one that it was told of
	fell     bool  // since then there was none, be it for a moment

	streams      map[uint32]*Stream
	next         uint32 // id of the next stream from here
	peerNext     uint32
	ours, theirs int // open streams, by who opened them
	accept       queue[*Stream]
	acceptable   chan struct{}
	handed       int // streams that Accept gave and nobody has closed
	untaken      *time.Timer
	grown        int // by how much windows have grown

	sent     // what goes out
	incoming // what came
}

// incoming is how far the other end's numbers have come.
type incoming struct {
	received uint64 // number of the last
	acked    uint64 // the last that the other end was told of
	unacked  int    // bytes since
	ackNow   bool
	ackTimer *time.Timer
	ackArmed bool
}

// New starts a session without a path.
func New(side Side, cfg Config) *Session {
	s := &Session{side: side, cfg: cfg.complete(), done: make(chan struct{}), parted: make(chan struct{}), changed: make(chan struct{}), acceptable: make(chan struct{}, 1),
		streams: make(map[uint32]*Stream), next: uint32(side), peerNext: uint32(3 - side)}
	s.sent.base, s.sent.cursor = 1, 1
	rand.Read(s.id[:]) // never fails (crypto/rand)
	s.patience = time.AfterFunc(s.cfg.Patience, s.impatient)
	s.ackTimer = time.AfterFunc(time.Hour, s.ackLate)
	s.ackTimer.Stop()
	s.untaken = time.AfterFunc(time.Hour, s.refuseUntaken)
	s.untaken.Stop()
	return s
}

// Done is closed when the session has ended.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err says why it has ended, nil while it has not.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Open opens a stream. It waits while there is no path yet, or as many streams
// are open as the other end allows. That the other end accepts it is not waited for.
func (s *Session) Open(ctx context.Context) (*Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.err == nil && (s.peer == instance{} || s.ours >= s.peerStreams || s.full()) {
		changed := s.changed
		s.waiting++
		s.mu.Unlock()
		var err error
		select {
		case <-changed:
		case <-ctx.Done():
			err = ctx.Err()
		case <-s.done:
		}
		s.mu.Lock()
		s.waiting--
		if err != nil {
			return nil, fmt.Errorf("opening a stream of the session: %w", err)
		}
	}
	if s.err != nil {
		return nil, s.err
	}
	if s.next > 1<<32-3 {
		return nil, errors.New("opening a stream of the session: it has had two thousand million, start a new session")
	}
	st := s.newStream(s.next)
	s.next += 2
	s.ours++
	s.append(open, st.id, nil)
	s.wake()
	return st, nil
}

// Accept gives the next stream that the other end has opened. Who takes one
// closes it: so many that are not closed can be two for each that may be open,
// however fast the other end opens streams and gives them up. Beyond that a
// stream waits, and is refused when it has waited for too long.
func (s *Session) Accept(ctx context.Context) (*Stream, error) {
	for {
		s.mu.Lock()
		if s.accept.len() > 0 && s.handed < 2*s.cfg.Streams {
			st := s.accept.pop()
			st.handed = true
			s.handed++
			if s.accept.len() > 0 {
				signal(s.acceptable)
			}
			s.mu.Unlock()
			return st, nil
		}
		err := s.err
		s.mu.Unlock()
		if err != nil {
			return nil, err
		}
		select {
		case <-s.acceptable:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for a stream of the session: %w", ctx.Err())
		case <-s.done:
		}
	}
}

// Close ends the session and tells the other end why. What was written to
// streams that are closed already still goes out, for at most a second.
func (s *Session) Close(reason string) error {
	reason = wire.Printable(reason, maxText)
	s.mu.Lock()
	s.end(&Ended{Reason: reason, Here: true}, &reason)
	s.mu.Unlock()
	<-s.parted
	return nil
}

// end is called with mu held. With a text the best path goes on until the other
// end was told; should it fail, the next does.
func (s *Session) end(err error, text *string) {
	if s.err != nil {
		return
	}
	s.err = err
	s.patience.Stop()
	s.ackTimer.Stop()
	s.untaken.Stop()
	for _, st := range s.streams {
		if !st.wantFin && !st.wantShut {
			st.drop(&st.out)
		}
		st.wakeAll()
	}
	s.farewell, s.until = text, time.Now().Add(farewell*3/4)
	for _, p := range s.greeting {
		p.close()
	}
	for _, p := range s.paths {
		p.timer.Stop()
		if text == nil {
			p.close()
		} else {
			p.conn.SetDeadline(time.Now().Add(farewell))
		}
	}
	if len(s.paths) == 0 {
		close(s.parted)
	} else if text != nil {
		s.wake()
		time.AfterFunc(farewell*3/4, s.wakeLocked) // if something cannot go out
	}
	close(s.done)
}

// fail ends the session because of what the other end did.
func (s *Session) fail(err error) {
	text := wire.Printable(err.Error(), maxText)
	s.end(err, &text)
}

// impatient ends a session that has had no path for too long.
func (s *Session) impatient() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.paths) == 0 {
		s.end(fmt.Errorf("%w (%v without one)", ErrNoPath, s.cfg.Patience), nil)
	}
}

// roomy wakes those who wait in Open.
func (s *Session) roomy() {
	if s.waiting > 0 {
		close(s.changed)
		s.changed = make(chan struct{})
	}
}

// signal wakes who waits, or who will wait next.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
