package gateway

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatehouse/appliance/cert"
	"gatehouse/appliance/control"
	"gatehouse/appliance/handover"
)

// TestMain lets the test binary be a process of another uid that uses the
// agent's socket.
func TestMain(m *testing.M) {
	if path := os.Getenv("GATEWAY_TEST_DIAL"); path != "" {
		c, err := net.Dial("unix", path)
		if err == nil {
			c.SetDeadline(time.Now().Add(30 * time.Second))
			io.WriteString(c, "GET / HTTP/1.0\r\n\r\n") // fails if it is closed already
			var b []byte
			b, err = io.ReadAll(c)
			fmt.Printf("%s", b)
		}
		if err != nil {
			fmt.Printf("error: %v", err)
		}
		return
	}
	os.Exit(m.Run())
}

// bed is a gateway that runs with all that the supervisor gives it, and a
// console behind it.
type bed struct {
	https, http, agent string
	end                func() error
}

func newBed(t *testing.T, locked bool) bed {
	t.Helper()
	dir, err := os.MkdirTemp("", "gw") // short: a socket's path has 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b := bed{agent: filepath.Join(dir, "agent.sock")}
	env := control.Environment{Locked: locked, State: t.TempDir(), Files: make(map[string]*os.File)}
	listen := func(name, network, address string) string {
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		f, err := l.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close(); l.Close() })
		env.Files[name] = f
		return l.Addr().String()
	}
	b.https = listen(control.FileHTTPS, "tcp", "127.0.0.1:0")
	b.http = listen(control.FileHTTP, "tcp", "127.0.0.1:0")
	listen(control.FileAgent, "unix", b.agent)
	if err := os.Chmod(b.agent, 0o777); err != nil { // so that the uid is what refuses
		t.Fatal(err)
	}
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	env.Files[control.FileConsole] = os.NewFile(uintptr(fds[0]), "console")
	pair := os.NewFile(uintptr(fds[1]), "gateway")
	t.Cleanup(func() { env.Files[control.FileConsole].Close(); pair.Close() })
	console(t, pair)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	client := controlled(t)
	go func() { done <- Run(ctx, env, client, slog.New(slog.DiscardHandler)) }()
	b.end = func() error { cancel(); err := <-done; done <- err; return err }
	t.Cleanup(func() { b.end() })
	return b
}

// controlled is a client of a control server that knows the name of the box.
func controlled(t *testing.T) *control.Client {
	t.Helper()
	s := control.NewServer(slog.New(slog.DiscardHandler), func(int, uint32) (control.Role, bool) { return control.Gateway, true })
	control.Handle(s, control.OpStatus, func(context.Context, control.Role, control.None) (control.Status, error) {
		return control.Status{Name: "gatehouse-7f3k"}, nil
	})
	control.Handle(s, control.OpKey, func(context.Context, control.Role, control.KeyRequest) (control.Key, error) {
		return control.Key{Key: make([]byte, 32)}, nil
	})
	control.Handle(s, control.OpMeetingSet, func(_ context.Context, _ control.Role, q control.Meeting) (control.None, error) {
		gatewayKey.Store(&q)
		return control.None{}, nil
	})
	control.Handle(s, control.OpMeeting, func(context.Context, control.Role, control.None) (control.Meeting, error) {
		return control.Meeting{Organisation: organisationKey.Public().(ed25519.PublicKey)}, nil
	})
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "c"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ctx, l) }()
	c, err := control.Dial(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); cancel(); l.Close(); <-done })
	return c
}

