package work

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/control"
	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/wire"
)

// bench is a session with everything around it.
type bench struct {
	*Session
	t   *testing.T
	cfg Config

	mu     sync.Mutex
	told   []attend.FromSite
	events []control.Event
	dialed []string
	refuse error // what the box's log says
	kept   []byte
	hub    bool // keeps recordings
}

// begin makes a session with the target that listens at address.
func begin(t *testing.T, address string, change ...func(*Config)) *bench {
	t.Helper()
	b := &bench{t: t, hub: true}
	now := time.Now()
	b.cfg = Config{
		Grant: session.Grant{
			ID: session.ID{1, 2, 3}, Site: strings.Repeat("5e", 16), Technician: "ada@example.com", Transport: session.TLS,
			Target:    session.Target{Name: "Accounts server", Kind: session.SSH, Host: "192.0.2.10", Port: 22},
			Functions: right.AllFunctions &^ right.Record, Recording: session.RecordingOff, From: now.Add(-time.Minute), Until: now.Add(time.Hour),
		},
		Material: attend.Material{Source: "198.51.100.7"},
		Dial: func(ctx context.Context, network, to string) (net.Conn, error) {
			b.mu.Lock()
			b.dialed = append(b.dialed, to)
			b.mu.Unlock()
			var d net.Dialer
			return d.DialContext(ctx, network, address)
		},
		Tell: b.tell, Spool: t.TempDir(), Now: time.Now, Log: slog.New(slog.DiscardHandler),
		Audit: func(_ context.Context, e control.Event) error {
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.refuse != nil {
				return b.refuse
			}
			b.events = append(b.events, e)
			return nil
		},
	}
	for _, f := range change {
		f(&b.cfg)
	}
	s, err := New(b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.Session = s
	t.Cleanup(func() {
		s.End("the test is over")
		select {
		case <-s.Done():
		case <-time.After(20 * time.Second):
			t.Error("the session does not end")
		}
	})
	return b
}

// tell is the line to the hub, which says that it has what came.
func (b *bench) tell(m attend.FromSite) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.told = append(b.told, m)
	if c := m.Chunk; c != nil && b.hub {
		if int(c.At) <= len(b.kept) {
			b.kept = append(b.kept[:c.At], c.Bytes...)
		}
		k := attend.Kept{Session: c.Session, Size: int64(len(b.kept))}
		go b.Session.Kept(k)
	}
	return nil
}

func (b *bench) whats() (all []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range b.told {
		if m.Event != nil {
			all = append(all, strings.TrimSpace(string(m.Event.What)+" "+m.Event.Text))
		}
	}
	return all
}

func (b *bench) audited(action, outcome string) (all []control.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.events {
		if e.Action == action && e.Outcome == outcome {
			all = append(all, e)
		}
	}
	return all
}

// over waits for the session to be gone.
func (b *bench) over() {
	b.t.Helper()
	select {
	case <-b.Done():
	case <-time.After(20 * time.Second):
		b.t.Fatalf("the session does not end; reason so far: %q", b.Reason())
	}
}

// stream is the technician's end of a new stream, which the session serves.
func (b *bench) stream() *end {
	b.t.Helper()
	ours, theirs := pair(b.t)
	e := &end{t: b.t, UnixConn: ours, served: make(chan error, 1)}
	go func() { e.served <- b.Serve(context.Background(), theirs) }()
	return e
}

// open opens a function, which has to be let through.
func (b *bench) open(o wire.Open) *end {
	b.t.Helper()
	e := b.stream()
	if err := wire.WriteOpen(e, o); err != nil {
		b.t.Fatal(err)
	}
	r, err := wire.ReadReply(e)
	if err != nil {
		b.t.Fatalf("opening %s: %v", o.Do, err)
	}
	e.reply = r
	return e
}

// refused opens a function, which has to be refused.
func (b *bench) refused(o wire.Open) *wire.Refusal {
	b.t.Helper()
	e := b.stream()
	// What is refused for its number is refused before it is read.
	if err := wire.WriteOpen(e, o); err != nil && !errors.Is(err, syscall.EPIPE) {
		b.t.Fatal(err)
	}
	_, err := wire.ReadReply(e)
	var r *wire.Refusal
	if !errors.As(err, &r) {
		b.t.Fatalf("opening %s: %v, want a refusal", o.Do, err)
	}
	return r
}

// pair is two ends of a stream: half closes and back-pressure as a carrier has them.
func pair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr)); err != nil {
		t.Fatal(err)
	}
	if b, err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// end is the technician's end of a stream.
