package work

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/wire"
)

func resolves(found ...string) func(*Config) {
	return func(c *Config) {
		c.Grant.Target.Host = "nas.lan"
		c.Resolve = func(context.Context, string) ([]netip.Addr, error) { return addresses(found...)(), nil }
	}
}

func addresses(texts ...string) func() []netip.Addr {
	var all []netip.Addr
	for _, s := range texts {
		all = append(all, netip.MustParseAddr(s))
	}
	return func() []netip.Addr { return all }
}

func testBox() Box {
	return Box{
		Status: func(context.Context) (control.Status, error) {
			return control.Status{Name: "gatehouse-7f3k", State: control.StateReady, Version: "0.1.0", Now: time.Now()}, nil
		},
		Log: func(_ context.Context, q control.LogQuery) (control.LogLines, error) {
			return control.LogLines{Lines: []control.LogLine{{Time: time.Now(), Role: "kernel", Text: "evil \x1b]0;title\x07\x1b[2J text"}}}, nil
		},
		Resolve: func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no such name") },
		Connect: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("refused") },
	}
}

func TestSES4_ConsoleOfTheBox(t *testing.T) {
	b := begin(t, "127.0.0.1:1", kind(session.Box))
	e := b.open(wire.Open{Do: wire.Console})
	e.until("gatehouse-7f3k> ")
	e.typed("log kernel 1\r")
	if out := e.until("text\r\n"); strings.Contains(out, "\x1b") || strings.Contains(out, "\x07") {
		t.Errorf("the log steers the terminal: %q", out)
	}
	e.until("gatehouse-7f3k> ") // what is typed while a word is carried out is not kept
	e.typed("quit\r")
	if ended, _, _ := e.end(); ended != (wire.Ended{}) {
		t.Errorf("ended %+v", ended)
	}
	if len(b.dialed) != 0 {
		t.Errorf("dialed %v", b.dialed)
	}
}
