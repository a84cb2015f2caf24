package bench

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/carrier"
	"gatehouse/appliance/cert/certtest"
	"gatehouse/appliance/relay"
	"gatehouse/appliance/session"
	"gatehouse/tests/netns"
)

// The box's address, at which every relay listens, and the ports there.
const (
	near       = "10.9.0.1"
	agentPlain = near + ":7000" // the agent itself
	agentTLS   = near + ":7001"
	relays     = near + ":7002"
	sshPort    = "7022"
)

// What an agent is asked to do on a connection, in its first byte.
const (
	askEcho = 'e' // give every byte back
	askSend = 's' // followed by a length (8, big-endian): send as many bytes
)

// agent answers on one connection as every way's other end does. The first
// byte is its own: with it a connection is there.
func agent(c io.ReadWriter) error {
	if _, err := c.Write([]byte{'!'}); err != nil {
		return err
	}
	b := make([]byte, 128<<10)
	if _, err := io.ReadFull(c, b[:1]); err != nil {
		return err
	}
	if b[0] == askEcho {
		_, err := io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, b)
		return err
	}
	if _, err := io.ReadFull(c, b[:8]); err != nil {
		return err
	}
	for left := binary.BigEndian.Uint64(b); left > 0; {
		n, err := c.Write(b[:min(left, uint64(len(b)))])
		if err != nil {
			return err
		}
		left -= uint64(n)
	}
	return nil
}

// A way leads from a technician to an agent.
type way struct {
	name  string
	start func(w *world) *running // fresh
}

// running is a way whose processes run.
type running struct {
	pids func() []int
	stop func()
	// open makes a connection to an agent from a host, and says how long that took until the agent's first byte.
	open func(from *netns.Host) (io.ReadWriteCloser, time.Duration, error)
	// further makes another one within the session of the first; nil where a session is one connection.
	further func(io.ReadWriteCloser) (io.ReadWriteCloser, error)
	// wait makes an agent wait for a technician who does not come; nil where there is no such thing.
	wait func() (io.Closer, error)
}

// world is a box, and a far place behind a cable of 100 ms.
type world struct {
	b           *testing.B
	box, far    *netns.Host
	signer      ed25519.PrivateKey
	agent, tech tls.Certificate
	grant       session.Grant
	dir         string
}

func newWorld(b *testing.B) *world {
	b.Helper()
	w := &world{b: b, box: netns.New(b, "box"), far: netns.New(b, "far"), dir: b.TempDir()}
	_, signer, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	w.signer = signer
	for _, own := range []*tls.Certificate{&w.agent, &w.tech} {
		if *own, err = certtest.New(); err != nil {
			b.Fatal(err)
		}
	}
	w.grant = w.newGrant()
	w.cable()
	w.serve(agentPlain, func(c net.Conn) error { return agent(c) })
	w.serve(agentTLS, func(c net.Conn) error {
		t, err := relay.Agent(b.Context(), c, w.grant, w.agent)
		if err != nil {
			return err
		}
		return errors.Join(agent(t), t.CloseWrite())
	})
	return w
}

// serve has an agent at an address of the box.
func (w *world) serve(address string, do func(net.Conn) error) {
	w.b.Helper()
	var l net.Listener
	w.box.Do(w.b, func() (err error) { l, err = net.Listen("tcp", address); return err })
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = each(l, func(c *net.TCPConn) { _ = do(c) }) // ends with the listener
	}()
	w.b.Cleanup(func() { l.Close(); <-done })
}

func (w *world) newGrant() session.Grant {
	id, err := session.NewID(rand.Reader)
	if err != nil {
		w.b.Fatal(err)
	}
	now := time.Now().Truncate(time.Second)
	return session.Grant{
		ID: id, Site: strings.Repeat("5e", 16), Technician: "ada@example.com", Transport: session.TLS, Key: session.KeyOf(w.tech.Leaf), Agent: session.KeyOf(w.agent.Leaf),
		Target: session.Target{Name: "x", Kind: session.SSH, Host: "192.0.2.1", Port: 22}, Functions: right.RemoteControl, Recording: session.RecordingOff,
		From: now, Until: now.Add(time.Hour),
	}
}

// dial connects from a host, and says when that began.
func (w *world) dial(from *netns.Host, address string) (c net.Conn, began time.Time, err error) {
	from.Do(w.b, func() error {
		began = time.Now()
		c, err = net.DialTimeout("tcp", address, time.Minute)
		return nil
	})
	return c, began, err
}

// hear reads the agent's first byte, with which the connection is there.
func hear(c io.ReadWriteCloser, began time.Time) (io.ReadWriteCloser, time.Duration, error) {
	var b [1]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return nil, 0, errors.Join(fmt.Errorf("the agent does not speak: %w", err), c.Close())
	}
	return c, time.Since(began), nil
}

