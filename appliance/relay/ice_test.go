package relay

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun/v4"

	"gatehouse/appliance/cert/certtest"
)

const (
	ufrag    = "00112233445566778899aabbccddeeff"
	password = "correctHorseBatteryStaple0123456"
)

// framed is a STUN message as it comes by ICE-TCP.
func framed(m *stun.Message) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(m.Raw))), m.Raw...)
}

// request is a browser's first message, made by another implementation.
func request(t testing.TB, ufrag, password string) []byte {
	t.Helper()
	m, err := stun.Build(stun.TransactionID, stun.BindingRequest, stun.NewUsername(ufrag+":abcd"),
		stun.RawAttribute{Type: stun.AttrPriority, Value: []byte{1, 2, 3, 4}}, stun.RawAttribute{Type: 0xc057, Value: []byte{0, 1, 3}},
		stun.NewShortTermIntegrity(password), stun.Fingerprint)
	if err != nil {
		t.Fatal(err)
	}
	return framed(m)
}

func TestSES4_FirstMessagesThatAreNone(t *testing.T) {
	good := request(t, ufrag, password)
	change := func(at int, to ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], to)
		return b
	}
	for name, b := range map[string][]byte{
		"a ClientHello": {22, 3, 1, 2, 0}, "HTTP": []byte("GET / HTTP/1.1\r\n"), "a long frame": {3, 0, 0, 1}, "the longest and one": {2, 0x25},
		"an empty frame": {0, 0}, "a frame too short": {0, 19, 0, 1}, "TURN's allocate": change(2, 0, 3), "an indication": change(2, 0, 0x11),
		"an answer": change(2, 1, 1), "another cookie": change(6, 0x21, 0x12, 0xA4, 0x43), "another length": change(4, 0, 4),
		"a length that is no multiple of 4": change(1, good[1]-2),
		"DTLS in a frame":                   {0, 100, 22, 0xfe, 0xff},
	} {
		if done, err := FirstICE(b); err == nil {
			t.Errorf("%s: taken, done %v", name, done)
		}
	}
	for i := range good {
		if done, err := FirstICE(good[:i]); done || err != nil {
			t.Fatalf("%d bytes of a good one: %v, %v", i, done, err)
		}
	}
	for _, more := range [][]byte{nil, {0}, good} {
		if done, err := FirstICE(append(bytes.Clone(good), more...)); !done || err != nil {
			t.Fatalf("a good one and %d bytes: %v, %v", len(more), done, err)
		}
	}
	build := func(s ...stun.Setter) []byte {
		m, err := stun.Build(append([]stun.Setter{stun.TransactionID, stun.BindingRequest}, s...)...)
		if err != nil {
			t.Fatal(err)
		}
		return framed(m)
	}
	sum := stun.NewShortTermIntegrity(password)
	cut := build(stun.NewUsername(ufrag+":a"), sum)
	binary.BigEndian.PutUint16(cut[frameHead+stunHead+2:], 0xffff)
	for name, b := range map[string][]byte{
		"no name": build(sum), "no integrity": build(stun.NewUsername(ufrag + ":a")), "no colon": build(stun.NewUsername(ufrag), sum),
		"a short name": build(stun.NewUsername("abcd:efgh"), sum), "upper case": build(stun.NewUsername(strings.ToUpper(ufrag)+":a"), sum),
		"two names":        build(stun.NewUsername(ufrag+":a"), stun.NewUsername(ufrag+":a"), sum),
		"the name after":   build(sum, stun.NewUsername(ufrag+":a")),
		"a short sum":      build(stun.NewUsername(ufrag+":a"), stun.RawAttribute{Type: stun.AttrMessageIntegrity, Value: []byte{1, 2, 3, 4}}),
		"a long attribute": cut, "half an attribute": nil,
	} {
		if r, err := readBinding(b); !errors.Is(err, errNotICE) {
			t.Errorf("%s: %v, %+v", name, err, r)
		}
	}
	r, err := readBinding(append(bytes.Clone(good), 1, 2, 3))
	if err != nil || r.ufrag != ufrag || !r.by(password) || r.by(password+"x") {
		t.Fatalf("a good one: %+v, %v", r, err)
	}
	for i := frameHead; i < len(good)-8; i++ { // the fingerprint behind it is not protected by it
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if r, err := readBinding(bad); err == nil && r.by(password) {
			t.Fatalf("byte %d changed, and the password still holds", i)
		}
	}
}

