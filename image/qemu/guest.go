package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"time"
)

// A Guest is a machine that runs. It ends when its context ends, by Kill, or
// by itself; Wait must be called to the end, so that nothing stays behind.
type Guest struct {
	forward map[int]string
	sockets string
	qemu    *process
	tpm     *process
	control *control
	input   io.WriteCloser
	serial  *serial
	ended   chan struct{}
}

// startTimeout is how long QEMU and swtpm may take to open their sockets; on
// a loaded machine with two cores that has been seconds.
const startTimeout = 30 * time.Second

// Start starts the machine. When ctx ends its power is cut.
func (m Machine) Start(ctx context.Context) (*Guest, error) {
	if m.Kernel == "" && m.Disk == "" && m.CD == "" && m.Stick == "" {
		return nil, errors.New("starting a machine: it has neither a disk nor a kernel")
	}
	identity, err := m.prepare()
	if err != nil {
		return nil, err
	}
	forward, err := chooseForward(m.Forward)
	if err != nil {
		return nil, err
	}
	sockets, err := os.MkdirTemp("", "gatehouse-")
	if err != nil {
		return nil, fmt.Errorf("making a folder for the machine's sockets: %w", err)
	}
	g := &Guest{forward: forward, sockets: sockets, serial: newSerial(m.Serial), ended: make(chan struct{})}
	if err := g.start(ctx, m, identity); err != nil {
		g.stop()
		return nil, errors.Join(err, os.RemoveAll(sockets))
	}
	go g.reap(ctx)
	return g, nil
}

func (g *Guest) start(ctx context.Context, m Machine, identity [16]byte) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if !m.NoTPM {
		if err := g.startTPM(ctx, m); err != nil {
			return err
		}
	}
	cmd := exec.Command(m.board().program, m.arguments(identity, g.sockets, g.forward)...)
	var complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = g.serial, &complaint
	if m.TapFile != nil {
		cmd.ExtraFiles = []*os.File{m.TapFile}
	}
	var err error
	if g.input, err = cmd.StdinPipe(); err != nil {
		return fmt.Errorf("starting QEMU: %w", err)
	}
	if g.qemu, err = startProcess(cmd, &complaint); err != nil {
		return fmt.Errorf("starting QEMU (install package %s): %w", m.board().packaged, err)
	}
	g.control, err = dialControl(ctx, filepath.Join(g.sockets, socketQMP), g.qemu)
	return err
}

// startTPM starts a software TPM that keeps its state with the machine's. It
// ends with QEMU's connection, and is killed by its process id in any case.
func (g *Guest) startTPM(ctx context.Context, m Machine) error {
	state, err := filepath.Abs(filepath.Join(m.State, tpmFolder))
	if err != nil {
		return fmt.Errorf("starting the software TPM: %w", err)
	}
	socket := filepath.Join(g.sockets, socketTPM)
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir=.",
		"--ctrl", "type=unixio,path="+socket, "--terminate")
	cmd.Dir = state // swtpm has no way to write a comma of a path
	var complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &complaint, &complaint
	if g.tpm, err = startProcess(cmd, &complaint); err != nil {
		return fmt.Errorf("starting the software TPM (install package swtpm): %w", err)
	}
	if err := waitFor(ctx, g.tpm, func() error { _, err := os.Stat(socket); return err }); err != nil {
		return fmt.Errorf("starting the software TPM: %w", err)
	}
	return nil
}

// waitFor tries until it works, the process ends or ctx does.
func waitFor(ctx context.Context, p *process, try func() error) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-p.ended:
			return p.result()
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// reap waits for QEMU and clears up behind it.
func (g *Guest) reap(ctx context.Context) {
	select {
	case <-g.qemu.ended:
	case <-ctx.Done():
	}
	g.stop()
	g.serial.close()
	close(g.ended)
}

// stop ends both programs, the TPM after the machine as on a real board.
func (g *Guest) stop() {
	for _, p := range []*process{g.qemu, g.tpm} {
		if p != nil {
			p.kill()
			<-p.ended
		}
	}
	if g.control != nil {
		g.control.close()
	}
}

// Wait waits for the end and returns what QEMU complained of, if anything. A
// killed machine is no error: a power cut is what was asked for.
func (g *Guest) Wait() error {
	<-g.ended
	return errors.Join(g.qemu.result(), os.RemoveAll(g.sockets))
}

// Ended is closed when the machine is off.
func (g *Guest) Ended() <-chan struct{} { return g.ended }

// Addr is the address on this host that reaches a forwarded port of the guest.
func (g *Guest) Addr(port int) string { return g.forward[port] }

// Reset is the reset button: processors, devices and TPM start anew without
// any shutdown, as after a power cut (QEMU sends CMD_INIT to the TPM, so its
// volatile state is lost).
func (g *Guest) Reset() error { return g.control.run("system_reset") }

// PowerButton presses the power button once; the guest shuts down in order.
func (g *Guest) PowerButton() error { return g.control.run("system_powerdown") }

// Kill cuts the power.
func (g *Guest) Kill() error {
	g.qemu.kill()
	return g.Wait()
}

// Type types on the serial console.
func (g *Guest) Type(text string) error {
	if _, err := io.WriteString(g.input, text); err != nil {
		return fmt.Errorf("typing on the serial console: %w", err)
	}
	return nil
}

// Serial is everything that the serial port has said.
func (g *Guest) Serial() string { return g.serial.all() }

// WaitSerial waits until the serial port says something that matches, after
// what an earlier call matched, and returns the match with its groups.
func (g *Guest) WaitSerial(pattern *regexp.Regexp, timeout time.Duration) ([]string, error) {
	late := time.NewTimer(timeout)
	defer late.Stop()
	for {
		match, changed := g.serial.match(pattern)
		if match != nil {
			return match, nil
		}
		select {
		case <-changed:
		case <-g.ended:
			if match, _ := g.serial.match(pattern); match != nil {
				return match, nil
			}
			return nil, fmt.Errorf("the machine ended before its console said %q:\n%w\n%s", pattern, errors.Join(g.qemu.result()), g.serial.tail())
		case <-late.C:
			return nil, fmt.Errorf("the console did not say %q within %v; it ended with:\n%s", pattern, timeout, g.serial.tail())
		}
	}
}

// serial keeps what the console said.
type serial struct {
	mu      sync.Mutex
	text    []byte
	read    int // up to here WaitSerial has matched
	changed chan struct{}
	closed  bool
	copy    io.Writer
}

func newSerial(w io.Writer) *serial {
	if w == nil {
		w = io.Discard
	}
	return &serial{changed: make(chan struct{}), copy: w}
}

func (s *serial) Write(p []byte) (int, error) {
	s.mu.Lock()
	s.text = append(s.text, p...)
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	// A copy that cannot be written must not stop the machine.
	_, _ = s.copy.Write(p)
	return len(p), nil
}

func (s *serial) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		close(s.changed)
		s.changed = make(chan struct{})
	}
}

func (s *serial) match(pattern *regexp.Regexp) ([]string, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := pattern.FindSubmatchIndex(s.text[s.read:])
	if at == nil {
		return nil, s.changed
	}
	rest := s.text[s.read:]
	match := make([]string, len(at)/2)
	for i := range match {
		if at[2*i] >= 0 {
			match[i] = string(rest[at[2*i]:at[2*i+1]])
		}
	}
	s.read += at[1]
	return match, s.changed
}

func (s *serial) all() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.text)
}

// tail is what fits into an error message.
func (s *serial) tail() string {
	const most = 4000
	text := s.all()
	return text[max(0, len(text)-most):]
}
