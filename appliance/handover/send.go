package handover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
)

// retryEvery is the pause between two tries while the receiver's queue is full.
const retryEvery = 20 * time.Millisecond

// A Sender is the gateway's side of the socketpair.
type Sender struct {
	conn *net.UnixConn
	raw  syscall.RawConn
	turn chan struct{} // one sender retries at a time, the others wait for it or for their context
}

// NewSender makes a Sender of an inherited end of the pair. The file is
// duplicated and may be closed.
func NewSender(file *os.File) (*Sender, error) {
	conn, err := open(file)
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the handover socket: %w", err), conn.Close())
	}
	return &Sender{conn: conn, raw: raw, turn: make(chan struct{}, 1)}, nil
}

// Close closes this process's copy of the end.
func (s *Sender) Close() error { return s.conn.Close() }

// Send passes conn on. The caller closes its own copy afterwards, whatever the
// result; that does not end the connection when it was passed. While the
// receiver is away or slow the queue fills: Send then waits until ctx ends and
// no longer. What limits the queue is the socket's send buffer (EAGAIN,
// ENOBUFS) and the count of descriptors in flight, RLIMIT_NOFILE of the sender
// (ETOOMANYREFS).
func (s *Sender) Send(ctx context.Context, conn syscall.Conn, m Meta, peeked []byte) error {
	b, err := appendMessage(make([]byte, 0, maxHead+len(peeked)), m, peeked)
	if err != nil {
		return err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("handing over: %w", err)
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return fmt.Errorf("handing over: the receiver does not keep up: %w", ctx.Err())
	}
	for {
		var sent error
		err := raw.Control(func(fd uintptr) { sent = s.try(b, int(fd)) })
		switch {
		case err != nil:
			return fmt.Errorf("handing over: %w", err)
		case sent == nil:
			return nil
		case sent != syscall.EAGAIN && sent != syscall.ENOBUFS && sent != syscall.ETOOMANYREFS && sent != syscall.EINTR:
			return fmt.Errorf("handing over: %w", sent)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("handing over: the receiver does not keep up (%w): %w", sent, ctx.Err())
		case <-time.After(retryEvery):
		}
	}
}

func (s *Sender) try(b []byte, fd int) error {
	var sent error
	rights := syscall.UnixRights(fd)
	err := s.raw.Control(func(pair uintptr) {
		sent = syscall.Sendmsg(int(pair), b, rights, nil, syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL)
	})
	if err != nil {
		return err
	}
	return sent
}

func open(file *os.File) (*net.UnixConn, error) {
	if file == nil {
		return nil, errors.New("opening the handover socket: it was not inherited, the supervisor hands it over")
	}
	c, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("opening the handover socket: %w", err)
	}
	if u, ok := c.(*net.UnixConn); ok && c.LocalAddr().Network() == "unixpacket" {
		return u, nil
	}
	return nil, errors.Join(fmt.Errorf("opening the handover socket: it is %s, not SEQPACKET", c.LocalAddr().Network()), c.Close())
}