// console answers with what it was told of a connection.
func console(t *testing.T, pair *os.File) {
	t.Helper()
	l, err := handover.NewListener(pair, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	c, err := cert.Ephemeral("gatehouse-7f3k")
	if err != nil {
		t.Fatal(err)
	}
	type metaKey struct{}
	srv := &http.Server{
		TLSConfig: cert.ServerConfig(c),
		ErrorLog:  slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, metaKey{}, c.(*tls.Conn).NetConn().(*handover.Conn).Meta())
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			m := r.Context().Value(metaKey{}).(handover.Meta)
			fmt.Fprintf(w, "%s %s %s %s %v", r.Proto, m.Kind, r.RemoteAddr, m.Remote, m.Scopes)
		}),
	}
	go srv.ServeTLS(l, "", "")
	t.Cleanup(func() { srv.Close() })
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// closed waits until the other side ends the connection and gives what it said.
func closed(c net.Conn, within time.Duration) (string, error) {
	c.SetReadDeadline(time.Now().Add(within))
	b, err := io.ReadAll(c)
	if errors.Is(err, syscall.ECONNRESET) {
		err = nil
	}
	return string(b), err
}

func TestPort443Refuses(t *testing.T) {
	b := newBed(t, false)
	hello := clientHelloOf(t, "h2")
	for name, sent := range map[string][]byte{
		"HTTP":               []byte("GET / HTTP/1.1\r\nHost: box\r\n\r\n"),
		"SSH":                []byte("SSH-2.0-OpenSSH_9.2\r\n"),
		"zero bytes":         make([]byte, 1000),
		"a broken hello":     append(bytes.Clone(hello[:20]), bytes.Repeat([]byte{0xFF}, len(hello)-20)...),
		"64 KiB of one byte": bytes.Repeat([]byte{22, 3, 1, 0, 1, 1}, 12000),
		"two ALPN":           withALPN(alpn("h2"), alpn("h2")),
	} {
		c := dial(t, b.https)
		c.Write(sent) // it may be closed before all is written
		if said, err := closed(c, 10*time.Second); said != "" || err != nil {
			t.Errorf("%s: answered %q, %v", name, said, err)
		}
	}
	for protocols, want := range map[string]byte{
		"gatehouse-tunnel/1":    alertNoApplicationProtocol,
		"gatehouse-relay/2":     alertNoApplicationProtocol,
		"gatehouse-tunnel/1 h2": alertIllegalParameter,
		"smtp":                  alertNoApplicationProtocol,
	} {
		c := dial(t, b.https)
		if _, err := c.Write(clientHelloOf(t, strings.Fields(protocols)...)); err != nil {
			t.Fatal(err)
		}
		if said, err := closed(c, 10*time.Second); said != string(alert(want)) || err != nil {
			t.Errorf("%s: answered %x, %v; want alert %d", protocols, said, err, want)
		}
	}
}

// TestSlowClientsAreClosed is bar 17's limit of 15 s, for each way of being slow.
func TestSlowClientsAreClosed(t *testing.T) {
	t.Parallel() // it waits
	b := newBed(t, false)
	hello := clientHelloOf(t, "h2")
	start := time.Now()
	type slow struct {
		name string
		conn net.Conn
	}
	var all []slow
	add := func(name, address string, first []byte, drip []byte) {
		c := dial(t, address)
		c.Write(first)
		go func() {
			for _, x := range drip {
				time.Sleep(300 * time.Millisecond)
				if _, err := c.Write([]byte{x}); err != nil {
					return
				}
			}
		}()
		all = append(all, slow{name, c})
	}
	add("443, silent", b.https, nil, nil)
	add("443, one byte", b.https, hello[:1], nil)
	add("443, half a hello", b.https, hello[:len(hello)/2], nil)
	add("443, a byte now and then", b.https, nil, hello)
	add("80, silent", b.http, nil, nil)
	add("80, half a request", b.http, []byte("GET / HTTP/1.1\r\nHost:"), nil)
	add("80, a byte now and then", b.http, nil, []byte("GET / HTTP/1.1\r\nHost: "+strings.Repeat("x", 60)))
	add("80, a body that never comes", b.http, []byte("GET / HTTP/1.1\r\nHost: box\r\nContent-Length: 9\r\n\r\n"), nil)
	for _, s := range all {
		if _, err := closed(s.conn, 15*time.Second-time.Since(start)); err != nil {
			t.Errorf("%s: still open after 15 s: %v", s.name, err)
		}
	}
}

