package supervise

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Reaper is the one waiter of the process. It takes in every child, its own
// and the orphans that the kernel hands to PID 1 (or to a subreaper), by
// wait4(-1). os/exec waits by itself and would race with it: while a Reaper
// runs, start programs with Command. Two of them in one process would race too.
type Reaper struct {
	log *slog.Logger

	// mu is held across fork and registration, across wait4 and its
	// bookkeeping, and across kill. So an exit is never seen before the
	// start that it belongs to, and a pid is never signalled after it was
	// given up, when the kernel may have used it again.
	mu       sync.Mutex
	children map[int]*child
	reaped   uint64 // orphans
	changed  chan struct{}
}

type child struct {
	pid    int
	done   chan struct{} // closed when it was reaped
	status unix.WaitStatus
}

// NewReaper makes a Reaper; nothing is reaped before Run.
func NewReaper(log *slog.Logger) *Reaper {
	return &Reaper{log: log, children: make(map[int]*child), changed: make(chan struct{}, 1)}
}

func (r *Reaper) String() string { return "reaper" }

// Run reaps until ctx ends and no child that was started here is left. Give it
// a context that outlives those of everything that starts processes.
func (r *Reaper) Run(ctx context.Context) error {
	// Orphans of our children come to us and not to the host's init, so that
	// hosted and PID 1 are the same code. Needless, and allowed, as PID 1.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("becoming the reaper of orphans: %w", err)
	}
	exits := make(chan os.Signal, 1) // one pending is enough: each makes us collect all there are
	signal.Notify(exits, unix.SIGCHLD)
	defer signal.Stop(exits)
	done := ctx.Done()
	for {
		left := r.collect()
		if ctx.Err() != nil {
			if left == 0 {
				return ctx.Err()
			}
			done = nil
		}
		select {
		case <-exits:
		case <-done:
		case <-r.changed:
		}
	}
}

// collect takes in all that have ended and says how many of ours have not.
// The lock is let go after each, so that ten thousand orphans at once do not
// keep the control socket from knowing its callers.
func (r *Reaper) collect() int {
	for {
		r.mu.Lock()
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			r.mu.Unlock()
			continue
		}
		if err != nil || pid <= 0 {
			n := len(r.children)
			r.mu.Unlock()
			return n
		}
		if c := r.children[pid]; c != nil {
			delete(r.children, pid)
			c.status = status
			close(c.done)
			// What it forked into its session goes with it, or it would keep
			// the sockets that the next incarnation is given. The pid was
			// free for microseconds: pids go around before they come again.
			if err := unix.Kill(-pid, unix.SIGKILL); err == nil {
				r.log.Warn("processes left behind were killed", "group", pid)
			}
		} else {
			r.reaped++
		}
		r.mu.Unlock()
	}
}

// Orphans says how many processes were reaped that nobody here had started.
func (r *Reaper) Orphans() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reaped
}

// start forks and executes; on says what is to be known before any exit is
// seen. keep names the capabilities of the bounding set.
func (r *Reaper) start(path string, argv []string, attr *syscall.ProcAttr, keep map[uintptr]bool, on func(*child)) error {
	result := make(chan error, 1)
	go func() {
		// The bounding set belongs to a thread and is inherited by what it
		// forks. It only ever shrinks, so this thread is not used again: it
		// ends with the goroutine, which never unlocks it.
		runtime.LockOSThread()
		if keep != nil {
			if err := dropBounding(keep); err != nil {
				result <- err
				return
			}
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		pid, err := syscall.ForkExec(path, argv, attr)
		if err != nil {
			result <- fmt.Errorf("starting %s: %w", path, err)
			return
		}
		c := &child{pid: pid, done: make(chan struct{})}
		r.children[pid] = c
		on(c)
		result <- nil
	}()
	return <-result
}

// dropBounding empties the bounding set of this thread but for keep.
func dropBounding(keep map[uintptr]bool) error {
	for c := uintptr(0); ; c++ {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			return nil // past the kernel's last
		}
		if err != nil {
			return fmt.Errorf("reading capability %d of the bounding set: %w", c, err)
		}
		if has == 0 || keep[c] {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return fmt.Errorf("dropping capability %d from the bounding set (a container needs CAP_SETPCAP for it): %w", c, err)
		}
	}
}

// signal sends sig to c if it has not ended.
func (r *Reaper) signal(c *child, sig unix.Signal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.children[c.pid] != c {
		return
	}
	// The role leads a session and a group of its own: what it may have
	// started goes with it.
	if err := unix.Kill(-c.pid, sig); err != nil {
		if err := unix.Kill(c.pid, sig); err != nil {
			r.log.Error("signal not sent", "pid", c.pid, "signal", sig.String(), "err", err)
		}
	}
}

// commandOutput is how much of a command's output is kept: its end.
const commandOutput = 64 << 10

// Command runs a program to its end and gives its exit code, 128 + the signal
// if one ended it, and the end of what it wrote. Run must be running. When ctx
// ends the program is killed and err says so. Its environment is empty but for
// a PATH, its input is empty.
func (r *Reaper) Command(ctx context.Context, path string, args ...string) (code int, output string, err error) {
	env := []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	return r.run(ctx, path, append([]string{path}, args...), &syscall.ProcAttr{Env: env, Sys: &syscall.SysProcAttr{Setsid: true}}, nil)
}

// run is Command for a child with attributes of its own; its files are not
// among them.
func (r *Reaper) run(ctx context.Context, path string, argv []string, attr *syscall.ProcAttr, keep map[uintptr]bool) (code int, output string, err error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, "", fmt.Errorf("running %s: %w", path, err)
	}
	defer null.Close()
	out, in, err := os.Pipe()
	if err != nil {
		return 0, "", fmt.Errorf("running %s: %w", path, err)
	}
	defer out.Close()
	defer in.Close()
	attr.Files = []uintptr{null.Fd(), in.Fd(), in.Fd()}
	var c *child
	if err = r.start(path, argv, attr, keep, func(k *child) { c = k }); err != nil {
		return 0, "", err
	}
	in.Close()
	written := make(chan string, 1)
	go func() { written <- tail(out, commandOutput) }()
	select {
	case <-c.done:
	case <-ctx.Done():
		r.signal(c, unix.SIGKILL)
		<-c.done
		err = fmt.Errorf("running %s: stopped: %w", path, ctx.Err())
	}
	// What it leaves behind may hold the pipe open: one more second, no more.
	if derr := out.SetReadDeadline(time.Now().Add(time.Second)); derr != nil {
		r.log.Warn("command output has no deadline", "path", path, "err", derr)
	}
	output = <-written
	if c.status.Signaled() {
		return 128 + int(c.status.Signal()), output, err
	}
	return c.status.ExitStatus(), output, err
}

// tail reads all and keeps the last limit bytes.
func tail(r io.Reader, limit int) string {
	var keep []byte
	buf := make([]byte, 8<<10)
	for {
		n, err := r.Read(buf)
		keep = append(keep, buf[:n]...)
		if len(keep) > 2*limit {
			keep = append(keep[:0], keep[len(keep)-limit:]...)
		}
		if err != nil {
			return string(bytes.TrimSpace(keep[max(0, len(keep)-limit):]))
		}
	}
}
