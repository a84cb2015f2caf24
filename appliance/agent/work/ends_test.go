package work

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/session/wire"
)

// SES7: the owner's button, in every function, within a second and with its reason.
func TestSES7_EndIsSaidEverywhere(t *testing.T) {
	s := startTarget(t, echo)
	b := begin(t, s.address, s.with)
	terminal, command, forward := b.open(wire.Open{Do: wire.Terminal}), b.open(wire.Open{Do: wire.Exec, Command: "x"}), b.open(wire.Open{Do: wire.Forward})
	terminal.until("ready")
	command.until("ready")
	_, _ = io.ReadAtLeast(forward, make([]byte, 7), 7) // SSH-2.0
	b.End("ended by its owner")
	for _, e := range []*end{terminal, command} {
		if ended, _, _ := e.end(); ended.Reason != "ended by its owner" || ended.Status != -1 {
			t.Errorf("ended %+v", ended)
		}
	}
	_ = forward.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.Copy(io.Discard, forward); errors.Is(err, errDeadline) {
		t.Error("the connection is still there")
	}
	select {
	case <-b.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the session does not end")
	}
	late := b.stream()
	_ = wire.WriteOpen(late, wire.Open{Do: wire.Terminal})
	if _, err := wire.ReadReply(late); err == nil {
		t.Error("a session that is over served")
	}
	ended := b.audited("end session", "ok")
	if len(ended) != 1 || ended[0].Detail["reason"] != "ended by its owner" || ended[0].Detail["technician"] != "ada@example.com" {
		t.Errorf("the log has %+v", ended)
	}
}

func TestSES10_IdleEndsTheSession(t *testing.T) {
	s := startTarget(t, func(ch ssh.Channel, _ string) {
		for {
			if _, err := io.WriteString(ch, "busy\r\n"); err != nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	b := begin(t, s.address, s.with, func(c *Config) { c.Idle = 600 * time.Millisecond })
	e := b.open(wire.Open{Do: wire.Terminal})
	begun := time.Now()
	for range 4 { // input keeps it
		time.Sleep(300 * time.Millisecond)
		e.typed("x")
	}
	if b.Reason() != "" {
		t.Fatalf("ended after %s of input: %s", time.Since(begun), b.Reason())
	}
	// What the target prints, and the size of a window, do not.
	if ended, _, _ := e.end(); ended.Reason != "there was no input for 600ms" {
		t.Errorf("ended %+v", ended)
	}
}

// A copy that runs is use.
func TestSES10_TrafficOfAConnectionIsUse(t *testing.T) {
	address := listen(t, func(c net.Conn) {
		for range 12 {
			_, _ = c.Write([]byte("x"))
			time.Sleep(100 * time.Millisecond)
		}
	})
	b := begin(t, address, kind("tcp"), func(c *Config) { c.Idle, c.Grant.Functions = 500*time.Millisecond, right.RemoteControl })
	e := b.open(wire.Open{Do: wire.Forward})
	if got, err := io.ReadAll(e); err != nil || len(got) != 12 {
		t.Errorf("%d bytes, %v, ended %q", len(got), err, b.Reason())
	}
	b.over()
}

// waits changes how long is waited.
func waits(change func(*times)) func(*Config) {
	return func(c *Config) {
		c.times = usual()
		change(&c.times)
	}
}

// Questions and terminals do not wait for ever.
func TestSES10_NobodyAnswers(t *testing.T) {
	s := startTarget(t, echo)
	short := waits(func(w *times) { w.Confirm, w.resume = 200*time.Millisecond, 200*time.Millisecond })
	b := begin(t, s.address, s.with, short, func(c *Config) { c.Material.HostKeys = nil })
	for _, do := range []wire.Do{wire.Terminal, wire.Exec} {
		e := b.open(wire.Open{Do: do, Command: "id"})
		e.question()
		if ended, _, _ := e.end(); ended.Code != wire.HostKey {
			t.Errorf("%s ended %+v", do, ended)
		}
	}
	p := begin(t, s.address, s.hosts, short)
	e := p.open(wire.Open{Do: wire.Terminal})
	e.until("login as: ")
	if ended, _, _ := e.end(); ended.Code != wire.Credential {
		t.Errorf("ended %+v", ended)
	}
	a := begin(t, s.address, s.with, short)
	e = a.open(wire.Open{Do: wire.Terminal})
	e.until("ready")
	e.Close()
	eventually(t, func() bool { return strings.HasSuffix(strings.Join(a.whats(), ","), "closed terminal") })
}
