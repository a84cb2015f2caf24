package relay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// turn is the most that one direction of a session moves before another
	// one has its turn. Less costs more of the processor per byte.
	turn = 1 << 20
	// unsent is how much may lie in a socket beyond what is on its way: more
	// would wait in the kernel for a reader that does not read. What is on its
	// way is bounded by that reader's window.
	unsent = 2 * turn
	// spare pipes are kept for the next turn.
	spare = 32
	// large pipes hold a turn, the others what the kernel gives them (64 KiB).
	// What lies in a pipe counts in no limit of the kernel for TCP, so sessions
	// that are stuck may not have a large one each.
	large = 16
)

// flow copies one direction of a session until it ends. The bytes stay in the
// kernel (splice(2)). Unlike io.Copy, which holds a pipe for as long as it
// lasts, it has one only while it has bytes: a session that is idle holds none.
func (s *pipes) flow(to, from *net.TCPConn) (n int64, err error) {
	src, err := from.SyscallConn()
	if err != nil {
		return 0, err
	}
	dst, err := to.SyscallConn()
	if err != nil {
		return 0, err
	}
	if err := control(dst, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent) }); err != nil {
		return 0, fmt.Errorf("bounding what waits for a reader: %w", err)
	}
	for {
		// First of all there must be room, or what a pipe holds would wait there
		// for a reader that does not read: a turn is half of what may be unsent.
		if err := dst.Write(writable); err != nil {
			return n, err
		}
		p, held, err := s.fill(src)
		if err != nil || held == 0 {
			return n, err
		}
		n += int64(held)
		if err := p.drain(dst, held); err != nil {
			s.drop(p)
			return n, err
		}
		s.put(p)
		runtime.Gosched() // whoever always has something to copy would keep the processor
	}
}

// writable says whether a connection has room for a turn, or has failed.
func writable(fd uintptr) bool {
	ask := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(ask, 0)
	return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
}

// fill waits for bytes and moves a turn of them into a pipe; none at the end.
func (s *pipes) fill(src rawConn) (p *pipe, n int, err error) {
	var failed error
	err = src.Read(func(fd uintptr) (done bool) {
		if p, failed = s.get(); failed != nil {
			return true
		}
		if n, failed = splice(int(fd), p.in, turn); errors.Is(failed, unix.EAGAIN) {
			s.put(p)
			return false
		}
		return true
	})
	switch {
	case err == nil && failed == nil && n > 0:
		return p, n, nil
	case err == nil && p != nil:
		s.put(p)
	}
	if err == nil && failed != nil {
		err = fmt.Errorf("reading from an end: %w", failed)
	}
	return nil, 0, err
}

// drain moves all that a pipe holds to a connection.
func (p *pipe) drain(dst rawConn, left int) error {
	var failed error
	err := dst.Write(func(fd uintptr) (done bool) {
		for left > 0 {
			n, err := splice(p.out, int(fd), left)
			if errors.Is(err, unix.EAGAIN) {
				return false
			}
			if err == nil && n == 0 {
				err = io.ErrShortWrite // the kernel does not do this
			}
			if err != nil {
				failed = fmt.Errorf("writing to an end: %w", err)
				return true
			}
			left -= n
		}
		return true
	})
	return errors.Join(err, failed)
}

func splice(from, to, n int) (int, error) {
	for {
		m, err := unix.Splice(from, nil, to, nil, n, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if !errors.Is(err, unix.EINTR) {
			return int(max(m, 0)), err
		}
	}
}

// rawConn is what is used of a syscall.RawConn.
type rawConn interface {
	Control(func(fd uintptr)) error
	Read(func(fd uintptr) bool) error
	Write(func(fd uintptr) bool) error
}

func control(c rawConn, f func(fd int) error) (err error) {
	if outer := c.Control(func(fd uintptr) { err = f(int(fd)) }); outer != nil {
		return outer
	}
	return err
}

// pipes are those that are between two turns.
type pipes struct {
	mu    sync.Mutex
	free  []*pipe
	large int // of all that exist
}

type pipe struct {
	out, in int
	large   bool
}

func (s *pipes) get() (*pipe, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.free); n > 0 {
		p := s.free[n-1]
		s.free = s.free[:n-1]
		return p, nil
	}
	var fd [2]int
	if err := unix.Pipe2(fd[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	p := &pipe{out: fd[0], in: fd[1]}
	if s.large < large {
		// The kernel gives one user so many pages of pipes: a smaller one does as well, in more turns.
		if _, err := unix.FcntlInt(uintptr(p.in), unix.F_SETPIPE_SZ, turn); err == nil {
			p.large = true
			s.large++
		}
	}
	return p, nil
}

// put takes back an empty pipe.
func (s *pipes) put(p *pipe) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.free) == spare {
		s.close(p)
		return
	}
	s.free = append(s.free, p)
}

// drop ends a pipe in which bytes are left.
func (s *pipes) drop(p *pipe) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.close(p)
}

// close is for whoever holds mu.
func (s *pipes) close(p *pipe) {
	_, _ = unix.Close(p.out), unix.Close(p.in) // nothing can be done about it
	if p.large {
		s.large--
	}
}
