package carrier

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// raw is an end that the test speaks itself.
type raw struct {
	t testing.TB
	c net.Conn
}

// rawPeer attaches a session to one; it greets with g.
func rawPeer(t testing.TB, s *Session, g greeting) *raw {
	t.Helper()
	here, there := net.Pipe()
	t.Cleanup(func() { there.Close(); s.Close("") })
	r := &raw{t, there}
	g.side = 3 - s.side
	errs := make(chan error, 1)
	go func() { errs <- s.Attach(context.Background(), here, Relay) }()
	if f, _ := r.next(); f.what != hello {
		t.Fatalf("a path begins with kind %d", f.what)
	}
	if _, err := there.Write(greets(g)); err != nil {
		t.Fatal(err)
	}
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	return r
}

// next is the next frame of the session, pings answered and left out.
func (r *raw) next() (frame, []byte) {
	r.t.Helper()
	for {
		r.c.SetReadDeadline(time.Now().Add(5 * time.Second))
		head := make([]byte, headSize)
		if _, err := io.ReadFull(r.c, head); err != nil {
			r.t.Fatal(err)
		}
		f, err := parse(head)
		if err != nil {
			r.t.Fatal(err)
		}
		b := make([]byte, f.length)
		if _, err := io.ReadFull(r.c, b); err != nil {
			r.t.Fatal(err)
		}
		if f.what == ping {
			r.send(frame{what: pong, number: f.number}, nil)
			continue
		}
		return f, b
	}
}

func (r *raw) send(f frame, content []byte) {
	f.length = len(content)
	r.c.Write(append(appendFrame(nil, f), content...))
}

// goodbye reads until the session says it, closes, and gives the reason.
func (r *raw) goodbye() string {
	r.t.Helper()
	for {
		if f, b := r.next(); f.what == goodbye {
			r.c.Close()
			return string(b)
		}
	}
}

var usual = greeting{streams: 100, window: 1 << 20}

func TestHalfClose(t *testing.T) {
	e := newEnds(t, Config{})
	here, there := tcpPair(t)
	e.attach(t, here, there, Relay)
	a, b := e.stream(t)
	a.Write([]byte("question"))
	a.CloseWrite()
	if _, err := a.Write([]byte("more")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("writing after the end: %v", err)
	}
	if got, err := io.ReadAll(b); err != nil || string(got) != "question" {
		t.Fatalf("%q, %v", got, err)
	}
	b.Write([]byte("answer"))
	b.Close()
	if got, err := io.ReadAll(a); err != nil || string(got) != "answer" {
		t.Fatalf("%q, %v", got, err)
	}
	a.Close()
	forgotten(t, e)
}

// forgotten: a stream whose both ways have ended is held by nobody.
func forgotten(t *testing.T, e ends) {
	t.Helper()
	for _, s := range []*Session{e.technician, e.agent} {
		for range 500 {
			s.mu.Lock()
			n := len(s.streams) + s.ours + s.theirs + s.grown + s.log.len()
			s.mu.Unlock()
			if n == 0 {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		s.mu.Lock()
		if len(s.streams)+s.ours+s.theirs+s.grown+s.log.len() != 0 {
			t.Errorf("side %d holds %d streams (%d of its own, %d of the other), windows grown by %d, %d frames",
				s.side, len(s.streams), s.ours, s.theirs, s.grown, s.log.len())
		}
		s.mu.Unlock()
	}
}

func TestCloseSendsWhatWasWrittenAndStopsTheOther(t *testing.T) {
	e := newEnds(t, Config{})
	here, there := tcpPair(t)
	e.attach(t, here, there, Relay)
	a, b := e.stream(t)
	what := randomBytes(maxQueued) // more than a window: it has to wait for the reader
	if _, err := a.Write(what); err != nil {
		t.Fatal(err)
	}
	a.Close()
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("reading what was closed: %v", err)
	}
	if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, what) {
		t.Fatalf("%d bytes of %d, %v", len(got), len(what), err)
	}
	if _, err := b.Write([]byte("x")); err == nil || !strings.Contains(err.Error(), "other end has closed") {
		t.Errorf("writing to a stream that the other end has closed: %v", err)
	}
	b.Close()
	forgotten(t, e)
}

