// Package hosted runs `gatehoused serve` in a network namespace: a whole Gatehouse in a second, without a boot.
package hosted

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatehouse/tests/netns"
)

// The programs under test; `make tools` builds them.
const (
	program = "../../build/gatehoused"
	tool    = "../../build/gatehouse"
)

// patience is how long a test waits for what must happen. Two busy cores are
// slow; nothing here is about speed.
const patience = 60 * time.Second

const password = "correct horse battery staple 9"

// box is one hosted Gatehouse.
type box struct {
	*testing.T
	host  *netns.Host
	state string
	env   []string
	args  []string
	at    string   // where the tool finds it
	wrap  []string // what starts it; none: it is started itself
	cmd   *exec.Cmd
	done  chan struct{}

	mu   sync.Mutex
	line status
	said string // words of a locked box, on its console
	log  bytes.Buffer
}

// status is the line that automation reads.
type status struct{ state, name, url, code, fingerprint string }

var statusLine = regexp.MustCompile(`^gatehouse: state=(\S+) name=(\S+) url=(\S+) code=(\S+) fingerprint=(\S+)$`)

func newBox(t *testing.T) *box {
	t.Helper()
	b := &box{T: t, host: netns.New(t, "box"), state: t.TempDir(), at: "127.0.0.1", env: []string{"GATEHOUSE_HOSTED=host"}}
	b.args = []string{"--https", "127.0.0.1:443", "--http", "127.0.0.1:80"}
	if err := os.Chmod(b.state, 0o755); err != nil { // the roles have uids of their own
		t.Fatal(err)
	}
	for d := b.state; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	return b
}

// launch starts the program and does not wait for anything.
func (b *box) launch() {
	b.Helper()
	exe, err := filepath.Abs(program)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := os.Stat(exe); err != nil {
		b.Fatalf("build the programs first, with make tools: %v", err)
	}
	words := append(append(b.wrap[:len(b.wrap):len(b.wrap)], exe, "serve", "--state", b.state), b.args...)
	b.cmd = exec.Command(words[0], words[1:]...)
	b.cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, b.env...)
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := b.cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	b.cmd.Stderr = writer(func(p []byte) {
		b.mu.Lock()
		b.log.Write(p)
		b.mu.Unlock()
	})
	b.line, b.said = status{}, ""
	b.host.Do(b.T, b.cmd.Start)
	done := make(chan struct{})
	b.done = done
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			if words, ok := strings.CutPrefix(s.Text(), "gatehouse: unlock words: "); ok {
				b.mu.Lock()
				b.said = words
				b.mu.Unlock()
			}
			if m := statusLine.FindStringSubmatch(s.Text()); m != nil {
				b.mu.Lock()
				b.line = status{m[1], m[2], m[3], m[4], m[5]}
				b.mu.Unlock()
			}
		}
		b.cmd.Wait()
		close(done)
	}()
	b.Cleanup(b.stop)
}

type writer func([]byte)

func (w writer) Write(p []byte) (int, error) { w(p); return len(p), nil }

// start launches and waits for a state.
func (b *box) start(state string) status {
	b.Helper()
	b.launch()
	return b.await(state)
}

func (b *box) now() status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.line
}

// unlockWords are those of a locked box.
func (b *box) unlockWords() (words string) {
	b.Helper()
	b.eventually("words of a locked box", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		words = b.said
		return words != ""
	})
	return words
}

func (b *box) await(state string) status {
	b.Helper()
	var got status
	b.eventually("state "+state, func() bool {
		got = b.now()
		return got.state == state && got.fingerprint != "-"
	})
	return got
}

// eventually waits for something that must become true.
func (b *box) eventually(what string, ok func() bool) {
	b.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if ok() {
			return
		}
		select {
		case <-b.done:
			b.Fatalf("waiting for %s: the program ended\n%s", what, b.output())
		default:
		}
	}
	b.Fatalf("waited %s in vain for %s; last line %+v\n%s", patience, what, b.now(), b.output())
}

