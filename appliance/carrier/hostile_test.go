package carrier

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// Who holds the other end's key may still be hostile. Each of these ends the
// session with an error that says what it was, and is told to the other end.
func TestSES2_HostilePeerIsRefused(t *testing.T) {
	type saying struct {
		f       frame
		content []byte
	}
	opened := saying{frame{what: open, stream: 2, number: 1}, nil}
	long := make([]byte, maxContent)
	overrun := []saying{opened}
	for i := range uint64(firstWindow/maxContent + 1) {
		overrun = append(overrun, saying{frame{what: data, stream: 2, number: 2 + i}, long})
	}
	many := []saying{}
	for i := range uint64(5) {
		many = append(many, saying{frame{what: open, stream: uint32(2 + 2*i), number: 1 + i}, nil})
	}
	for name, says := range map[string][]saying{
		"a second greeting":           {{frame{what: hello}, greets(usual)[headSize:]}},
		"an unknown frame":            {{frame{what: 99}, nil}},
		"an unknown frame, numbered":  {{frame{what: 21, stream: 2, number: 1}, nil}},
		"a number that is too high":   {{frame{what: open, stream: 2, number: 2}, nil}},
		"the number zero":             {{frame{what: open, stream: 2}, nil}},
		"a gap":                       {opened, {frame{what: data, stream: 2, number: 3}, []byte("x")}},
		"an acknowledgement too far":  {{frame{what: ack, number: 2}, nil}},
		"an acknowledgement, huge":    {{frame{what: ack, number: 1<<64 - 1}, nil}},
		"data before it is opened":    {{frame{what: data, stream: 2, number: 1}, []byte("x")}},
		"data of our stream to come":  {{frame{what: data, stream: 3, number: 1}, []byte("x")}},
		"credit for what is not":      {{frame{what: credit, stream: 4, number: 9}, nil}},
		"our stream, opened by it":    {{frame{what: open, stream: 3, number: 1}, nil}},
		"a stream left out":           {{frame{what: open, stream: 4, number: 1}, nil}},
		"a stream opened twice":       {opened, {frame{what: open, stream: 2, number: 2}, nil}},
		"too many streams":            many,
		"more than the window":        overrun,
		"data after its end":          {opened, {frame{what: fin, stream: 2, number: 2}, nil}, {frame{what: data, stream: 2, number: 3}, []byte("x")}},
		"two ends":                    {opened, {frame{what: fin, stream: 2, number: 2}, nil}, {frame{what: fin, stream: 2, number: 3}, nil}},
		"no data":                     {opened, {frame{what: data, stream: 2, number: 2}, nil}},
		"data of stream 0":            {{frame{what: data, number: 1}, []byte("x")}},
		"a ping of a stream":          {{frame{what: ping, stream: 2}, nil}},
		"a ping with something in it": {{frame{what: ping}, []byte("x")}},
		"a long reason":               {{frame{what: goodbye}, make([]byte, maxText+1)}},
		"a frame longer than there is": {opened,
			{frame{what: data, stream: 2, number: 2}, make([]byte, maxContent+1)}},
	} {
		t.Run(name, func(t *testing.T) {
			s := New(Technician, Config{Streams: 4})
			r := rawPeer(t, s, usual)
			if _, err := s.Open(t.Context()); err != nil { // stream 1, frame 1
				t.Fatal(err)
			}
			go func() {
				for _, w := range says {
					r.send(w.f, w.content)
				}
			}()
			said := r.goodbye()
			<-s.Done()
			if err := s.Err(); !errors.Is(err, ErrProtocol) {
				t.Fatalf("ended with %v", err)
			}
			if said != s.Err().Error() {
				t.Errorf("the other end was told %q of %q", said, s.Err())
			}
		})
	}
}

