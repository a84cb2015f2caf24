package carrier

import (
	"fmt"
	"time"
)

// receive does what a frame says; c is its content, which it takes over. An
// error is the other end's fault and the end of the session. With mu held.
func (s *Session) receive(p *path, f frame, c *chunk) error {
	if !f.numbered() {
		defer c.free()
		return s.control(p, f, c)
	}
	switch {
	case s.err != nil: // it goes on only to say what it had to say
	case f.number > s.received+1:
		c.free()
		return broken("frame %d came after %d", f.number, s.received)
	case f.number <= s.received: // it came over another path before
	default:
		s.received++
		s.count(f)
		kept, err := s.apply(f, c)
		if kept {
			return nil
		}
		c.free()
		return err
	}
	c.free()
	return nil
}

// control does what a frame without a number says.
func (s *Session) control(p *path, f frame, c *chunk) error {
	switch f.what {
	case ping:
		p.pongs, p.pongOf = true, f.number
		signal(p.wake)
	case pong:
		if f.number == p.pingID && !p.pinged.IsZero() {
			p.measured(time.Since(p.pinged))
		}
	case ack:
		return s.acknowledge(f.number)
	case credit:
		return s.allow(f)
	case goodbye:
		s.end(&Ended{Reason: c.text()}, nil)
	default:
		return broken("it greets twice")
	}
	return nil
}

// apply does what a frame with a number says, once. It says whether it keeps c.
func (s *Session) apply(f frame, c *chunk) (kept bool, err error) {
	if f.what == open {
		return false, s.opened(f)
	}
	st, err := s.find(f)
	if st == nil || err != nil {
		return false, err
	}
	switch f.what {
	case data:
		if err := st.arrived(f); err != nil {
			return false, err
		}
		return st.put(c), nil
	case fin:
		if st.eof {
			return false, broken("stream %d ends twice", f.stream)
		}
		st.eof = true
		signal(st.readable)
		if st.finSent {
			s.remove(st)
		}
	case shut:
		st.eof = true
		st.ended = errNoReads
		st.drop(&st.out)
		st.wakeAll()
		s.remove(st)
	case reset:
		st.abandon(&ResetError{Text: c.text()})
		s.remove(st)
		s.unaccepted(st)
	}
	return false, nil
}

// count has what came acknowledged: at once when the other end holds much for
// it, or a little later.
func (s *Session) count(f frame) {
	if f.length <= smallChunk-headSize {
		s.unacked += smallChunk
	} else {
		s.unacked += maxFrame
	}
	switch {
	case s.ackNow:
	case s.unacked >= ackAfter:
		s.ackNow = true
		s.wake()
	case !s.ackArmed:
		s.ackArmed = true
		s.ackTimer.Reset(ackDelay)
	}
}

// opened is a new stream of the other end.
func (s *Session) opened(f frame) error {
	if f.stream != s.peerNext {
		return broken("it opens stream %d, its next one is %d", f.stream, s.peerNext)
	}
	if s.theirs >= s.cfg.Streams {
		return broken("it opens more than %d streams", s.cfg.Streams)
	}
	s.peerNext += 2
	if s.accept.len() >= s.cfg.Streams { // of which some have ended already, or they could not be so many
		if s.full() {
			return broken("it opens streams and does not acknowledge that they are refused")
		}
		s.append(reset, f.stream, []byte(s.busy()))
		s.wake()
		return nil
	}
	s.theirs++
	if s.accept.len() == 0 {
		s.untaken.Reset(s.cfg.Untaken)
	}
	s.accept.push(s.newStream(f.stream))
	signal(s.acceptable)
	return nil
}

// busy is why a stream is refused.
func (s *Session) busy() string {
	return fmt.Sprintf("no more streams are taken at present, %d streams of this session are at work or not closed yet: close some, or try again later", s.handed)
}

// refuseUntaken gives up the streams that nobody has taken for too long, so that
// who opened them does not wait for ever. The others go on.
func (s *Session) refuseUntaken() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.err == nil && s.accept.len() > 0 {
		st := s.accept.at(0)
		if left := s.cfg.Untaken - time.Since(st.opened); left > 0 {
			s.untaken.Reset(left)
			return
		}
		s.accept.pop()
		st.giveUp(s.busy())
	}
}

// find is the stream of a frame; nil if it is gone here and the other end did
// not know it yet.
func (s *Session) find(f frame) (*Stream, error) {
	if st := s.streams[f.stream]; st != nil {
		return st, nil
	}
	next := s.peerNext
	if f.stream%2 == uint32(s.side)%2 {
		next = s.next
	}
	if f.stream >= next {
		return nil, broken("a frame of kind %d of stream %d, which was never opened", f.what, f.stream)
	}
	return nil, nil
}

// arrived judges data of a stream.
func (st *Stream) arrived(f frame) error {
	st.came += uint64(f.length)
	st.stopped = st.stopped || f.stopped
	if st.eof {
		return broken("stream %d goes on after its end", st.id)
	}
	if st.came > st.limit {
		return broken("stream %d has %d bytes, it may have %d", st.id, st.came, st.limit)
	}
	return nil
}

// put keeps what came, and says whether it keeps the chunk. Small ones are put
// together, so that what is held is at most twice what the window counts.
func (st *Stream) put(c *chunk) bool {
	if st.closed || st.err != nil {
		return false
	}
	signal(st.readable)
	if last := st.in.len() - 1; last >= 0 {
		if to := st.in.at(last); len(to.b)-to.end >= c.len() {
			to.add(c.b[c.at:c.end])
			return false
		}
	}
	st.in.push(c)
	return true
}

// allow moves the end of what may be sent.
func (s *Session) allow(f frame) error {
	st, err := s.find(f)
	if st == nil || err != nil {
		return err
	}
	if f.number > st.allowed {
		st.allowed = f.number
		st.offer()
	}
	return nil
}

// unaccepted takes a stream that was reset before anyone took it out of the line.
func (s *Session) unaccepted(gone *Stream) {
	for range s.accept.len() {
		if st := s.accept.pop(); st != gone {
			s.accept.push(st)
		}
	}
}
