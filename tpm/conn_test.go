package tpm

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// device is a Conn whose character device is the end of a pair of sockets that
// keeps messages apart, as a TPM's driver does.
func device(t *testing.T, timeout time.Duration) (c *Conn, driver int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	c = &Conn{path: filepath.Join(t.TempDir(), "tpm"), fd: fds[0], Timeout: timeout}
	t.Cleanup(func() {
		c.Close()
		unix.Close(fds[1])
	})
	return c, fds[1]
}

var (
	question = []byte{0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0}
	good     = []byte{0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0}
)

func TestDeviceAnswersOrIsGivenUp(t *testing.T) {
	c, driver := device(t, 10*time.Millisecond)
	if _, err := unix.Write(driver, good); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Send(question); err != nil || !bytes.Equal(got, good) {
		t.Fatalf("Send = %x, %v", got, err)
	}
	if _, err := c.Send(question); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("without an answer: %v", err)
	}
	// It comes now, and is nobody's: not even the next command is sent.
	if _, err := unix.Write(driver, good); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Send(question); err == nil {
		t.Errorf("a late answer was taken for the next: %x", got)
	}
	sent := 0
	for {
		if n, err := unix.Read(driver, make([]byte, 64)); n <= 0 || err != nil {
			break
		}
		sent++
	}
	if sent != 2 {
		t.Errorf("%d commands were sent, want 2: none after the silence", sent)
	}
	if err := c.Reset(); err == nil {
		t.Error("a device that is gone was opened anew")
	}
	if _, err := c.Send(question); err == nil {
		t.Error("a device that is gone answers")
	}
}

func TestDeviceThatEndsIsAnError(t *testing.T) {
	c, driver := device(t, 0)
	if err := unix.Shutdown(driver, unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Send(question); err == nil {
		t.Errorf("Send = %x of a device without a driver", got)
	}
}

func TestResetOpensAnew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tpm")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	first := true
	go func() {
		for {
			s, err := l.Accept()
			if err != nil {
				return
			}
			for {
				if _, err := io.ReadFull(s, make([]byte, len(question))); err != nil {
					break
				}
				answer := good
				if first { // more than it says
					answer, first = append(bytes.Clone(good), good...), false
				}
				if _, err := s.Write(answer); err != nil {
					break
				}
			}
			s.Close()
		}
	}()
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Send(question); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Send(question); err == nil {
		t.Error("what was left of an answer counts as the next")
	}
	if _, err := c.Send(question); err == nil {
		t.Error("a broken connection is used on")
	}
	for range 2 { // the second finds nothing to do
		if err := c.Reset(); err != nil {
			t.Fatal(err)
		}
		if got, err := c.Send(question); err != nil || !bytes.Equal(got, good) {
			t.Errorf("after Reset: %x, %v", got, err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Reset(); err == nil {
		t.Error("a closed connection was opened anew")
	}
}

func TestTPMThatCannotBeOpenedIsTriedAnew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tpm")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d := Find(path)
	if d == nil || d.Shutdown(false) == nil || d.Reset() == nil {
		t.Fatal("a file is a TPM, or none at all")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := d.Reset(); err != nil {
		t.Error(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// The head of every response is checked, and a slow TPM is given up.
func TestResponsesAreWellFormed(t *testing.T) {
	for name, r := range map[string][]byte{
		"none":                     nil,
		"half a head":              good[:5],
		"longer than it says":      append(bytes.Clone(good), 0),
		"shorter than it says":     {0x80, 1, 0, 0, 0, 11, 0, 0, 0, 0},
		"sessions nobody asked":    {0x80, 2, 0, 0, 0, 10, 0, 0, 0, 0},
		"tag of a TPM 1.2":         {0, 0xC4, 0, 0, 0, 10, 0, 0, 0, 0x1E},
		"an error with sessions":   {0x80, 2, 0, 0, 0, 10, 0, 0, 1, 1},
		"a success of another tag": {0, 0, 0, 0, 0, 10, 0, 0, 0, 0},
	} {
		if wellFormed(question, r) == nil {
			t.Errorf("%s: taken", name)
		}
	}
	for _, r := range [][]byte{good, {0x80, 1, 0, 0, 0, 10, 0, 0, 1, 1}} {
		if err := wellFormed(question, r); err != nil {
			t.Error(err)
		}
	}
	slow := sender{t: answers(good), until: time.Now()}
	if _, err := slow.Send(question); !errors.Is(err, ErrSilent) {
		t.Errorf("after its time is over: %v", err)
	}
}

type answers []byte

func (a answers) Send([]byte) ([]byte, error) { return a, nil }
