package carrier

import "time"

// sent is what goes out: the frames that have a number and are not
// acknowledged, and what waits to get one.
type sent struct {
	log      queue[*chunk]
	base     uint64 // number of the first in log
	cursor   uint64 // number of the next for the best path
	logBytes int

	round   queue[*Stream] // that have something to send, each one frame in turn
	credits queue[*Stream]

	farewell *string // the last words of a session that has ended, if it says any
	until    time.Time
}

// nextNumber is that of the next frame.
func (o *sent) nextNumber() uint64 { return o.base + uint64(o.log.len()) }

// full says that no more gets a number until some are acknowledged.
func (o *sent) full() bool { return o.logBytes >= maxLog || o.log.len() >= maxLogFrames }

// append numbers a frame without much content.
func (o *sent) append(w what, stream uint32, content []byte) {
	c := newChunk(len(content))
	c.add(content)
	o.number(c, w, stream)
}

// number takes a frame into the log.
func (o *sent) number(c *chunk, w what, stream uint32) frame {
	f := frame{what: w, length: c.end - headSize, stream: stream, number: o.nextNumber()}
	f.put(c.b)
	o.log.push(c)
	o.logBytes += len(c.b)
	return f
}

// acknowledge drops what has come to the other end.
func (s *Session) acknowledge(n uint64) error {
	if n >= s.nextNumber() {
		return broken("it acknowledges frame %d, %d were sent", n, s.nextNumber()-1)
	}
	was := s.full()
	for s.base <= n {
		c := s.log.pop()
		s.logBytes -= len(c.b)
		c.free()
		s.base++
	}
	s.cursor = max(s.cursor, s.base)
	if was && !s.full() {
		s.roomy()
		s.wake()
	}
	return nil
}

// upcoming is the next numbered frame for the best path, or nil.
func (s *Session) upcoming() *chunk {
	for s.cursor == s.nextNumber() {
		if s.round.len() == 0 || s.full() {
			return nil
		}
		s.turn(s.round.pop())
	}
	return s.log.at(int(s.cursor - s.base))
}

// turn numbers one frame of a stream, whose turn comes again after all others'.
func (s *Session) turn(st *Stream) {
	st.ready = false
	if !st.sendable() {
		return
	}
	switch {
	case st.out.len() > 0:
		c := st.out.pop()
		st.sentAll += uint64(c.len())
		if st.queued -= c.len(); st.queued <= maxQueued/2 {
			signal(st.writable)
		}
		f := s.number(c, data, st.id)
		f.stopped = st.out.len() > 0 && !st.sendable()
		f.put(c.b)
	case st.wantShut:
		s.append(shut, st.id, nil)
		s.remove(st)
	default:
		st.finSent = true
		s.append(fin, st.id, nil)
		if st.eof {
			s.remove(st)
		}
	}
	st.offer()
}

// gather collects what a path writes next: a batch of small frames in b, or one
// large frame as it lies in memory. With mu held.
func (s *Session) gather(p *path, b []byte) ([]byte, *chunk) {
	if p.greets {
		p.greets = false
		g := greeting{s.side, s.id, s.peer, s.received, uint32(s.cfg.Streams), firstWindow}
		b = appendFrame(b, frame{what: hello, length: helloSize})
		return g.append(b), nil
	}
	if p.pongs {
		p.pongs = false
		b = appendFrame(b, frame{what: pong, number: p.pongOf})
	}
	if p.pings {
		p.pings = false
		p.pinged = time.Now()
		b = appendFrame(b, frame{what: ping, number: p.pingID})
	}
	if p != s.best {
		return b, nil
	}
	if s.ackNow {
		b = s.appendAck(b)
	}
	for s.credits.len() > 0 && len(b)+headSize <= maxFrame {
		st := s.credits.pop()
		st.credited = false
		if !st.gone && !st.eof {
			b = appendFrame(b, frame{what: credit, stream: st.id, number: st.limit})
		}
	}
	for c := s.upcoming(); c != nil; c = s.upcoming() {
		if len(b) == 0 && c.end > maxFrame/2 {
			s.cursor++
			c.refs++
			return nil, c
		}
		if len(b)+c.end > maxFrame {
			break
		}
		s.cursor++
		b = append(b, c.b[:c.end]...)
	}
	if len(b) > 0 && s.received != s.acked && len(b)+headSize <= maxFrame {
		b = s.appendAck(b)
	}
	return b, nil
}

func (s *Session) appendAck(b []byte) []byte {
	s.ackNow, s.unacked, s.acked = false, 0, s.received
	return appendFrame(b, frame{what: ack, number: s.received})
}

func appendFrame(b []byte, f frame) []byte {
	var head [headSize]byte
	f.put(head[:])
	return append(b, head[:]...)
}

// wake has the best path look for what there is to send.
func (s *Session) wake() {
	if s.best != nil {
		signal(s.best.wake)
	}
}

func (s *Session) wakeLocked() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wake()
}

// ackLate acknowledges what came some time ago.
func (s *Session) ackLate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ackArmed = false
	if s.received != s.acked {
		s.ackNow = true
		s.wake()
	}
}

// flushed says, after the end, whether nothing more has to go out before the last words.
func (s *Session) flushed() bool {
	if time.Now().After(s.until) {
		return true
	}
	if s.cursor != s.nextNumber() {
		return false
	}
	for _, st := range s.streams {
		if st.out.len() > 0 {
			return false
		}
	}
	return s.round.len() == 0
}

// lastWords is the goodbye.
func lastWords(text string) []byte {
	b := appendFrame(nil, frame{what: goodbye, length: len(text)})
	return append(b, text...)
}
