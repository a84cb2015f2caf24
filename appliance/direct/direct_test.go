package direct

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"gatehouse/appliance/carrier"
	"gatehouse/appliance/cert/certtest"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/wire"
)

// ends are a technician and an agent on loopback, with a stream between them.
type ends struct {
	technician, agent Config
	streams           [2]wire.Stream
	ways              [2]chan taken
}

type taken struct {
	net.Conn
	kind carrier.Kind
}

func newEnds(t *testing.T) *ends {
	t.Helper()
	own, other := certtest.Self(t, certtest.Undated), certtest.Self(t, certtest.Undated)
	g := session.Grant{ID: session.ID{1, 2, 3}, Transport: session.TLS, Key: session.KeyOf(own.Leaf), Agent: session.KeyOf(other.Leaf)}
	e := &ends{}
	config := func(i int, s session.Side, c tls.Certificate) Config {
		e.ways[i] = make(chan taken, 8)
		return Config{
			Side: s, Grant: g, Certificate: c, loopback: true,
			Addresses: func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("127.0.0.1")} },
			Admitted:  netip.Addr.IsLoopback,
			Attach: func(_ context.Context, c net.Conn, kind carrier.Kind) error {
				e.ways[i] <- taken{c, kind}
				return nil
			},
			Log: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
		}
	}
	e.technician, e.agent = config(0, session.TechnicianSide, own), config(1, session.AgentSide, other)
	e.streams[0], e.streams[1] = streamPair(t)
	return e
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(string(bytes.TrimSpace(b)))
	return len(b), nil
}

func streamPair(t *testing.T) (a, b wire.Stream) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); d.Close() })
	return c.(*net.TCPConn), d.(*net.TCPConn)
}

// start has both look, and returns when they have ended.
func (e *ends) start(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := seek(ctx, e.technician, e.streams[0]); ctx.Err() == nil {
			t.Errorf("technician: %v", err)
		}
	})
	wg.Go(func() {
		if o, err := wire.ReadOpen(e.streams[1]); err != nil || o.Do != wire.Direct {
			t.Errorf("the agent read %+v, %v", o, err)
		}
		if err := seek(ctx, e.agent, e.streams[1]); ctx.Err() == nil {
			t.Errorf("agent: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
}

func next(t *testing.T, ways chan taken) taken {
	t.Helper()
	select {
	case w := <-ways:
		return w
	case <-time.After(20 * time.Second):
		t.Fatal("no way was found")
		return taken{}
	}
}

// carries proves that bytes go both ways, and that an end is an end.
func carries(t *testing.T, a, b net.Conn) {
	t.Helper()
	big := make([]byte, 3<<20)
	rand.Read(big)
	for _, c := range [][2]net.Conn{{a, b}, {b, a}} {
		go c[0].Write(big)
		got := make([]byte, len(big))
		if _, err := io.ReadFull(c[1], got); err != nil || !bytes.Equal(got, big) {
			t.Fatalf("%d bytes went through changed, or not: %v", len(big), err)
		}
	}
}

func TestSES3_DirectTCPIsFound(t *testing.T) {
	e := newEnds(t)
	e.start(t)
	a, b := next(t, e.ways[0]), next(t, e.ways[1])
	if a.kind != carrier.TCP || b.kind != carrier.TCP {
		t.Errorf("ways by %s and %s", a.kind, b.kind)
	}
	carries(t, a, b)
	a.Close()
	if n, err := b.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("the end reads as %d, %v", n, err)
	}
}

// between changes what the ends say to each other, as no gateway can: it stands
// for an end that lies.
func (e *ends) between(t *testing.T, technician, agent func(*offer)) {
	t.Helper()
	a, b := e.streams[0], e.streams[1]
	var c, d wire.Stream
	e.streams[0], c = streamPair(t)
	d, e.streams[1] = streamPair(t)
	a.Close()
	b.Close()
	pass := func(from, to wire.Stream, change func(*offer)) {
		defer to.Close()
		for first := true; ; first = false {
			var head [2]byte
			if _, err := io.ReadFull(from, head[:]); err != nil {
				return
			}
			m := make([]byte, binary.BigEndian.Uint16(head[:]))
			if _, err := io.ReadFull(from, m); err != nil {
				return
			}
			if !first && change != nil {
				var o offer
				if json.Unmarshal(m, &o) != nil {
					return
				}
				change(&o)
				m, _ = json.Marshal(o)
				binary.BigEndian.PutUint16(head[:], uint16(len(m)))
			}
			if _, err := to.Write(append(head[:], m...)); err != nil {
				return
			}
		}
	}
	go pass(c, d, technician)
	go pass(d, c, agent)
}

// noTCP is a technician's end that cannot be called.
func noTCP(o *offer) { o.TCP = 0 }

func TestSES3_DirectUDPIsFound(t *testing.T) {
	e := newEnds(t)
	e.between(t, noTCP, nil)
	e.start(t)
	a, b := next(t, e.ways[0]), next(t, e.ways[1])
	if a.kind != carrier.UDP || b.kind != carrier.UDP {
		t.Errorf("ways by %s and %s", a.kind, b.kind)
	}
	carries(t, a, b)
	a.Close()
	if n, err := b.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("the end reads as %d, %v", n, err)
	}
}

func TestDeadlines(t *testing.T) {
	e := newEnds(t)
	e.between(t, noTCP, nil)
	e.start(t)
	a, b := next(t, e.ways[0]), next(t, e.ways[1])
	a.SetReadDeadline(time.Unix(1, 0))
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a deadline in the past: %v", err)
	}
	a.SetReadDeadline(time.Time{})
	carries(t, a, b)
}

func seek(ctx context.Context, c Config, s wire.Stream) error {
	e, err := New(c)
	if err != nil {
		return err
	}
	return e.Run(ctx, s)
}
