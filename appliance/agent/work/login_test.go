package work

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/crypto/ssh"

	"gatehouse/appliance/agent/reach"
	"gatehouse/appliance/session/wire"
)

// echo is a shell that says what it is told, until it is told exit.
func echo(ch ssh.Channel, _ string) {
	_, _ = io.WriteString(ch, "ready\r\n")
	b := make([]byte, 1024)
	for {
		n, err := ch.Read(b)
		if err != nil || bytes.Contains(b[:n], []byte("exit")) {
			exit(ch, 5)
			return
		}
		_, _ = fmt.Fprintf(ch, "<%s>", b[:n])
	}
}

// Without a kept credential the terminal asks as ssh does, shows the banner,
// and neither log nor line to the hub ever has what was typed.
func TestSES4_LoginIsTyped(t *testing.T) {
	s := startTarget(t, echo, func(s *target) {
		s.config.BannerCallback = func(ssh.ConnMetadata) string { return "Welcome \x1b]0;evil\x07 to the NAS\nsecond line\n" }
	})
	b := begin(t, s.address, s.hosts)
	e := b.open(wire.Open{Do: wire.Terminal})
	e.until("login as: ")
	e.typed("ad\x7fda\r")
	shown := e.until("ada@Accounts server's password: ")
	if strings.Contains(shown, "\x1b") || !strings.Contains(shown, "NAS\r\nsecond line\r\n") {
		t.Errorf("the banner: %q", shown)
	}
	e.typed("wrong\r")
	e.until("password: ")
	e.typed("correct horse\rtyped ahead")
	if shown := e.until("<typed ahead>"); strings.Contains(shown, "horse") {
		t.Errorf("the password is shown: %q", shown)
	}
	// The next function of the session needs no sign-in of its own.
	x := b.open(wire.Open{Do: wire.Exec, Command: "x"})
	x.until("ready")
	if n := s.conns.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if all := fmt.Sprintf("%+v %+v", b.events, b.told); strings.Contains(all, "horse") || strings.Contains(all, "wrong") {
		t.Errorf("kept what was typed: %s", all)
	}
}

func TestSES4_LoginThatFails(t *testing.T) {
	s := startTarget(t, echo)
	b := begin(t, s.address, s.hosts, func(c *Config) { c.Material.User = "ada" })
	e := b.open(wire.Open{Do: wire.Terminal})
	for range 3 {
		e.until("password: ")
		e.typed("wrong\r")
	}
	if ended, _, _ := e.end(); ended.Code != wire.Credential {
		t.Errorf("ended %+v", ended)
	}
	if got := b.audited("sign in at target", "failed"); len(got) != 1 || got[0].Detail["user"] != "ada" || got[0].From != "198.51.100.7" || got[0].Detail["technician"] != "ada@example.com" {
		t.Errorf("the log has %+v", got)
	}
	// Broken off: nothing was tried, nothing is to be logged.
	e = b.open(wire.Open{Do: wire.Terminal})
	e.until("password: ")
	e.typed("\x03")
	if ended, _, _ := e.end(); ended.Code != wire.Credential || !strings.Contains(ended.Reason, "broken off") {
		t.Errorf("ended %+v", ended)
	}
	// Guessing through the agent has its limit.
	b.cfg.Material.Password = "wrong"
	g := begin(t, s.address, s.with, func(c *Config) { c.Material.Password = "wrong" })
	for range maxFailed {
		e := g.open(wire.Open{Do: wire.Exec, Command: "id"})
		e.end()
	}
	g.over()
	if !strings.Contains(g.Reason(), "sign-ins") {
		t.Errorf("ended: %s", g.Reason())
	}
}

// Commands and files have nobody to ask.
func TestSES4_NoCredentialForACommand(t *testing.T) {
	s := startTarget(t, echo)
	b := begin(t, s.address, s.hosts)
	e := b.open(wire.Open{Do: wire.Exec, Command: "id"})
	if ended, _, _ := e.end(); ended.Code != wire.Credential || s.conns.Load() != 0 {
		t.Errorf("ended %+v", ended)
	}
}

// A password that is kept answers the one question for it, and no other: those
// are the person's.
func TestSES4_KeyboardInteractive(t *testing.T) {
	for name, c := range map[string]struct {
		questions []string
		echos     []bool
		typed     string // what the person types
		sent      string
	}{
		"a password":           {[]string{"Password: "}, []bool{false}, "", password},
		"a name":               {[]string{"Token serial: "}, []bool{true}, "77\r", "77"},
		"more than a password": {[]string{"Password: ", "Code: "}, []bool{false, false}, "mine\r123456\r", "mine,123456"},
	} {
		t.Run(name, func(t *testing.T) {
			s := startTarget(t, echo, func(s *target) {
				s.config.PasswordCallback = nil
				s.config.KeyboardInteractiveCallback = func(_ ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
					got, err := ask("", "", c.questions, c.echos)
					if err != nil || strings.Join(got, ",") != c.sent {
						return nil, fmt.Errorf("answered %q, %v", got, err)
					}
					return nil, nil
				}
			})
			b := begin(t, s.address, s.with)
			e := b.open(wire.Open{Do: wire.Terminal})
			for i, line := range strings.SplitAfter(c.typed, "\r") {
				if line != "" {
					e.until(c.questions[i])
					e.typed(line)
				}
			}
			e.until("ready")
		})
	}
}