// FuzzFirstICE holds the reader against another implementation.
func FuzzFirstICE(f *testing.F) {
	f.Add(request(f, ufrag, password))
	f.Add([]byte{0, 20, 0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := readBinding(b)
		if err != nil {
			return
		}
		m := &stun.Message{Raw: bytes.Clone(b[frameHead : frameHead+int(binary.BigEndian.Uint16(b))])}
		if err := m.Decode(); err != nil {
			t.Fatalf("taken, and another implementation says %v", err)
		}
		name, err := m.Get(stun.AttrUsername)
		if err != nil || !strings.HasPrefix(string(name), r.ufrag+":") {
			t.Fatalf("it is for %q, another implementation says %q, %v", r.ufrag, name, err)
		}
		if ok := stun.NewShortTermIntegrity(password).Check(m) == nil; ok != r.by(password) {
			t.Fatalf("by the holder: %v, another implementation says %v", r.by(password), ok)
		}
	})
}

type exposed struct {
	c    net.Conn
	from netip.AddrPort
	err  error
}

// expose registers the agent for a browser, and returns once the gateway has it.
func (b *bench) expose(t testing.TB, ufrag, password string, ticket []byte) chan exposed {
	t.Helper()
	ch, waiting := make(chan exposed, 1), make(chan struct{})
	c := b.dial()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	go func() {
		c, from, err := Expose(ctx, c, b.relay.Key(), b.agent, ticket, ufrag, password, func() { close(waiting) })
		ch <- exposed{c, from, err}
	}()
	select {
	case <-waiting:
	case e := <-ch:
		ch <- e
	}
	return ch
}

// browser comes with a first message; done has what the gateway said of it.
func (b *bench) browser(t testing.TB, first []byte) (c *net.TCPConn, done chan error) {
	t.Helper()
	here, there := tcpPair(t)
	done = make(chan error, 1)
	go func() {
		defer there.Close()
		done <- b.relay.HandleBrowser(t.Context(), there, first, func() {})
	}()
	t.Cleanup(func() { here.Close() })
	return here, done
}

func TestSES4_BrowserMeetsTheAgent(t *testing.T) {
	b := newBench(t, nil)
	agentTicket, _ := b.tickets(b.grant())
	waits := b.expose(t, ufrag, password, agentTicket)
	first := bytes.Repeat(request(t, ufrag, password), 2) // it asks again before it has an answer
	c, done := b.browser(t, first)
	e := <-waits
	if e.err != nil {
		t.Fatal(e.err)
	}
	if e.from != c.LocalAddr().(*net.TCPAddr).AddrPort() {
		t.Errorf("the agent is told %v, the browser is %v", e.from, c.LocalAddr())
	}
	got := make([]byte, len(first))
	if _, err := io.ReadFull(e.c, got); err != nil || !bytes.Equal(got, first) {
		t.Fatalf("the first message came as %x, %v", got, err)
	}
	// The first message is on its way before the pair is counted.
	waitFor(t, func() bool { n := b.relay.Counts(); return n.Joined == 1 && n.Waiting == 0 })
	for _, way := range [][2]net.Conn{{c, e.c}, {e.c, c}} {
		if _, err := way[0].Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(way[1], got[:5]); err != nil || string(got[:5]) != "hello" {
			t.Fatalf("%q, %v", got[:5], err)
		}
	}
	c.Close()
	if n, err := e.c.Read(got); err == nil {
		t.Errorf("the browser went, and the agent reads %d bytes", n)
	}
	e.c.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestSES4_BrowsersRefused(t *testing.T) {
	b := newBench(t, nil)
	agentTicket, technicianTicket := b.tickets(b.grant())
	for name, c := range map[string]struct {
		ufrag, password string
		ticket          []byte
	}{
		"a short name":        {ufrag[:8], password, agentTicket},
		"another name":        {strings.ToUpper(ufrag), password, agentTicket},
		"a short password":    {ufrag, password[:10], agentTicket},
		"no password":         {ufrag, "", agentTicket},
		"a strange one":       {ufrag, password + "\n", agentTicket},
		"the other's ticket":  {ufrag, password, technicianTicket},
		"no ticket":           {ufrag, password, nil},
		"too long a password": {ufrag, strings.Repeat("x", 2000), agentTicket},
	} {
		if e := <-b.expose(t, c.ufrag, c.password, c.ticket); e.err == nil {
			t.Errorf("%s: waits", name)
		}
	}
	waits := b.expose(t, ufrag, password, agentTicket)
	for name, first := range map[string][]byte{
		"another password": request(t, ufrag, password[1:]+"x"), "another name": request(t, strings.Replace(ufrag, "f", "e", 1), password),
		"half of it": request(t, ufrag, password)[:60], "nothing": nil, "a ClientHello": {22, 3, 1, 0, 5},
	} {
		c, done := b.browser(t, first)
		if err := <-done; err == nil {
			t.Errorf("%s: taken", name)
		}
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("%s: it was told something", name)
		}
	}
	if n := b.relay.Counts(); n.Waiting != 1 || n.Joined != 0 {
		t.Errorf("what was refused has used up the one that waits: %+v", n)
	}
	// A source that the lists do not admit is not joined, and the agent learns why.
	b.barred.Store(true)
	_, done := b.browser(t, request(t, ufrag, password))
	if err := <-done; err == nil || !strings.Contains(err.Error(), "list") {
		t.Errorf("not admitted: %v", err)
	}
	var refused *Refused
	if e := <-waits; !errors.As(e.err, &refused) {
		t.Errorf("the agent: %v", e.err)
	}
}

