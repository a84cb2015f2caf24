package carrier

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// brittle breaks after so many bytes, wherever in a frame that is.
type brittle struct {
	net.Conn
	left atomic.Int64
}

var errBroke = errors.New("the connection broke, as the test wanted")

func (b *brittle) spend(n int) (int, error) {
	left := b.left.Add(-int64(n)) + int64(n)
	if left >= int64(n) {
		return n, nil
	}
	return int(max(left, 0)), errBroke
}

func (b *brittle) Write(p []byte) (int, error) {
	n, broke := b.spend(len(p))
	m, err := b.Conn.Write(p[:n])
	if broke != nil && err == nil {
		b.Conn.Close()
		err = broke
	}
	return m, err
}

func (b *brittle) Read(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	if m, broke := b.spend(n); broke != nil {
		b.Conn.Close()
		return m, broke
	}
	return n, err
}

// traffic copies random bytes both ways on a stream and compares what comes.
func traffic(t *testing.T, wg *sync.WaitGroup, a, b *Stream, n int) {
	for _, way := range [][2]*Stream{{a, b}, {b, a}} {
		what := randomBytes(n)
		wg.Go(func() {
			for rest := what; len(rest) > 0; {
				m := min(len(rest), 1+rand.IntN(40000))
				if _, err := way[0].Write(rest[:m]); err != nil {
					t.Errorf("writing: %v", err)
					return
				}
				rest = rest[m:]
			}
			way[0].CloseWrite()
		})
		wg.Go(func() {
			h := sha256.New()
			got, err := io.Copy(h, way[1])
			if want := sha256.Sum256(what); err != nil || !bytes.Equal(h.Sum(nil), want[:]) {
				t.Errorf("read %d bytes of %d, %v; their hash is another one", got, n, err)
			}
		})
	}
}

// Paths are cut at random points, hundreds of times, while bytes flow both ways
// on several streams; not one is lost, doubled or moved.
func TestSES3_NoByteIsLostWhenPathsAreCut(t *testing.T) {
	cuts, bytesEach := 300, 8<<20
	if testing.Short() {
		cuts, bytesEach = 60, 2<<20
	}
	e := newEnds(t, Config{})
	var cut int
	done := make(chan struct{})
	attached := make(chan struct{})
	go func() {
		defer close(attached)
		for {
			select {
			case <-done:
				return
			default:
			}
			here, there := tcpPair(t)
			a, b := &brittle{Conn: here}, &brittle{Conn: there}
			budget := int64(1 << 40)
			if cut < cuts {
				budget = rand.Int64N(int64(bytesEach) * 12 / int64(cuts))
			}
			var ca, cb net.Conn = a, b
			if cut%5 == 0 {
				a.left.Store(1 << 40)
				b.left.Store(1 << 40)
				ca, cb = tlsPair(t, a, b)
			}
			a.left.Store(budget)
			b.left.Store(1 << 40)
			cut++
			kind := []Kind{Relay, TCP, UDP}[rand.IntN(3)]
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			var wg sync.WaitGroup
			wg.Go(func() { e.agent.Attach(ctx, cb, kind) })
			e.technician.Attach(ctx, ca, kind)
			wg.Wait()
			cancel()
			for e.technician.Err() == nil && cut > 3 && cut <= cuts && len(e.technician.Paths()) > rand.IntN(2) {
				time.Sleep(100 * time.Microsecond)
				select {
				case <-done:
					return
				default:
				}
			}
			if cut > cuts {
				<-done
				return
			}
		}
	}()
	var wg sync.WaitGroup
	for i := range 3 {
		a, b := e.stream(t)
		traffic(t, &wg, a, b, bytesEach>>i)
	}
	wg.Wait()
	close(done)
	<-attached
	t.Logf("%d paths", cut)
	if cut < cuts/3 {
		t.Errorf("only %d paths were cut, the test wants %d", cut, cuts)
	}
	for _, s := range []*Session{e.technician, e.agent} {
		if err := s.Err(); err != nil {
			t.Error(err)
		}
	}
}

