// Package filestest runs both ends of package files in tests: OpenSSH's own sftp-server as the target, and streams that can be cut.
package filestest

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/control"
	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/files/remote"
	"gatehouse/appliance/files/serve"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/wire"
)

// SFTPServer is where Debian's openssh-sftp-server has it.
const SFTPServer = "/usr/lib/openssh/sftp-server"

// Target runs an sftp-server for each connection, in dir.
func Target(t testing.TB, dir string, args ...string) func(context.Context) (io.ReadWriteCloser, error) {
	return func(context.Context) (io.ReadWriteCloser, error) {
		cmd := exec.Command(SFTPServer, append([]string{"-d", dir}, args...)...)
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			return nil, err
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		end := sync.OnceValue(func() error {
			in.Close()
			_ = cmd.Process.Kill() // it may have ended by itself
			_ = cmd.Wait()         // so its status means nothing
			return nil
		})
		t.Cleanup(func() { end() })
		return process{out, in, end}, nil
	}
}

type process struct {
	io.Reader
	io.Writer
	end func() error
}

func (p process) Close() error { return p.end() }

// Site is an agent that serves files, and what it wrote down.
type Site struct {
	serve.Config
	Fail func(control.Event) error // of the audit; nil: never
	Cuts []int64                   // the next streams are cut after so many bytes; 0: not

	t      testing.TB
	mu     sync.Mutex
	Events []control.Event
	Told   []attend.Event
	Opened int
	served sync.WaitGroup
}

// NewSite serves the files of a target.
func NewSite(t testing.TB, functions right.Functions, dial func(context.Context) (io.ReadWriteCloser, error)) *Site {
	a := remote.NewAccess(dial)
	t.Cleanup(func() { a.Close() })
	s := &Site{t: t}
	t.Cleanup(s.Wait)
	s.Config = serve.Config{Session: session.ID{1}, Technician: "ada@example.com", Address: "192.0.2.7", Target: "Accounts server", Functions: functions, Files: a,
		At: "192.0.2.5:22", Account: "ann", Claims: &remote.Claims{},
		Audit: func(_ context.Context, e control.Event) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.Fail != nil {
				if err := s.Fail(e); err != nil {
					return err
				}
			}
			s.Events = append(s.Events, e)
			return nil
		},
		Tell: func(m attend.FromSite) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.Told = append(s.Told, *m.Event)
			return nil
		},
	}
	return s
}

// Beside is another session of the same agent, with the same target or with
// another name of it.
func (s *Site) Beside(id session.ID, at string, dial func(context.Context) (io.ReadWriteCloser, error)) *Site {
	other := NewSite(s.t, s.Functions, dial)
	other.Session, other.At, other.Claims = id, at, s.Claims
	return other
}

// Open opens a stream to the site and reads the answer.
func (s *Site) Open(ctx context.Context, o wire.Open) (wire.Stream, wire.Reply, error) {
	st, err := s.Stream(ctx)
	if err != nil {
		return nil, wire.Reply{}, err
	}
	p, err := Ask(st, o)
	if err != nil {
		st.Close()
		return nil, p, err
	}
	return st, p, nil
}

// Ask says what a stream is for and reads the answer.
func Ask(st wire.Stream, o wire.Open) (wire.Reply, error) {
	if err := wire.WriteOpen(st, o); err != nil {
		return wire.Reply{}, err
	}
	return wire.ReadReply(st)
}

// Stream opens one to the site, over loopback.
func (s *Site) Stream(ctx context.Context) (wire.Stream, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	here, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, err
	}
	there, err := l.Accept()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.Opened++
	stream := &cut{TCPConn: here.(*net.TCPConn)}
	if len(s.Cuts) > 0 {
		if stream.left.Store(s.Cuts[0]); s.Cuts[0] > 0 {
			stream.limited = true
		}
		s.Cuts = s.Cuts[1:]
	}
	s.mu.Unlock()
	s.served.Go(func() {
		o, err := wire.ReadOpen(there)
		if err != nil {
			there.Close()
			return
		}
		_ = serve.Stream(context.Background(), s.Config, there.(*net.TCPConn), o) // the other end judges
	})
	s.t.Cleanup(func() { here.Close() })
	return stream, nil
}

// Wait ends when no stream is served any more: what was cut is settled.
func (s *Site) Wait() { s.served.Wait() }

// Snapshot is what was written down so far.
func (s *Site) Snapshot() (events []control.Event, told []attend.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append(events, s.Events...), append(told, s.Told...)
}

// cut is a stream that breaks without a word after some bytes, of both ways together.
type cut struct {
	*net.TCPConn
	limited bool
	left    atomic.Int64
}

func (c *cut) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	c.count(n)
	return n, err
}

func (c *cut) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	c.count(n)
	return n, err
}

func (c *cut) count(n int) {
	if c.limited && c.left.Add(-int64(n)) <= 0 {
		c.Close()
	}
}

// Random makes a file of so many bytes.
func Random(t testing.TB, path string, size int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.CopyN(f, rand.Reader, size); err != nil {
		t.Fatal(err)
	}
}

// SSHD is an OpenSSH server on loopback, for the account that runs the test.
type SSHD struct {
	Address string
	User    string
	KeyFile string // of the account, for ssh
	Known   string // the server's key, for ssh
	config  *ssh.ClientConfig
}

// NewSSHD starts one. It ends with the test.
func NewSSHD(t testing.TB) *SSHD {
	t.Helper()
	dir := t.TempDir()
	s := &SSHD{KeyFile: filepath.Join(dir, "key"), Known: filepath.Join(dir, "known")}
	who, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	s.User = who.Username
	hostKey, host := newKey(t, filepath.Join(dir, "host"))
	_, own := newKey(t, s.KeyFile)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Address = l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(s.Address)
	for name, text := range map[string]string{
		"authorized": string(ssh.MarshalAuthorizedKey(own.PublicKey())),
		"known":      "[127.0.0.1]:" + port + " " + string(ssh.MarshalAuthorizedKey(host.PublicKey())),
		"config": "ListenAddress 127.0.0.1:" + port + "\nHostKey " + hostKey + "\nAuthorizedKeysFile " + filepath.Join(dir, "authorized") +
			"\nPidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\nSubsystem sftp " + SFTPServer + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // where Debian's sshd looks for its empty folder
		t.Fatal(err)
	}
	cmd := exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", filepath.Join(dir, "config"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended by itself
		_ = cmd.Wait()         // so its status means nothing
	})
	s.config = &ssh.ClientConfig{User: s.User, Auth: []ssh.AuthMethod{ssh.PublicKeys(own)}, HostKeyCallback: ssh.FixedHostKey(host.PublicKey())}
	for range 100 {
		if c, err := net.Dial("tcp", s.Address); err == nil {
			c.Close()
			return s
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("sshd does not answer")
	return nil
}

// Dial connects to it.
func (s *SSHD) Dial(context.Context) (*ssh.Client, error) {
	return ssh.Dial("tcp", s.Address, s.config)
}

func newKey(t testing.TB, path string) (string, ssh.Signer) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return path, signer
}
