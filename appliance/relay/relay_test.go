package relay

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/cert/certtest"
	"gatehouse/appliance/session"
)

func keyOf(c tls.Certificate) session.Key { return session.KeyOf(c.Leaf) }

// bench is an organisation with a gateway, and two ends that trust it.
type bench struct {
	t            testing.TB
	signer       ed25519.PrivateKey
	relay        *Relay
	key          session.Key // of the gateway
	address      string
	agent, techn tls.Certificate
	barred       atomic.Bool // no source is admitted any more
	errs         chan error  // what Handle said
}

func newBench(t testing.TB, change func(*Config)) *bench {
	t.Helper()
	public, signer, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, signer: signer, agent: certtest.Self(t), techn: certtest.Self(t), errs: make(chan error, 1000)}
	cfg := Config{
		Certificate: certtest.Self(t), Organisation: func() ed25519.PublicKey { return public },
		Admitted: func(netip.Addr) bool { return !b.barred.Load() }, Now: time.Now, Log: slog.New(slog.DiscardHandler),
		MaxWaiting: 100, MaxJoined: 100, Idle: time.Minute,
	}
	if change != nil {
		change(&cfg)
	}
	if b.relay, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.key, b.address = b.relay.Key(), l.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				// As the gateway hands it on: the ClientHello was read before.
				hello := make([]byte, 5)
				if _, err := io.ReadFull(c, hello); err != nil {
					return
				}
				select {
				case b.errs <- b.relay.Handle(ctx, c.(*net.TCPConn), hello, func() {}):
				default:
				}
			})
		}
	})
	t.Cleanup(func() { cancel(); l.Close(); wg.Wait() })
	return b
}

func id(t testing.TB) session.ID {
	t.Helper()
	id, err := session.NewID(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (b *bench) grant() session.Grant {
	now := time.Now().Truncate(time.Second)
	return session.Grant{
		ID: id(b.t), Site: strings.Repeat("5e", 16), Technician: "ada@example.com", Transport: session.TLS, Key: keyOf(b.techn), Agent: keyOf(b.agent),
		Target: session.Target{Name: "x", Kind: session.SSH, Host: "192.0.2.1", Port: 22}, Functions: right.RemoteControl, Recording: session.RecordingOff,
		From: now, Until: now.Add(time.Hour), Gateways: []session.Gateway{{Address: b.address, Key: b.key}},
	}
}

func (b *bench) tickets(g session.Grant) (agent, technician []byte) {
	b.t.Helper()
	meeting := id(b.t)
	var out [2][]byte
	for i, side := range []session.Side{session.AgentSide, session.TechnicianSide} {
		k, err := g.Ticket(meeting, side, b.key, time.Now()).Sign(b.signer)
		if err != nil {
			b.t.Fatal(err)
		}
		out[i] = k
	}
	return out[0], out[1]
}

func (b *bench) dial() *net.TCPConn {
	b.t.Helper()
	c, err := net.Dial("tcp", b.address)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

type met struct {
	c   net.Conn
	err error
}

func (b *bench) meet(own tls.Certificate, ticket []byte) chan met {
	ch := make(chan met, 1)
	c := b.dial()
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		m, err := Meet(ctx, c, b.key, own, ticket)
		ch <- met{m, err}
	}()
	return ch
}

// joined meets both ends and runs the session between them.
func (b *bench) joined(g session.Grant) (agent, technician *tls.Conn) {
	b.t.Helper()
	ka, kt := b.tickets(g)
	a, te := b.meet(b.agent, ka), b.meet(b.techn, kt)
	ma, mt := <-a, <-te
	if ma.err != nil || mt.err != nil {
		b.t.Fatalf("agent: %v, technician: %v", ma.err, mt.err)
	}
	ra, rt := b.ends(g, ma.c, mt.c)
	if ra.err != nil || rt.err != nil {
		b.t.Fatalf("agent: %v, technician: %v", ra.err, rt.err)
	}
	return ra.c.(*tls.Conn), rt.c.(*tls.Conn)
}

// ends has both ends shake hands over two connections that lead to each other.
func (b *bench) ends(g session.Grant, agent, technician net.Conn) (a, t met) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		if c, err := Agent(ctx, agent, g, b.agent); err != nil {
			a.err = err
		} else {
			a.c = c
		}
	})
	wg.Go(func() {
		if c, err := Technician(ctx, technician, g, b.techn); err != nil {
			t.err = err
		} else {
			t.c = c
		}
	})
	wg.Wait()
	return a, t
}

