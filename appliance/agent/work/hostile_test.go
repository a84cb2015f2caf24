package work

import (
	"bytes"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"gatehouse/appliance/agent/reach"
	"gatehouse/appliance/session/wire"
)

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
