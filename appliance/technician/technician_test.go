package technician

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/appliance/carrier"
	"gatehouse/appliance/relay"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
	"gatehouse/appliance/session/wire"
	"gatehouse/appliance/technician/techniciantest"
)

var nas = session.Target{Name: "nas", Kind: session.SSH, Host: "192.0.2.5", Port: 22}

const patient = 20 * time.Second

func begin(t *testing.T, site *techniciantest.Site, change func(*Config)) *Session {
	t.Helper()
	cfg := Config{Hub: site, Dial: (&net.Dialer{}).DialContext, Patience: patient}
	if change != nil {
		change(&cfg)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	s, err := Begin(ctx, cfg, api.Ask{Target: "nas"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close("the test is over") })
	return s
}

// echo answers every stream with what it gets.
func echo(_ wire.Open, st wire.Stream) {
	defer st.Close()
	if wire.WriteReply(st, wire.Reply{}) == nil {
		io.Copy(st, st)
		st.CloseWrite()
	}
}

// liar is a hub that changes what the real one answers.
type liar struct {
	*techniciantest.Site
	change func(*api.Granted)
	ask    func(*api.Ask)
}

func (l liar) Ask(ctx context.Context, q api.Ask) (api.Granted, error) {
	if l.ask != nil {
		l.ask(&q)
	}
	g, err := l.Site.Ask(ctx, q)
	if err == nil && l.change != nil {
		l.change(&g)
	}
	return g, err
}

func TestSES1_BeginRefuses(t *testing.T) {
	site := techniciantest.New(t, nas)
	site.Serve = echo
	other, err := site.Ask(t.Context(), api.Ask{Target: "nas", Transport: session.TLS, Key: session.Key{1}})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		hub  liar
		want error
	}{
		"no grant":                     {liar{Site: site, change: func(g *api.Granted) { g.Grant = nil }}, session.ErrMalformed},
		"the grant of another session": {liar{Site: site, change: func(g *api.Granted) { g.Grant = other.Grant }}, session.ErrOther},
		"and its name":                 {liar{Site: site, change: func(g *api.Granted) { g.Grant, g.Session = other.Grant, other.Session }}, session.ErrOther},
		"for another key":              {liar{Site: site, ask: func(q *api.Ask) { q.Key[0]++ }}, session.ErrOther},
		"for a browser":                {liar{Site: site, ask: func(q *api.Ask) { q.Transport = session.WebRTC }}, session.ErrOther},
		"the ticket of another":        {liar{Site: site, change: func(g *api.Granted) { g.Ticket = other.Ticket }}, &relay.Refused{}},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patient)
		s, err := Begin(ctx, Config{Hub: c.hub, Dial: (&net.Dialer{}).DialContext, Patience: patient}, api.Ask{Target: "nas"})
		cancel()
		var refused *relay.Refused
		if _, wantRefused := c.want.(*relay.Refused); wantRefused && errors.As(err, &refused) {
			continue
		}
		if !errors.Is(err, c.want) || s != nil {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	site.Refuse(errors.New("not you"))
	if _, err := Begin(t.Context(), Config{Hub: site, Dial: (&net.Dialer{}).DialContext}, api.Ask{Target: "nas"}); err == nil || err.Error() != "not you" {
		t.Errorf("what the hub says is not passed on: %v", err)
	}
}

// Another server where the hub was reached is no gateway: it gets no ticket, and
// the address that the hub names is tried.
func TestSES1_GatewayIsFoundByItsKey(t *testing.T) {
	site := techniciantest.New(t, nas)
	site.Serve = echo
	stranger := techniciantest.New(t, nas)
	for name, near := range map[string]string{"nobody": "127.0.0.1:1", "another gateway": stranger.Address, "the gateway": site.Address} {
		s := begin(t, site, func(c *Config) { c.Near = near })
		st, _, err := s.Open(t.Context(), wire.Open{Do: wire.Forward})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		st.Close()
	}
	for _, q := range site.Asked() {
		if q.Key == (session.Key{}) || q.Transport != session.TLS {
			t.Errorf("asked for %+v", q)
		}
	}
	if a := site.Asked(); a[0].Key == a[1].Key {
		t.Error("two sessions have one key")
	}
}

func TestRefusalsAreTheAgentsWords(t *testing.T) {
	site := techniciantest.New(t, nas)
	site.Serve = func(o wire.Open, st wire.Stream) {
		defer st.Close()
		wire.WriteRefusal(st, wire.Refuse(wire.Denied, "no right to %s\x1b[2J", o.Do))
	}
	s := begin(t, site, nil)
	_, _, err := s.Open(t.Context(), wire.Open{Do: wire.Exec, Command: "id"})
	var r *wire.Refusal
	if !errors.As(err, &r) || r.Code != wire.Denied || strings.ContainsRune(r.Text, 0x1b) || !strings.HasPrefix(r.Text, "no right to exec") {
		t.Errorf("%#v", err)
	}
	site.Serve = func(_ wire.Open, st wire.Stream) { <-t.Context().Done(); st.Close() }
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := s.Open(ctx, wire.Open{Do: wire.Forward}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an agent that does not answer: %v", err)
	}
	site.End("ended by ada@example.org")
	<-s.Done()
	var ended *carrier.Ended
	if _, _, err := s.Open(t.Context(), wire.Open{Do: wire.Forward}); !errors.As(err, &ended) || ended.Reason != "ended by ada@example.org" {
		t.Errorf("after the end: %v", err)
	}
}

// The gateway's connections are cut again and again under a copy: it goes on
// over further meetings, and no byte is lost.
func TestSES1_FurtherMeetingsWhenTheWayIsLost(t *testing.T) {
	site := techniciantest.New(t, nas)
	site.Serve = echo
	var lost, back atomic.Int32
	s := begin(t, site, func(c *Config) {
		c.OnWay = func(_ carrier.Kind, any bool) {
			if any {
				back.Add(1)
			} else {
				lost.Add(1)
			}
		}
	})
	st, _, err := s.Open(t.Context(), wire.Open{Do: wire.Forward})
	if err != nil {
		t.Fatal(err)
	}
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<14)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 16 {
			if i%5 == 4 {
				site.Cut()
			}
			if _, err := st.Write(sent); err != nil {
				t.Error(err)
				return
			}
		}
		if err := st.CloseWrite(); err != nil {
			t.Error(err)
		}
	})
	got := 0
	buf := make([]byte, len(sent))
	for ; ; got++ {
		if _, err := io.ReadFull(st, buf); errors.Is(err, io.EOF) {
			break
		} else if err != nil || !bytes.Equal(buf, sent) {
			t.Fatalf("part %d: %v", got, err)
		}
	}
	wg.Wait()
	if got != 16 || lost.Load() == 0 || back.Load() < 2 || site.Meetings() < 2 {
		t.Errorf("%d parts of 16; the way was lost %d times and there %d times; %d meetings", got, lost.Load(), back.Load(), site.Meetings())
	}
}

