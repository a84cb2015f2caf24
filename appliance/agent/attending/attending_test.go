package attending

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/carrier"
	"gatehouse/appliance/cert"
	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/relay"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/wire"
)

const site = "5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e"

// work echoes every stream.
type work struct {
	Session
	once sync.Once
	done chan struct{}
	why  string
}

func (w *work) Serve(_ context.Context, s wire.Stream) error {
	_, err := io.Copy(s, s)
	return errors.Join(err, s.CloseWrite())
}

func (w *work) End(reason string) {
	w.once.Do(func() {
		w.why = reason
		// As package work does, before it is done.
		w.Tell(attend.FromSite{Event: &attend.Event{Session: w.Grant.ID, What: attend.Ended, Text: reason}})
		close(w.done)
	})
}

func (w *work) Done() <-chan struct{} { return w.done }
func (w *work) Kept(attend.Kept)      {}

// world is a desk, a real relay, and a hub in the hands of the test.
type world struct {
	*testing.T
	desk         *Desk
	organisation ed25519.PrivateKey
	technician   tls.Certificate
	address      string
	gateway      session.Key
	mu           sync.Mutex
	works        []*work
	conns        []net.Conn // that the relay has accepted
	refuse       error      // of Serve
}

func newWorld(t *testing.T) *world {
	w := &world{T: t, technician: ephemeral(t)}
	_, w.organisation, _ = ed25519.GenerateKey(rand.Reader)
	r, err := relay.New(relay.Config{
		Certificate: ephemeral(t), Organisation: func() ed25519.PublicKey { return w.organisation.Public().(ed25519.PublicKey) },
		Admitted: func(netip.Addr) bool { return true }, Now: time.Now, Log: quiet(), MaxWaiting: 100, MaxJoined: 100, Idle: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	w.address, w.gateway = l.Addr().String(), r.Key()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.mu.Lock()
			w.conns = append(w.conns, c)
			w.mu.Unlock()
			go func() {
				defer c.Close()
				r.Handle(t.Context(), c.(*net.TCPConn), nil, func() {})
			}()
		}
	}()
	w.desk, err = New(Config{
		Site: site, Certificate: ephemeral(t), Now: time.Now, Log: quiet(),
		Gateway: func(ctx context.Context, g session.Gateway) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", g.Address)
		},
		Serve: func(s Session) (Work, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.refuse != nil {
				return nil, w.refuse
			}
			one := &work{Session: s, done: make(chan struct{})}
			w.works = append(w.works, one)
			return one, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		w.desk.End(ctx, "the test is over")
	})
	return w
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func ephemeral(t *testing.T) tls.Certificate {
	t.Helper()
	c, err := cert.Ephemeral("end")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (w *world) grant() session.Grant {
	now := time.Now().Truncate(time.Second)
	return session.Grant{
		ID: w.id(), Site: site, Technician: "ada@example.com", Transport: session.TLS, Key: session.KeyOf(w.technician.Leaf), Agent: w.desk.key,
		Target: session.Target{Name: "nas", Kind: session.SSH, Host: "192.0.2.1", Port: 22}, Functions: right.RemoteControl, Recording: session.RecordingOff,
		From: now, Until: now.Add(time.Hour), Gateways: []session.Gateway{{Address: w.address, Key: w.gateway}},
	}
}

func (w *world) id() session.ID {
	w.Helper()
	id, err := session.NewID(rand.Reader)
	if err != nil {
		w.Fatal(err)
	}
	return id
}

func (w *world) sign(g session.Grant, key ed25519.PrivateKey) []byte {
	w.Helper()
	b, err := g.Sign(key)
	if err != nil {
		w.Fatal(err)
	}
	return b
}

// tickets are the two of a new meeting.
func (w *world) tickets(g session.Grant) (agent, technician []byte) {
	w.Helper()
	id := w.id()
	for _, x := range []struct {
		side session.Side
		to   *[]byte
	}{{session.AgentSide, &agent}, {session.TechnicianSide, &technician}} {
		b, err := g.Ticket(id, x.side, w.gateway, time.Now()).Sign(w.organisation)
		if err != nil {
			w.Fatal(err)
		}
		*x.to = b
	}
	return agent, technician
}

// hub is a line's other end.
type hub struct {
	*testing.T
	conn net.Conn
	said chan attend.FromSite
	done chan error
}

// line opens one; what it begins with is returned.
func (w *world) line() (*hub, attend.Hello) {
	w.Helper()
	here, there := net.Pipe()
	h := &hub{T: w.T, conn: there, said: make(chan attend.FromSite, 1000), done: make(chan error, 1)}
	go func() { h.done <- w.desk.Wait(w.Context(), here) }()
	w.Cleanup(h.cut)
	go func() {
		defer close(h.said)
		r := attend.NewReader(there)
		for {
			var m attend.FromSite
			if attend.Read(r, &m) != nil {
				return
			}
			h.said <- m
		}
	}()
	hello := h.hear().Hello
	if hello == nil {
		w.Fatal("the line does not begin with a hello")
	}
	h.tell(attend.ToSite{Welcome: &attend.Welcome{Organisation: w.organisation.Public().(ed25519.PublicKey)}})
	return h, *hello
}

func (h *hub) cut() {
	h.conn.Close()
	err := <-h.done
	h.done <- err
}

func (h *hub) tell(m attend.ToSite) {
	h.Helper()
	h.conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if err := attend.Write(h.conn, m); err != nil {
		h.Fatal(err)
	}
}

func (h *hub) hear() attend.FromSite {
	h.Helper()
	for {
		select {
		case m, ok := <-h.said:
			if !ok {
				h.Fatal("the line is cut")
			}
			if m != (attend.FromSite{}) {
				return m
			}
		case <-time.After(10 * time.Second):
			h.Fatal("the agent says nothing")
		}
	}
}

// event waits for one of a kind.
func (h *hub) event(what attend.What) attend.Event {
	h.Helper()
	for {
		if e := h.hear().Event; e != nil && e.What == what {
			return *e
		}
	}
}

// meet is the technician's side of a meeting.
func (w *world) meet(s *carrier.Session, g session.Grant, ticket []byte) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 10*time.Second)
	defer cancel()
	c, err := net.Dial("tcp", w.address)
	if err != nil {
		w.Fatal(err)
	}
	if c, err = relay.Meet(ctx, c, w.gateway, w.technician, ticket); err != nil {
		w.Fatal(err)
	}
	t, err := relay.Technician(ctx, c, g, w.technician)
	if err == nil {
		err = s.Attach(ctx, t, carrier.Relay)
	}
	if err != nil {
		w.Fatal(err)
	}
}