// counted knows how much was written to it.
type counted struct {
	net.Conn
	n atomic.Int64
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.n.Add(int64(n))
	return n, err
}

func (c *counted) CloseWrite() error { return c.Conn.(interface{ CloseWrite() error }).CloseWrite() }

func TestSES3_BetterPathTakesOverAndBack(t *testing.T) {
	var mu sync.Mutex
	var told []Kind
	cfg := Config{OnPath: func(best Kind, any bool) {
		mu.Lock()
		defer mu.Unlock()
		if !any {
			best = 0
		}
		told = append(told, best)
	}}
	e := ends{New(Technician, cfg), New(Agent, Config{})}
	t.Cleanup(func() { e.technician.Close(""); e.agent.Close("") })
	type link struct{ here, there *counted }
	join := func(kind Kind) link {
		here, there := tcpPair(t)
		l := link{&counted{Conn: here}, &counted{Conn: there}}
		e.attach(t, l.here, l.there, kind)
		return l
	}
	relayed := join(Relay)
	a, b := e.stream(t)

	what := randomBytes(1 << 20)
	stop := make(chan struct{})
	var sent, came [sha256.Size]byte
	var wg sync.WaitGroup
	var total atomic.Int64
	wg.Go(func() {
		h := sha256.New()
		for {
			select {
			case <-stop:
				a.CloseWrite()
				h.Sum(sent[:0])
				return
			default:
			}
			n, err := a.Write(what[rand.IntN(1<<19):])
			if err != nil {
				t.Error(err)
				return
			}
			_ = n
			total.Add(int64(n))
		}
	})
	_ = came
	wg.Go(func() { io.Copy(io.Discard, b) })
	flows := func(name string, over *counted, quiet ...*counted) {
		t.Helper()
		// What is under way when another path takes over still goes the old way.
		var before []int64
		settle := func() bool {
			before = nil
			for _, q := range quiet {
				before = append(before, q.n.Load())
			}
			at := over.n.Load()
			for over.n.Load() < at+4<<20 {
				time.Sleep(time.Millisecond)
			}
			for i, q := range quiet {
				if q.n.Load() > before[i]+1000 { // keepalive goes on
					return false
				}
			}
			return true
		}
		for range 5 {
			if settle() {
				return
			}
		}
		t.Errorf("%s: bytes still go another way", name)
	}
	flows("relay", relayed.here)
	direct := join(TCP)
	flows("direct", direct.here, relayed.here)
	udp := join(UDP)
	flows("direct, with UDP beside", direct.here, relayed.here, udp.here)
	if got := e.technician.Paths(); len(got) != 3 || got[0] != TCP {
		t.Errorf("paths %v", got)
	}
	direct.here.Close()
	flows("UDP", udp.here, relayed.here)
	udp.there.Close()
	flows("the relay again", relayed.here)
	close(stop)
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	if want := []Kind{Relay, TCP, UDP, Relay}; !slices.Equal(told, want) {
		t.Errorf("OnPath was told %v, want %v", told, want)
	}
}

// The reason goes over another path if the best one fails just then.
func TestSES3_GoodbyeGoesAnotherWay(t *testing.T) {
	e := newEnds(t, Config{})
	here, there := tcpPair(t)
	e.attach(t, here, there, Relay)
	here, there = tcpPair(t)
	best := &failing{Conn: here}
	e.attach(t, best, there, TCP)
	a, b := e.stream(t)
	best.fails.Store(true)
	a.Write([]byte("the last"))
	a.Close()
	e.technician.Close("so it is")
	if got, err := io.ReadAll(b); err != nil || string(got) != "the last" {
		t.Errorf("%q, %v", got, err)
	}
	<-e.agent.Done()
	var end *Ended
	if err := e.agent.Err(); !errors.As(err, &end) || end.Reason != "so it is" {
		t.Errorf("the other end has %v", err)
	}
}