// What an honest end may do at the wrong moment is no offence: the stream was
// given up here, and the other end did not know it yet.
func TestFramesOfAStreamThatIsGone(t *testing.T) {
	s := New(Technician, Config{})
	r := rawPeer(t, s, usual)
	go io.Copy(io.Discard, r.c)
	st, err := s.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	st.Reset("no")
	r.send(frame{what: credit, stream: st.id, number: 1 << 20}, nil)
	r.send(frame{what: data, stream: st.id, number: 1}, []byte("x"))
	r.send(frame{what: fin, stream: st.id, number: 2}, nil)
	r.send(frame{what: shut, stream: st.id, number: 3}, nil)
	r.send(frame{what: reset, stream: st.id, number: 4}, []byte("x"))
	r.send(frame{what: open, stream: 2, number: 5}, nil)
	if _, err := s.Accept(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
}

// An end that opens streams and gives them up at once, for ever, gets nowhere.
func TestSES2_StreamsThatAreResetAtOnce(t *testing.T) {
	s := New(Agent, Config{Streams: 4})
	r := rawPeer(t, s, usual)
	go io.Copy(io.Discard, r.c)
	n := uint64(0)
	for i := range uint32(1000) {
		r.send(frame{what: open, stream: 1 + 2*i, number: n + 1}, nil)
		r.send(frame{what: reset, stream: 1 + 2*i, number: n + 2}, nil)
		n += 2
	}
	r.send(frame{what: open, stream: 2001, number: n + 1}, nil)
	st, err := s.Accept(t.Context())
	if err != nil || st.id != 2001 {
		t.Fatalf("stream %v, %v", st, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.streams) != 1 || s.accept.len() != 0 {
		t.Errorf("%d streams are held, %d wait", len(s.streams), s.accept.len())
	}
}

// Nor does one whose streams are taken, and whose takers are still busy.
func TestSES2_TakersAreBounded(t *testing.T) {
	s := New(Agent, Config{Streams: 4})
	r := rawPeer(t, s, usual)
	go io.Copy(io.Discard, r.c)
	var busy []*Stream
	n := uint64(0)
	for i := range uint32(8) {
		r.send(frame{what: open, stream: 1 + 2*i, number: n + 1}, nil)
		st, err := s.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		busy = append(busy, st)
		r.send(frame{what: reset, stream: 1 + 2*i, number: n + 2}, nil)
		n += 2
	}
	r.send(frame{what: open, stream: 17, number: n + 1}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := s.Accept(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a ninth: %v", err)
	}
	busy[3].Close()
	if st, err := s.Accept(t.Context()); err != nil || st.id != 17 {
		t.Fatal(err)
	}
}

// Nor does one that ends each of its streams before anybody takes it: what
// waits is bounded, and the streams beyond are refused, one by one.
func TestSES2_StreamsThatNobodyTakesAreBounded(t *testing.T) {
	s := New(Agent, Config{Streams: 4})
	r := rawPeer(t, s, usual)
	refused := make(chan uint32, 100)
	go func() {
		for {
			head := make([]byte, headSize)
			if _, err := io.ReadFull(r.c, head); err != nil {
				return
			}
			f, err := parse(head)
			if err != nil {
				return
			}
			if _, err := io.CopyN(io.Discard, r.c, int64(f.length)); err != nil {
				return
			}
			if f.what == reset {
				refused <- f.stream
			}
		}
	}()
	for i := range uint32(20) {
		r.send(frame{what: open, stream: 1 + 2*i, number: uint64(2*i + 1)}, nil)
		r.send(frame{what: shut, stream: 1 + 2*i, number: uint64(2*i + 2)}, nil)
	}
	for i := range uint32(16) {
		if id := <-refused; id != 9+2*i {
			t.Fatalf("stream %d is refused, want %d", id, 9+2*i)
		}
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.streams) != 0 || s.theirs != 0 || s.accept.len() != 4 {
		t.Errorf("%d streams are held, %d count as open, %d wait", len(s.streams), s.theirs, s.accept.len())
	}
}

// An end that opens streams to have them refused, and never says that it was
// told, is not told for ever.
func TestSES2_RefusalsAreBounded(t *testing.T) {
	s := New(Agent, Config{Streams: 1})
	r := rawPeer(t, s, usual)
	go io.Copy(io.Discard, r.c)
	s.mu.Lock()
	for range maxLogFrames {
		s.append(open, 2, nil) // as if so much were not acknowledged
	}
	s.mu.Unlock()
	for i := range uint32(2) {
		r.send(frame{what: open, stream: 1 + 2*i, number: uint64(2*i + 1)}, nil)
		r.send(frame{what: shut, stream: 1 + 2*i, number: uint64(2*i + 2)}, nil)
	}
	<-s.Done()
	if err := s.Err(); !errors.Is(err, ErrProtocol) {
		t.Errorf("it ended with %v", err)
	}
}

// A window counts bytes of content; what holds them is not much more, even if
// each comes in a frame of its own.
func TestSES2_SmallFramesHoldLittle(t *testing.T) {
	for _, size := range []int{1, smallChunk / 2, maxContent/2 + 1} {
		s := New(Agent, Config{})
		r := rawPeer(t, s, usual)
		go io.Copy(io.Discard, r.c)
		r.send(frame{what: open, stream: 1, number: 1}, nil)
		for i := range firstWindow / size {
			r.send(frame{what: data, stream: 1, number: uint64(2 + i)}, make([]byte, size))
		}
		r.send(frame{what: open, stream: 3, number: uint64(2 + firstWindow/size)}, nil)
		for range 2 {
			if _, err := s.Accept(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if in, _ := held(s); in > 3*firstWindow {
			t.Errorf("frames of %d bytes: %d KiB of memory for a window of %d", size, in>>10, firstWindow>>10)
		}
	}
}

// An end that never acknowledges does not have everything kept for it.
func TestSES2_PeerThatNeverAcknowledges(t *testing.T) {
	s := New(Technician, Config{})
	r := rawPeer(t, s, greeting{streams: 100, window: 1<<32 - 1})
	got := make(chan int64, 1)
	go func() {
		n, _ := io.Copy(io.Discard, r.c)
		got <- n
	}()
	for range 3 {
		st, err := s.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		go st.Write(make([]byte, maxLog))
	}
	for held := 0; held < maxLog; {
		s.mu.Lock()
		held = s.logBytes
		s.mu.Unlock()
		time.Sleep(time.Millisecond)
	}
	time.Sleep(50 * time.Millisecond)
	s.mu.Lock()
	if s.logBytes > maxLog+maxFrame {
		t.Errorf("%d bytes are kept, the limit is %d", s.logBytes, maxLog)
	}
	s.mu.Unlock()
	r.c.Close()
	if n := <-got; n > maxLog+1<<20 {
		t.Errorf("%d bytes were sent", n)
	}
}

func FuzzHead(f *testing.F) {
	f.Add(appendFrame(nil, frame{what: data, length: 1, stream: 1, number: 1, stopped: true}))
	f.Add(greets(usual))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < headSize {
			return
		}
		h, err := parse(b[:headSize])
		if err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Fatal(err)
			}
			return
		}
		if again := appendFrame(nil, h); !bytes.Equal(again, b[:headSize]) {
			t.Fatalf("read, and written it is another one: %x %x", b[:headSize], again)
		}
		if g, err := parseGreeting(b[headSize:]); err == nil && !bytes.Equal(g.append(nil), b[headSize:]) {
			t.Fatal("a greeting is read, and written it is another one")
		}
	})
}

// FuzzSession has a session listen to whatever there is, after a right greeting.
func FuzzSession(f *testing.F) {
	say := func(frames ...frame) []byte {
		var b []byte
		for _, w := range frames {
			b = append(appendFrame(b, w), make([]byte, w.length)...)
		}
		return b
	}
	f.Add(say(frame{what: open, stream: 2, number: 1}, frame{what: data, length: 5, stream: 2, number: 2}, frame{what: shut, stream: 2, number: 3}))
	f.Add(say(frame{what: open, stream: 2, number: 1}, frame{what: data, length: 5, stream: 2, number: 2}, frame{what: fin, stream: 2, number: 3}))
	f.Add(say(frame{what: ping, number: 7}, frame{what: ack, number: 1}, frame{what: credit, stream: 1, number: 1 << 40}))
	f.Add(say(frame{what: reset, length: 3, stream: 1, number: 1}, frame{what: goodbye, length: 3}))
	f.Add(say(frame{what: shut, stream: 1, number: 1}, frame{what: open, stream: 2, number: 2}, frame{what: reset, stream: 2, number: 3}))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := New(Technician, Config{Streams: 3})
		here, there := net.Pipe()
		go there.Write(greets(greeting{side: Agent, streams: 2, window: firstWindow}))
		hi := make([]byte, headSize+helloSize)
		heard := make(chan struct{})
		go func() { io.ReadFull(there, hi); close(heard) }()
		if err := s.Attach(t.Context(), here, Relay); err != nil {
			t.Fatal(err)
		}
		<-heard
		go io.Copy(io.Discard, there)
		st, err := s.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		go func() { st.Write(make([]byte, 100<<10)) }()
		go func() { io.Copy(io.Discard, st) }()
		go func() {
			for {
				st, err := s.Accept(t.Context())
				if err != nil {
					return
				}
				go func() { io.Copy(st, st); st.Close() }()
			}
		}()
		there.Write(b)
		there.Close()
		in, out := held(s)
		if in > 8*firstWindow || out > 16*firstWindow {
			t.Errorf("it holds %d and %d bytes", in, out)
		}
		s.Close("")
		if s.Err() == nil {
			t.Error("it goes on")
		}
	})
}
