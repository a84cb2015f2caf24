// What says something of times and memory runs alone, and without the race
// detector: make test does so.
//go:build alone

package relay

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/cert/certtest"
)

// envPart names what a re-executed test binary does.
const envPart = "GATEHOUSE_RELAY_PART"

func TestMain(m *testing.M) {
	parts := map[string]func(args []string, stdin *bufio.Reader) error{"gateway": gatewayPart, "hog": hogPart, "equal": equalPart}
	part, ok := parts[os.Getenv(envPart)]
	if !ok {
		os.Exit(m.Run())
	}
	if err := part(os.Args[1:], bufio.NewReader(os.Stdin)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// part is a test that is not one: what a part uses of it.
type part struct{ testing.TB }

func (part) Helper()           {}
func (part) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

// process is a part that runs in a process of its own.
type process struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Reader
}

// start runs a part until the test ends.
func start(t testing.TB, part string, args ...string) *process {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.CommandContext(t.Context(), exe, args...)}
	p.cmd.Env = append(os.Environ(), envPart+"="+part)
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.lines = bufio.NewReader(out)
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.stdin.Close() // with it a part ends
		p.cmd.Wait()
	})
	return p
}

// line is what the part says next.
func (p *process) line(t testing.TB) string {
	t.Helper()
	s, err := p.lines.ReadString('\n')
	if err != nil {
		t.Fatalf("a part says nothing: %v", err)
	}
	return strings.TrimSpace(s)
}

// newProcess is an organisation whose gateway is a process of its own, and
// copies in one of the ways of flows.
func newProcess(t testing.TB, flow string) (*bench, *process) {
	t.Helper()
	public, signer, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, signer: signer, agent: certtest.Self(t), techn: certtest.Self(t)}
	p := start(t, "gateway", hex.EncodeToString(public), flow)
	key, address, _ := strings.Cut(p.line(t), " ")
	if err := b.key.UnmarshalText([]byte(key)); err != nil {
		t.Fatal(err)
	}
	b.address = address
	return b, p
}

// gatewayPart is a gateway: "organisation flow". It says its key and address.
func gatewayPart(args []string, stdin *bufio.Reader) error {
	organisation, err := hex.DecodeString(args[0])
	if err != nil {
		return err
	}
	if err := urgency(first); err != nil {
		return err
	}
	own, err := certtest.New()
	if err != nil {
		return err
	}
	r, err := New(Config{
		Certificate: own, Organisation: func() ed25519.PublicKey { return organisation }, Now: time.Now, Log: slog.New(slog.DiscardHandler),
		MaxWaiting: 200, MaxJoined: 200, Idle: time.Minute,
	})
	if err != nil {
		return err
	}
	if f := flows[args[1]]; f != nil {
		r.flow = f
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
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
				r.Handle(context.Background(), c.(*net.TCPConn), nil, func() {})
			}()
		}
	}()
	fmt.Println(r.Key(), l.Addr())
	io.Copy(io.Discard, stdin)
	return nil
}

// flows are ways to copy that are wrong, by name.
var flows = map[string]func(to, from *net.TCPConn) (int64, error){
	"drains": selfish(time.Millisecond),
	"waits":  selfish(50 * time.Millisecond),
	"copies": copies,
}

var turnOfAll sync.Mutex

// selfish serves an end until it has said nothing for so long, and all others
// wait.
func selfish(patience time.Duration) func(to, from *net.TCPConn) (int64, error) {
	return func(to, from *net.TCPConn) (n int64, err error) {
		src, err := from.SyscallConn()
		if err != nil {
			return 0, err
		}
		for b := make([]byte, 256<<10); ; {
			if err := silent(src, b[:1]); err != nil {
				return n, err
			}
			turnOfAll.Lock()
			for {
				from.SetReadDeadline(time.Now().Add(patience))
				m, err := from.Read(b)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					break
				}
				if err == nil {
					_, err = to.Write(b[:m])
				}
				if n += int64(m); err != nil {
					turnOfAll.Unlock()
					if errors.Is(err, io.EOF) {
						err = nil
					}
					return n, err
				}
			}
			turnOfAll.Unlock()
			from.SetReadDeadline(time.Time{})
		}
	}
}

// silent waits for as long as nothing comes.
func silent(src rawConn, b []byte) error {
	return src.Read(func(fd uintptr) bool {
		_, _, err := unix.Recvfrom(int(fd), b, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return !errors.Is(err, unix.EAGAIN)
	})
}

// copies takes the bytes into the process, as many as there are.
func copies(to, from *net.TCPConn) (int64, error) {
	var held []byte
	var mu sync.Mutex
	more := sync.NewCond(&mu)
	var end error
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, err := from.Read(b)
			mu.Lock()
			held, end = append(held, b[:n]...), err
			mu.Unlock()
			more.Signal()
			if err != nil {
				return
			}
		}
	}()
	var n int64
	for {
		mu.Lock()
		for len(held) == 0 && end == nil {
			more.Wait()
		}
		b, err := held, end
		held = nil
		mu.Unlock()
		m, werr := to.Write(b)
		if n += int64(m); werr != nil || errors.Is(err, io.EOF) {
			return n, werr
		} else if err != nil {
			return n, err
		}
	}
}