// failing fails to write, and its reader does not notice.
type failing struct {
	net.Conn
	fails atomic.Bool
}

func (f *failing) Write(b []byte) (int, error) {
	if f.fails.Load() {
		time.Sleep(5 * time.Millisecond) // long enough for Close to have come
		return 0, errBroke
	}
	return f.Conn.Write(b)
}

// muted passes nothing on any more when it is told so, and closes nothing: a
// firewall that forgot, a cable that was pulled.
type muted struct {
	net.Conn
	mute chan struct{}
}

func (m *muted) Write(b []byte) (int, error) {
	select {
	case <-m.mute:
		return len(b), nil
	default:
		return m.Conn.Write(b)
	}
}

func TestSES3_SilentPathIsFound(t *testing.T) {
	lost := make(chan struct{}, 8)
	cfg := Config{Keepalive: 20 * time.Millisecond, Misses: 3, OnPath: func(best Kind, any bool) {
		if !any || best == Relay {
			lost <- struct{}{}
		}
	}}
	e := newEnds(t, cfg)
	here, there := tcpPair(t)
	e.attach(t, here, there, Relay)
	<-lost
	<-lost
	mute := make(chan struct{})
	here, there = tcpPair(t)
	e.attach(t, &muted{here, mute}, &muted{there, mute}, TCP)
	a, b := e.stream(t)
	for range 10 { // quiet, but alive
		time.Sleep(20 * time.Millisecond)
		if got := e.technician.Paths(); len(got) != 2 || got[0] != TCP {
			t.Fatalf("paths %v: a path that answers was given up", got)
		}
	}
	close(mute)
	go a.Write([]byte("through"))
	got := make([]byte, 7)
	if _, err := io.ReadFull(b, got); err != nil || string(got) != "through" {
		t.Fatalf("%q, %v", got, err)
	}
	<-lost
	<-lost
}

// A path that is lost before anybody was told of it is told of as lost: whoever
// looks for the next one waits for that, and would until patience ends.
func TestSES3_LossOfAPathNobodyKnewIsTold(t *testing.T) {
	told := make(chan bool, 8)
	s := New(Technician, Config{OnPath: func(_ Kind, any bool) { told <- any }})
	defer s.Close("the test is over")
	p := &path{s: s, kind: Relay, wake: make(chan struct{}, 1)}
	s.mu.Lock()
	s.paths = []*path{p}
	s.choose()
	s.paths = nil
	s.choose()
	s.mu.Unlock()
	select {
	case any := <-told:
		if any {
			t.Error("a path is told of that is gone")
		}
	case <-time.After(20 * time.Second):
		t.Error("nobody is told that there is no path")
	}
}

func TestSES3_PatienceEnds(t *testing.T) {
	e := newEnds(t, Config{Patience: 30 * time.Millisecond})
	here, there := tcpPair(t)
	e.attach(t, here, there, Relay)
	a, _ := e.stream(t)
	time.Sleep(60 * time.Millisecond)
	if err := e.technician.Err(); err != nil {
		t.Fatalf("with a path: %v", err)
	}
	here.Close()
	for _, s := range []*Session{e.technician, e.agent} {
		<-s.Done()
		if err := s.Err(); !errors.Is(err, ErrNoPath) {
			t.Errorf("ended with %v", err)
		}
	}
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, ErrNoPath) {
		t.Errorf("reading: %v", err)
	}
	if _, err := a.Write(make([]byte, 1)); !errors.Is(err, ErrNoPath) {
		t.Errorf("writing: %v", err)
	}
	if _, err := e.technician.Open(t.Context()); !errors.Is(err, ErrNoPath) {
		t.Errorf("opening: %v", err)
	}
	here, _ = tcpPair(t)
	if err := e.technician.Attach(t.Context(), here, Relay); !errors.Is(err, ErrNoPath) {
		t.Errorf("attaching: %v", err)
	}
}

