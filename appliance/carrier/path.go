package carrier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// path is one connection.
type path struct {
	s       *Session
	kind    Kind
	conn    net.Conn
	cork    corker
	wake    chan struct{}
	dead    chan struct{} // closed when it is given up
	greeted chan struct{} // closed when this end's greeting is written
	written chan struct{} // closed when its writer has ended
	gone    chan struct{} // closed when its reader has ended
	once    sync.Once
	timer   *time.Timer
	heard   atomic.Bool // since the timer last ran

	// Kept by the session's mu.
	greets  bool
	pongs   bool
	pongOf  uint64
	pings   bool
	pingID  uint64
	pinged  time.Time
	rtt     time.Duration // the shortest that was seen, 0: none yet
	samples int
	parted  bool // the last words were said
	silent  int  // how often the timer heard nothing
}

// corker is a connection that can hold back what is written, so that many
// frames wake the other end up once. Package relay's ends have it.
type corker interface {
	Cork()
	Uncork() error
}

// maxCorked is what is held back at most; more makes others wait.
const maxCorked = 64 << 10

// leastRoundTrip is what windows are sized by at least: below it the time is
// that of waking up, not of the way.
const leastRoundTrip = 150 * time.Microsecond

const firstSamples = 4

// handshake is how long a path may take to greet.
const handshake = 10 * time.Second

// Attach takes a path over and returns when both ends have greeted each other
// on it. On an error it closes it.
func (s *Session) Attach(ctx context.Context, c net.Conn, kind Kind) error {
	p := &path{s: s, kind: kind, conn: c, wake: make(chan struct{}, 1), dead: make(chan struct{}),
		greeted: make(chan struct{}), written: make(chan struct{}), gone: make(chan struct{}), greets: true}
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		p.cork, _ = t.NetConn().(corker)
	}
	ctx, cancel := context.WithTimeout(ctx, handshake)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		stop()
		return errors.Join(s.err, c.Close())
	}
	if len(s.greeting)+len(s.paths) >= maxPaths {
		s.mu.Unlock()
		stop()
		return errors.Join(fmt.Errorf("a path of the session (%s): it has %d already", kind, maxPaths), c.Close())
	}
	s.greeting = append(s.greeting, p)
	s.mu.Unlock()
	signal(p.wake)
	go p.write()
	err := p.greet()
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err == nil {
		return nil
	}
	s.lost(p)
	if cause := s.Err(); cause != nil {
		return cause
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return fmt.Errorf("a path of the session (%s): %w", kind, err)
}

// greet reads the other end's greeting and makes the path one of the session's.
func (p *path) greet() error {
	s := p.s
	g, err := p.readGreeting()
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.greeting, p)
	s.greeting = slices.Delete(s.greeting, i, i+1)
	if err != nil || s.err != nil {
		return errors.Join(err, s.err)
	}
	if err := s.meet(g); err != nil {
		s.fail(err)
		s.mu.Unlock()
		select { // the other end is to find out too
		case <-p.greeted:
		case <-p.written:
		}
		s.mu.Lock()
		return err
	}
	p.timer = time.AfterFunc(s.cfg.Keepalive, p.look)
	p.ask()
	s.paths = append(s.paths, p)
	s.choose()
	signal(p.wake)
	go p.readAll()
	return nil
}

func (p *path) readGreeting() (greeting, error) {
	f, c, err := p.read(make([]byte, headSize))
	if err != nil {
		return greeting{}, err
	}
	defer c.free()
	if f.what != hello {
		return greeting{}, broken("a path begins with a frame of kind %d", f.what)
	}
	return parseGreeting(c.b[headSize:c.end])
}

// meet compares a greeting with what is known.
func (s *Session) meet(g greeting) error {
	switch {
	case g.side == s.side:
		return broken("it takes the same side as this end")
	case g.window < firstWindow || g.streams == 0:
		return broken("a window of %d bytes, %d streams", g.window, g.streams)
	case s.peer != instance{} && s.peer != g.id, g.known != instance{} && g.known != s.id:
		return ErrRestarted
	}
	if (s.peer == instance{}) {
		s.peer, s.peerStreams, s.peerWindow = g.id, int(g.streams), uint64(g.window)
		s.roomy()
	}
	if g.received+1 < s.base {
		return nil // it was said before what is known by now
	}
	return s.acknowledge(g.received)
}

// choose has the best path carry, among equals the youngest. What the other end
// has not acknowledged goes over it again; what has come, it leaves out.
func (s *Session) choose() {
	var best *path
	for _, p := range s.paths {
		if best == nil || p.kind >= best.kind {
			best = p
		}
	}
	if best == s.best {
		return
	}
	s.best = best
	s.cursor = s.base
	s.ackNow = true
	for _, st := range s.streams {
		if st.limit > firstWindow {
			st.promise()
		}
	}
	s.patience.Stop()
	if best == nil {
		s.fell = true
		s.patience.Reset(s.cfg.Patience)
	}
	s.wake()
	s.tell()
}

// tell calls OnPath until it knows what is. A path that came and went before it
// was told of any is not left out: who looks for another waits for that.
func (s *Session) tell() {
	if s.cfg.OnPath == nil || s.telling || s.err != nil {
		return
	}
	s.telling = true
	go func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for s.err == nil && (s.told != s.best || s.fell) {
			s.told, s.fell = s.best, false
			kind, any := s.carrying()
			s.mu.Unlock()
			s.cfg.OnPath(kind, any)
			s.mu.Lock()
		}
		s.telling = false
	}()
}

func (s *Session) carrying() (Kind, bool) {
	if s.best == nil {
		return 0, false
	}
	return s.best.kind, true
}