// A hub that has ended the session says so when a further meeting is asked for.
func TestSES7_NoFurtherMeetingOfAnEndedSession(t *testing.T) {
	site := techniciantest.New(t, nas)
	site.Serve = echo
	s := begin(t, site, nil)
	site.Refuse(fmt.Errorf("%w: ended by the owner", ErrOver))
	site.Cut()
	select {
	case <-s.Done():
	case <-time.After(patient):
		t.Fatal("the session goes on")
	}
	if err := s.Err(); !errors.Is(err, ErrOver) || !strings.Contains(err.Error(), "ended by the owner") {
		t.Errorf("%v", err)
	}
}

// A forwarded port: many connections at once, each with an end of each way of
// its own, and none to a session that is over.
func TestSES5_ForwardReachesTheTargetAlone(t *testing.T) {
	site := techniciantest.New(t, nas)
	var asked sync.Map
	site.Serve = func(o wire.Open, st wire.Stream) {
		asked.Store(o.Do, true)
		defer st.Close()
		if wire.WriteReply(st, wire.Reply{}) != nil {
			return
		}
		all, err := io.ReadAll(st) // until the other side has said all
		if err == nil {
			fmt.Fprintf(st, "got %d: ", len(all))
			st.Write(all)
		}
		st.CloseWrite()
	}
	s := begin(t, site, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Forward(t.Context(), l, func(err error) { t.Error(err) }) }()
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			text := strings.Repeat(fmt.Sprint(i, " "), 1000*(i+1))
			io.WriteString(c, text)
			c.(*net.TCPConn).CloseWrite()
			back, err := io.ReadAll(c)
			if want := fmt.Sprintf("got %d: %s", len(text), text); err != nil || string(back) != want {
				t.Errorf("connection %d: %d bytes back, want %d: %v", i, len(back), len(want), err)
			}
		})
	}
	wg.Wait()
	asked.Range(func(do, _ any) bool {
		if do != wire.Forward {
			t.Errorf("the agent was asked for %v", do)
		}
		return true
	})
	site.End("time is up")
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), "time is up") {
			t.Errorf("%v", err)
		}
	case <-time.After(patient):
		t.Fatal("the port is open although the session is over")
	}
	if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("the port of a session that is over takes connections")
	}
}

func TestForwardReportsWhatIsRefused(t *testing.T) {
	site := techniciantest.New(t, nas)
	site.Serve = func(_ wire.Open, st wire.Stream) {
		defer st.Close()
		wire.WriteRefusal(st, wire.Refuse(wire.Unreachable, "192.0.2.5 does not answer"))
	}
	s := begin(t, site, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	reports := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Forward(ctx, l, func(err error) { reports <- err }) }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := <-reports; err.Error() != "192.0.2.5 does not answer" {
		t.Error(err)
	}
	if b, _ := io.ReadAll(c); len(b) > 0 {
		t.Errorf("the program got %q", b)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// A download, a command that only prints and a forwarded port are work while
// something comes. A terminal that only prints is not: it may be left alone.
func TestSES10_WhatComesIsWorkWhereNobodyTypes(t *testing.T) {
	site := techniciantest.New(t, nas)
	opened := make(chan struct{}, 1)
	site.Serve = func(_ wire.Open, st wire.Stream) {
		defer st.Close()
		if wire.WriteReply(st, wire.Reply{}) != nil {
			return
		}
		select {
		case <-opened:
		case <-t.Context().Done():
		}
		io.WriteString(st, "more")
		st.CloseWrite()
	}
	s := begin(t, site, nil)
	for do, want := range map[wire.Do]bool{wire.Terminal: false, wire.Console: false, wire.Exec: true, wire.Files: true, wire.Forward: true, wire.Web: true} {
		st, _, err := s.Open(t.Context(), wire.Open{Do: do})
		if err != nil {
			t.Fatal(err)
		}
		before := s.Activity()
		opened <- struct{}{}
		if _, err := io.ReadFull(st, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		if got := s.Activity() != before; got != want {
			t.Errorf("%s: what comes is work: %v, want %v", do, got, want)
		}
		before = s.Activity()
		if n, err := st.Read(make([]byte, 4)); n != 0 || err == nil || s.Activity() != before {
			t.Errorf("%s: the end is work: %d, %v", do, n, err)
		}
		st.Close()
	}
}