// An end that was started anew knows nothing of the session. Neither end goes on.
func TestSES2_RestartedEndIsRecognised(t *testing.T) {
	e := newEnds(t, Config{})
	here, there := tcpPair(t)
	e.attach(t, here, there, Relay)
	a, _ := e.stream(t)
	a.Write([]byte("for the old one"))

	anew := New(Agent, Config{})
	defer anew.Close("")
	here, there = tcpPair(t)
	var wg sync.WaitGroup
	var errs [2]error
	wg.Go(func() { errs[0] = e.technician.Attach(t.Context(), here, TCP) })
	wg.Go(func() { errs[1] = anew.Attach(t.Context(), there, TCP) })
	wg.Wait()
	<-e.technician.Done()
	<-anew.Done()
	for i, err := range []error{errs[0], errs[1], e.technician.Err(), anew.Err()} {
		if !errors.Is(err, ErrRestarted) {
			t.Errorf("%d: %v", i, err)
		}
	}
	if st, err := anew.Accept(t.Context()); err == nil {
		t.Errorf("the new one has stream %d of the old", st.id)
	}
	// The end that was left learns it too, by the path that it still has.
	<-e.agent.Done()
	if err := e.agent.Err(); !strings.Contains(err.Error(), "started anew") {
		t.Errorf("the old agent: %v", err)
	}
}

func TestAttachRefuses(t *testing.T) {
	for name, other := range map[string]func(c net.Conn){
		"silence":         func(net.Conn) {},
		"an end":          func(c net.Conn) { c.Close() },
		"another speaker": func(c net.Conn) { c.Write([]byte("SSH-2.0-OpenSSH_9.2p1 Debian\r\n")) },
		"another frame":   func(c net.Conn) { c.Write(appendFrame(nil, frame{what: ping, number: 1})) },
		"another version": func(c net.Conn) {
			b := appendFrame(nil, frame{what: hello, length: helloSize})
			c.Write(append(b, bytes.Repeat([]byte{9}, helloSize)...))
		},
		"its own side": func(c net.Conn) { c.Write(greets(greeting{side: Technician, streams: 1, window: firstWindow})) },
		"no window":    func(c net.Conn) { c.Write(greets(greeting{side: Agent, streams: 1})) },
		"the future":   func(c net.Conn) { c.Write(greets(greeting{side: Agent, streams: 1, window: firstWindow, received: 7})) },
	} {
		t.Run(name, func(t *testing.T) {
			s := New(Technician, Config{})
			defer s.Close("")
			here, there := tcpPair(t)
			defer there.Close()
			go io.Copy(io.Discard, there)
			go other(there)
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			err := s.Attach(ctx, here, Relay)
			if err == nil {
				t.Fatal("taken for a path")
			}
			t.Log(err)
			if _, err := here.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				time.Sleep(50 * time.Millisecond)
				if _, err := here.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
					t.Errorf("the connection is left open: %v", err)
				}
			}
			if len(s.Paths()) != 0 {
				t.Error("it is among the paths")
			}
		})
	}
}

func greets(g greeting) []byte {
	if g.id == (instance{}) {
		g.id[0] = 1
	}
	return g.append(appendFrame(nil, frame{what: hello, length: helloSize}))
}

func TestPathsAreBounded(t *testing.T) {
	e := newEnds(t, Config{})
	for range maxPaths {
		here, there := tcpPair(t)
		e.attach(t, here, there, Relay)
	}
	here, there := tcpPair(t)
	defer there.Close()
	if err := e.technician.Attach(t.Context(), here, TCP); err == nil || !strings.Contains(err.Error(), "8 already") {
		t.Errorf("a ninth: %v", err)
	}
	if _, err := here.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("it is left open: %v", err)
	}
	a, b := e.stream(t)
	var wg sync.WaitGroup
	traffic(t, &wg, a, b, 1<<20)
	wg.Wait()
}