// A second question for a password is not answered with the same again.
func TestSES4_PasswordIsGivenOnce(t *testing.T) {
	var asked atomic.Int32
	s := startTarget(t, echo, func(s *target) {
		s.config.PasswordCallback = nil
		s.config.MaxAuthTries = 20
		s.config.KeyboardInteractiveCallback = func(_ ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
			if got, err := ask("", "", []string{"Password: "}, []bool{false}); err == nil && got[0] == password {
				asked.Add(1)
			}
			return nil, errors.New("no")
		}
	})
	b := begin(t, s.address, s.with)
	e := b.open(wire.Open{Do: wire.Exec, Command: "id"})
	if ended, _, _ := e.end(); ended.Code != wire.Credential || asked.Load() != 1 {
		t.Errorf("ended %+v, answered %d times", ended, asked.Load())
	}
}

func TestSES5_HostKeyIsAskedOnceAndKept(t *testing.T) {
	s := startTarget(t, echo)
	b := begin(t, s.address, s.with, func(c *Config) { c.Material.HostKeys = nil })
	print := ssh.FingerprintSHA256(s.key.PublicKey())

	// Files have nobody to ask.
	b.Session.cfg.Files = nil
	if _, _, err := b.link.Lease(t.Context(), reach.Asker{}); err == nil || !strings.Contains(err.Error(), print) {
		t.Errorf("without a question: %v", err)
	}
	no := b.open(wire.Open{Do: wire.Terminal})
	if q := no.question(); q.Fingerprint != print || q.Algorithm != "ssh-ed25519" || q.Target != "Accounts server (ssh 192.0.2.10:22)" {
		t.Errorf("asked %+v", q)
	}
	no.typed("yes\r") // is no answer
	no.send(wire.Confirm, "\x00")
	if ended, _, _ := no.end(); ended.Code != wire.HostKey || s.conns.Load() != 0 {
		t.Errorf("ended %+v", ended)
	}
	yes := b.open(wire.Open{Do: wire.Exec, Command: "x"})
	yes.question()
	yes.send(wire.Confirm, "\x01")
	yes.until("ready")
	b.open(wire.Open{Do: wire.Terminal}).until("ready")
	b.mu.Lock()
	defer b.mu.Unlock()
	told := 0
	for _, m := range b.told {
		if m.HostKey != nil && bytes.Equal(m.HostKey.Key, s.key.PublicKey().Marshal()) {
			told++
		}
	}
	if told != 1 {
		t.Errorf("the hub was told %d times", told)
	}
}

func TestSES5_ChangedHostKeyIsRefused(t *testing.T) {
	s := startTarget(t, echo)
	other, _ := newKey(t)
	b := begin(t, s.address, s.with, func(c *Config) { c.Material.HostKeys = [][]byte{other.PublicKey().Marshal()} })
	for _, do := range []wire.Do{wire.Terminal, wire.Exec} {
		e := b.open(wire.Open{Do: do, Command: "id"})
		ended, _, _ := e.end()
		if ended.Code != wire.HostKey || !strings.Contains(ended.Reason, ssh.FingerprintSHA256(other.PublicKey())) || !strings.Contains(ended.Reason, ssh.FingerprintSHA256(s.key.PublicKey())) {
			t.Errorf("%s: %+v", do, ended)
		}
	}
	if s.conns.Load() != 0 {
		t.Error("signed in all the same")
	}
	if got := b.audited("sign in at target", "failed"); len(got) != 2 {
		t.Errorf("the log has %+v", got)
	}
}

// A target that changes its key in the middle of a session is no longer it.
func TestSES5_KeyChangesDuringTheSession(t *testing.T) {
	var conn atomic.Pointer[ssh.ServerConn]
	s := startTarget(t, echo, func(s *target) { s.connected = func(c *ssh.ServerConn) { conn.Store(c) } })
	var address atomic.Value
	address.Store(s.address)
	b := begin(t, s.address, s.with, dialsTo(&address), func(c *Config) { c.Material.HostKeys = nil })
	e := b.open(wire.Open{Do: wire.Terminal})
	e.question()
	e.send(wire.Confirm, "\x01")
	e.until("ready")
	e.typed("exit")
	e.end()
	conn.Load().Close()
	other := startTarget(t, echo)
	address.Store(other.address)
	e = b.open(wire.Open{Do: wire.Terminal})
	if ended, _, _ := e.end(); ended.Code != wire.HostKey || other.conns.Load() != 0 {
		t.Errorf("ended %+v", ended)
	}
}