func TestSES1_OffersThatAreRefused(t *testing.T) {
	w := newWorld(t)
	h, hello := w.line()
	if hello.Key != w.desk.key || hello.Certificate != sha256.Sum256(w.desk.cfg.Certificate.Certificate[0]) || len(hello.Sessions) != 0 {
		t.Errorf("the agent says it is %+v", hello)
	}
	_, stranger, _ := ed25519.GenerateKey(rand.Reader)
	for name, c := range map[string]struct {
		spoil func(*session.Grant)
		key   ed25519.PrivateKey
		said  bool // it is signed, so the hub is told that it is over
	}{
		"of another organisation": {func(*session.Grant) {}, stranger, false},
		"over":                    {func(g *session.Grant) { g.From, g.Until = g.From.Add(-2*time.Hour), g.From.Add(-time.Hour) }, w.organisation, false},
		"for another site":        {func(g *session.Grant) { g.Site = strings.Repeat("ab", 16) }, w.organisation, true},
		"for another key":         {func(g *session.Grant) { g.Agent = session.Key{5} }, w.organisation, true},
		"for browsers":            {func(g *session.Grant) { g.Transport, g.Agent = session.WebRTC, hello.Certificate }, w.organisation, true},
	} {
		g := w.grant()
		c.spoil(&g)
		h.tell(attend.ToSite{Offer: &attend.Offer{Grant: w.sign(g, c.key)}})
		if c.said {
			if e := h.event(attend.Ended); e.Session != g.ID {
				t.Errorf("%s: the hub hears %+v", name, e)
			}
		}
	}
	h.tell(attend.ToSite{Offer: &attend.Offer{Grant: []byte("{}")}})
	w.refuse = errors.New("its disk is full")
	g := w.grant()
	h.tell(attend.ToSite{Offer: &attend.Offer{Grant: w.sign(g, w.organisation)}})
	if e := h.event(attend.Ended); e.Session != g.ID || !strings.Contains(e.Text, "disk is full") {
		t.Errorf("the hub hears %+v", e)
	}
	if len(w.works) != 0 || len(w.desk.Hello().Sessions) != 0 {
		t.Errorf("%d sessions were begun", len(w.works))
	}
}