// Paths are the kinds of the paths that live, the one that carries first.
func (s *Session) Paths() []Kind {
	s.mu.Lock()
	defer s.mu.Unlock()
	var kinds []Kind
	if s.best != nil {
		kinds = append(kinds, s.best.kind)
	}
	for _, p := range s.paths {
		if p != s.best {
			kinds = append(kinds, p.kind)
		}
	}
	return kinds
}

// roundTrip is that of the path that carries.
func (s *Session) roundTrip() time.Duration {
	if s.best == nil {
		return leastRoundTrip
	}
	return max(s.best.rtt, leastRoundTrip)
}

// measured takes a round trip. The first of a path are slower than the way: all
// is cold, so some are made at once.
func (p *path) measured(d time.Duration) {
	p.pinged = time.Time{}
	if p.rtt == 0 || d < p.rtt {
		p.rtt = d
	}
	if p.samples++; p.samples < firstSamples {
		p.ask()
	}
}

// ask sends a ping that is not the last one.
func (p *path) ask() {
	p.pings = true
	p.pingID++
	signal(p.wake)
}

// lost forgets a path; the next best takes over.
func (s *Session) lost(p *path) {
	p.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.paths, p); i >= 0 {
		s.paths = slices.Delete(s.paths, i, i+1)
		p.timer.Stop()
	}
	switch {
	case s.err == nil:
		s.choose()
	case len(s.paths) == 0:
		s.best = nil
		select {
		case <-s.parted:
		default:
			close(s.parted)
		}
	case p == s.best && !p.parted:
		s.choose()
	}
}

// close ends it without waiting: a TLS connection's Close may wait for a write.
func (p *path) close() {
	p.once.Do(func() {
		close(p.dead)
		p.conn.SetDeadline(time.Unix(1, 0))
		go p.conn.Close()
	})
}

// look runs every Keepalive. A path that says nothing is asked, and one that
// goes on saying nothing is dead, though nobody may ever have closed it.
func (p *path) look() {
	s := p.s
	s.mu.Lock()
	if s.err != nil || !slices.Contains(s.paths, p) {
		s.mu.Unlock()
		return
	}
	if p.heard.Swap(false) {
		p.silent = 0
	} else {
		p.silent++
	}
	if p.silent > s.cfg.Misses {
		s.mu.Unlock()
		s.lost(p)
		return
	}
	if p.silent > 0 {
		p.ask()
	}
	p.timer.Reset(s.cfg.Keepalive)
	s.mu.Unlock()
}

// read reads one frame; the chunk is nil where there is no content.
func (p *path) read(head []byte) (frame, *chunk, error) {
	if _, err := io.ReadFull(p.conn, head); err != nil {
		return frame{}, nil, err
	}
	f, err := parse(head)
	if err != nil || f.length == 0 {
		return f, nil, err
	}
	c := newChunk(f.length)
	c.end += f.length
	if _, err := io.ReadFull(p.conn, c.b[headSize:c.end]); err != nil {
		c.free()
		return f, nil, err
	}
	return f, c, nil
}

// readAll is the path's reader.
func (p *path) readAll() {
	s := p.s
	defer close(p.gone)
	defer s.lost(p)
	head := make([]byte, headSize)
	for {
		f, c, err := p.read(head)
		if err != nil && !errors.Is(err, ErrProtocol) {
			return
		}
		p.heard.Store(true)
		s.mu.Lock()
		if err == nil {
			err = s.receive(p, f, c)
		}
		if err != nil {
			s.fail(err)
		}
		s.mu.Unlock()
		if err != nil { // until the other end has heard it
			io.Copy(io.Discard, p.conn)
			return
		}
	}
}

// write is the path's writer.
func (p *path) write() {
	defer close(p.written)
	for {
		select {
		case <-p.wake:
		case <-p.dead:
			return
		}
		if !p.writeAll() {
			return
		}
	}
}

// writeAll writes what there is, and says whether there can be more.
func (p *path) writeAll() bool {
	s := p.s
	batch := newChunk(maxContent) // not held while there is nothing to say
	defer batch.free()
	var written *chunk
	corked := 0
	for {
		s.mu.Lock()
		written.free()
		written = nil
		b, c := s.gather(p, batch.b[:0])
		idle := len(b) == 0 && c == nil
		ended, last, text := s.err != nil, p == s.best && s.farewell != nil, s.farewell
		parts := last && idle && s.flushed()
		s.mu.Unlock()
		if corked > 0 && (parts || idle || corked >= maxCorked) {
			if err := p.cork.Uncork(); err != nil {
				s.lost(p)
				return false
			}
			corked = 0
		}
		if parts {
			p.part(*text)
			return false
		}
		if idle {
			return !ended || text != nil
		}
		if c != nil {
			b = c.b[:c.end]
		}
		if p.cork != nil && corked == 0 && c != nil {
			p.cork.Cork()
		}
		if p.cork != nil {
			corked += len(b)
		}
		_, err := p.conn.Write(b)
		written = c
		if err != nil {
			s.mu.Lock()
			written.free()
			s.mu.Unlock()
			s.lost(p)
			return false
		}
		select {
		case <-p.greeted:
		default:
			close(p.greeted)
		}
	}
}

// part says the last words, and that no more comes. The reader goes on until
// the other end has closed: closing before would have the kernel take back what
// was not read there yet.
func (p *path) part(text string) {
	if _, err := p.conn.Write(lastWords(text)); err != nil {
		p.s.lost(p)
		return
	}
	p.s.mu.Lock()
	p.parted = true
	for _, other := range p.s.paths {
		if other != p {
			other.close()
		}
	}
	p.s.mu.Unlock()
	if c, ok := p.conn.(interface{ CloseWrite() error }); ok {
		c.CloseWrite()
	}
}
