package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
)

// A process is a program that ends with this one.
type process struct {
	cmd       *exec.Cmd
	ended     chan struct{}
	killed    atomic.Bool
	err       error
	complaint *bytes.Buffer // read after ended
}

// startProcess starts cmd in a process group of its own, so that Ctrl-C in a
// terminal reaches us alone, and asks the kernel to kill it should we die.
// The kernel ties that to the thread that started it: one goroutine keeps its
// thread from start to end.
func startProcess(cmd *exec.Cmd, complaint *bytes.Buffer) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p := &process{cmd: cmd, ended: make(chan struct{}), complaint: complaint}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.ended)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func (p *process) kill() {
	p.killed.Store(true)
	// The only error is that it has ended already.
	_ = p.cmd.Process.Kill()
}

// result is how a program ended by itself; being killed is no error.
func (p *process) result() error {
	select {
	case <-p.ended:
	default:
		return nil
	}
	if p.err == nil || p.killed.Load() {
		return nil
	}
	var exit *exec.ExitError
	if errors.As(p.err, &exit) {
		return fmt.Errorf("%s: %w: %s", filepath.Base(p.cmd.Path), p.err, bytes.TrimSpace(p.complaint.Bytes()))
	}
	return p.err
}