type end struct {
	*net.UnixConn
	t      *testing.T
	served chan error
	reply  wire.Reply
	seen   uint64
	left   []byte // came, and was not waited for
}

// frame reads one, within ten seconds.
func (e *end) frame() (wire.Kind, []byte, error) {
	e.t.Helper()
	if err := e.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		e.t.Fatal(err)
	}
	k, b, err := wire.ReadFrame(e, make([]byte, wire.MaxFrame))
	if err == nil && k == wire.Output {
		e.seen += uint64(len(b))
	}
	return k, b, err
}

// until reads output until text has come, and returns all that came.
func (e *end) until(text string) string {
	e.t.Helper()
	all := e.left
	for !bytes.Contains(all, []byte(text)) {
		k, b, err := e.frame()
		if err != nil || k != wire.Output && k != wire.Stderr {
			e.t.Fatalf("waiting for %q: frame %q %q, %v; came: %q", text, k, b, err, all)
		}
		all = append(all, b...)
	}
	n := bytes.Index(all, []byte(text)) + len(text)
	e.left = bytes.Clone(all[n:])
	return string(all[:n])
}

// end reads to the last frame.
func (e *end) end() (wire.Ended, string, string) {
	e.t.Helper()
	out, stderr := e.left, []byte(nil)
	for {
		k, b, err := e.frame()
		if err != nil {
			e.t.Fatalf("waiting for the end: %v; came: %q %q", err, out, stderr)
		}
		switch k {
		case wire.Output:
			out = append(out, b...)
		case wire.Stderr:
			stderr = append(stderr, b...)
		case wire.Exit:
			var ended wire.Ended
			if err := json.Unmarshal(b, &ended); err != nil {
				e.t.Fatal(err)
			}
			return ended, string(out), string(stderr)
		default:
			e.t.Fatalf("a frame %q", k)
		}
	}
}

func (e *end) send(k wire.Kind, content string) {
	e.t.Helper()
	if err := wire.WriteFrame(e, k, []byte(content)); err != nil {
		e.t.Fatal(err)
	}
}

func (e *end) typed(text string) { e.t.Helper(); e.send(wire.Input, text) }

func (e *end) size(w, h int) {
	e.t.Helper()
	e.send(wire.Size, string(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, uint16(w)), uint16(h))))
}

// question reads what is asked.
func (e *end) question() wire.Question {
	e.t.Helper()
	k, b, err := e.frame()
	var q wire.Question
	if err != nil || k != wire.Ask || json.Unmarshal(b, &q) != nil {
		e.t.Fatalf("frame %q %q, %v; want a question", k, b, err)
	}
	return q
}

// newKey is a pair of keys of SSH, and its private half as PEM.
func newKey(t *testing.T) (ssh.Signer, []byte) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	return signer, pem.EncodeToMemory(block)
}

// openssh is an OpenSSH server at a port of loopback.
type openssh struct {
	address string
	host    ssh.PublicKey
	user    string
	key     []byte // that lets in
	log     *bytes.Buffer
}

