// Package tpmtest runs software TPMs for tests, cuts their power and breaks their answers.
package tpmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"gatehouse/tpm"
	"gatehouse/tpm/pcr"

	"github.com/google/go-tpm/tpm2"
)

// Server is one swtpm with a state of its own. It has been started as a
// machine would: Startup(CLEAR), then firmware measuring into PCR 0 to 7.
type Server struct {
	Firmware string // what PCR 7 is measured from at the next power cut

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
	n := 0
	for _, first := range []uint32{0x80000000, 0x02000000, 0x03000000} {
		resp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 32}.Execute(s.conn)
		if err != nil {
			t.Fatalf("listing handles: %v", err)
		}
		list, err := resp.CapabilityData.Data.Handles()
		if err != nil {
			t.Fatalf("listing handles: %v", err)
		}
		n += len(list.Handle)
	}
	return n
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

// Code is a response that is nothing but a response code, such as 0x922 (retry).
func Code(rc uint32) []byte {
	return []byte{0x80, 0x01, 0, 0, 0, 10, byte(rc >> 24), byte(rc >> 16), byte(rc >> 8), byte(rc)}
}