func TestSES1_EndsMeetAndBytesFlow(t *testing.T) {
	b := newBench(t, nil)
	agent, technician := b.joined(b.grant())
	sent := make([]byte, 3<<20)
	rand.Read(sent)
	go func() {
		agent.Write(sent)
		agent.CloseWrite()
	}()
	got, err := io.ReadAll(technician)
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%d bytes of %d, %v", len(got), len(sent), err)
	}
	// The agent closed its half; the other one still answers.
	if _, err := technician.Write([]byte("thanks")); err != nil {
		t.Fatal(err)
	}
	technician.Close()
	if got, err := io.ReadAll(agent); err != nil || string(got) != "thanks" {
		t.Errorf("%q, %v", got, err)
	}
	agent.Close()
	for range 2 {
		if err := <-b.errs; err != nil {
			t.Errorf("the gateway: %v", err)
		}
	}
	if c := b.relay.Counts(); c.Sessions != 1 || c.Joined != 0 || c.Waiting != 0 || c.Bytes < uint64(len(sent)) {
		t.Errorf("%+v", c)
	}
}

func TestSES1_WhoIsNotLetIn(t *testing.T) {
	b := newBench(t, nil)
	g := b.grant()
	ka, kt := b.tickets(g)
	other := newBench(t, nil)
	oa, _ := other.tickets(g)
	late := g.Ticket(id(t), session.AgentSide, b.relay.Key(), time.Now().Add(-time.Hour))
	old, err := late.Sign(b.signer)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		own    tls.Certificate
		ticket []byte
		want   string
	}{
		"another organisation's ticket": {b.agent, oa, "not signed by the organisation"},
		"somebody else's ticket":        {b.agent, kt, "does not hold its key"},
		"an old ticket":                 {b.agent, old, "not valid any more"},
		"no ticket":                     {b.agent, nil, "malformed"},
		"noise":                         {b.agent, bytes.Repeat([]byte{0xff}, 500), "malformed"},
	} {
		m := <-b.meet(c.own, c.ticket)
		var refused *Refused
		if !errors.As(m.err, &refused) || !strings.Contains(refused.Reason, c.want) {
			t.Errorf("%s: %v, want %q", name, m.err, c.want)
		}
	}
	if m := <-b.meet(tls.Certificate{}, ka); m.err == nil {
		t.Error("an end without a key was let in")
	}
	// A gateway with another key is none of ours: nothing is said to it.
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := Meet(ctx, b.dial(), session.Key{1}, b.agent, ka); !errors.Is(err, session.ErrOther) {
		t.Errorf("a gateway with another key: %v", err)
	}
	if n := b.relay.Counts(); n.Waiting != 0 || n.Sessions != 0 || n.Refused == 0 {
		t.Errorf("%+v", n)
	}
}

func TestSES1_TicketIsUsedOnce(t *testing.T) {
	b := newBench(t, nil)
	ka, kt := b.tickets(b.grant())
	first := b.meet(b.agent, ka)
	waitFor(t, func() bool { return b.relay.Counts().Waiting == 1 })
	if m := <-b.meet(b.agent, ka); m.err == nil || !strings.Contains(m.err.Error(), "used before") {
		t.Errorf("while it waits: %v", m.err)
	}
	if m := <-b.meet(b.techn, kt); m.err != nil {
		t.Fatal(m.err)
	}
	if m := <-first; m.err != nil {
		t.Fatal(m.err)
	}
	for _, k := range []struct {
		own    tls.Certificate
		ticket []byte
	}{{b.agent, ka}, {b.techn, kt}} {
		if m := <-b.meet(k.own, k.ticket); m.err == nil {
			t.Error("a ticket was used twice")
		}
	}
}