// TestSES1_HandOff: offered, met, used, met again after the gateway cut the
// first way, ended by the hub; the line was cut meanwhile.
func TestSES1_HandOff(t *testing.T) {
	w := newWorld(t)
	h, _ := w.line()
	g := w.grant()
	mine, other := w.tickets(g)
	h.tell(attend.ToSite{Offer: &attend.Offer{Grant: w.sign(g, w.organisation), Ticket: mine}})
	s := carrier.New(carrier.Technician, carrier.Config{Patience: 20 * time.Second})
	defer s.Close("the test is over")
	w.meet(s, g, other)
	if e := h.event(attend.Way); e.Session != g.ID || e.Text != "relay" {
		t.Errorf("the hub hears %+v", e)
	}
	st, err := s.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	echo := func(text string) {
		t.Helper()
		if _, err := io.WriteString(st, text); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, len(text))
		if _, err := io.ReadFull(st, b); err != nil || string(b) != text {
			t.Fatalf("%q came back as %q, %v", text, b, err)
		}
	}
	echo("hello")

	h.cut()
	w.mu.Lock()
	for _, c := range w.conns {
		c.Close()
	}
	w.mu.Unlock()
	until(t, func() bool { return len(s.Paths()) == 0 })
	h, hello := w.line()
	if !slices.Equal(hello.Sessions, []session.ID{g.ID}) {
		t.Errorf("after the cut the agent has %v", hello.Sessions)
	}
	if e := h.event(attend.Lost); e.Session != g.ID {
		t.Errorf("of what happened without a line the hub hears %+v", e)
	}
	mine, other = w.tickets(g)
	h.tell(attend.ToSite{Meet: &attend.Meet{Session: g.ID, Ticket: mine}})
	w.meet(s, g, other)
	echo("again")

	h.tell(attend.ToSite{End: &attend.End{Session: g.ID, Reason: "ended by the owner"}})
	if e := h.event(attend.Ended); e.Session != g.ID || e.Text != "ended by the owner" {
		t.Errorf("the hub hears %+v", e)
	}
	select {
	case <-s.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the technician's end does not end")
	}
	until(t, func() bool { return len(w.desk.Hello().Sessions) == 0 })
}

func until(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it never came")
		}
	}
}

// TestSES1_WhatTheTechnicianEnds: the hub hears why.
func TestSES1_WhatTheTechnicianEnds(t *testing.T) {
	w := newWorld(t)
	h, _ := w.line()
	g := w.grant()
	mine, other := w.tickets(g)
	h.tell(attend.ToSite{Offer: &attend.Offer{Grant: w.sign(g, w.organisation), Ticket: mine}})
	s := carrier.New(carrier.Technician, carrier.Config{})
	w.meet(s, g, other)
	if err := s.Close("done\x1b[2J"); err != nil {
		t.Fatal(err)
	}
	if e := h.event(attend.Ended); !strings.HasPrefix(e.Text, "done") || strings.Contains(e.Text, "\x1b") {
		t.Errorf("the hub hears %+v", e)
	}
}

// TestSES1_EventsWaitForTheLine: within a bound, and parts of recordings do not.
func TestSES1_EventsWaitForTheLine(t *testing.T) {
	w := newWorld(t)
	if err := w.desk.Tell(attend.FromSite{Chunk: &attend.Chunk{}}); !errors.Is(err, errNoLine) {
		t.Errorf("a part of a recording: %v", err)
	}
	for i := range maxUntold + 1 {
		err := w.desk.Tell(attend.FromSite{Event: &attend.Event{What: attend.File, Session: session.ID{byte(i), byte(i >> 8)}}})
		if (err != nil) != (i == maxUntold) {
			t.Fatalf("event %d: %v", i, err)
		}
	}
	h, _ := w.line()
	for i := range maxUntold {
		if e := h.event(attend.File); e.Session != (session.ID{byte(i), byte(i >> 8)}) {
			t.Fatalf("event %d comes as %v", i, e.Session)
		}
	}
}

