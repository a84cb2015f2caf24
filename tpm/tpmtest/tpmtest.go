// Package tpmtest runs software TPMs for tests, cuts their power and breaks their answers.
package tpmtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/tpm"
	"gatehouse/tpm/pcr"

	"github.com/google/go-tpm/tpm2"
)

// Server is one swtpm with a state of its own. It has been started as a
// machine would: Startup(CLEAR), then firmware measuring into PCR 0 to 7.
type Server struct {
	Firmware string // what PCR 7 is measured from at the next power cut; "": it stays zero

	dir   string
	state string
	cmd   *exec.Cmd
	conn  *tpm.Conn
}

// Start starts a new TPM that ends with the test. Nothing needs root.
func Start(t testing.TB) *Server {
	t.Helper()
	return start(t, t.TempDir())
}

// Copy starts a second TPM from a copy of this one's state: a clone.
func (s *Server) Copy(t testing.TB) *Server {
	t.Helper()
	state := t.TempDir()
	if err := os.CopyFS(state, os.DirFS(s.state)); err != nil {
		t.Fatal(err)
	}
	return start(t, state)
}

// Open starts a TPM from a copy of the state folder of one that is off.
func Open(t testing.TB, folder string) *Server {
	t.Helper()
	return (&Server{state: folder}).Copy(t)
}

func start(t testing.TB, state string) *Server {
	t.Helper()
	// A socket's path is limited to 107 bytes, which t.TempDir may exceed.
	dir, err := os.MkdirTemp("", "swtpm")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Firmware: "secure boot off", dir: dir, state: state}
	s.cmd = exec.Command("swtpm", "socket", "--tpm2",
		"--tpmstate", "dir="+state,
		"--server", "type=unixio,path="+s.Path(),
		"--ctrl", "type=unixio,path="+s.control(),
		"--flags", "not-need-init")
	var said bytes.Buffer
	s.cmd.Stderr = &said
	if err := s.cmd.Start(); err != nil {
		t.Fatalf("starting swtpm (Debian package swtpm): %v", err)
	}
	t.Cleanup(func() {
		if s.conn != nil {
			s.conn.Close()
		}
		if err := s.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("ending swtpm: %v", err)
		}
		_ = s.cmd.Wait() // killed: its status says so
		if t.Failed() {
			t.Logf("swtpm said: %s", said.String())
		}
		os.RemoveAll(dir)
	})
	s.connect(t)
	s.boot(t)
	return s
}

// Path is the socket that commands go to.
func (s *Server) Path() string    { return filepath.Join(s.dir, "tpm") }
func (s *Server) control() string { return filepath.Join(s.dir, "ctl") }

func (s *Server) connect(t testing.TB) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		c, err := tpm.Dial(s.Path())
		if err == nil {
			s.conn = c
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("swtpm does not answer: %v", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// boot does what firmware does at power-on.
func (s *Server) boot(t testing.TB) {
	t.Helper()
	if _, err := (tpm2.Startup{StartupType: tpm2.TPMSUClear}).Execute(s.conn); err != nil {
		t.Fatalf("Startup: %v", err)
	}
	for i := range 8 {
		text := fmt.Sprintf("firmware %d", i)
		if i == 7 {
			text = s.Firmware
		}
		if text == "" {
			continue
		}
		s.Measure(t, i, text)
	}
}

// Measure extends a register by the digest of text.
func (s *Server) Measure(t testing.TB, index int, text string) {
	t.Helper()
	if err := s.TPM().ExtendPlain(index, pcr.Extend([pcr.Size]byte{}, [pcr.Size]byte([]byte(fmt.Sprintf("%-32.32s", text))))); err != nil {
		t.Fatalf("measuring: %v", err)
	}
}

// TPM talks to this TPM. All share one connection.
func (s *Server) TPM() *tpm.TPM { return tpm.New(s.conn) }

// Transport is the way to it, for use under a Fault.
func (s *Server) Transport() tpm.Transport { return s.conn }

// PowerCut takes the power away without TPM2_Shutdown and boots anew.
func (s *Server) PowerCut(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "swtpm_ioctl", "-i", "--unix", s.control()).CombinedOutput()
	if err != nil {
		t.Fatalf("cutting the power of swtpm (Debian package swtpm-tools): %v %s", err, out)
	}
	s.boot(t)
}

// Clear clears the TPM as its owner would in the firmware's set-up.
func (s *Server) Clear(t testing.TB) {
	t.Helper()
	_, err := tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}}.Execute(s.conn)
	if err != nil {
		t.Fatalf("clearing: %v", err)
	}
}

// SHA1Only switches the SHA-256 bank off, as a firmware's set-up can; it is gone
// from the next power cut on.
func (s *Server) SHA1Only(t testing.TB) {
	t.Helper()
	resp, err := s.conn.Send([]byte{
		0x80, 2, 0, 0, 0, 43, 0, 0, 1, 0x2B, 0x40, 0, 0, 0x0C, // PCR_Allocate by the platform
		0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0, // which has no password
		0, 0, 0, 2, 0, 4, 3, 0xFF, 0xFF, 0xFF, 0, 0x0B, 3, 0, 0, 0,
	})
	if err != nil || binary.BigEndian.Uint32(resp[6:]) != 0 || resp[14] != 1 {
		t.Fatalf("switching the SHA-256 bank off: %x, %v", resp, err)
	}
}