// to is a way to an address where whatever relays is found.
func (w *world) to(address string, inTLS bool) func(*netns.Host) (io.ReadWriteCloser, time.Duration, error) {
	return func(from *netns.Host) (io.ReadWriteCloser, time.Duration, error) {
		c, began, err := w.dial(from, address)
		if err != nil {
			return nil, 0, err
		}
		if inTLS {
			if c, err = relay.Technician(w.b.Context(), c, w.grant, w.tech); err != nil {
				return nil, 0, err
			}
		}
		return hear(c, began)
	}
}

// ways are what is measured beside each other.
func ways() []way {
	return []way{
		{"none", func(w *world) *running {
			return &running{pids: func() []int { return nil }, stop: func() {}, open: w.to(agentPlain, false)}
		}},
		{"splice", func(w *world) *running { return w.splice(agentPlain, false) }},
		{"tls-none", func(w *world) *running {
			return &running{pids: func() []int { return nil }, stop: func() {}, open: w.to(agentTLS, true)}
		}},
		{"tls-splice", func(w *world) *running { return w.splice(agentTLS, true) }},
		{"relay", func(w *world) *running { return w.relay(plainly) }},
		{"tls-relay", func(w *world) *running { return w.relay(inTLS) }},
		{"carrier", func(w *world) *running { return w.relay(carried) }},
		{"haproxy", func(w *world) *running { return w.haproxy(agentPlain, false) }},
		{"tls-haproxy", func(w *world) *running { return w.haproxy(agentTLS, true) }},
		{"ssh-R", (*world).ssh},
	}
}

// said is a part's first line.
func (w *world) said(r io.Reader) string {
	w.b.Helper()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		w.b.Fatalf("a part of the benchmark says nothing: %v", err)
	}
	return strings.TrimSpace(line)
}

func (w *world) splice(target string, inTLS bool) *running {
	p := w.box.Start(w.b, "splice", relays, target)
	w.said(p.Stdout())
	return &running{pids: func() []int { return []int{p.PID()} }, stop: p.Stop, open: w.to(relays, inTLS)}
}

// relay is Gatehouse's: both ends meet there, at once, as the hub tells them to.
func (w *world) relay(e ends) *running {
	p := w.box.Start(w.b, "relay", relays, hex.EncodeToString(w.signer.Public().(ed25519.PublicKey)))
	var key session.Key
	if err := key.UnmarshalText([]byte(w.said(p.Stdout()))); err != nil {
		w.b.Fatal(err)
	}
	meet := func(from *netns.Host, side session.Side, meeting session.ID, own tls.Certificate) (net.Conn, time.Time, error) {
		ticket, err := w.grant.Ticket(meeting, side, key, time.Now()).Sign(w.signer)
		if err != nil {
			return nil, time.Time{}, err
		}
		c, began, err := w.dial(from, relays)
		if err != nil {
			return nil, began, err
		}
		c, err = relay.Meet(w.b.Context(), c, key, own, ticket)
		return c, began, err
	}
	serve := func(meeting session.ID) {
		c, _, err := meet(w.box, session.AgentSide, meeting, w.agent)
		if err != nil {
			return // the technician notices
		}
		defer c.Close()
		_ = e.agent(w, c) // an error also when the technician has gone
	}
	newID := func() session.ID {
		id, err := session.NewID(rand.Reader)
		if err != nil {
			w.b.Fatal(err)
		}
		return id
	}
	return &running{
		pids: func() []int { return []int{p.PID()} }, stop: p.Stop,
		open: func(from *netns.Host) (io.ReadWriteCloser, time.Duration, error) {
			meeting := newID()
			go serve(meeting) // ends with the connection
			c, began, err := meet(from, session.TechnicianSide, meeting, w.tech)
			if err != nil {
				return nil, 0, err
			}
			s, err := e.technician(w, c)
			if err != nil {
				return nil, 0, err
			}
			return hear(s, began)
		},
		further: e.further,
		wait: func() (io.Closer, error) {
			ticket, err := w.grant.Ticket(newID(), session.AgentSide, key, time.Now()).Sign(w.signer)
			if err != nil {
				return nil, err
			}
			c, _, err := w.dial(w.box, relays)
			if err != nil {
				return nil, err
			}
			go func() { _, _ = relay.Meet(w.b.Context(), c, key, w.agent, ticket) }() // ends with the connection
			return c, nil
		},
	}
}

// ends are what speaks through the relay.
type ends struct {
	agent      func(*world, net.Conn) error // until the technician has gone
	technician func(*world, net.Conn) (io.ReadWriteCloser, error)
	further    func(io.ReadWriteCloser) (io.ReadWriteCloser, error)
}

