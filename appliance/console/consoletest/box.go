// Package consoletest doubles the privileged process and the gateway, so that the console can be run and tested by itself.
//
// Its contract: the control requests answer as docs/architecture.md says,
// claim-commit succeeds once and its fact outlives a restart, the audit log is
// the real one, and connections are handed over as the gateway does.
package consoletest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatehouse/appliance/audit"
	"gatehouse/appliance/control"
	"gatehouse/appliance/handover"
	"gatehouse/appliance/setup/proof"
)

// Name is what the box is called.
const Name = "gatehouse-7f3k"

// RunFunc is the console's Run.
type RunFunc func(context.Context, control.Environment, *control.Client, *slog.Logger) error

// Box is a machine that runs a console.
type Box struct {
	Dir  string     // its data
	URL  string     // where the console answers, https://127.0.0.1:port
	Code proof.Code // of the claim
	Log  bytes.Buffer

	t        testing.TB
	run      RunFunc
	listener net.Listener
	key      *ecdsa.PrivateKey
	writer   *audit.Writer
	material control.ClaimMaterial
	started  time.Time

	mu           sync.Mutex
	claimed      bool // the fact in the TPM
	locked       bool
	unlocking    unlocking
	noAudit      error
	noCommit     error
	state        control.State
	reason       string
	ready        control.ConsoleReady
	powered      []control.Power
	planned      *control.Restart // by request; it never comes
	clock        control.Clock
	lists        allowlists
	network      network
	trials       trials
	keptBy       control.Keep
	hosted       bool
	organisation []byte // public key of who grants sessions
	order        string // to reset the owner's second factor
	seed         *control.SeedOwner
	acme         map[string]string // challenges, by token
	exposure     *control.Exposure // nil: Busy
	keys         keys
	systems      systems
	stop         func()
}

// Start starts a box that nobody owns.
func Start(t testing.TB, run RunFunc) *Box {
	t.Helper()
	return start(t, run, nil)
}

// StartOn is Start on a machine, in a network namespace of the test's own.
func StartOn(t testing.TB, run RunFunc, m Machine) *Box {
	t.Helper()
	return start(t, run, &m)
}

func start(t testing.TB, run RunFunc, m *Machine) *Box {
	t.Helper()
	code, err := proof.NewCode(rand.Reader)
	must(t, err)
	b := &Box{Dir: t.TempDir(), Code: code, t: t, run: run, started: time.Now(), clock: control.Clock{Trusted: true, Source: "ntp", Servers: 3, Floor: Built.Add(26 * time.Hour)}}
	b.keys.now = Guarded(b.started)
	b.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	var salt [proof.SaltSize]byte
	rand.Read(salt[:])
	key := proof.Derive(code, salt)
	b.material = control.ClaimMaterial{Salt: salt[:], Key: key[:]}
	address := "127.0.0.1:0"
	if m != nil {
		address = ":443"
		b.network = network{settings: m.Settings, kept: m.Settings, machine: m}
	}
	b.listener, err = net.Listen("tcp", address)
	must(t, err)
	t.Cleanup(func() { b.listener.Close() })
	b.URL = "https://" + b.listener.Addr().String()
	if m != nil {
		b.URL = "https://" + m.Address.String()
	}
	must(t, os.MkdirAll(filepath.Join(b.Dir, "audit"), 0o700))
	b.writer, err = audit.Open(filepath.Join(b.Dir, "audit"), audit.Config{
		Key: &b.key.PublicKey, Now: time.Now, Rand: rand.Reader, GID: -1,
		Sign: func(_ context.Context, digest []byte) ([]byte, error) {
			return ecdsa.SignASN1(rand.Reader, b.key, digest)
		},
	})
	must(t, err)
	t.Cleanup(func() {
		b.Stop()
		b.writer.Close()
	})
	b.Boot()
	return b
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// SetSeed has the box say that it belongs to an owner by its seed, from its next start on.
func (b *Box) SetSeed(o *control.SeedOwner) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.seed = o
}