// SetOwnerPassword does what another system on the same machine might have done.
func (s *Server) SetOwnerPassword(t testing.TB, password string) {
	t.Helper()
	_, err := tpm2.HierarchyChangeAuth{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		NewAuth:    tpm2.TPM2BAuth{Buffer: []byte(password)},
	}.Execute(s.conn)
	if err != nil {
		t.Fatalf("setting an owner password: %v", err)
	}
}

// Loaded counts transient objects and sessions that somebody left loaded.
func (s *Server) Loaded(t testing.TB) int {
	t.Helper()
	return len(s.handles(t))
}

func (s *Server) handles(t testing.TB) (all []tpm2.TPMHandle) {
	t.Helper()
	for _, first := range []uint32{0x80000000, 0x02000000, 0x03000000} {
		resp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 32}.Execute(s.conn)
		if err != nil {
			t.Fatalf("listing handles: %v", err)
		}
		list, err := resp.CapabilityData.Data.Handles()
		if err != nil {
			t.Fatalf("listing handles: %v", err)
		}
		all = append(all, list.Handle...)
	}
	return all
}

// Flush lets go of all that somebody left loaded, without a power cut.
func (s *Server) Flush(t testing.TB) {
	t.Helper()
	for _, h := range s.handles(t) {
		if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(s.conn); err != nil {
			t.Fatalf("flushing %08X: %v", h, err)
		}
	}
}

// Fault is a transport that a test can break: Before may answer in the TPM's
// place (a nil response lets the command through), After may change what came.
// n counts commands from 0.
type Fault struct {
	To     tpm.Transport
	Before func(n int, command []byte) ([]byte, error)
	After  func(n int, command, response []byte) ([]byte, error)

	N int // commands so far
}

// Send implements tpm.Transport.
func (f *Fault) Send(command []byte) ([]byte, error) {
	n := f.N
	f.N++
	if f.Before != nil {
		if resp, err := f.Before(n, command); resp != nil || err != nil {
			return resp, err
		}
	}
	resp, err := f.To.Send(command)
	if err != nil || f.After == nil {
		return resp, err
	}
	return f.After(n, command, resp)
}

// Line breaks one answer on a real connection, beneath tpm.Conn: what a Fault
// does above. The one command that is not answered well has a deadline of some
// milliseconds, every other the usual one.
type Line struct {
	*tpm.Conn
	N int // commands since Break

	path string
	at   int
	f    func([]byte) ([]byte, bool)
	now  atomic.Pointer[breakage] // of the command that is on its way; nil: none
	to   tpm.Transport
}

type breakage struct {
	f    func([]byte) ([]byte, bool)
	gone chan struct{} // closed once nobody waits any more
}

// impatience is how long the broken command may take.
const impatience = 20 * time.Millisecond

// Line opens one to this TPM; it ends with the test.
func (s *Server) Line(t testing.TB) *Line {
	t.Helper()
	dir, err := os.MkdirTemp("", "line")
	if err != nil {
		t.Fatal(err)
	}
	l := &Line{at: -1, to: s.conn, path: filepath.Join(dir, "tpm")}
	listener, err := net.Listen("unix", l.path)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() { l.serve(c) })
		}
	})
	l.Break(t, -1, nil)
	t.Cleanup(func() {
		l.Close()
		listener.Close()
		all.Wait()
		os.RemoveAll(dir)
	})
	return l
}

// Break has f change the answer to one command, counted from 0, on a new
// connection. A nil answer is none at all; one that is late comes when nobody
// waits for it.
func (l *Line) Break(t testing.TB, at int, f func(response []byte) (answer []byte, late bool)) {
	t.Helper()
	if l.Conn != nil {
		l.Close()
	}
	var err error
	if l.Conn, err = tpm.Dial(l.path); err != nil {
		t.Fatal(err)
	}
	l.N, l.at, l.f = 0, at, f
}

// Send implements tpm.Transport.
func (l *Line) Send(command []byte) ([]byte, error) {
	n := l.N
	l.N++
	if n != l.at {
		return l.Conn.Send(command)
	}
	b := &breakage{l.f, make(chan struct{})}
	l.now.Store(b)
	l.Timeout = impatience
	defer func() {
		l.now.Store(nil)
		l.Timeout = 0
		close(b.gone)
	}()
	return l.Conn.Send(command)
}

func (l *Line) serve(c net.Conn) {
	defer c.Close()
	for {
		head := make([]byte, 10)
		if _, err := io.ReadFull(c, head); err != nil {
			return
		}
		rest := make([]byte, binary.BigEndian.Uint32(head[2:])-10)
		if _, err := io.ReadFull(c, rest); err != nil {
			return
		}
		b := l.now.Load()
		answer, err := l.to.Send(append(head, rest...))
		if err != nil {
			return
		}
		if b != nil {
			late := false
			if answer, late = b.f(answer); late {
				<-b.gone
			}
		}
		_, _ = c.Write(answer) // nobody reads what comes too late
	}
}

// Code is a response that is nothing but a response code, such as 0x922 (retry).
func Code(rc uint32) []byte {
	return []byte{0x80, 0x01, 0, 0, 0, 10, byte(rc >> 24), byte(rc >> 16), byte(rc >> 8), byte(rc)}
}
