// What says something of times and memory runs alone, and without the race
// detector: make test does so.
//go:build alone

package relay

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// sniffer stands before a gateway and keeps all that goes through, both ways.
type sniffer struct {
	mu   sync.Mutex
	seen bytes.Buffer
}

func (s *sniffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen.Write(b)
}

func (s *sniffer) saw(b []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Contains(s.seen.Bytes(), b)
}

// sniff puts a sniffer between both ends and the gateway.
func (b *bench) sniff() *sniffer {
	b.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.t.Fatal(err)
	}
	s, gateway := new(sniffer), b.address
	b.address = l.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				to, err := net.Dial("tcp", gateway)
				if err != nil {
					return
				}
				defer to.Close()
				both(func() { io.Copy(io.MultiWriter(s, to), c); to.(*net.TCPConn).CloseWrite() },
					func() { io.Copy(io.MultiWriter(s, c), to); c.(*net.TCPConn).CloseWrite() })
			})
		}
	})
	b.t.Cleanup(func() { l.Close(); wg.Wait() })
	return s
}

// remembers looks for bytes in all the memory of a process that it can write.
func remembers(t *testing.T, pid int, what []byte) bool {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	searched := 0
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(mode, "rw") {
			continue
		}
		const piece = 4 << 20
		for b, at := make([]byte, piece+len(what)), from; at < to; at += piece {
			n, err := memory.ReadAt(b[:min(uint64(len(b)), to-at)], int64(at))
			if n == 0 && err != nil {
				break // pages that were never there
			}
			if searched += n; bytes.Contains(b[:n], what) {
				return true
			}
		}
	}
	if searched < 1<<20 {
		t.Fatalf("only %d bytes of the gateway's memory could be read", searched)
	}
	return false
}

// What goes through a session is neither in what the gateway relays nor in its
// memory, while it flows and afterwards. The same search finds what goes through
// in clear, and what a gateway copies itself.
func TestSES2_ACanaryIsNowhereAtTheGateway(t *testing.T) {
	for name, c := range map[string]struct {
		flow               string
		clear              bool
		relayed, inGateway bool
	}{
		"a session":                           {flow: ""},
		"a session, by a gateway that copies": {flow: "copies"},
		"in clear":                            {flow: "", clear: true, relayed: true},
		"in clear, through a gateway that copies too": {flow: "copies", clear: true, relayed: true, inGateway: true},
	} {
		t.Run(name, func(t *testing.T) {
			b, gateway := newProcess(t, c.flow)
			s := b.sniff()
			var agent, technician io.ReadWriteCloser
			if c.clear {
				var err error
				if agent, technician, err = b.meeting(); err != nil {
					t.Fatal(err)
				}
			} else {
				agent, technician = b.joined(b.grant())
			}
			defer technician.Close()
			defer agent.Close()
			canary := make([]byte, 32)
			rand.Read(canary)
			relayed, inGateway := false, false
			for range 50 {
				for _, way := range [][2]io.ReadWriter{{agent, technician}, {technician, agent}} {
					sent := bytes.Repeat(canary, 1000)
					if _, err := way[0].Write(sent); err != nil {
						t.Fatal(err)
					}
					if _, err := io.ReadFull(way[1], sent); err != nil {
						t.Fatal(err)
					}
					clear(sent)
				}
			}
			relayed, inGateway = s.saw(canary), remembers(t, gateway.cmd.Process.Pid, canary)
			agent.Close()
			technician.Close()
			inGateway = inGateway || remembers(t, gateway.cmd.Process.Pid, canary)
			if relayed != c.relayed || inGateway != c.inGateway {
				t.Errorf("seen in what was relayed: %v, want %v; in the gateway's memory: %v, want %v", relayed, c.relayed, inGateway, c.inGateway)
			}
		})
	}
}

// anonymous is what a process has in memory for itself.
func anonymous(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); f[0] == "RssAnon:" {
			kilobytes, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return kilobytes << 10
		}
	}
	t.Fatal("no RssAnon in the status of a process")
	return 0
}

// queues is what the kernel keeps for the gateway's connections: bytes that
// came and were not read, and bytes that were written and not acknowledged.
func queues(t *testing.T, address string) (received, sent int64) {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	const established = "01"
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		f := strings.Fields(s.Text())
		if !strings.HasSuffix(f[1], fmt.Sprintf(":%04X", number)) || f[3] != established {
			continue
		}
		var tx, rx int64
		if _, err := fmt.Sscanf(f[4], "%x:%x", &tx, &rx); err != nil {
			t.Fatal(err)
		}
		received, sent = received+rx, sent+tx
	}
	return received, sent
}

const (
	slow    = 8        // readers that read nothing
	flooded = 64 << 20 // bytes that each of their ends tries to send
)

// flood fills sessions whose other end does not read, and says how much memory
// of the gateway each takes.
func flood(t *testing.T, flow string) (each int) {
	t.Helper()
	b, gateway := newProcess(t, flow)
	var ends []net.Conn
	for range slow {
		a, te, err := b.meeting()
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		defer te.Close()
		ends = append(ends, a)
	}
	before := anonymous(t, gateway.cmd.Process.Pid)
	var wg sync.WaitGroup
	for _, c := range ends {
		wg.Go(func() {
			b := make([]byte, 256<<10)
			for n := 0; n < flooded; n += len(b) {
				c.SetWriteDeadline(time.Now().Add(time.Second)) // stuck for so long
				if _, err := c.Write(b); err != nil {
					if !errors.Is(err, os.ErrDeadlineExceeded) {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	wg.Wait()
	received, sent := queues(t, b.address)
	each = max(0, anonymous(t, gateway.cmd.Process.Pid)-before) / slow
	t.Logf("%q: a slow reader costs the gateway %d KiB of its memory; the kernel keeps %d KiB that came and %d KiB that go", flow, each>>10, received/slow>>10, sent/slow>>10)
	if flow == "" && sent/slow > unsent+turn {
		t.Errorf("%d bytes of each wait in the kernel to be sent, want %d at most", sent/slow, unsent+turn)
	}
	return each
}

func TestSES1_ASlowReaderHoldsNoMemory(t *testing.T) {
	if each := flood(t, ""); each > 1<<20 {
		t.Errorf("a slow reader holds %d bytes of the gateway's memory, want 1 MiB at most", each)
	}
	if each := flood(t, "copies"); each <= 1<<20 {
		t.Errorf("one at a gateway that copies holds %d bytes: this finds nothing", each)
	}
}