func (b *box) output() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.log.String()
}

// stop ends it in order; kill as a power cut does.
func (b *box) stop() { b.end(syscall.SIGTERM) }
func (b *box) kill() { b.end(syscall.SIGKILL) }

func (b *box) end(sig syscall.Signal) {
	if b.cmd == nil || b.cmd.Process == nil {
		return
	}
	if sig == syscall.SIGKILL {
		// The roles die with the power as well: each is in the tree below.
		for _, pid := range children(b.cmd.Process.Pid) {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	b.cmd.Process.Signal(sig)
	select {
	case <-b.done:
	case <-time.After(patience):
		b.cmd.Process.Kill()
		<-b.done
		b.Errorf("it did not end within %s\n%s", patience, b.output())
	}
	b.cmd = nil
}

// children are the processes whose parent is pid.
func children(pid int) []int {
	var out []int
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, s := range stats {
		text, err := os.ReadFile(s)
		if err != nil {
			continue
		}
		var id, parent int
		after := string(text[bytes.LastIndexByte(text, ')')+1:])
		fmt.Sscanf(string(text), "%d", &id)
		var state string
		fmt.Sscanf(after, "%s %d", &state, &parent)
		if parent == pid {
			out = append(out, id)
		}
	}
	return out
}

// role is the process id of a role, by its command line.
func (b *box) role(name string) int {
	for _, pid := range children(b.cmd.Process.Pid) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if words := strings.Split(strings.TrimRight(string(text), "\x00"), "\x00"); err == nil && len(words) > 1 && words[len(words)-1] == name {
			return pid
		}
	}
	return 0
}

// client speaks with the box from inside its namespace, without checking the
// certificate: tests that care look at the fingerprint.
func (b *box) client() *http.Client {
	jar, err := cookiejar.New(nil)
	if err != nil {
		b.Fatal(err)
	}
	return &http.Client{
		Timeout: patience, Jar: jar,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext:     b.dial,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		},
	}
}

func (b *box) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	b.host.Do(b.T, func() error {
		conn, err = net.DialTimeout(network, address, patience)
		return nil
	})
	return conn, err
}

// fingerprint is what a browser's certificate viewer shows.
func (b *box) fingerprint(at string) string {
	b.Helper()
	sum := sha256.Sum256(b.certificate(at).Raw)
	return strings.ToUpper(strings.ReplaceAll(fmt.Sprintf("% x", sum), " ", ":"))
}

func (b *box) certificate(at string) *x509.Certificate {
	b.Helper()
	raw, err := b.dial(b.Context(), "tcp", at)
	if err != nil {
		b.Fatal(err)
	}
	defer raw.Close()
	conn := tls.Client(raw, &tls.Config{InsecureSkipVerify: true})
	if err := conn.HandshakeContext(b.Context()); err != nil {
		b.Fatal(err)
	}
	return conn.ConnectionState().PeerCertificates[0]
}

func (b *box) get(c *http.Client, path string) (int, string) {
	b.Helper()
	r, err := c.Get("https://127.0.0.1" + path)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		b.Fatal(err)
	}
	return r.StatusCode, string(text)
}

// run runs the operator's tool inside the namespace.
func (b *box) run(stdin string, args ...string) (string, int) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+b.state+"/../tool")
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	b.host.Do(b.T, cmd.Start)
	err := cmd.Wait()
	if err != nil && cmd.ProcessState == nil {
		b.Fatal(err)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// file writes a secret to a file for the tool, which takes none as an argument.
func (b *box) file(name, text string) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	return "file:" + path
}

// claim makes ann the owner, with the tool.
func (b *box) claim() {
	b.Helper()
	s := b.await("unclaimed")
	out, code := b.run("", "setup", b.at, "--code", b.file("code", s.code), "--name", "Ann Example",
		"--email", "ann@example.com", "--password", b.file("password", password), "--no-browser")
	if code != 0 {
		b.Fatalf("gatehouse setup ended with %d:\n%s\n%s", code, out, b.output())
	}
	b.await("ready")
}
