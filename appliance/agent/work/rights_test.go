package work

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/wire"
)

// nowhere is the address of a target that must not be reached.
func nowhere(t *testing.T) (string, *atomic.Bool) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	reached := new(atomic.Bool)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			reached.Store(true)
			c.Close()
		}
	}()
	return l.Addr().String(), reached
}

// Every function is refused without its right, with every other right there is.
func TestSES7_EveryRightWithheldIsRefused(t *testing.T) {
	files := right.FileManager | right.SendFiles | right.ReceiveFiles
	for _, c := range []struct {
		do   wire.Do
		kind session.Kind
		less right.Functions
	}{
		{wire.Terminal, session.SSH, right.RemoteControl},
		{wire.Forward, session.TCP, right.RemoteControl},
		{wire.Forward, session.SSH, right.RemoteControl},
		{wire.Exec, session.SSH, right.Scripts},
		{wire.Web, session.HTTPS, right.OpenURLs},
		{wire.Console, session.Box, right.SystemInfo},
		{wire.Files, session.SSH, files},
	} {
		t.Run(string(c.do)+" "+string(c.kind), func(t *testing.T) {
			address, reached := nowhere(t)
			b := begin(t, address, kind(c.kind), func(cfg *Config) {
				cfg.Grant.Functions = right.AllFunctions &^ c.less
				cfg.Files = func(context.Context, *ssh.Client, wire.Stream, wire.Open) error {
					t.Error("files were served")
					return nil
				}
			})
			r := b.refused(wire.Open{Do: c.do, Command: "id"})
			if r.Code != wire.Denied || !strings.Contains(r.Text, strings.Split(c.less.String(), ",")[0]) {
				t.Errorf("refused with %s: %s", r.Code, r.Text)
			}
			if reached.Load() || len(b.dialed) != 0 {
				t.Error("the target was reached")
			}
			if got := b.audited("open function", "refused"); len(got) != 1 || got[0].Detail["technician"] != "ada@example.com" || got[0].Detail["function"] != string(c.do) {
				t.Errorf("the log has %v", got)
			}
			if len(b.whats()) != 0 {
				t.Errorf("told %v", b.whats())
			}
		})
	}
}

// kind makes the target one of a kind.
func kind(k session.Kind) func(*Config) {
	return func(c *Config) {
		c.Grant.Target.Kind = k
		if k == session.Box {
			c.Grant.Target.Host, c.Grant.Target.Port = "", 0
			c.Box = testBox()
		}
	}
}

// What a kind of target does not have is refused whatever the rights.
func TestSES5_KindsHaveTheirFunctions(t *testing.T) {
	has := map[session.Kind][]wire.Do{
		session.Box: {wire.Console}, session.SSH: {wire.Terminal, wire.Exec, wire.Forward, wire.Files},
		session.RDP: {wire.Forward}, session.VNC: {wire.Forward}, session.TCP: {wire.Forward},
		session.HTTP: {wire.Forward, wire.Web}, session.HTTPS: {wire.Forward, wire.Web},
	}
	for k, functions := range has {
		b := begin(t, "127.0.0.1:1", kind(k))
		for _, do := range []wire.Do{wire.Terminal, wire.Exec, wire.Forward, wire.Web, wire.Files, wire.Console, "desktop", ""} {
			good := false
			for _, f := range functions {
				good = good || f == do
			}
			_, err := b.allowed(wire.Open{Do: do})
			if (err == nil) != good {
				t.Errorf("%s of a target of kind %s: %v", do, k, err)
			}
		}
	}
}

// One right of files is enough to open the stream; which of them counts for
// each request what serves files judges.
func TestSES7_OneRightOfFilesOpensThem(t *testing.T) {
	for _, f := range []right.Functions{right.FileManager, right.SendFiles, right.ReceiveFiles} {
		b := begin(t, "127.0.0.1:1", func(c *Config) { c.Grant.Functions = f })
		if _, err := b.allowed(wire.Open{Do: wire.Files}); err != nil {
			t.Errorf("with %s: %v", f, err)
		}
	}
}

// A name that leads to the box itself, or to everybody, leads nowhere.
func TestSES5_NamesThatLeadElsewhere(t *testing.T) {
	for _, found := range [][]string{
		{"127.0.0.1"}, {"::1"}, {"::ffff:127.0.0.1"}, {"127.9.9.9", "::1"}, {"0.0.0.0"}, {"::"}, {"169.254.169.254"}, {"fe80::1"}, {"224.0.0.251"},
		{"255.255.255.255"}, {"0.1.2.3"}, {"ff02::1"}, {"192.0.2.1"}, {},
	} {
		address, reached := nowhere(t)
		b := begin(t, address, kind(session.TCP), resolves(found...), func(c *Config) {
			c.Own = addresses("192.0.2.1")
		})
		if r := b.refused(wire.Open{Do: wire.Forward}); r.Code != wire.Unreachable || reached.Load() || len(b.dialed) != 0 {
			t.Errorf("%v: %s %s, dialed %v", found, r.Code, r.Text, b.dialed)
		}
	}
}

