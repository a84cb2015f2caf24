package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// CommandTimeout is how long one command may take where Conn says nothing else.
// Making an ECC key on a slow discrete TPM takes a few seconds; nothing used
// here takes longer.
const CommandTimeout = 30 * time.Second

// maxEmpty bounds how often a device may say that there is an answer and give none.
const maxEmpty = 1000

// maxResponse is the largest response taken: TPM2_MAX_RESPONSE_SIZE of the
// PC client profile.
const maxResponse = 4096

// Conn is a Transport over a character device or a socket. After a timeout or
// a broken response it refuses every further command until Reset: what would
// come back then could be the answer to an earlier question.
type Conn struct {
	Timeout time.Duration // for one command; 0: CommandTimeout

	path string
	mu   sync.Mutex
	fd   int      // device, or -1
	sock net.Conn // socket, or nil
	dead error
}

// Dial opens the device, the Unix socket or the "tcp:host:port" at path.
func Dial(path string) (*Conn, error) {
	c := &Conn{path: path, fd: -1}
	if err := c.open(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Conn) open() error {
	if address, ok := strings.CutPrefix(c.path, "tcp:"); ok {
		return c.dial("tcp", address)
	}
	info, err := os.Stat(c.path)
	if err != nil {
		return fmt.Errorf("looking for a TPM: %w", err)
	}
	if info.Mode()&fs.ModeSocket != 0 {
		return c.dial("unix", c.path)
	}
	if info.Mode()&fs.ModeCharDevice == 0 {
		return fmt.Errorf("%s is neither a TPM device nor a socket", c.path)
	}
	// Non-blocking, so that a read can be given a deadline by poll. An os.File
	// does not fit: the driver reads 0 bytes until the answer is there, which
	// os.File takes for the end of the file.
	fd, err := unix.Open(c.path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("opening the TPM %s: %w", c.path, err)
	}
	c.fd = fd
	return nil
}

func (c *Conn) dial(network, address string) (err error) {
	if c.sock, err = net.DialTimeout(network, address, c.timeout()); err != nil {
		c.sock = nil
		return fmt.Errorf("connecting to the TPM: %w", err)
	}
	return nil
}

func (c *Conn) timeout() time.Duration {
	if c.Timeout > 0 {
		return c.Timeout
	}
	return CommandTimeout
}

// Reset opens a connection anew that a command broke; a good one it leaves
// alone. What was loaded over a resource manager is gone then, and so is an
// answer that had not come: the kernel drops it with the device that is closed,
// and may first wait for it as long as its own patience lasts.
func (c *Conn) Reset() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead == nil || errors.Is(c.dead, net.ErrClosed) {
		return c.dead
	}
	_ = c.close() // it is given up, in whatever state it is
	c.dead = c.open()
	return c.dead
}

// Close ends the connection.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = net.ErrClosed
	return c.close()
}

func (c *Conn) close() error {
	sock, fd := c.sock, c.fd
	c.sock, c.fd = nil, -1
	switch {
	case sock != nil:
		return sock.Close()
	case fd >= 0:
		return unix.Close(fd)
	}
	return nil
}

// Send carries one command.
func (c *Conn) Send(command []byte) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead != nil {
		return nil, fmt.Errorf("the connection to the TPM is no longer usable: %w", c.dead)
	}
	var (
		resp []byte
		err  error
	)
	if c.sock != nil {
		resp, err = sendSocket(c.sock, command, c.timeout())
	} else {
		resp, err = sendDevice(c.fd, command, c.timeout())
	}
	if err != nil {
		c.dead = err
		return nil, err
	}
	return resp, nil
}

func sendSocket(s net.Conn, command []byte, timeout time.Duration) ([]byte, error) {
	if err := s.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, fmt.Errorf("setting the TPM's deadline: %w", err)
	}
	if err := stale(s); err != nil {
		return nil, err
	}
	if _, err := s.Write(command); err != nil {
		return nil, fmt.Errorf("sending to the TPM: %w", err)
	}
	header := make([]byte, headerSize)
	if _, err := io.ReadFull(s, header); err != nil {
		return nil, fmt.Errorf("reading from the TPM: %w", err)
	}
	size := binary.BigEndian.Uint32(header[2:])
	if size < headerSize || size > maxResponse {
		return nil, fmt.Errorf("the TPM announces a response of %d bytes", size)
	}
	resp := make([]byte, size)
	copy(resp, header)
	if _, err := io.ReadFull(s, resp[headerSize:]); err != nil {
		return nil, fmt.Errorf("reading from the TPM: %w", err)
	}
	return resp, nil
}

// stale refuses a stream in which something waits before anything was asked: it
// would be taken for the beginning of the answer. (A device gives one answer to
// one read, and refuses a command while another's answer waits.)
func stale(s net.Conn) error {
	raw, err := s.(syscall.Conn).SyscallConn()
	if err != nil {
		return fmt.Errorf("looking at the connection to the TPM: %w", err)
	}
	var n int
	err = raw.Control(func(fd uintptr) {
		n, _, _ = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
	})
	if err == nil && n > 0 {
		err = errors.New("it sent more than was asked for")
	}
	if err != nil {
		return fmt.Errorf("looking at the connection to the TPM: %w", err)
	}
	return nil
}

func sendDevice(fd int, command []byte, timeout time.Duration) ([]byte, error) {
	if n, err := unix.Write(fd, command); err != nil || n != len(command) {
		return nil, fmt.Errorf("sending to the TPM (%d of %d bytes): %w", n, len(command), errors.Join(err, io.ErrShortWrite))
	}
	deadline := time.Now().Add(timeout)
	for empty := 0; ; {
		left := time.Until(deadline)
		if left <= 0 {
			return nil, fmt.Errorf("the TPM did not answer in %v: %w", timeout, os.ErrDeadlineExceeded)
		}
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, int(left.Milliseconds())+1)
		if errors.Is(err, unix.EINTR) || (err == nil && n == 0) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("waiting for the TPM: %w", err)
		}
		buf := make([]byte, maxResponse)
		n, err = unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
		case err == nil && n == 0:
			// Announced as readable and empty: a driver may do so while the
			// command ends, a device that is no TPM does so for ever.
			if empty++; empty > maxEmpty {
				return nil, fmt.Errorf("reading from the TPM: %w", io.ErrUnexpectedEOF)
			}
			time.Sleep(time.Millisecond)
		case err != nil:
			return nil, fmt.Errorf("reading from the TPM: %w", err)
		default:
			return buf[:n], nil
		}
	}
}

// headerSize is tag, size and code at the start of every command and response.
const headerSize = 10
