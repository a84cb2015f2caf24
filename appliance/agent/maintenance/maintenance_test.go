package maintenance

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/appliance/cert/certtest"
	"gatehouse/appliance/control"
)

// screen is a person at the console.
type screen struct {
	t    *testing.T
	keys chan []byte
	done chan error

	mu  sync.Mutex
	out []byte
}

func sit(t *testing.T, b Box) *screen {
	t.Helper()
	s := &screen{t: t, keys: make(chan []byte), done: make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	go func() {
		s.done <- Run(ctx, b, func(ctx context.Context) ([]byte, error) {
			select {
			case k, ok := <-s.keys:
				if !ok {
					return nil, io.EOF
				}
				return k, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}, s)
	}()
	s.until("gatehouse-7f3k> ")
	return s
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out = append(s.out, b...)
	return len(b), nil
}

// until waits for text, and takes what came to its end.
func (s *screen) until(text string) string {
	s.t.Helper()
	for range 400 {
		s.mu.Lock()
		if i := strings.Index(string(s.out), text); i >= 0 {
			i += len(text)
			got := string(s.out[:i])
			s.out = s.out[i:]
			s.mu.Unlock()
			return got
		}
		s.mu.Unlock()
		time.Sleep(10 * time.Millisecond)
	}
	s.t.Fatalf("%q does not come: %q", text, s.out)
	return ""
}

// do types a line and returns what it says.
func (s *screen) do(line string) string {
	s.t.Helper()
	s.keys <- []byte(line + "\r")
	s.until("\r\n")
	return s.until("gatehouse-7f3k> ")
}

func box() Box {
	return Box{
		Status: func(context.Context) (control.Status, error) {
			return control.Status{
				Name: "gatehouse-7f3k", State: control.StateReady, Version: "0.1.0", Now: time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC),
				Clock: control.Clock{Source: "ntp", Servers: 3},
				Links: []control.Link{{Name: "eth0", Carrier: true, MAC: "02:00:00:00:00:01", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}, Source: "dhcp"}},
				Roles: []control.RoleStatus{{Name: control.Agent, State: "running", LastEnd: "\x1b[31mexit 1"}},
			}, nil
		},
		Log: func(_ context.Context, q control.LogQuery) (control.LogLines, error) {
			var l control.LogLines
			for i := range 1000 { // more than was asked for
				l.Lines = append(l.Lines, control.LogLine{Role: q.Role, Text: fmt.Sprintf("line %d \x1b]0;owned\x07\u202e\r\nforged line", i)})
			}
			return l, nil
		},
		Resolve: func(_ context.Context, name string) ([]netip.Addr, error) {
			if name != "nas.lan" {
				return nil, errors.New("no such host")
			}
			return []netip.Addr{netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("::ffff:127.0.0.1")}, nil
		},
		Connect: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("connection refused") },
	}
}

func TestSES4_ConsoleSaysHowTheBoxIs(t *testing.T) {
	s := sit(t, box())
	for line, want := range map[string]string{
		"help": "connect HOST PORT [tls]", "status": "ready", "interfaces": "192.0.2.1/24", "time": "2026-11-28T12:00:00Z, from ntp",
		"resolve nas.lan": "192.0.2.9", "resolve nowhere": "no such host", "resolve 192.0.2.4": "192.0.2.4",
	} {
		if got := s.do(line); !strings.Contains(got, want) {
			t.Errorf("%s: %q", line, got)
		}
	}
	if got := s.do("log agent 3"); strings.Count(got, "\r\n") != 3 || !strings.Contains(got, "agent") {
		t.Errorf("three lines: %q", got)
	}
}

// It is no shell: what is not one of its words does nothing.
func TestSES5_ConsoleIsNoShell(t *testing.T) {
	b := box()
	b.Connect = func(context.Context, string, string) (net.Conn, error) {
		t.Error("connected")
		return nil, errors.New("no")
	}
	s := sit(t, b)
	for _, line := range []string{
		"sh", "/bin/sh", "status; sh", "status && id", "$(id)", "`id`", "!!", "help me", "log a b c", "log 0", "log 501", "log -1", "connect", "connect nas.lan",
		"connect nas.lan 0", "connect nas.lan 65536", "connect nas.lan ssh", "connect 192.0.2.9 22 ssl", "resolve", "reboot", "quit now", "cat /etc/passwd",
		// and the box's own services are no part of the network that it tries
		"connect 127.0.0.1 22", "connect ::1 22", "connect 169.254.169.254 80", "connect 0.0.0.0 443", "connect 224.0.0.1 80", "connect ::ffff:127.0.0.1 22",
	} {
		got := s.do(line)
		if strings.Count(got, "\r\n") != 1 {
			t.Errorf("%s: %q", line, got)
		}
	}
	s.do("") // says nothing
}

// Whatever stands in a log, it cannot steer the terminal.
func TestSES4_ConsoleShowsHarmlessText(t *testing.T) {
	s := sit(t, box())
	for _, line := range []string{"log kernel 2", "status", "log \x1b[2J", strings.Repeat("x", 5000)} {
		got := s.do(line)
		if strings.ContainsAny(strings.ReplaceAll(got, "\r\n", ""), "\x1b\x07\u202e\r\n") {
			t.Errorf("%.20q: %q", line, got)
		}
	}
}

// serveTLS is a host in the network.
func serveTLS(t *testing.T) (connect func(context.Context, string, string) (net.Conn, error), fingerprint string) {
	t.Helper()
	own := certtest.Self(t, certtest.Names("nas.lan"), func(c *x509.Certificate) { c.Subject.CommonName = "nas\x1b[2J" })
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{own}})
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
			_ = c.(*tls.Conn).Handshake()
			c.Close()
		}
	}()
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, l.Addr().String())
	}, fmt.Sprintf("%x", sha256.Sum256(own.Leaf.Raw))
}

func TestSES4_ConsoleTriesTheNetwork(t *testing.T) {
	b := box()
	var print string
	b.Connect, print = serveTLS(t)
	s := sit(t, b)
	for line, secure := range map[string]bool{"connect nas.lan 443": true, "connect nas.lan 5001 tls": true, "connect nas.lan 9100": false} {
		got := s.do(line)
		if !strings.Contains(got, "answers") || !strings.Contains(got, "127.0.0.1: not tried") || strings.Contains(got, "\x1b") || strings.Contains(got, print) != secure || strings.Contains(got, "TLS 1.3") != secure {
			t.Errorf("%s: %q", line, got)
		}
	}
}

func TestSES4_ConsoleIsInterrupted(t *testing.T) {
	b := box()
	b.Connect = func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	s := sit(t, b)
	s.keys <- []byte("connect 192.0.2.9 22\r")
	s.until("\r\n")
	s.keys <- []byte("typed ahead, and not kept")
	s.keys <- []byte{3}
	s.until("canceled")
	s.until("> ")
	if got := s.do("time"); !strings.Contains(got, "2026") {
		t.Errorf("%q", got)
	}
}

func TestSES4_ConsoleIsLeft(t *testing.T) {
	for _, keys := range []string{"quit\r", "\x04"} {
		s := sit(t, box())
		s.keys <- []byte(keys)
		if err := <-s.done; err != nil {
			t.Errorf("%q: %v", keys, err)
		}
	}
	s := sit(t, box())
	close(s.keys) // the stream said goodbye
	if err := <-s.done; err != nil {
		t.Error(err)
	}
}