// Of several addresses the good ones are tried, in their order.
func TestSES5_AddressesAreTriedInTurn(t *testing.T) {
	b := begin(t, "127.0.0.1:1", kind(session.TCP), resolves("127.0.0.1", "192.0.2.1", "::ffff:192.0.2.2", "2001:db8::1"))
	r := b.refused(wire.Open{Do: wire.Forward})
	if got := strings.Join(b.dialed, " "); r.Code != wire.Unreachable || got != "192.0.2.1:22 192.0.2.2:22 [2001:db8::1]:22" {
		t.Errorf("%s, dialed %s", r.Code, got)
	}
}

func TestSES7_EndsAtTheGrantsEnd(t *testing.T) {
	address, _ := nowhere(t)
	b := begin(t, address, func(c *Config) { c.Grant.Until = time.Now().Add(300 * time.Millisecond) })
	e := b.stream()
	b.over()
	if b.Reason() != "the time of the session is over" {
		t.Errorf("ended: %s", b.Reason())
	}
	if _, err := wire.ReadReply(e); err == nil {
		t.Error("the stream is open")
	}
	if _, err := New(b.cfg); err == nil {
		t.Error("a session that is over was begun again")
	}
	early := begin(t, address, func(c *Config) { c.Grant.From = time.Now().Add(10 * time.Minute) })
	if r := early.refused(wire.Open{Do: wire.Forward}); r.Code != wire.Denied {
		t.Errorf("before its time: %s %s", r.Code, r.Text)
	}
}

// An end that keeps asking for what it may not have is cut off.
func TestSES7_MisuseEndsTheSession(t *testing.T) {
	b := begin(t, "127.0.0.1:1", func(c *Config) { c.Grant.Functions = right.SystemInfo })
	for range maxRefused {
		b.refused(wire.Open{Do: wire.Terminal})
	}
	b.over()
	if !strings.Contains(b.Reason(), "refused") {
		t.Errorf("ended: %s", b.Reason())
	}
}

// AUD1: what the log does not take does not happen.
func TestAUD1_NoLogNoAction(t *testing.T) {
	for _, do := range []wire.Do{wire.Forward, wire.Terminal, wire.Exec, wire.Files} {
		address, reached := nowhere(t)
		b := begin(t, address)
		b.refuse = errors.New("the disk is full")
		if r := b.refused(wire.Open{Do: do, Command: "id"}); r.Code != wire.Failed || !strings.Contains(r.Text, "the disk is full") {
			t.Errorf("%s: %s %s", do, r.Code, r.Text)
		}
		b.over()
		if reached.Load() || len(b.dialed) != 0 {
			t.Errorf("%s: the target was reached", do)
		}
	}
	// And once the session is under way.
	address, reached := nowhere(t)
	b := begin(t, address)
	if err := b.join(); err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	b.refuse = errors.New("the disk is full")
	b.mu.Unlock()
	if r := b.refused(wire.Open{Do: wire.Forward}); r.Code != wire.Failed || reached.Load() {
		t.Errorf("%s: %s", r.Code, r.Text)
	}
}

// AUD6: the box's own log has who did what with the target, from the first
// thing on to the end, whatever the hub keeps.
func TestAUD6_BoxesLogHasStartEndAndWho(t *testing.T) {
	s := startTarget(t, echo)
	b := begin(t, s.address, s.with, func(c *Config) { c.Tell = func(attend.FromSite) error { return errors.New("the hub is gone") } })
	x := b.open(wire.Open{Do: wire.Exec, Command: "shutdown now"})
	x.until("ready")
	f := b.open(wire.Open{Do: wire.Forward})
	b.refused(wire.Open{Do: wire.Console})
	b.End("ended by its owner")
	b.over()
	f.Close()
	want := []string{
		"start session ok  ssh 192.0.2.10:22", "open function ok exec shutdown now", "open function ok forward ", "open function refused console ", "end session ok  ended by its owner",
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, e := range b.events {
		d := e.Detail
		got := strings.Join([]string{e.Action, e.Outcome, d["function"], d["target"] + d["command"]}, " ")
		if e.Action == "end session" {
			got += d["reason"]
		}
		if i >= len(want) || got != want[i] {
			t.Errorf("entry %d: %q", i, got)
		}
		if e.Object != "Accounts server" || d["technician"] != "ada@example.com" || d["address"] != "198.51.100.7" || d["session"] != b.cfg.Grant.ID.String() {
			t.Errorf("entry %d lacks who: %+v", i, e)
		}
	}
	if len(b.events) != len(want) {
		t.Errorf("%d entries", len(b.events))
	}
}
