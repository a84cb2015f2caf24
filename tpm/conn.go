package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// CommandTimeout is how long one command may take. Making an ECC key on a slow
// discrete TPM takes a few seconds; nothing used here takes longer.
const CommandTimeout = 30 * time.Second

// maxEmpty bounds how often a device may say that there is an answer and give none.
const maxEmpty = 1000

// maxResponse is the largest response taken: TPM2_MAX_RESPONSE_SIZE of the
// PC client profile.
const maxResponse = 4096

// Conn is a Transport over a character device or a socket. After a timeout or
// a broken response it refuses every further command: what would come back
// then could be the answer to an earlier question.
type Conn struct {
	mu   sync.Mutex
	fd   int      // device, or -1
	sock net.Conn // socket, or nil
	dead error
}

// Dial opens the device, the Unix socket or the "tcp:host:port" at path.
func Dial(path string) (*Conn, error) {
	if len(path) > 4 && path[:4] == "tcp:" {
		return dialSocket("tcp", path[4:])
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("looking for a TPM: %w", err)
	}
	if info.Mode()&fs.ModeSocket != 0 {
		return dialSocket("unix", path)
	}
	if info.Mode()&fs.ModeCharDevice == 0 {
		return nil, fmt.Errorf("%s is neither a TPM device nor a socket", path)
	}
	// Non-blocking, so that a read can be given a deadline by poll. An os.File
	// does not fit: the driver reads 0 bytes until the answer is there, which
	// os.File takes for the end of the file.
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the TPM %s: %w", path, err)
	}
	return &Conn{fd: fd}, nil
}

func dialSocket(network, address string) (*Conn, error) {
	s, err := net.DialTimeout(network, address, CommandTimeout)
	if err != nil {
		return nil, fmt.Errorf("connecting to the TPM: %w", err)
	}
	return &Conn{fd: -1, sock: s}, nil
}

// Close ends the connection.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = net.ErrClosed
	if c.sock != nil {
		return c.sock.Close()
	}
	if c.fd < 0 {
		return nil
	}
	fd := c.fd
	c.fd = -1
	return unix.Close(fd)
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
		resp, err = sendSocket(c.sock, command)
	} else {
		resp, err = sendDevice(c.fd, command)
	}
	if err != nil {
		c.dead = err
		return nil, err
	}
	return resp, nil
}

func sendSocket(s net.Conn, command []byte) ([]byte, error) {
	if err := s.SetDeadline(time.Now().Add(CommandTimeout)); err != nil {
		return nil, fmt.Errorf("setting the TPM's deadline: %w", err)
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

func sendDevice(fd int, command []byte) ([]byte, error) {
	if n, err := unix.Write(fd, command); err != nil || n != len(command) {
		return nil, fmt.Errorf("sending to the TPM (%d of %d bytes): %w", n, len(command), errors.Join(err, io.ErrShortWrite))
	}
	deadline := time.Now().Add(CommandTimeout)
	for empty := 0; ; {
		left := time.Until(deadline)
		if left <= 0 {
			return nil, fmt.Errorf("the TPM did not answer in %v: %w", CommandTimeout, os.ErrDeadlineExceeded)
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