func TestResetTellsTheOtherEnd(t *testing.T) {
	e := newEnds(t, Config{})
	here, there := tcpPair(t)
	e.attach(t, here, there, Relay)
	a, b := e.stream(t)
	blocked := make(chan error, 2)
	go func() { _, err := io.Copy(b, bytes.NewReader(make([]byte, 10<<20))); blocked <- err }()
	go func() { _, err := b.Read(make([]byte, 1)); blocked <- err }()
	a.Write(nil)
	time.Sleep(10 * time.Millisecond)
	a.Reset("enough\x1b[2J")
	for range 2 {
		var r *ResetError
		if err := <-blocked; !errors.As(err, &r) || r.Here || r.Text != "enough\ufffd[2J" {
			t.Errorf("the other end has %q", err)
		}
	}
	var r *ResetError
	if _, err := a.Read(make([]byte, 1)); !errors.As(err, &r) || !r.Here {
		t.Errorf("this end has %v", err)
	}
	forgotten(t, e)
}

func TestCloseTellsTheReason(t *testing.T) {
	e := newEnds(t, Config{})
	here, there := tcpPair(t)
	e.attach(t, here, there, Relay)
	a, b := e.stream(t)
	c, d := e.stream(t)
	c.Write([]byte("written before"))
	c.Close()
	reading := make(chan error, 1)
	go func() { _, err := b.Read(make([]byte, 1)); reading <- err }()
	e.technician.Close("the owner has ended it")
	<-e.agent.Done()
	for name, err := range map[string]error{"session": e.agent.Err(), "reader": <-reading} {
		var end *Ended
		if !errors.As(err, &end) || end.Here || end.Reason != "the owner has ended it" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got, err := io.ReadAll(d); err != nil || string(got) != "written before" {
		t.Errorf("%q, %v", got, err)
	}
	var end *Ended
	if _, err := a.Write([]byte("x")); !errors.As(err, &end) || !end.Here {
		t.Errorf("writing here: %v", err)
	}
	if _, err := e.agent.Accept(t.Context()); err == nil {
		t.Error("a session that has ended has a further stream")
	}
}

// held is what a session holds for its streams, in bytes of memory.
func held(s *Session) (in, out int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.streams {
		for i := range st.in.len() {
			in += cap(st.in.at(i).b)
		}
		for i := range st.out.len() {
			out += cap(st.out.at(i).b)
		}
	}
	return in, out + s.logBytes
}

// One who does not read holds little, however small the pieces are, and does
// not hold up the others.
func TestSES3_SlowReaderHoldsLittle(t *testing.T) {
	for _, piece := range []int{1, 100, 1009, 2000, 8200, 9 << 10, 32 << 10} {
		e := newEnds(t, Config{})
		here, there := tcpPair(t)
		e.attach(t, here, there, Relay)
		a, b := e.stream(t)
		go func() {
			for what := make([]byte, piece); ; {
				if _, err := a.Write(what); err != nil {
					return
				}
			}
		}()
		go func() { io.Copy(struct{ io.Writer }{b}, bytes.NewReader(make([]byte, 4<<20))) }() // nor does the technician read
		var wg sync.WaitGroup
		x, y := e.stream(t)
		traffic(t, &wg, x, y, 4<<20)
		wg.Wait()
		time.Sleep(3 * ackDelay)
		for name, s := range map[string]*Session{"technician": e.technician, "agent": e.agent} {
			if in, out := held(s); in > 512<<10 || out > 512<<10 || in+out < firstWindow {
				t.Errorf("pieces of %d bytes: the %s holds %d KiB that came and %d KiB that go", piece, name, in>>10, out>>10)
			}
		}
		e.technician.Close("")
	}
}

// Streams take turns: what is typed does not wait until copies are done, and
// no copy gets ahead of the others.
func TestSES3_StreamsTakeTurns(t *testing.T) {
	const pieces = 7
	s := New(Technician, Config{})
	r := rawPeer(t, s, usual)
	sent := map[uint32]int{}
	stream := func() *Stream {
		st, err := s.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	for range 5 { // nobody reads the pipe yet, so they wait
		st := stream()
		if _, err := st.Write(make([]byte, pieces*maxContent)); err != nil {
			t.Fatal(err)
		}
		sent[st.id] = 0
	}
	typed := stream()
	if _, err := typed.Write([]byte("ls\n")); err != nil {
		t.Fatal(err)
	}
	for frames := 0; frames <= 5*pieces; {
		f, b := r.next()
		if f.what != data {
			continue
		}
		frames++
		if f.stream == typed.id {
			if frames > 2*len(sent)+1 {
				t.Errorf("what was typed is frame %d, among %d streams", frames, len(sent)+1)
			}
			continue
		}
		if sent[f.stream]++; len(b) != maxContent {
			t.Errorf("a frame of %d bytes while a stream has more", len(b))
		}
		least, most := pieces, 0
		for _, n := range sent {
			least, most = min(least, n), max(most, n)
		}
		if most-least > 2 {
			t.Fatalf("after %d frames a stream has had %d and another %d", frames, most, least)
		}
	}
}

func TestOpenWaitsForItsPlace(t *testing.T) {
	s := New(Technician, Config{})
	defer s.Close("")
	early, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := s.Open(early); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without a path: %v", err)
	}
	r := rawPeer(t, s, greeting{streams: 2, window: firstWindow})
	go io.Copy(io.Discard, r.c)
	var open []*Stream
	for range 2 {
		st, err := s.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, st)
	}
	third := make(chan error, 1)
	go func() { _, err := s.Open(t.Context()); third <- err }()
	select {
	case err := <-third:
		t.Fatalf("a third of two: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	open[0].Close()
	if err := <-third; err != nil {
		t.Fatal(err)
	}
}

// A stream that nobody takes is refused in words, and nothing else ends with it:
// not the session, not its path, not the streams that are there.
func TestSES1_StreamThatNobodyTakesIsRefused(t *testing.T) {
	e := newEnds(t, Config{Streams: 4, Untaken: 50 * time.Millisecond})
	here, there := tcpPair(t)
	e.attach(t, here, there, Relay)
	var busy []*Stream
	for range 8 { // twice as many as may be open, and not one of them closed where it was taken
		a, b := e.stream(t)
		a.Close()
		busy = append(busy, b)
	}
	for range 3 {
		st, err := e.technician.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = st.Read(make([]byte, 1))
		var refused *ResetError
		if !errors.As(err, &refused) || refused.Here || !strings.Contains(err.Error(), "8 streams") {
			t.Fatalf("a ninth stream: %v", err)
		}
	}
	if p := e.technician.Paths(); e.technician.Err() != nil || e.agent.Err() != nil || len(p) != 1 {
		t.Fatalf("the session went with it: %v, %v, paths %v", e.technician.Err(), e.agent.Err(), p)
	}
	busy[0].Close()
	a, b := e.stream(t)
	if _, err := a.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(b, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	a.Close()
	b.Close()
	for _, st := range busy {
		st.Close()
	}
	forgotten(t, e)
}

// A session leaves nothing running.
func TestNothingIsLeftRunning(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 20 {
		e := ends{New(Technician, Config{}), New(Agent, Config{})}
		for range 3 {
			here, there := tcpPair(t)
			e.attach(t, here, there, Relay)
		}
		here, there := tcpPair(t)
		e.attach(t, here, there, TCP)
		here.Close()
		a, _ := e.stream(t)
		a.Write([]byte("x"))
		e.technician.Close("")
		<-e.agent.Done()
	}
	for range 300 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	buf := make([]byte, 1<<16)
	t.Errorf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
}

// Windows grow together by no more than is allowed, none takes all of it, and
// they give it back.
func TestSES2_WindowsAreBoundedTogether(t *testing.T) {
	s := New(Agent, Config{})
	defer s.Close("")
	s.mu.Lock()
	defer s.mu.Unlock()
	now, rtt := time.Now(), s.roundTrip()
	var all []*Stream
	for i := range uint32(100) {
		st := s.newStream(1 + 2*i)
		s.theirs++
		all = append(all, st)
		for range 20 {
			st.stopped, st.renewed, st.grew = true, now.Add(-rtt/2), now.Add(-rtt)
			st.size(now)
		}
		sum := 0
		for _, st := range all {
			sum += st.window - firstWindow
		}
		if sum != s.grown || sum > s.cfg.Memory {
			t.Fatalf("%d windows have grown by %d, counted %d, allowed %d", len(all), sum, s.grown, s.cfg.Memory)
		}
	}
	if all[0].window != lastWindow || all[1].window < 4<<20 || all[3].window < 1<<20 {
		t.Errorf("the first windows are %d, %d, %d, %d", all[0].window, all[1].window, all[2].window, all[3].window)
	}
	for range 20 {
		all[0].renewed = now.Add(-5 * rtt)
		all[0].size(now)
	}
	if all[0].window != leastWindow {
		t.Errorf("the window of a slow reader is %d", all[0].window)
	}
	for _, stopped := range []bool{false, true} {
		all[0].stopped, all[0].renewed, all[0].grew = stopped, now.Add(-rtt/2), now.Add(-rtt)
		all[0].size(now)
		if grew := all[0].window > leastWindow; grew != stopped {
			t.Errorf("the other end had to stop: %v, the window has grown: %v", stopped, grew)
		}
	}
	for _, st := range all {
		s.remove(st)
	}
	if s.grown != 0 {
		t.Errorf("%d is still counted", s.grown)
	}
}
