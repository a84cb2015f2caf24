package bench

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatehouse/appliance/cert/certtest"
	"gatehouse/tests/netns"
)

// hosted is a Gatehouse in a network namespace, without a machine of its own.
type hosted struct {
	host  *netns.Host
	state string
	cmd   *exec.Cmd
}

func newHosted(b *testing.B) *hosted {
	b.Helper()
	h := &hosted{host: netns.New(b, "box"), state: b.TempDir()}
	for d := h.state; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil { // the roles have uids of their own
			b.Fatal(err)
		}
	}
	return h
}

// start runs the program until stop and returns its line when it is in a state.
func (h *hosted) start(b *testing.B, state string) map[string]string {
	b.Helper()
	h.cmd = exec.Command(built(b, "gatehoused"), "serve", "--state", h.state, "--https", "127.0.0.1:443", "--http", "127.0.0.1:80")
	h.cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "GATEHOUSE_HOSTED=host"}
	var log lines
	h.cmd.Stderr = &log
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	h.host.Do(b, h.cmd.Start)
	b.Cleanup(h.stop)
	found := make(chan string, 1)
	go func() {
		pattern := statusLine(state)
		for s := bufio.NewScanner(out); s.Scan(); {
			if m := pattern.FindStringSubmatch(s.Text() + "\n"); m != nil {
				select {
				case found <- m[1]:
				default:
				}
			}
		}
		close(found)
	}()
	select {
	case line, ok := <-found:
		if ok {
			return fields(line)
		}
	case <-time.After(patience):
	}
	b.Fatalf("it does not come to be %s:\n%s", state, log.String())
	return nil
}

// lines keeps what the program writes, for when it fails.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (h *hosted) stop() {
	if h.cmd == nil {
		return
	}
	_ = h.cmd.Process.Signal(syscall.SIGTERM)
	_ = h.cmd.Wait()
	h.cmd = nil
}

func (h *hosted) dial(b *testing.B) dialer {
	return func(_ context.Context, network, address string) (conn net.Conn, err error) {
		h.host.Do(b, func() error {
			conn, err = net.DialTimeout(network, address, patience)
			return nil
		})
		return conn, err
	}
}

// BenchmarkWeb measures a claimed Gatehouse over loopback, one request after
// the other. The same client and a server of the standard library alone show
// what of a new connection is the way through gateway and console.
func BenchmarkWeb(b *testing.B) {
	h := newHosted(b)
	line := h.start(b, "unclaimed")
	v := newVisitor(b, "https://127.0.0.1", h.dial(b))
	if err := v.own(line["code"]); err != nil {
		b.Fatal(err)
	}
	repeat := func(name string, once func() error) {
		b.Run(name, func(b *testing.B) {
			var times []time.Duration
			for b.Loop() {
				began := time.Now()
				if err := once(); err != nil {
					b.Fatal(err)
				}
				times = append(times, time.Since(began))
			}
			spread(b, times)
		})
	}
	page := func(path string) func() error {
		return func() error { _, err := v.get(path); return err }
	}
	connect := func(base string) func() error {
		return func() error {
			v := visitor{base: base, Client: http.Client{Transport: &http.Transport{
				TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DialContext: h.dial(b), DisableKeepAlives: true, ForceAttemptHTTP2: true}}}
			_, err := v.get("/api/v1/status")
			v.CloseIdleConnections()
			return err
		}
	}
	repeat("api-status", page("/api/v1/status"))
	repeat("page-status", page("/"))
	repeat("page-audit", page("/audit"))
	repeat("page-system", page("/system"))
	repeat("connect", connect("https://127.0.0.1"))
	repeat("connect-bare-server", connect(bareServer(b, h)))
}

// BenchmarkSignIn measures the first step, which Argon2id makes slow on
// purpose, as a stranger's browser on a new connection. The box has no second
// factor, or the brake on tries would ask for a pause after five; what one
// source may do at once is fewer than 30 tries.
func BenchmarkSignIn(b *testing.B) {
	h := newHosted(b)
	line := h.start(b, "unclaimed")
	if err := newVisitor(b, "https://127.0.0.1", h.dial(b)).claim(line["code"]); err != nil {
		b.Fatal(err)
	}
	var times []time.Duration
	for b.Loop() {
		if len(times) == 25 {
			continue
		}
		v := newVisitor(b, "https://127.0.0.1", h.dial(b))
		began := time.Now()
		if err := v.send("/sign-in", "/welcome/clock", "email", email, "password", password); err != nil {
			b.Fatal(err)
		}
		times = append(times, time.Since(began))
		v.CloseIdleConnections()
	}
	spread(b, times)
}

// bareServer is net/http with the same kind of certificate and settings.
func bareServer(b *testing.B, h *hosted) string {
	b.Helper()
	var l net.Listener
	h.host.Do(b, func() (err error) { l, err = net.Listen("tcp", "127.0.0.1:9443"); return err })
	s := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"name":"bare"}`) }),
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true,
			Certificates: []tls.Certificate{certtest.Self(b, certtest.Names("bare.local"))}},
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.ServeTLS(l, "", "") }()
	b.Cleanup(func() { _ = s.Close(); <-done })
	return "https://127.0.0.1:9443"
}

// BenchmarkRoles measures what each process has for itself, claimed, restarted
// and left alone. On a box the program's text is one copy for all of them.
func BenchmarkRoles(b *testing.B) {
	h := newHosted(b)
	line := h.start(b, "unclaimed")
	if err := newVisitor(b, "https://127.0.0.1", h.dial(b)).own(line["code"]); err != nil {
		b.Fatal(err)
	}
	h.stop()
	h.start(b, "ready")
	for b.Loop() {
		time.Sleep(time.Minute)
	}
	only(b)
	processes := append([]string{fmt.Sprint(h.cmd.Process.Pid)}, children(b, h.cmd.Process.Pid)...)
	for i, pid := range processes {
		role := "supervisor"
		if i > 0 {
			role = lastWord(b, pid)
		}
		rollup, err := os.ReadFile("/proc/" + pid + "/smaps_rollup")
		if err != nil {
			b.Fatal(err)
		}
		m := anonymous.FindSubmatch(rollup)
		if m == nil {
			b.Fatalf("smaps_rollup of %s has no anonymous memory: %s", role, rollup)
		}
		kilobytes, err := strconv.Atoi(string(m[1]))
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(kilobytes)*1024/1e6, role+"-MB")
	}
}

var anonymous = regexp.MustCompile(`(?m)^Anonymous:\s+(\d+) kB`)

// children are the processes that any thread of pid started.
func children(b *testing.B, pid int) (out []string) {
	b.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		b.Fatal(err)
	}
	for _, name := range lists {
		text, err := os.ReadFile(name)
		if err != nil {
			b.Fatal(err)
		}
		out = append(out, strings.Fields(string(text))...)
	}
	return out
}

// lastWord of a command line is the role.
func lastWord(b *testing.B, pid string) string {
	b.Helper()
	command, err := os.ReadFile("/proc/" + pid + "/cmdline")
	if err != nil {
		b.Fatal(err)
	}
	words := strings.Split(strings.TrimRight(string(command), "\x00"), "\x00")
	return words[len(words)-1]
}
