package console

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gatehouse/appliance/cert"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
	"gatehouse/appliance/handover"
	"gatehouse/netfilter/allowlist"
)

// door is a console with two routes of its own and lists that the test changes.
type door struct {
	*testing.T
	address  string
	listener *handover.Listener
	scope    atomic.Uint32 // of every source
}

func (d *door) scopes(netip.Addr) allowlist.Scope { return allowlist.Scope(d.scope.Load()) }

// echoes takes the connection over, as a WebSocket does, and says what it hears.
func echoes(v *shell.Visit) error {
	c, rw, err := http.NewResponseController(v.W).Hijack()
	if err != nil {
		return err
	}
	go func() {
		defer c.Close()
		c.SetDeadline(time.Time{})
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		io.Copy(c, rw)
	}()
	return nil
}

func newDoor(t *testing.T) *door {
	t.Helper()
	d := &door{T: t}
	d.scope.Store(uint32(allowlist.Everything))
	log := slog.New(slog.DiscardHandler)
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	near, far := os.NewFile(uintptr(fds[0]), "gateway"), os.NewFile(uintptr(fds[1]), "console")
	defer near.Close()
	defer far.Close()
	sender, err := handover.NewSender(near)
	if err != nil {
		t.Fatal(err)
	}
	if d.listener, err = handover.NewListener(far, log); err != nil {
		t.Fatal(err)
	}
	box := &shell.Box{Name: "box", Wall: time.Now, Scopes: d.scopes, Log: log}
	says := func(v *shell.Visit) error { return v.JSON(http.StatusOK, v.R.Proto) }
	row := func(path string, s allowlist.Scope, h func(*shell.Visit) error) shell.Route {
		return shell.Route{Method: "GET", Path: path, States: shell.InEach, Scope: s, API: true, Handle: h}
	}
	router, err := shell.NewRouter(box, control.StateReady, []shell.Route{
		row("/console", 0, says), row("/sites", allowlist.Sites, says), row("/console/socket", 0, echoes), row("/sites/socket", allowlist.Sites, echoes),
	})
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := cert.Ephemeral("box")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.address = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		serve(ctx, d.listener, cert.ServerConfig(certificate, protocols...), shell.Guard(box, []string{"box"}, router), log)
	}()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			m := handover.Meta{Kind: handover.Web, Remote: plain(c.RemoteAddr()), Local: plain(c.LocalAddr())}
			sender.Send(ctx, c.(*net.TCPConn), m, nil)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); cancel(); <-done; sender.Close() })
	return d
}

func plain(a net.Addr) netip.AddrPort { return netip.MustParseAddrPort(a.String()) }

func (d *door) dial(protocol string) net.Conn {
	d.Helper()
	raw, err := net.Dial("tcp", d.address)
	if err != nil {
		d.Fatal(err)
	}
	d.Cleanup(func() { raw.Close() })
	if protocol == "" {
		return raw
	}
	c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}})
	if err := c.Handshake(); err != nil {
		d.Fatal(err)
	}
	return c
}

// asked is a connection over which a path was asked for, and answered.
func (d *door) asked(path string, want int) (net.Conn, *bufio.Reader) {
	d.Helper()
	c := d.dial("http/1.1")
	r := bufio.NewReader(c)
	d.ask(c, r, path, want)
	return c, r
}

func (d *door) ask(c net.Conn, r *bufio.Reader, path string, want int) {
	d.Helper()
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n", path)
	answer, err := http.ReadResponse(r, nil)
	if err != nil {
		d.Fatalf("%s: %v", path, err)
	}
	if want != http.StatusSwitchingProtocols {
		io.Copy(io.Discard, answer.Body)
	}
	if answer.StatusCode != want {
		d.Fatalf("%s answers %d, want %d", path, answer.StatusCode, want)
	}
}

func heard(c net.Conn, r *bufio.Reader) error {
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(c, "hello"); err != nil {
		return err
	}
	_, err := io.ReadFull(r, make([]byte, len("hello")))
	return err
}

// ended waits for the other end to close it.
func (d *door) ended(what string, c net.Conn) {
	d.Helper()
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	c.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.Copy(io.Discard, c); err != nil {
		if e, ok := err.(net.Error); ok && e.Timeout() {
			d.Errorf("%s lives on", what)
		}
	}
}

// settled waits until that many connections have come through.
func (d *door) settled(n int) {
	d.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		open := 0
		d.listener.Cut(func(netip.Addr, allowlist.Scope) bool { open++; return true })
		if open == n {
			return
		}
	}
	d.Fatalf("%d connections never came through", n)
}

// TestNET4_EveryKindOfConnectionIsCut: whatever a connection has become, it
// ends when its source is taken off.
func TestNET4_EveryKindOfConnectionIsCut(t *testing.T) {
	d := newDoor(t)
	silent := d.dial("")
	middle := d.dial("") // in the middle of its handshake: a ClientHello that does not end
	if _, err := middle.Write([]byte{22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3}); err != nil {
		t.Fatal(err)
	}
	two := d.dial("h2")
	idle, _ := d.asked("/console", 200)
	socket, socketReader := d.asked("/console/socket", 101)
	if err := heard(socket, socketReader); err != nil {
		t.Fatal(err)
	}
	d.settled(5)
	d.scope.Store(0)
	if n := cut(d.listener, d.scopes); n != 5 {
		t.Errorf("%d of 5 connections were cut", n)
	}
	d.ended("a silent connection", silent)
	d.ended("a connection in its handshake", middle)
	d.ended("HTTP/2", two)
	d.ended("HTTP/1.1, kept alive", idle)
	d.ended("a connection that was taken over", socket)
	d.settled(0)
}

// TestNET2_ScopeOfOpenSockets: the kernel admits the union, so a source that
// keeps one scope and loses another is judged here: sockets of the lost one end,
// those of the other stay, and what is asked anew is judged anew.
func TestNET2_ScopeOfOpenSockets(t *testing.T) {
	d := newDoor(t)
	lost, _ := d.asked("/console/socket", 101)
	kept, keptReader := d.asked("/sites/socket", 101)
	idle, idleReader := d.asked("/sites", 200)
	two := &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer two.CloseIdleConnections()
	get := func(path string) (int, string) {
		t.Helper()
		r, err := two.Get("https://" + d.address + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, _ := io.ReadAll(r.Body)
		return r.StatusCode, string(b)
	}
	if code, proto := get("/console"); code != 200 || proto != "\"HTTP/2.0\"\n" {
		t.Fatalf("%d %q", code, proto)
	}
	d.settled(4)
	d.scope.Store(uint32(allowlist.Sites))
	if n := cut(d.listener, d.scopes); n != 1 {
		t.Errorf("%d connections were cut, want the socket of the console alone", n)
	}
	d.ended("the console's socket", lost)
	if err := heard(kept, keptReader); err != nil {
		t.Errorf("the sites' socket: %v", err)
	}
	if code, _ := get("/console"); code != 403 {
		t.Errorf("HTTP/2, the same connection: the console answers %d", code)
	}
	if code, _ := get("/sites"); code != 200 {
		t.Errorf("HTTP/2, the same connection: a site's path answers %d", code)
	}
	d.ask(idle, idleReader, "/console", 403)
	d.ask(idle, idleReader, "/console/socket", 403)
	d.settled(3)
}