func TestSES1_EndThatWentAwayIsNotJoined(t *testing.T) {
	b := newBench(t, nil)
	for range 20 {
		ka, kt := b.tickets(b.grant())
		c := b.dial()
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan error, 1)
		go func() {
			_, err := Meet(ctx, c, b.relay.Key(), b.agent, ka)
			gone <- err
		}()
		waitFor(t, func() bool { return b.relay.Counts().Waiting == 1 })
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		waitFor(t, func() bool { return b.relay.Counts().Waiting == 0 })
		late := b.meet(b.techn, kt)
		waitFor(t, func() bool { return b.relay.Counts().Waiting == 1 })
		b.relay.Cut(func(netip.Addr) bool { return false })
		if m := <-late; m.err == nil {
			t.Fatal("joined with nobody")
		}
		waitFor(t, func() bool { return b.relay.Counts().Waiting == 0 })
	}
}

func TestSES1_TakenBackAddressIsCut(t *testing.T) {
	b := newBench(t, nil)
	agent, technician := b.joined(b.grant())
	b.barred.Store(true)
	if n := b.relay.Cut(func(netip.Addr) bool { return false }); n != 1 {
		t.Errorf("%d sessions cut", n)
	}
	for _, c := range []*tls.Conn{agent, technician} {
		c.SetReadDeadline(time.Now().Add(time.Second))
		var e net.Error
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.As(err, &e) && e.Timeout() {
			t.Errorf("still open: %v", err)
		}
	}
	ka, kt := b.tickets(b.grant())
	a, te := b.meet(b.agent, ka), b.meet(b.techn, kt)
	if m := <-a; m.err == nil {
		t.Error("joined from an address that is not admitted")
	}
	if m := <-te; m.err == nil {
		t.Error("joined from an address that is not admitted")
	}
}

func TestSES10_IdleAndOverEnd(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Idle = 200 * time.Millisecond })
	agent, technician := b.joined(b.grant())
	for range 10 { // alive for longer than the idle time, one byte at a time
		if _, err := agent.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(technician, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(40 * time.Millisecond)
	}
	technician.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := technician.Read(make([]byte, 1)); err == nil {
		t.Error("read a byte that nobody wrote")
	}
	ended(t, b, errIdle)

	b = newBench(t, nil)
	g := b.grant()
	g.Until = time.Now().Add(2 * time.Second).Truncate(time.Second)
	_, technician = b.joined(g)
	technician.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := technician.Read(make([]byte, 1)); err == nil {
		t.Error("read a byte that nobody wrote")
	}
	ended(t, b, errOver)
}

func ended(t *testing.T, b *bench, want error) {
	t.Helper()
	for range 2 {
		if errors.Is(<-b.errs, want) {
			return
		}
	}
	t.Errorf("the gateway did not end it because %v", want)
}

func TestSES1_RoomIsBounded(t *testing.T) {
	b := newBench(t, func(c *Config) { c.MaxWaiting, c.MaxJoined = 2, 1 })
	b.joined(b.grant())
	var waiting []chan met
	for range 2 {
		ka, _ := b.tickets(b.grant())
		waiting = append(waiting, b.meet(b.agent, ka))
	}
	waitFor(t, func() bool { return b.relay.Counts().Waiting == 2 })
	ka, kt := b.tickets(b.grant())
	if m := <-b.meet(b.agent, ka); m.err == nil || !strings.Contains(m.err.Error(), "another gateway") {
		t.Errorf("a third one waits: %v", m.err)
	}
	if m := <-b.meet(b.techn, kt); m.err == nil {
		t.Errorf("a third one waits: %v", m.err)
	}
	b.relay.Cut(func(netip.Addr) bool { return false })
	for _, w := range waiting {
		<-w
	}
}

func waitFor(t testing.TB, done func() bool) {
	t.Helper()
	for range 1000 {
		if done() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("it did not come to that in 5 s")
}
