package console

import (
	"context"
	"crypto/tls"
	"errors"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"gatehouse/appliance/handover"
)

// turnPatience is how long a connection waits for its turn.
const turnPatience = 5 * time.Second

// turns bounds the TLS handshakes that are computed at once, and gives each
// source its turn: one that opens many connections waits behind itself, and
// one that opens a single connection behind at most one of each other source.
type turns struct {
	mu     sync.Mutex
	free   int
	order  []netip.Prefix // sources that wait, next first
	queues map[netip.Prefix][]chan struct{}
}

func newTurns(n int) *turns {
	return &turns{free: n, queues: make(map[netip.Prefix][]chan struct{})}
}

var errBusy = errors.New("too many handshakes wait")

// enter waits for a turn of the source; leave gives it back.
func (t *turns) enter(ctx context.Context, source netip.Prefix) error {
	t.mu.Lock()
	if t.free > 0 {
		t.free--
		t.mu.Unlock()
		return nil
	}
	mine := make(chan struct{})
	if len(t.queues[source]) == 0 {
		t.order = append(t.order, source)
	}
	t.queues[source] = append(t.queues[source], mine) // bounded by the open connections of a source
	t.mu.Unlock()
	select {
	case <-mine:
		return nil
	case <-ctx.Done():
		if !t.forget(source, mine) {
			t.leave() // it came at the same moment
		}
		return errBusy
	}
}

func (t *turns) forget(source netip.Prefix, mine chan struct{}) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	q := t.queues[source]
	for i, c := range q {
		if c == mine {
			t.queues[source] = append(q[:i:i], q[i+1:]...)
			return true
		}
	}
	return false
}

func (t *turns) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.order) > 0 {
		source := t.order[0]
		t.order = t.order[1:]
		q := t.queues[source]
		if len(q) == 0 { // all of them gave up
			delete(t.queues, source)
			continue
		}
		close(q[0])
		if t.queues[source] = q[1:]; len(q) > 1 {
			t.order = append(t.order, source)
		} else {
			delete(t.queues, source)
		}
		return
	}
	t.free++
}

// inTurn makes the handshakes of a configuration wait for their turn. A turn
// lasts from the ClientHello, which the gateway has read already, to the
// server's first answer: all that is computed lies between them, and nothing
// that the client could make slow.
func inTurn(c *tls.Config) *tls.Config {
	t, choose := newTurns(2*runtime.GOMAXPROCS(0)), c.GetConfigForClient
	if choose == nil {
		choose = func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, nil }
	}
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		conn, ok := hello.Conn.(*handover.Conn)
		if !ok {
			return choose(hello)
		}
		ctx, cancel := context.WithTimeout(hello.Context(), turnPatience)
		defer cancel()
		if err := t.enter(ctx, handover.Source(conn.Meta().Remote.Addr())); err != nil {
			return nil, err
		}
		conn.OnAnswer(t.leave) // or at its end, if there is no answer
		return choose(hello)
	}
	return c
}