func startOpenSSH(t *testing.T, options ...string) *openssh {
	t.Helper()
	dir := t.TempDir()
	hostKey, hostPEM := newKey(t)
	user, userPEM := newKey(t)
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().(*net.TCPAddr)
	l.Close()
	// A home of its own: what the shells of this machine's user do at their start is no part of the test.
	config := fmt.Sprintf("Port %d\nListenAddress 127.0.0.1\nHostKey %s\nAuthorizedKeysFile %s\nSetEnv HOME=%s\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\nPidFile none\nSubsystem sftp internal-sftp\n%s\n",
		address.Port, write("host", hostPEM), write("keys", ssh.MarshalAuthorizedKey(user.PublicKey())), t.TempDir(), strings.Join(options, "\n"))
	if os.Getuid() == 0 {
		// Where sshd puts the part of itself that has no rights; it is made by its service elsewhere.
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s := &openssh{address: address.String(), host: hostKey.PublicKey(), user: os.Getenv("USER"), key: userPEM, log: &bytes.Buffer{}}
	if s.user == "" {
		s.user = "root"
	}
	cmd := exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", write("config", []byte(config)))
	cmd.Stderr = s.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("sshd says:\n%s", s.log)
		}
	})
	for range 100 {
		c, err := net.Dial("tcp", s.address)
		if err == nil {
			c.Close()
			return s
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("sshd does not listen")
	return nil
}

// at is the credential and the key that let a session in.
func (s *openssh) at(c *Config) {
	c.Material.User, c.Material.PrivateKey, c.Material.HostKeys = s.user, s.key, [][]byte{s.host.Marshal()}
}

func TestSES4_TerminalOfOpenSSH(t *testing.T) {
	target := startOpenSSH(t)
	b := begin(t, target.address, target.at)
	e := b.open(wire.Open{Do: wire.Terminal, Width: 100, Height: 30, Term: "xterm"})
	e.typed("PS1=; stty size; echo $TERM $((6*7))\r")
	e.until("30 100")
	e.until("xterm 42")
	e.size(132, 43)
	e.typed("sleep 0.2; stty size\r")
	e.until("43 132")
	e.typed("exit 7\r")
	ended, _, _ := e.end()
	if ended.Status != 7 || ended.Reason != "" {
		t.Errorf("ended %+v", ended)
	}
	b.End("enough")
	b.over()
	if got := strings.Join(b.whats(), ", "); got != "joined, opened terminal, closed terminal, ended enough" {
		t.Errorf("told: %s", got)
	}
}

func TestSES4_ExecOfOpenSSH(t *testing.T) {
	target := startOpenSSH(t)
	b := begin(t, target.address, target.at)
	e := b.open(wire.Open{Do: wire.Exec, Command: "cat; echo err >&2; exit 3"})
	big := strings.Repeat("0123456789abcdef", 1<<10)
	go func() {
		for range 64 {
			if wire.WriteFrame(e, wire.Input, []byte(big)) != nil {
				return
			}
		}
		_ = wire.WriteFrame(e, wire.EOF, nil)
	}()
	ended, out, stderr := e.end()
	if ended.Status != 3 || len(out) != 64*len(big) || stderr != "err\n" {
		t.Errorf("ended %+v, %d bytes, %q", ended, len(out), stderr)
	}
	e = b.open(wire.Open{Do: wire.Exec, Command: "kill -TERM $$"})
	if ended, _, _ := e.end(); !strings.Contains(ended.Reason, "TERM") {
		t.Errorf("ended %+v", ended)
	}
}

// A command without a terminal that neither reads nor writes is told all the
// same when its technician leaves, and when the session ends.
func TestSES7_SilentCommandIsHungUp(t *testing.T) {
	for name, leave := range map[string]func(*bench, *end){
		"the technician leaves": func(_ *bench, e *end) { e.Close() },
		"the session ends":      func(b *bench, _ *end) { b.End("enough") },
	} {
		t.Run(name, func(t *testing.T) {
			signals, over := make(chan string, 1), make(chan struct{})
			defer close(over)
			target := startTarget(t, func(c ssh.Channel, _ string) { io.WriteString(c, "here"); <-over })
			target.signalled = func(name string) { signals <- name }
			b := begin(t, target.address, target.with)
			e := b.open(wire.Open{Do: wire.Exec, Command: "sleep 1000"})
			e.until("here")
			leave(b, e)
			select {
			case name := <-signals:
				if name != "HUP" {
					t.Errorf("it is sent %s", name)
				}
			case <-time.After(10 * time.Second):
				t.Error("it is told nothing")
			}
		})
	}
}

// Ten channels are what OpenSSH lets one connection have: the eleventh gets a
// connection of its own, and files do not take the last place of a terminal.
func TestSES4_ManyOfOpenSSH(t *testing.T) {
	target := startOpenSSH(t)
	b := begin(t, target.address, target.at, func(c *Config) {
		c.Files = func(_ context.Context, client *ssh.Client, st wire.Stream, _ wire.Open) error {
			ch, err := client.NewSession()
			if err == nil {
				defer ch.Close()
				err = ch.RequestSubsystem("sftp")
			}
			if err != nil {
				return wire.WriteRefusal(st, err)
			}
			return wire.WriteReply(st, wire.Reply{})
		}
	})
	for i := range 12 {
		e := b.open(wire.Open{Do: wire.Terminal})
		e.typed(fmt.Sprintf("echo $((%d*1000))\r", i+1))
		e.until(fmt.Sprintf("%d000", i+1))
	}
	b.open(wire.Open{Do: wire.Files})
	if b.mu.Lock(); len(b.dialed) != 1+4+1 { // eight share one, four and the files have their own
		t.Errorf("%d connections", len(b.dialed))
	}
	b.mu.Unlock()
}
