package work

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"gatehouse/appliance/account/right"
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

func TestSES4_ResumedWithNothingLost(t *testing.T) {
	s := startTarget(t, func(ch ssh.Channel, _ string) {
		for i := 0; ; i++ {
			if _, err := fmt.Fprintf(ch, "%08d\n", i); err != nil {
				return
			}
			if i == 3000 {
				break
			}
			if i%100 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		echo(ch, "")
	})
	b := begin(t, s.address, s.with)
	e := b.open(wire.Open{Do: wire.Terminal})
	if e.reply.Terminal == "" || e.reply.At != 0 {
		t.Fatalf("reply %+v", e.reply)
	}
	name := e.reply.Terminal
	var all []byte
	for len(all) < 2000 {
		_, out, err := e.frame()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, out...)
	}
	for range 3 {
		e.Close() // without a goodbye
		next := b.open(wire.Open{Do: wire.Terminal, Resume: name, Seen: uint64(len(all)), Width: 90, Height: 20})
		if next.reply.At != uint64(len(all)) || next.reply.Terminal != name {
			t.Fatalf("seen %d, reply %+v", len(all), next.reply)
		}
		e = next
		_, out, err := e.frame()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, out...)
	}
	all = append(all, e.until("ready\r\n")...)
	for i, line := range strings.Split(string(all), "\n")[:3001] {
		if line != fmt.Sprintf("%08d", i) {
			t.Fatalf("line %d is %q", i, line)
		}
	}
	e.typed("exit")
	if ended, _, _ := e.end(); ended.Status != 5 {
		t.Errorf("ended %+v", ended)
	}
	e.Close()
	<-e.served
	if r := b.refused(wire.Open{Do: wire.Terminal, Resume: name}); r.Code != wire.NotFound {
		t.Errorf("%s %s", r.Code, r.Text)
	}
	if r := b.refused(wire.Open{Do: wire.Terminal, Resume: "guess"}); r.Code != wire.NotFound {
		t.Errorf("%s %s", r.Code, r.Text)
	}
}

// Nobody is there: the terminal goes on, and who comes back learns how much of
// its output is gone.
func TestSES4_TerminalGoesOnAlone(t *testing.T) {
	done := make(chan struct{})
	s := startTarget(t, func(ch ssh.Channel, _ string) {
		_, _ = io.WriteString(ch, "begin")
		b := make([]byte, 1)
		_, _ = ch.Read(b)
		_, _ = ch.Write(bytes.Repeat([]byte("0123456789"), 100_000))
		_, _ = io.WriteString(ch, "the end")
		close(done)
		_, _ = io.Copy(io.Discard, ch)
	})
	b := begin(t, s.address, s.with)
	e := b.open(wire.Open{Do: wire.Terminal})
	e.until("begin")
	e.typed("x")
	e.Close()
	<-e.served
	<-done
	var next *end
	for range 100 { // the last of it is on its way
		next = b.open(wire.Open{Do: wire.Terminal, Resume: e.reply.Terminal, Seen: 5})
		if next.reply.At == 5+1_000_000+7-(256<<10) {
			break
		}
		next.Close()
		<-next.served
		time.Sleep(20 * time.Millisecond)
	}
	if next.reply.At != 5+1_000_000+7-(256<<10) {
		t.Fatalf("from %d on", next.reply.At)
	}
	if got := next.until("the end"); len(got) != (256<<10) || got[0] != "0123456789"[(next.reply.At-5)%10] {
		t.Errorf("%d bytes, from %q on", len(got), got[:20])
	}
}

func TestSES4_WhoComesNextTakesOver(t *testing.T) {
	s := startTarget(t, echo)
	b := begin(t, s.address, s.with)
	first := b.open(wire.Open{Do: wire.Terminal})
	first.until("ready")
	second := b.open(wire.Open{Do: wire.Terminal, Resume: first.reply.Terminal, Seen: first.seen})
	if ended, _, _ := first.end(); !strings.Contains(ended.Reason, "hold") {
		t.Errorf("ended %+v", ended)
	}
	_ = wire.WriteFrame(first, wire.Input, []byte("from the first"))
	second.typed("from the second")
	if got := second.until("<from the second>"); strings.Contains(got, "first") {
		t.Errorf("came: %q", got)
	}
}