func TestGoodClientsGetThroughAFlood(t *testing.T) {
	b := newBed(t, false)
	var flood []net.Conn
	for range 2 * maxSource {
		flood = append(flood, dial(t, b.https))
	}
	for range 20 {
		if got, err := get(b.https, "h2"); err != nil || !strings.HasPrefix(got, "HTTP/2.0 web") {
			t.Fatalf("under a flood: %q, %v", got, err)
		}
		flood = append(flood, dial(t, b.https))
	}
	if _, err := closed(flood[0], 3*time.Second); err != nil {
		t.Errorf("the oldest silent connection is still open: %v", err)
	}
	flood[len(flood)-1].SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := flood[len(flood)-1].Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the newest was closed instead: %v", err)
	}
}

func get(address string, protocols ...string) (string, error) {
	tr := &http.Transport{
		ForceAttemptHTTP2: protocols == nil || protocols[0] == "h2", DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, NextProtos: protocols},
	}
	defer tr.CloseIdleConnections()
	r, err := (&http.Client{Transport: tr, Timeout: 10 * time.Second}).Get("https://" + address + "/")
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	return string(body), err
}

func TestWebReachesTheConsole(t *testing.T) {
	for _, locked := range []bool{false, true} {
		b := newBed(t, locked)
		for _, c := range []struct {
			protocols []string
			want      string
		}{
			{[]string{"h2"}, "HTTP/2.0 web"},
			{[]string{"http/1.1"}, "HTTP/1.1 web"},
		} {
			got, err := get(b.https, c.protocols...)
			f := strings.SplitN(got, " ", 5)
			if err != nil || !strings.HasPrefix(got, c.want) || len(f) != 5 || f[2] != f[3] || f[4] != "[console sites visitors]" {
				t.Errorf("%q: %q, %v", c.protocols, got, err)
			}
		}
		c := dial(t, b.https)
		k := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
		if _, err := io.WriteString(k, "GET / HTTP/1.0\r\n\r\n"); err != nil {
			t.Fatalf("without ALPN: %v", err)
		}
		if said, err := closed(k, 10*time.Second); err != nil || !strings.Contains(said, " web ") {
			t.Errorf("without ALPN: %q, %v", said, err)
		}
		if err := b.end(); err != nil {
			t.Errorf("Run = %v", err)
		}
	}
}

func TestLocalSocketIsTheAgents(t *testing.T) {
	for uid, want := range map[uint32]bool{0: true, agentUID: true, 60902: true, 60901: false, 60903: false, 1000: false} {
		if got := mayBeAgent(uid, 60902); got != want {
			t.Errorf("uid %d: %v, want %v", uid, got, want)
		}
	}
	b := newBed(t, false)
	for uid, want := range map[uint32]bool{60999: false, agentUID: true} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = []string{"GATEWAY_TEST_DIAL=" + b.agent}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, Pdeathsig: syscall.SIGKILL}
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("running as uid %d (the tests run as root): %v", uid, err)
		}
		// Passed on, the console says that it speaks TLS.
		passed := strings.Contains(string(out), "HTTPS server")
		if strings.Contains(string(out), "timeout") {
			t.Errorf("uid %d was neither passed on nor refused: %q", uid, out)
		}
		if passed != want {
			t.Errorf("uid %d passed on: %v, want %v (%q)", uid, passed, want, out)
		}
	}
	c, err := net.Dial("unix", b.agent)
	if err != nil {
		t.Fatal(err)
	}
	k := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
	if _, err := io.WriteString(k, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if said, err := closed(k, 10*time.Second); err != nil || !strings.Contains(said, " agent ") {
		t.Errorf("the agent's connection: %q, %v", said, err)
	}
}

func TestRunNeedsItsFiles(t *testing.T) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		defer syscall.Close(fd)
	}
	c := controlled(t)
	env := control.Environment{Files: map[string]*os.File{}}
	if err := Run(t.Context(), env, c, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("it runs without the way to the console")
	}
	env.Files[control.FileConsole] = os.NewFile(uintptr(fds[0]), "console")
	if err := Run(t.Context(), env, c, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), control.FileHTTPS) {
		t.Errorf("without a listener: %v", err)
	}
}