var (
	plainly = ends{
		agent:      func(_ *world, c net.Conn) error { return agent(c) },
		technician: func(_ *world, c net.Conn) (io.ReadWriteCloser, error) { return c, nil },
	}
	inTLS = ends{
		agent: func(w *world, c net.Conn) error {
			t, err := relay.Agent(w.b.Context(), c, w.grant, w.agent)
			if err != nil {
				return err
			}
			return errors.Join(agent(t), t.CloseWrite())
		},
		technician: func(w *world, c net.Conn) (io.ReadWriteCloser, error) {
			return relay.Technician(w.b.Context(), c, w.grant, w.tech)
		},
	}
	carried = ends{
		agent: func(w *world, c net.Conn) error {
			t, err := relay.Agent(w.b.Context(), c, w.grant, w.agent)
			if err != nil {
				return err
			}
			s := carrier.New(carrier.Agent, carrier.Config{})
			if err := s.Attach(w.b.Context(), t, carrier.Relay); err != nil {
				return err
			}
			for {
				one, err := s.Accept(w.b.Context())
				if err != nil {
					return err
				}
				go func() { _ = errors.Join(agent(one), one.CloseWrite(), one.Close()) }() // ends with the session
			}
		},
		technician: func(w *world, c net.Conn) (io.ReadWriteCloser, error) {
			t, err := relay.Technician(w.b.Context(), c, w.grant, w.tech)
			if err != nil {
				return nil, err
			}
			s := carrier.New(carrier.Technician, carrier.Config{})
			if err := s.Attach(w.b.Context(), t, carrier.Relay); err != nil {
				return nil, err
			}
			one, err := s.Open(w.b.Context())
			return first{one, s}, err
		},
		further: func(c io.ReadWriteCloser) (io.ReadWriteCloser, error) {
			return c.(first).session.Open(context.Background())
		},
	}
)

// first is a session's stream with which the session ends.
type first struct {
	*carrier.Stream
	session *carrier.Session
}

func (f first) Close() error { return f.session.Close("done") }

// program runs a program of the system in the box until it is stopped.
func (w *world) program(log *lines, name string, args ...string) *exec.Cmd {
	w.b.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // also when the benchmark is killed
	w.box.Do(w.b, cmd.Start)
	w.b.Cleanup(func() { end(cmd) })
	return cmd
}

func end(cmd *exec.Cmd) {
	if cmd.ProcessState == nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed, which is an error
	}
}

// file writes a file that a peer is configured with.
func (w *world) file(name, content string) string {
	w.b.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		w.b.Fatal(err)
	}
	return path
}

// answers waits until a peer takes connections.
func (w *world) answers(log *lines, open func(*netns.Host) (io.ReadWriteCloser, time.Duration, error)) {
	w.b.Helper()
	var err error
	for range 200 {
		var c io.Closer
		if c, _, err = open(w.box); err == nil {
			c.Close()
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	w.b.Fatalf("it does not come up: %v\n%s", err, log.String())
}

func (w *world) haproxy(target string, inTLS bool) *running {
	var log lines
	cmd := w.program(&log, "haproxy", "-db", "-f", w.file("haproxy.cfg", `global
    maxconn 4000
    nbthread 2
defaults
    mode tcp
    option splice-auto
    timeout connect 10s
    timeout client 10m
    timeout server 10m
frontend in
    bind `+relays+`
    default_backend out
backend out
    server agent `+target+`
`))
	r := &running{pids: func() []int { return []int{cmd.Process.Pid} }, stop: func() { end(cmd) }, open: w.to(relays, inTLS)}
	w.answers(&log, r.open)
	return r
}

// ssh is the agent's ssh -R to an OpenSSH server.
func (w *world) ssh() *running {
	w.b.Helper()
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // Debian's sshd wants it
		w.b.Fatal(err)
	}
	host, client := filepath.Join(w.dir, "host"), filepath.Join(w.dir, "client")
	for _, key := range []string{host, client} {
		if _, err := os.Stat(key); err == nil {
			continue
		}
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
			w.b.Fatalf("ssh-keygen: %v: %s", err, out)
		}
	}
	var log lines
	server := w.program(&log, "/usr/sbin/sshd", "-D", "-e", "-f", w.file("sshd_config", strings.Join([]string{
		"ListenAddress " + near + ":" + sshPort, "HostKey " + host, "AuthorizedKeysFile " + client + ".pub", "StrictModes no", "UsePAM no",
		"PidFile none", "LogLevel ERROR", "PermitRootLogin yes", "AllowTcpForwarding yes", "GatewayPorts clientspecified", "",
	}, "\n")))
	w.answers(&log, func(from *netns.Host) (io.ReadWriteCloser, time.Duration, error) {
		c, _, err := w.dial(from, near+":"+sshPort)
		return c, 0, err
	})
	tunnel := w.program(&log, "ssh", "-N", "-T", "-F", "none", "-i", client, "-p", sshPort, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-o", "ExitOnForwardFailure=yes", "-R", relays+":"+agentPlain, "root@"+near)
	r := &running{open: w.to(relays, false), stop: func() { end(tunnel); end(server) }}
	w.answers(&log, r.open)
	pids := append(w.descendants(server.Process.Pid), tunnel.Process.Pid)
	r.pids = func() []int { return pids }
	return r
}

// descendants are a process and all that it started.
func (w *world) descendants(pid int) []int {
	out := []int{pid}
	for _, c := range children(w.b, pid) {
		n, err := strconv.Atoi(c)
		if err != nil {
			w.b.Fatal(err)
		}
		out = append(out, w.descendants(n)...)
	}
	return slices.Compact(out)
}