// Goodbye is a frame: the terminal is gone with its stream then.
func TestSES4_Goodbye(t *testing.T) {
	s := startTarget(t, func(ch ssh.Channel, _ string) {
		_, _ = io.WriteString(ch, "ready")
		_, _ = io.Copy(io.Discard, ch)
		_, _ = io.WriteString(ch, "no more input")
		select {}
	})
	b := begin(t, s.address, s.with)
	e := b.open(wire.Open{Do: wire.Terminal})
	e.until("ready")
	e.send(wire.EOF, "")
	e.until("no more input")
	e.Close()
	<-e.served
	if r := b.refused(wire.Open{Do: wire.Terminal, Resume: e.reply.Terminal}); r.Code != wire.NotFound {
		t.Errorf("%s %s", r.Code, r.Text)
	}
	eventually(t, func() bool { return strings.HasSuffix(strings.Join(b.whats(), ","), "closed terminal") })
}

func eventually(t *testing.T, f func() bool) {
	t.Helper()
	for range 200 {
		if f() {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Error("it did not come to be")
}

// A target that never stops, and a reader that never reads: the agent holds
// what its windows hold, and no more.
func TestSES4_EndlessOutputToASlowReader(t *testing.T) {
	var sent atomic.Int64
	s := startTarget(t, func(ch ssh.Channel, _ string) {
		b := bytes.Repeat([]byte("x"), 32<<10)
		for {
			n, err := ch.Write(b)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	b := begin(t, s.address, s.with)
	e := b.open(wire.Open{Do: wire.Terminal})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	last := int64(-1)
	eventually(t, func() bool {
		now := sent.Load()
		still := now == last && now > 0
		last = now
		time.Sleep(100 * time.Millisecond)
		return still
	})
	runtime.GC()
	runtime.ReadMemStats(&after)
	if held := int64(after.HeapAlloc) - int64(before.HeapAlloc); held > 8<<20 || sent.Load() > 8<<20 {
		t.Errorf("%d bytes more are held, the target wrote %d", held, sent.Load())
	}
	// It is alive all the same.
	was := sent.Load()
	for sent.Load() < was+4<<20 {
		if _, _, err := e.frame(); err != nil {
			t.Fatal(err)
		}
	}
	b.End("enough")
	for {
		k, out, err := e.frame()
		if err != nil {
			t.Fatal("cut without a word")
		}
		if k == wire.Exit {
			if !strings.Contains(string(out), "enough") {
				t.Errorf("%s", out)
			}
			break
		}
	}
}

// A slow reader gets every byte, in order.
func TestSES4_SlowReaderLosesNothing(t *testing.T) {
	const lines = 200_000
	s := startTarget(t, func(ch ssh.Channel, _ string) {
		var b bytes.Buffer
		for i := range lines {
			fmt.Fprintf(&b, "%09d\n", i)
			if b.Len() > 50_000 {
				_, _ = b.WriteTo(ch)
			}
		}
		_, _ = b.WriteTo(ch)
		exit(ch, 0)
	})
	b := begin(t, s.address, s.with)
	e := b.open(wire.Open{Do: wire.Terminal})
	time.Sleep(500 * time.Millisecond)
	_, out, _ := e.end()
	if len(out) != lines*10 {
		t.Fatalf("%d bytes", len(out))
	}
	for i := range lines {
		if line := out[i*10 : i*10+10]; line != fmt.Sprintf("%09d\n", i) {
			t.Fatalf("line %d is %q", i, line)
		}
	}
}

// Servers that are none, or are slow on purpose.
func TestSES5_HostileServers(t *testing.T) {
	for name, serve := range map[string]func(net.Conn){
		"says nothing and leaves": func(net.Conn) {},
		"endless greeting": func(c net.Conn) {
			for {
				if _, err := c.Write(bytes.Repeat([]byte("no ssh "), 1000)); err != nil {
					return
				}
			}
		},
		"endless lines before the greeting": func(c net.Conn) {
			for {
				if _, err := c.Write([]byte("\x1b[2Jhello\r\n")); err != nil {
					return
				}
			}
		},
		"a packet of 4 GB": func(c net.Conn) {
			_, _ = c.Write([]byte("SSH-2.0-x\r\n\xff\xff\xff\xff\x04\x14"))
			_, _ = io.Copy(io.Discard, c)
		},
		"leaves in the middle": func(c net.Conn) {
			_, _ = c.Write([]byte("SSH-2.0-x\r\n\x00\x00"))
		},
		"speaks HTTP": func(c net.Conn) {
			_, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			address := listen(t, serve)
			b := begin(t, address, func(c *Config) { c.Material.User, c.Material.Password = "ada", password })
			e := b.open(wire.Open{Do: wire.Terminal})
			ended, out, _ := e.end()
			if ended.Code != wire.Unreachable || strings.Contains(ended.Reason, "\x1b") || out != "" {
				t.Errorf("ended %+v, shown %q", ended, out)
			}
		})
	}
}

// listen serves connections one by one.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			go func() { defer c.Close(); serve(c) }()
		}
	}()
	return l.Addr().String()
}

// Banners have a limit; so has the time of a handshake.
func TestSES5_HugeBanner(t *testing.T) {
	s := startTarget(t, echo, func(s *target) {
		s.config.BannerCallback = func(ssh.ConnMetadata) string { return strings.Repeat("spam\x1b[31m\n", 20_000) }
	})
	b := begin(t, s.address, s.with)
	e := b.open(wire.Open{Do: wire.Terminal})
	if out := e.until("ready"); len(out) > 64<<10 || strings.Contains(out, "\x1b") {
		t.Errorf("%d bytes of banner", len(out))
	}
}

func TestSES5_TargetLeavesInTheMiddle(t *testing.T) {
	leave := make(chan func(), 2)
	s := startTarget(t, echo)
	proxy := listen(t, func(c net.Conn) {
		up, err := net.Dial("tcp", s.address)
		if err != nil {
			return
		}
		leave <- func() { c.Close(); up.Close() }
		go func() { _, _ = io.Copy(up, c) }()
		_, _ = io.Copy(c, up)
	})
	b := begin(t, proxy, s.with)
	e := b.open(wire.Open{Do: wire.Terminal})
	e.until("ready")
	(<-leave)()
	if ended, _, _ := e.end(); ended.Code != wire.Unreachable || ended.Status != -1 {
		t.Errorf("ended %+v", ended)
	}
	// And the next one is on a connection of its own.
	b.open(wire.Open{Do: wire.Terminal}).until("ready")
	if n := s.conns.Load(); n != 2 {
		t.Errorf("%d connections", n)
	}
}

// A connection that ends in the moment in which something is opened on it costs
// a new one, and no wait.
func TestSES5_LostWhileOpening(t *testing.T) {
	s := startTarget(t, nil)
	var last atomic.Pointer[ssh.ServerConn]
	s.connected = func(c *ssh.ServerConn) { last.Store(c) }
	s.serve = func(ch ssh.Channel, _ string) {
		exit(ch, 0)
		last.Load().Close()
	}
	b := begin(t, s.address, s.with)
	for range 300 {
		x := b.open(wire.Open{Do: wire.Exec, Command: "x"})
		x.end()
		x.Close()
	}
}

// One connection for all, until the target allows no more on it.
func TestSES4_OneConnectionWhereAllowed(t *testing.T) {
	for _, limit := range []int{0, 2} {
		s := startTarget(t, echo, func(s *target) { s.channels = limit })
		b := begin(t, s.address, s.with)
		for range 4 {
			b.open(wire.Open{Do: wire.Terminal}).until("ready")
		}
		if n, want := s.conns.Load(), map[int]int32{0: 1, 2: 3}[limit]; n != want {
			t.Errorf("with %d channels: %d connections, want %d", limit, n, want)
		}
	}
}

// What waits for slow readers is bounded for all of a session's channels together.
func TestSES4_ChannelsAreBounded(t *testing.T) {
	s := startTarget(t, echo)
	b := begin(t, s.address, s.with)
	for range reach.MaxChannels {
		b.open(wire.Open{Do: wire.Exec, Command: "x"}).until("ready")
	}
	e := b.open(wire.Open{Do: wire.Exec, Command: "x"})
	if ended, _, _ := e.end(); ended.Code != wire.Failed || !strings.Contains(ended.Reason, "24") {
		t.Errorf("ended %+v", ended)
	}
}

func TestSES4_SizesAndKindsAreJudged(t *testing.T) {
	s := startTarget(t, echo)
	b := begin(t, s.address, s.with)
	for _, o := range []wire.Open{
		{Do: wire.Terminal, Width: -1, Height: 24}, {Do: wire.Terminal, Width: 80}, {Do: wire.Terminal, Width: 1001, Height: 24},
		{Do: wire.Terminal, Term: "x\ny"}, {Do: wire.Terminal, Term: strings.Repeat("x", 65)}, {Do: wire.Exec}, {Do: wire.Exec, Command: "a\x00b"}, {Do: "shell"},
	} {
		if r := b.refused(o); r.Code != wire.Invalid {
			t.Errorf("%+v: %s %s", o, r.Code, r.Text)
		}
	}
	e := b.open(wire.Open{Do: wire.Terminal})
	e.until("ready")
	e.size(0, 65535) // is taken as what a terminal can have
	e.typed("x")
	e.until("<x>")
	e.send(wire.Output, "is not the technician's")
	if err := <-e.served; err == nil {
		t.Error("a frame of the agent's kinds was taken")
	}
}

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

// A target that is slow on purpose has its time, whatever it trickles; a person
// who is asked is not in it.
func TestSES5_SlowHandshake(t *testing.T) {
	address := listen(t, func(c net.Conn) {
		for {
			if _, err := c.Write([]byte("x")); err != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
	b := begin(t, address, waits(func(w *times) { w.Handshake = 300 * time.Millisecond }), func(c *Config) {
		c.Material.User, c.Material.Password = "ada", password
	})
	e := b.open(wire.Open{Do: wire.Exec, Command: "id"})
	if ended, _, _ := e.end(); ended.Code != wire.Unreachable || !strings.Contains(ended.Reason, "300ms") {
		t.Errorf("ended %+v", ended)
	}
	s := startTarget(t, echo)
	b = begin(t, s.address, s.hosts, waits(func(w *times) { w.Handshake = time.Second }))
	e = b.open(wire.Open{Do: wire.Terminal})
	e.until("login as: ")
	e.typed("ada\r")
	e.until("password: ")
	time.Sleep(1500 * time.Millisecond)
	e.typed(password + "\r")
	e.until("ready")
}

// A target that takes a connection and answers nothing on it is given up, and
// so is one that has gone without a word.
func TestSES5_TargetThatStopsAnswering(t *testing.T) {
	s := startTarget(t, echo)
	deaf := make(chan struct{})
	proxy := listen(t, func(c net.Conn) {
		up, err := net.Dial("tcp", s.address)
		if err != nil {
			return
		}
		defer up.Close()
		go func() { _, _ = io.Copy(up, c) }()
		b := make([]byte, 4096)
		for {
			n, err := up.Read(b)
			if err != nil {
				return
			}
			select {
			case <-deaf: // what the target says is lost from here on
				continue
			default:
			}
			_, _ = c.Write(b[:n])
		}
	})
	b := begin(t, proxy, s.with, waits(func(w *times) { w.Answer, w.Alive = 300*time.Millisecond, 200*time.Millisecond }))
	e := b.open(wire.Open{Do: wire.Terminal})
	e.until("ready")
	close(deaf)
	if ended, _, _ := e.end(); ended.Code != wire.Unreachable {
		t.Errorf("ended %+v", ended)
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