// Boot starts the console; the box must be stopped.
func (b *Box) Boot() {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	b.mu.Lock()
	b.state, b.reason = control.StateStarting, ""
	if b.locked {
		b.state, b.reason = control.StateLocked, "the TPM does not open the keys: PCR 7 was 1f3a…, is 77c0…. Undo the change of Secure Boot"
	}
	b.mu.Unlock()
	serving, unserve := context.WithCancel(context.Background())
	var wg, requests sync.WaitGroup
	client := b.serveControl(serving, &requests)
	env := control.Environment{State: filepath.Join(b.Dir, "console"), Audit: filepath.Join(b.Dir, "audit"), Locked: b.locked, Version: "test", Files: map[string]*os.File{}}
	must(b.t, os.MkdirAll(env.State, 0o700))
	if b.locked {
		env.State = ""
	}
	ends, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	must(b.t, err)
	env.Files[control.FileGateway] = os.NewFile(uintptr(ends[0]), "gateway")
	gateway := os.NewFile(uintptr(ends[1]), "console")
	sender, err := handover.NewSender(gateway)
	must(b.t, err)
	gateway.Close()
	wg.Go(func() { b.pass(ctx, sender) })
	ended := make(chan error, 1)
	wg.Go(func() {
		err := b.run(ctx, env, client, slog.New(slog.NewTextHandler(&lockedWriter{b: b}, nil)))
		ended <- err
		if err != nil && !errors.Is(err, context.Canceled) {
			b.t.Errorf("the console ended: %v", err)
		}
	})
	b.stop = func() {
		cancel()
		b.listener.(*net.TCPListener).SetDeadline(time.Now())
		wg.Wait()
		unserve() // after the console, which would miss it
		requests.Wait()
		b.listener.(*net.TCPListener).SetDeadline(time.Time{})
		sender.Close()
		client.Close()
		env.Files[control.FileGateway].Close()
	}
	br := b.Browser()
	for range 6000 { // it serves once it knows its state
		if resp, err := br.Get(b.URL + "/api/v1/status"); err == nil {
			resp.Body.Close()
			return
		}
		select {
		case err := <-ended:
			b.t.Fatalf("the console ended before it served: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	b.t.Fatal("the console did not serve within a minute")
}

// lockedWriter keeps the console's log.
type lockedWriter struct{ b *Box }

func (w *lockedWriter) Write(p []byte) (int, error) {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	return w.b.Log.Write(p)
}

// Stop ends the console.
func (b *Box) Stop() {
	if b.stop != nil {
		b.stop()
		b.stop = nil
	}
}

// Restart is Stop and Boot.
func (b *Box) Restart() {
	b.t.Helper()
	b.Stop()
	b.Boot()
}

// pass is the gateway's part.
func (b *Box) pass(ctx context.Context, s *handover.Sender) {
	for {
		conn, err := b.listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			continue
		}
		remote := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
		local := conn.LocalAddr().(*net.TCPAddr).AddrPort()
		err = s.Send(ctx, conn.(*net.TCPConn), handover.Meta{Kind: handover.Web, Remote: plain(remote), Local: plain(local), Accepted: boottime()}, nil)
		conn.Close()
		if err != nil && ctx.Err() == nil {
			b.t.Errorf("passing a connection: %v", err)
		}
	}
}

func plain(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

func (b *Box) serveControl(ctx context.Context, wg *sync.WaitGroup) *control.Client {
	b.t.Helper()
	path := filepath.Join(b.Dir, "control.sock")
	os.Remove(path)
	l, err := net.Listen("unix", path)
	must(b.t, err)
	s := control.NewServer(slog.New(slog.DiscardHandler), func(pid int, _ uint32) (control.Role, bool) {
		return control.Console, pid == os.Getpid()
	})
	b.handle(s)
	wg.Go(func() { s.Serve(ctx, l) })
	client, err := control.Dial(path)
	must(b.t, err)
	return client
}

// subkey is fixed per purpose: the vault's are too.
func subkey(purpose string) []byte {
	d := sha256.Sum256([]byte("consoletest " + purpose))
	return d[:]
}

// State is the box's state.
func (b *Box) State() control.State {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state
}

// Ready is what the console reported last.
func (b *Box) Ready() control.ConsoleReady {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ready
}

// Powered is what was asked of the power.
func (b *Box) Powered() []control.Power {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.powered
}

// Flashed makes the claim code one that was set when flashing. Call it before
// the first visit.
func (b *Box) Flashed(m control.ClaimMaterial) { b.material = m }

// Lock makes the next Boot one without the keys.
func (b *Box) Lock(locked bool) { b.locked = locked }

// DoubtClock makes the clock one that nobody has confirmed, until it is set.
func (b *Box) DoubtClock() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clock = control.Clock{Source: "rtc", Floor: b.clock.Floor}
}

// SetClaimed sets the fact in the TPM, as a test of disagreement needs it.
func (b *Box) SetClaimed(claimed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.claimed = claimed
}

// Host makes it one that runs on somebody's host.
func (b *Box) Host() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hosted, b.clock = true, control.Clock{Source: "host", Trusted: true}
}

// OrderFactorReset is what a person at the box does; the next Boot delivers it.
func (b *Box) OrderFactorReset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.order = rand.Text()
}

// Ordered says whether an order waits to be acknowledged.
func (b *Box) Ordered() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.order != ""
}

// FailAudit makes every event fail, nil none.
func (b *Box) FailAudit(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.noAudit = err
}

// FailCommit makes the commit fail before its point, nil not.
func (b *Box) FailCommit(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.noCommit = err
}

// Events returns the events of the audit log, newest first.
func (b *Box) Events() []audit.Entry {
	b.t.Helper()
	page, err := audit.Reader{Dir: filepath.Join(b.Dir, "audit")}.Read(audit.Query{Limit: audit.MaxLimit})
	must(b.t, err)
	return page.Entries
}

// Checkpoint signs the head of the audit log.
func (b *Box) Checkpoint(ctx context.Context) {
	b.t.Helper()
	_, err := b.writer.Checkpoint(ctx)
	must(b.t, err)
}

// errRefused is a refusal in the words of the privileged process.
func refused(code, format string, a ...any) error {
	return &control.Error{Code: code, Text: fmt.Sprintf(format, a...)}
}