// A browser's session: its offers are answered with what belongs to it, its ways
// are told, and it is over when there was none for too long.
func TestSES4_BrowsersAreHandedOn(t *testing.T) {
	w := newWorld(t)
	w.desk.cfg.Patience = time.Second
	var path func(string)
	w.desk.cfg.Browser = func(_ context.Context, g session.Grant, m attend.Material, s attend.Signal, serve func(context.Context, wire.Stream) error, onPath func(string)) (string, error) {
		if s.SDP != "an offer" {
			return "", errors.New("it is no offer")
		}
		if m.Source != "192.0.2.7" || serve == nil || s.Session != g.ID {
			t.Errorf("%+v, %+v", m, s)
		}
		path = onPath
		return "an answer", nil
	}
	h, hello := w.line()
	g := w.grant()
	g.Transport, g.Agent = session.WebRTC, hello.Certificate
	h.tell(attend.ToSite{Offer: &attend.Offer{Grant: w.sign(g, w.organisation), Material: attend.Material{Source: "192.0.2.7"}}})
	answer := func(s attend.Signal) attend.Signalled {
		h.tell(attend.ToSite{Signal: &s})
		for {
			if m := h.hear(); m.Signalled != nil {
				return *m.Signalled
			}
		}
	}
	if a := answer(attend.Signal{Session: g.ID, Number: 1, SDP: "x"}); a.Number != 1 || a.SDP != "" || !strings.Contains(a.Error, "no offer") {
		t.Errorf("%+v", a)
	}
	if a := answer(attend.Signal{Session: w.id(), Number: 2, SDP: "an offer"}); a.Number != 2 || a.Error == "" {
		t.Errorf("of a session that is not there: %+v", a)
	}
	if a := answer(attend.Signal{Session: g.ID, Number: 3, SDP: "an offer"}); a.Number != 3 || a.SDP != "an answer" || a.Error != "" {
		t.Fatalf("%+v", a)
	}
	path("relay")
	if e := h.event(attend.Way); e.Session != g.ID || e.Text != "relay" {
		t.Errorf("%+v", e)
	}
	time.Sleep(1100 * time.Millisecond) // longer than the patience: it has a way
	if n := len(w.desk.Hello().Sessions); n != 1 {
		t.Fatalf("%d sessions, and it has a way", n)
	}
	path("")
	if e := h.event(attend.Lost); e.Session != g.ID {
		t.Errorf("%+v", e)
	}
	if e := h.event(attend.Ended); e.Session != g.ID || !strings.Contains(e.Text, "no way to the browser") {
		t.Errorf("%+v", e)
	}
	// One whose browser never comes is over too.
	g = w.grant()
	g.Transport, g.Agent = session.WebRTC, hello.Certificate
	h.tell(attend.ToSite{Offer: &attend.Offer{Grant: w.sign(g, w.organisation)}})
	if e := h.event(attend.Ended); e.Session != g.ID {
		t.Errorf("%+v", e)
	}
}

// TestSES1_WaysAreToldOnANewLine: the console may have been started anew, and
// knows of a session no more than that it was granted.
func TestSES1_WaysAreToldOnANewLine(t *testing.T) {
	w := newWorld(t)
	var path func(string)
	w.desk.cfg.Browser = func(_ context.Context, _ session.Grant, _ attend.Material, _ attend.Signal, _ func(context.Context, wire.Stream) error, onPath func(string)) (string, error) {
		path = onPath
		return "an answer", nil
	}
	h, hello := w.line()
	tool, browser, lost := w.grant(), w.grant(), w.grant()
	for _, g := range []*session.Grant{&browser, &lost} {
		g.Transport, g.Agent = session.WebRTC, hello.Certificate
		h.tell(attend.ToSite{Offer: &attend.Offer{Grant: w.sign(*g, w.organisation)}})
		h.tell(attend.ToSite{Signal: &attend.Signal{Session: g.ID, Number: 1, SDP: "an offer"}})
		for h.hear().Signalled == nil {
		}
		path("udp")
		h.event(attend.Way)
	}
	path("")
	h.event(attend.Lost)
	mine, other := w.tickets(tool)
	h.tell(attend.ToSite{Offer: &attend.Offer{Grant: w.sign(tool, w.organisation), Ticket: mine}})
	s := carrier.New(carrier.Technician, carrier.Config{Patience: 20 * time.Second})
	defer s.Close("the test is over")
	w.meet(s, tool, other)
	h.event(attend.Way)

	h.cut()
	h, _ = w.line()
	want := map[session.ID]string{tool.ID: "relay", browser.ID: "udp"}
	for len(want) > 0 {
		e := h.event(attend.Way)
		if e.Text != want[e.Session] {
			t.Errorf("the hub hears %+v", e)
		}
		delete(want, e.Session)
	}
	// After what waited for the line, or the older word would count.
	h.cut()
	path("tcp")
	path("")
	path("relay")
	h, _ = w.line()
	var told []string
	for len(told) < 4 {
		if e := h.hear().Event; e != nil && e.Session == lost.ID {
			told = append(told, e.Text)
		}
	}
	if want := []string{"tcp", "", "relay", "relay"}; !slices.Equal(told, want) {
		t.Errorf("the hub hears of %q, not %q", told, want)
	}
}

// TestSES1_NoEventOvertakesAnother: a line that is full has room again, and what
// waits for it is older than what comes.
func TestSES1_NoEventOvertakesAnother(t *testing.T) {
	w := newWorld(t)
	line := make(chan attend.FromSite, 1)
	w.desk.connected(line)
	for i := range 3 {
		if i == 2 {
			<-line
		}
		if err := w.desk.Tell(attend.FromSite{Event: &attend.Event{Session: session.ID{byte(i)}}}); err != nil {
			t.Fatal(err)
		}
	}
	if e := (<-line).Event; e.Session != (session.ID{1}) {
		t.Errorf("event %d comes before event 1", e.Session[0])
	}
}
