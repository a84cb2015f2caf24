package carrier

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"gatehouse/appliance/session/wire"
)

var _ wire.Stream = (*Stream)(nil)

// ends are both ends of a session.
type ends struct{ technician, agent *Session }

func newEnds(t testing.TB, cfg Config) ends {
	e := ends{New(Technician, cfg), New(Agent, cfg)}
	t.Cleanup(func() { e.technician.Close("the test is over"); e.agent.Close("the test is over") })
	return e
}

// tcpPair is one connection over loopback.
func tcpPair(t testing.TB) (here, there net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

// attach joins the ends by two connected connections.
func (e ends) attach(t testing.TB, here, there net.Conn, kind Kind) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	var errs [2]error
	wg.Go(func() { errs[0] = e.technician.Attach(ctx, here, kind) })
	wg.Go(func() { errs[1] = e.agent.Attach(ctx, there, kind) })
	wg.Wait()
	if errs[0] != nil || errs[1] != nil {
		t.Fatalf("attaching: technician %v, agent %v", errs[0], errs[1])
	}
}

func (e ends) stream(t testing.TB) (here, there *Stream) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	here, err := e.technician.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	there, err = e.agent.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return here, there
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func TestBothWays(t *testing.T) {
	for name, pair := range map[string]func() (net.Conn, net.Conn){"tcp": func() (net.Conn, net.Conn) { return tcpPair(t) }, "pipe": net.Pipe} {
		t.Run(name, func(t *testing.T) {
			e := newEnds(t, Config{})
			here, there := pair()
			e.attach(t, here, there, Relay)
			a, b := e.stream(t)
			up, down := randomBytes(3<<20+17), randomBytes(5<<20+1)
			var wg sync.WaitGroup
			send := func(s *Stream, what []byte) {
				if n, err := io.Copy(s, bytes.NewReader(what)); err != nil || n != int64(len(what)) {
					t.Errorf("wrote %d: %v", n, err)
				}
				s.CloseWrite()
			}
			read := func(s *Stream, want []byte) {
				got, err := io.ReadAll(s)
				if err != nil || sha256.Sum256(got) != sha256.Sum256(want) {
					t.Errorf("read %d bytes of %d: %v", len(got), len(want), err)
				}
			}
			wg.Go(func() { send(a, up) })
			wg.Go(func() { send(b, down) })
			wg.Go(func() { read(a, down) })
			wg.Go(func() { read(b, up) })
			wg.Wait()
			if err := e.technician.Close("done"); err != nil {
				t.Fatal(err)
			}
			<-e.agent.Done()
			if err := e.agent.Err(); err == nil || err.Error() != "the other end has ended the session: done" {
				t.Fatal(err)
			}
		})
	}
}