func TestSES4_RegistrationsAreBounded(t *testing.T) {
	b := newBench(t, func(c *Config) { c.MaxWaiting = 12 })
	ticket := func() []byte { k, _ := b.tickets(b.grant()); return k }
	for range maxSameUfrag {
		b.expose(t, ufrag, password, ticket())
	}
	if e := <-b.expose(t, ufrag, password, ticket()); e.err == nil {
		t.Error("one more under the same name")
	}
	if e := <-b.expose(t, ufrag, password+"0", ticket()); e.err == nil {
		t.Error("under the same name with another password")
	}
	// Another agent cannot wait under a name that it saw.
	other := certtest.Self(t)
	g := b.grant()
	g.Agent = keyOf(other)
	k, _ := b.tickets(g)
	own := b.agent
	b.agent = other
	if e := <-b.expose(t, ufrag, password, k); e.err == nil {
		t.Error("another agent under the same name")
	}
	b.agent = own
	for i := range 4 {
		b.expose(t, strings.Repeat(string(rune('a'+i)), 32), password, ticket())
	}
	if e := <-b.expose(t, strings.Repeat("9", 32), password, ticket()); e.err == nil {
		t.Error("more ends wait than there is room for")
	}
	if n := b.relay.Counts(); n.Waiting != 12 {
		t.Errorf("%+v", n)
	}
	// When lists change, those that wait go; nothing of them stays.
	if n := b.relay.Cut(func(netip.Addr) bool { return false }); n != 12 {
		t.Errorf("%d cut", n)
	}
	for deadline := time.Now().Add(5 * time.Second); b.relay.Counts().Waiting != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still there: %+v", b.relay.Counts())
		}
	}
	if len(b.relay.ice) != 0 {
		t.Errorf("%d names are kept", len(b.relay.ice))
	}
}

// A browser's session ends with the ticket's, and when lists change.
func TestSES7_BrowsersAreCut(t *testing.T) {
	for name, c := range map[string]struct {
		life time.Duration
		cut  func(*bench)
	}{
		"its time is over":  {2 * time.Second, func(*bench) {}},
		"lists are changed": {time.Hour, func(b *bench) { b.relay.Cut(func(netip.Addr) bool { return false }) }},
	} {
		b := newBench(t, nil)
		g := b.grant()
		g.Until = g.From.Add(c.life)
		k, _ := b.tickets(g)
		waits := b.expose(t, ufrag, password, k)
		conn, done := b.browser(t, request(t, ufrag, password))
		e := <-waits
		if e.err != nil {
			t.Fatal(name, e.err)
		}
		for deadline := time.Now().Add(5 * time.Second); b.relay.Counts().Joined == 0; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal(name, "not joined")
			}
		}
		c.cut(b)
		if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Log(name, err)
		}
		if err := <-done; err == nil {
			t.Errorf("%s: no reason", name)
		}
		e.c.Close()
	}
}
