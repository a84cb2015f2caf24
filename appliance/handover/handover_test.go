package handover

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatehouse/appliance/cert/certtest"
)

// TestMain lets the test binary be the receiving process.
func TestMain(m *testing.M) {
	if os.Getenv("HANDOVER_TEST_RECEIVER") == "1" {
		receiver()
		return
	}
	os.Exit(m.Run())
}

// receiver serves HTTPS, HTTP/2 included, on what comes over descriptor 3.
func receiver() {
	l, err := NewListener(os.NewFile(3, "pair"), slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	own, err := certtest.New()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s %s uid=%d", r.Proto, r.RemoteAddr, os.Getuid())
		}),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{own}, MinVersion: tls.VersionTLS13},
	}
	fmt.Println("ready")
	fmt.Fprintln(os.Stderr, srv.ServeTLS(l, "", ""))
}

func pair(t *testing.T) (gateway, console *os.File) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	gateway, console = os.NewFile(uintptr(fds[0]), "gateway"), os.NewFile(uintptr(fds[1]), "console")
	t.Cleanup(func() { gateway.Close(); console.Close() })
	return gateway, console
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// accepted is one TCP connection of which the server has read what the client wrote.
func accepted(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func metaOf(c net.Conn) Meta {
	return Meta{Kind: Web, Remote: netip.MustParseAddrPort(c.RemoteAddr().String()),
		Local: netip.MustParseAddrPort(c.LocalAddr().String()), Scopes: []string{"console"}}
}

// TestListenerRefuses sends what a gateway in other hands might, then one good
// connection: every bad one is dropped, and the good one still comes.
func TestListenerRefuses(t *testing.T) {
	gw, co := pair(t)
	l, err := NewListener(co, quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, server := accepted(t)
	f, err := server.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	u, err := udp.File()
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	good, err := appendMessage(nil, metaOf(server), nil)
	if err != nil {
		t.Fatal(err)
	}
	last := metaOf(server)
	last.Scopes = []string{"last"}
	taken, err := appendMessage(nil, last, nil)
	if err != nil {
		t.Fatal(err)
	}
	lie := metaOf(server)
	lie.Remote = netip.MustParseAddrPort("198.51.100.1:1")
	liar, err := appendMessage(nil, lie, nil)
	if err != nil {
		t.Fatal(err)
	}
	wrongKind, err := appendMessage(nil, Meta{Kind: Agent}, nil)
	if err != nil {
		t.Fatal(err)
	}
	send := func(b []byte, fds ...int) {
		t.Helper()
		var oob []byte
		if len(fds) > 0 {
			oob = syscall.UnixRights(fds...)
		}
		if err := syscall.Sendmsg(int(gw.Fd()), b, oob, nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	tcp := int(f.Fd())
	before := openFiles(t)
	send(good)                                                   // no descriptor
	send(good, tcp, tcp)                                         // two
	send(good, tcp, tcp, tcp, tcp, tcp, tcp, tcp, tcp, tcp, tcp) // more than the receiver has room for
	send(good, int(null.Fd()))                                   // not a socket
	send(good, int(u.Fd()))                                      // not a stream
	send(good, int(co.Fd()))                                     // not a connection of a client
	send([]byte("nonsense"), tcp)                                //
	send(append(good, make([]byte, MaxPeeked+maxHead)...), tcp)  // too long
	send(liar, tcp)                                              // another address than the socket's
	send(wrongKind, tcp)                                         // the agent's socket is no TCP
	send(taken, tcp)
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if c.RemoteAddr().String() != server.RemoteAddr().String() {
		t.Errorf("RemoteAddr = %s, want %s", c.RemoteAddr(), server.RemoteAddr())
	}
	if m := c.(*Conn).Meta(); len(m.Scopes) != 1 || m.Scopes[0] != "last" {
		t.Errorf("one of the bad ones was taken: %+v", m)
	}
	c.Close()
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors are open, %d before: refused ones leak", after, before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func TestNotAPair(t *testing.T) {
	if _, err := NewSender(nil); err == nil {
		t.Error("a missing file is taken")
	}
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		f := os.NewFile(uintptr(fd), "stream")
		defer f.Close()
		if _, err := NewListener(f, quiet()); err == nil {
			t.Error("a stream socket is taken, which would join and split messages")
		}
	}
}

// TestSendIsBounded fills the queue of a receiver that is away.
func TestSendIsBounded(t *testing.T) {
	gw, co := pair(t)
	s, err := NewSender(gw)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, server := accepted(t)
	sent := 0
	for ; sent < 10000; sent++ {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		err = s.Send(ctx, server, metaOf(server), make([]byte, 1500))
		cancel()
		if err != nil {
			break
		}
	}
	if !errors.Is(err, context.DeadlineExceeded) || sent == 0 {
		t.Fatalf("after %d: %v, want the deadline", sent, err)
	}
	t.Logf("%d connections waited for the receiver", sent)
	// It comes back: what waited is served, and there is room again.
	l, err := NewListener(co, quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range sent {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	if err := s.Send(t.Context(), server, metaOf(server), nil); err != nil {
		t.Fatalf("after the receiver came back: %v", err)
	}
}

func TestConnGivesPeekedBytesFirst(t *testing.T) {
	gw, co := pair(t)
	s, err := NewSender(gw)
	if err != nil {
		t.Fatal(err)
	}
	l, err := NewListener(co, quiet())
	if err != nil {
		t.Fatal(err)
	}
	client, server := accepted(t)
	if _, err := client.Write([]byte("first second")); err != nil {
		t.Fatal(err)
	}
	peeked := make([]byte, 6)
	if _, err := io.ReadFull(server, peeked); err != nil {
		t.Fatal(err)
	}
	m := metaOf(server)
	if err := s.Send(t.Context(), server, m, peeked); err != nil {
		t.Fatal(err)
	}
	server.Close() // the sender's copy: the connection must live on
	client.CloseWrite()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, bad := range []string{"io.ReaderFrom", "io.WriterTo", "syscall.Conn"} {
		var has bool
		switch bad {
		case "io.ReaderFrom":
			_, has = c.(io.ReaderFrom)
		case "io.WriterTo":
			_, has = c.(io.WriterTo)
		case "syscall.Conn":
			_, has = c.(syscall.Conn)
		}
		if has {
			t.Errorf("the connection is an %s: the peeked bytes could be passed by", bad)
		}
	}
	var got bytes.Buffer
	if _, err := io.Copy(&got, c); err != nil || got.String() != "first second" {
		t.Errorf("read %q, %v", got.String(), err)
	}
	if hc := c.(*Conn); hc.Meta().Kind != Web || hc.Meta().Remote != m.Remote || hc.Meta().Scopes[0] != "console" {
		t.Errorf("Meta = %+v", hc.Meta())
	}
	if _, err := c.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	if err := c.(*Conn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(client); err != nil || string(b) != "answer" {
		t.Errorf("the client read %q, %v", b, err)
	}
	l.Close()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close = %v", err)
	}
}

// TestListenerMakesRoom opens one connection more than a source may have: the
// one that was silent longest is closed, not the newest and not a busy one.
func TestListenerMakesRoom(t *testing.T) {
	l := &Listener{log: quiet(), open: make(map[*Conn]netip.Prefix), source: make(map[netip.Prefix]int)}
	src := netip.MustParsePrefix("192.0.2.1/32")
	var all []*Conn
	var ends []net.Conn
	add := func() *Conn {
		a, b := net.Pipe()
		c := &Conn{inner: a, peeked: []byte("x"), remote: a.RemoteAddr()}
		c.active.Store(int64(len(all) + 1))
		all, ends = append(all, c), append(ends, b)
		l.admit(c, src)
		c.release = func() { l.forget(c) }
		return c
	}
	for range maxPerSource {
		add()
	}
	all[0].touch() // the oldest is busy
	add()
	closed := func(c net.Conn) bool {
		c.SetReadDeadline(time.Now().Add(time.Millisecond))
		_, err := c.Read(make([]byte, 1))
		return errors.Is(err, io.EOF)
	}
	for i, want := range map[int]bool{0: false, 1: true, 2: false, maxPerSource: false} {
		if got := closed(ends[i]); got != want {
			t.Errorf("connection %d closed: %v, want %v", i, got, want)
		}
	}
	for _, c := range all {
		c.Close()
		c.Close()
	}
	if len(l.open) != 0 || len(l.source) != 0 {
		t.Errorf("after all were closed %d connections and %d sources are counted", len(l.open), len(l.source))
	}
}

// TestBOX12_HandoverBetweenUids passes real connections to a process of
// another uid that speaks HTTP/2 on them, kills it, and passes one while it is
// away: it is answered by the next incarnation on the same pair.
func TestBOX12_HandoverBetweenUids(t *testing.T) {
	gw, co := pair(t)
	s, err := NewSender(gw)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			first := make([]byte, 3)
			_, err = io.ReadFull(c, first)
			if err == nil {
				err = s.Send(context.Background(), c.(*net.TCPConn), metaOf(c), first)
			}
			if err != nil {
				t.Errorf("handing over: %v", err)
			}
			c.Close()
		}
	}()
	get := func() (string, error) {
		tr := &http.Transport{ForceAttemptHTTP2: true, DisableKeepAlives: true,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
		defer tr.CloseIdleConnections()
		r, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Get("https://" + l.Addr().String() + "/")
		if err != nil {
			return "", err
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		return string(b), err
	}
	want := func(got string, err error) {
		t.Helper()
		if err != nil || !strings.HasPrefix(got, "HTTP/2.0 127.0.0.1:") || !strings.HasSuffix(got, " uid=60903") {
			t.Fatalf("answer %q, %v", got, err)
		}
	}
	stop := start(t, co)
	want(get())
	stop()
	type answer struct {
		text string
		err  error
	}
	late := make(chan answer, 1)
	go func() {
		text, err := get()
		late <- answer{text, err}
	}()
	time.Sleep(200 * time.Millisecond) // it is waiting in the socket now, or will
	stop = start(t, co)
	a := <-late
	want(a.text, a.err)
	want(get())
	stop()
}

func start(t *testing.T, pair *os.File) (kill func()) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{"HANDOVER_TEST_RECEIVER=1"}
	cmd.ExtraFiles = []*os.File{pair}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 60903, Gid: 60903}, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting the receiver as uid 60903 (the tests run as root): %v", err)
	}
	if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
		t.Fatalf("the receiver did not start: %v", err)
	}
	return func() {
		cmd.Process.Kill()
		cmd.Wait()
	}
}
