package carrier

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"gatehouse/appliance/session/wire"
)

// Stream is one flow of bytes each way. One reader and one writer at a time
// get on; more wait for each other.
type Stream struct {
	s  *Session
	id uint32

	reading, writing sync.Mutex
	readable         chan struct{}
	writable         chan struct{}

	// What follows is kept by the session's mu.
	err  error // of both ways: it was reset
	gone bool  // both ways have ended on the wire, or the session forgot it

	in       queue[*chunk]
	eof      bool // no more comes
	closed   bool // by Close, here
	came     uint64
	consumed uint64
	limit    uint64 // that the other end was allowed
	window   int
	renewed  time.Time
	grew     time.Time
	stopped  bool // the other end has more, and the window was at its end
	credited bool // it waits to tell the other end of limit

	out      queue[*chunk]
	queued   int    // bytes in out
	ended    error  // why nothing more can be written
	sentAll  uint64 // bytes that have a number
	allowed  uint64
	wantFin  bool
	finSent  bool
	wantShut bool
	ready    bool // it is in the session's round

	opened time.Time
	handed bool // Accept gave it, and who has it has not closed it
}

// ResetError is what becomes of a stream that one end has reset.
type ResetError struct {
	Text string
	Here bool // by this end
}

func (e *ResetError) Error() string {
	if e.Here {
		return "the stream was given up: " + e.Text
	}
	return "the other end has given the stream up: " + e.Text
}

var (
	errClosed  = net.ErrClosed
	errNoReads = errors.New("the other end has closed the stream")
)

// newStream is called with mu held.
func (s *Session) newStream(id uint32) *Stream {
	now := time.Now()
	st := &Stream{s: s, id: id, readable: make(chan struct{}, 1), writable: make(chan struct{}, 1),
		limit: firstWindow, window: firstWindow, allowed: s.peerWindow, opened: now, renewed: now}
	s.streams[id] = st
	return st
}

// Read reads what came, as much as there is.
func (st *Stream) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	st.reading.Lock()
	defer st.reading.Unlock()
	c, err := st.take()
	if err != nil {
		return 0, err
	}
	n := copy(b, c.b[c.at:c.end])
	c.at += n
	st.give(c, n)
	return n, nil
}

// WriteTo writes all that comes to w, without a copy in between. What w has not
// taken counts as not read.
func (st *Stream) WriteTo(w io.Writer) (int64, error) {
	st.reading.Lock()
	defer st.reading.Unlock()
	var sum int64
	for {
		c, err := st.take()
		if err == io.EOF {
			return sum, nil
		}
		if err != nil {
			return sum, err
		}
		n, err := w.Write(c.b[c.at:c.end])
		c.at += n
		sum += int64(n)
		st.give(c, n)
		if err != nil {
			return sum, err
		}
	}
}

// take waits for something to read. Nobody else touches it until give: the
// chunk is out of the queue.
func (st *Stream) take() (*chunk, error) {
	s := st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case st.err != nil:
			st.finish()
			return nil, st.err
		case st.closed:
			return nil, errClosed
		case st.in.len() > 0:
			return st.in.pop(), nil
		case st.eof:
			if st.wantFin {
				st.finish()
			}
			return nil, io.EOF
		case s.err != nil:
			return nil, s.err
		}
		s.mu.Unlock()
		select {
		case <-st.readable:
		case <-s.done:
		}
		s.mu.Lock()
	}
}

// give says that n bytes of what was taken were read.
func (st *Stream) give(c *chunk, n int) {
	s := st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.len() > 0 && !st.closed && st.err == nil {
		st.in.unpop(c)
	} else {
		c.free()
	}
	st.consume(n)
}

// consume moves the window when a quarter of it was read.
func (st *Stream) consume(n int) {
	s := st.s
	st.consumed += uint64(n)
	if st.gone || st.eof || s.err != nil || st.consumed+uint64(st.window-st.window/4) < st.limit {
		return
	}
	st.size(time.Now())
	if limit := st.consumed + uint64(st.window); limit > st.limit {
		st.limit = limit
		st.promise()
		s.wake()
	}
}

// size makes the window larger if the other end had to stop for it although a
// quarter of it is read in less than a round trip, and smaller if that takes
// much longer. So it follows what the way holds and the reader reads.
func (st *Stream) size(now time.Time) {
	s := st.s
	elapsed, rtt := now.Sub(st.renewed), s.roundTrip()
	st.renewed = now
	switch {
	case elapsed < rtt && st.stopped && now.Sub(st.grew) >= rtt:
		// Half of what is left at most, so that one does not leave others with nothing.
		more := min(st.window, lastWindow-st.window)
		if own := st.window - firstWindow; own+more <= (s.cfg.Memory-s.grown+own)/2 {
			st.window += more
			s.grown += more
		}
		st.grew, st.stopped = now, false
	case elapsed > 4*rtt && st.window > leastWindow:
		st.window /= 2
		s.grown -= st.window
	}
}

// promise has the limit told to the other end.
func (st *Stream) promise() {
	if !st.credited {
		st.credited = true
		st.s.credits.push(st)
	}
}

