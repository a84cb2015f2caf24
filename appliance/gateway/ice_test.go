package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun/v4"

	"gatehouse/appliance/relay"
	"gatehouse/appliance/session"
)

func firstMessage(t *testing.T, ufrag, password string) []byte {
	t.Helper()
	m, err := stun.Build(stun.TransactionID, stun.BindingRequest, stun.NewUsername(ufrag+":abcd"), stun.NewShortTermIntegrity(password), stun.Fingerprint)
	if err != nil {
		t.Fatal(err)
	}
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(m.Raw))), m.Raw...)
}

// A browser comes to the port of the web with framed STUN, in pieces of one
// byte, and meets the agent that waits for it; all else that begins so is closed
// without a word.
func TestSES4_BrowserMeetsTheAgentOnPort443(t *testing.T) {
	b := newBed(t, false)
	conn, err := tls.Dial("tcp", b.https, &tls.Config{InsecureSkipVerify: true}) // it has said its key by now
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	e := newEnds(t)
	ufrag, password := strings.Repeat("5e", 16), strings.Repeat("secret", 5)
	type came struct {
		c    net.Conn
		from netip.AddrPort
		err  error
	}
	waiting, agent := make(chan struct{}), make(chan came, 1)
	c, err := net.Dial("tcp", b.https)
	if err != nil {
		t.Fatal(err)
	}
	ticket := e.ticket(t, session.AgentSide, organisationKey)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		c, from, err := relay.Expose(ctx, c, e.gateway, e.agent, ticket, ufrag, password, func() { close(waiting) })
		agent <- came{c, from, err}
	}()
	select {
	case <-waiting:
	case a := <-agent:
		t.Fatal(a.err)
	}
	first := firstMessage(t, ufrag, password)
	for name, sent := range map[string][]byte{
		"another password": firstMessage(t, ufrag, password+"x"), "nobody's name": firstMessage(t, strings.Repeat("77", 16), password),
		"TURN": append([]byte{0, 20, 0, 3, 0, 0}, first[6:22]...), "zeros": make([]byte, 600),
	} {
		c := dial(t, b.https)
		c.Write(sent)
		if said, err := closed(c, 10*time.Second); said != "" || err != nil {
			t.Errorf("%s: answered %q, %v", name, said, err)
		}
	}
	browser := dial(t, b.https)
	for i := range first {
		if _, err := browser.Write(first[i : i+1]); err != nil {
			t.Fatal(err)
		}
	}
	a := <-agent
	if a.err != nil {
		t.Fatal(a.err)
	}
	defer a.c.Close()
	if a.from.String() != browser.LocalAddr().String() {
		t.Errorf("the agent is told of %s, the browser is %s", a.from, browser.LocalAddr())
	}
	got := make([]byte, len(first))
	if _, err := io.ReadFull(a.c, got); err != nil || !bytes.Equal(got, first) {
		t.Fatalf("the first message came as %x, %v", got, err)
	}
	for _, way := range [][2]net.Conn{{browser, a.c}, {a.c, browser}} {
		if _, err := way[0].Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(way[1], got[:5]); err != nil || string(got[:5]) != "hello" {
			t.Fatalf("%q, %v", got[:5], err)
		}
	}
}

// A locked box has no sessions, and one that says nothing more is closed in time.
func TestSlowAndLockedICE(t *testing.T) {
	locked := newBed(t, true)
	c := dial(t, locked.https)
	c.Write(firstMessage(t, strings.Repeat("5e", 16), strings.Repeat("secret", 5)))
	if said, err := closed(c, 10*time.Second); said != "" || err != nil {
		t.Errorf("locked: answered %q, %v", said, err)
	}
	open := newBed(t, false)
	c = dial(t, open.https)
	c.Write([]byte{0, 100, 0, 1})
	if said, err := closed(c, 15*time.Second); said != "" || err != nil {
		t.Errorf("half a message: answered %q, %v", said, err)
	}
}
