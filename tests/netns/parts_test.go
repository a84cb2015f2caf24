package netns

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Getpid() == 1 && os.Getenv(envTests) != "" {
		inGuest(m)
	}
	Main(m, map[string]func([]string, io.Writer) error{
		"listen":    listen,
		"datagrams": datagrams,
		"scan":      func(args []string, w io.Writer) error { return scanPart(args, w) },
		"knock":     knock,
		"fetch":     fetch,
		"fill":      fillPart,
		"slow":      slow,
		"keep":      keepPart,
		"filter":    filterPart,
		"meet":      meetPart,
		"end":       endPart,
	})
}

// bulk is what a listener sends, long enough to fill many packets.
const bulk = 200_000

// listen opens sockets, says so in one line, and answers: tcp/443 udp/53 …
func listen(args []string, w io.Writer) error {
	for _, a := range args {
		network, port, _ := strings.Cut(a, "/")
		switch network {
		case "tcp":
			l, err := net.Listen("tcp", ":"+port)
			if err != nil {
				return err
			}
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						defer c.Close()
						c.SetDeadline(time.Now().Add(10 * time.Second))
						c.Write(make([]byte, bulk))
					}()
				}
			}()
		case "udp":
			c, err := net.ListenPacket("udp", ":"+port)
			if err != nil {
				return err
			}
			go func() {
				b := make([]byte, 1500)
				for {
					_, from, err := c.ReadFrom(b)
					if err != nil {
						return
					}
					c.WriteTo([]byte("here"), from)
				}
			}()
		}
	}
	fmt.Fprintln(w, "listening")
	select {} // until the test closes standard input
}

// waitLine waits for the first line of a part.
func waitLine(t *testing.T, p *Process) string {
	t.Helper()
	line, err := bufio.NewReader(p.Stdout()).ReadString('\n')
	if err != nil {
		t.Fatalf("%s ended before it was ready: %v\n%s", p.name, err, p.stderr.String())
	}
	return line
}

// fetch reads all that a listener sends and prints how much it was.
func fetch(args []string, w io.Writer) error {
	c, err := net.DialTimeout("tcp", args[0], 5*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	n, err := io.Copy(io.Discard, c)
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(w, n)
	return err
}

// knock sends a SYN every two milliseconds for the time given, and prints when
// the first answer came, if one did.
func knock(args []string, w io.Writer) error {
	var ask struct {
		Link, From, To string
		Port           uint16
		For            time.Duration
	}
	if err := json.Unmarshal([]byte(args[0]), &ask); err != nil {
		return err
	}
	s, err := newScanner(ask.Link, ask.From, ask.To)
	if err != nil {
		return err
	}
	defer s.close()
	answers := make(chan time.Time, 1)
	go s.capture(func(kind string, port uint16) {
		if kind == "syn-ack" && port == ask.Port {
			select {
			case answers <- time.Now():
			default:
			}
		}
	})
	fmt.Fprintln(w, "knocking")
	end := time.Now().Add(ask.For)
	for n := uint16(0); time.Now().Before(end); n++ {
		// The cable may be out; that is part of it.
		if err := s.syn(20000+n%20000, ask.Port); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !routeGone(err) {
			return err
		}
		time.Sleep(2 * time.Millisecond)
	}
	select {
	case at := <-answers:
		fmt.Fprintln(w, at.UnixNano())
	default:
		fmt.Fprintln(w, 0)
	}
	return nil
}

// slow reads what a listener sends in small parts, and fails when no more comes.
func slow(args []string, w io.Writer) error {
	d := net.Dialer{Timeout: 5 * time.Second, Control: func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096) })
		return errors.Join(err, cerr)
	}}
	c, err := d.Dial("tcp", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	b := make([]byte, 2000)
	for n := 0; n < bulk; {
		c.SetReadDeadline(time.Now().Add(2 * time.Second))
		m, err := c.Read(b)
		if err != nil {
			return err
		}
		if n == 0 {
			fmt.Fprintln(w, "began")
		}
		n += m
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}