// Write returns when all of b has its place; it waits while the other end does
// not read.
func (st *Stream) Write(b []byte) (int, error) {
	st.writing.Lock()
	defer st.writing.Unlock()
	s := st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := 0
	for len(b) > 0 {
		if err := st.room(); err != nil {
			return sum, err
		}
		n := st.fill(b)
		b, sum = b[n:], sum+n
		st.offer()
	}
	return sum, nil
}

// fill puts a piece at the end of what waits.
func (st *Stream) fill(b []byte) int {
	if last := st.out.len() - 1; last >= 0 {
		if c := st.out.at(last); c.end < len(c.b) {
			n := c.add(b)
			st.queued += n
			return n
		}
	}
	want := len(b)
	if st.out.len() > 0 {
		want = maxContent // who writes on while the last is waiting fills large ones
	}
	c := newChunk(want)
	n := c.add(b)
	st.out.push(c)
	st.queued += n
	return n
}

// ReadFrom writes all that r has, without a copy in between.
func (st *Stream) ReadFrom(r io.Reader) (int64, error) {
	st.writing.Lock()
	defer st.writing.Unlock()
	s := st.s
	var sum int64
	for {
		c := newChunk(maxContent)
		n, readErr := r.Read(c.b[headSize:])
		c.end += n
		s.mu.Lock()
		err := st.room()
		switch {
		case n == 0 || err != nil:
			c.free()
		case n <= smallChunk-headSize:
			st.fill(c.b[headSize:c.end])
			c.free()
			st.offer()
		default:
			st.out.push(c)
			st.queued += n
			st.offer()
		}
		s.mu.Unlock()
		if err != nil {
			return sum, err
		}
		sum += int64(n)
		if readErr == io.EOF {
			return sum, nil
		}
		if readErr != nil {
			return sum, readErr
		}
	}
}

// room waits, with mu held before and after, until something can be written.
func (st *Stream) room() error {
	s := st.s
	for {
		switch {
		case st.err != nil:
			return st.err
		case st.closed || st.wantFin:
			return errClosed
		case st.ended != nil:
			return st.ended
		case s.err != nil:
			return s.err
		case st.queued < maxQueued:
			return nil
		}
		s.mu.Unlock()
		select {
		case <-st.writable:
		case <-s.done:
		}
		s.mu.Lock()
	}
}

// CloseWrite says that no more comes from here.
func (st *Stream) CloseWrite() error {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	if st.err != nil {
		return st.err
	}
	st.wantFin = true
	st.offer()
	signal(st.writable)
	return nil
}

// Close ends both ways. What was written still goes out; what comes is not read.
func (st *Stream) Close() error {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	st.finish()
	if st.closed || st.err != nil {
		return nil
	}
	st.closed, st.wantShut = true, true
	st.drop(&st.in)
	st.offer()
	st.wakeAll()
	return nil
}

// Reset ends both ways at once: what was written and not sent is dropped, and
// the other end is told why.
func (st *Stream) Reset(text string) {
	s := st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	st.finish()
	st.giveUp(text)
}

// giveUp is Reset with mu held.
func (st *Stream) giveUp(text string) {
	s := st.s
	if st.err != nil {
		return
	}
	text = wire.Printable(text, maxText)
	st.abandon(&ResetError{text, true})
	if !st.gone && s.err == nil {
		s.append(reset, st.id, []byte(text))
		s.remove(st)
		s.wake()
	}
}

// abandon drops all that is held, with mu held.
func (st *Stream) abandon(err error) {
	st.err = err
	st.drop(&st.in)
	st.drop(&st.out)
	st.wakeAll()
}

func (st *Stream) drop(q *queue[*chunk]) {
	for q.len() > 0 {
		q.pop().free()
	}
	if q == &st.out {
		st.queued = 0
	}
}

func (st *Stream) wakeAll() {
	signal(st.readable)
	signal(st.writable)
}

// finish is when who took the stream has done with it.
func (st *Stream) finish() {
	if st.handed {
		st.handed = false
		st.s.handed--
		if st.s.accept.len() > 0 {
			signal(st.s.acceptable)
		}
	}
}

// sendable says whether the stream has something for the wire now.
func (st *Stream) sendable() bool {
	if st.gone || st.err != nil {
		return false
	}
	if st.out.len() > 0 {
		return st.sentAll+uint64(st.out.at(0).len()) <= st.allowed
	}
	return st.wantFin && !st.finSent || st.wantShut
}

// offer puts the stream into the round if it has something to send.
func (st *Stream) offer() {
	if !st.ready && st.sendable() {
		st.ready = true
		st.s.round.push(st)
		st.s.wake()
	}
}

// remove forgets a stream whose both ways have ended on the wire. What came and
// was not read can still be read.
func (s *Session) remove(st *Stream) {
	if st.gone {
		return
	}
	st.gone = true
	delete(s.streams, st.id)
	s.grown -= st.window - firstWindow
	if st.id%2 == uint32(s.side)%2 {
		s.ours--
	} else {
		s.theirs--
	}
	s.roomy()
}
