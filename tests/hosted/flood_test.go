package hosted

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// crowdOf gives the machine so many addresses more.
func (l *lan) crowdOf(n int) []string {
	l.Helper()
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("192.0.2.%d", 100+i))
	}
	var ends []string
	for _, a := range all {
		ends = append(ends, a+"/24")
	}
	l.machine.Up(l.T, "lan0", ends...)
	return all
}

// good asks for the status over a new connection again and again, until the
// channel is closed, and counts what it got.
func (l *lan) good(done <-chan struct{}) (asked, served int) {
	for {
		c := l.from(friend)
		r, err := c.Get("https://" + boxAddress + "/api/v1/status")
		asked++
		if err != nil || r.StatusCode != http.StatusOK {
			l.Logf("a good request got %v, %v", r, err)
		}
		if err == nil {
			io.Copy(io.Discard, r.Body)
			r.Body.Close()
			if r.StatusCode == http.StatusOK {
				served++
			}
		}
		c.CloseIdleConnections()
		select {
		case <-done:
			return asked, served
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func soak() bool { return os.Getenv("GATEHOUSE_SOAK") == "1" }

// TestNET7_SlowConnectionsAreClosed is bar 17: connections of many sources that
// are slow in every way there is are closed within 15 s, and meanwhile good
// clients are served, 99.9 % of them.
func TestNET7_SlowConnectionsAreClosed(t *testing.T) {
	number := 3000
	if soak() {
		number = 10_000
	}
	l := newLAN(t)
	l.start("unclaimed")
	sources := l.crowdOf(50)
	page := "GET / HTTP/1.1\r\nHost: " + boxAddress + "\r\n"
	form := "POST /setup HTTP/1.1\r\nHost: " + boxAddress + "\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 1000\r\n\r\ne"
	hello := []byte{22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3}
	overTLS := func(protocol, first string) func(net.Conn) (net.Conn, error) {
		return func(c net.Conn) (net.Conn, error) {
			c.SetDeadline(time.Now().Add(14 * time.Second))
			s := tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}})
			err := s.Handshake()
			if err == nil {
				_, err = s.Write([]byte(first))
			}
			return c, err
		}
	}
	plain := func(first []byte) func(net.Conn) (net.Conn, error) {
		return func(c net.Conn) (net.Conn, error) { _, err := c.Write(first); return c, err }
	}
	ways := []func(net.Conn) (net.Conn, error){
		plain(nil), plain(hello[:1]), plain(hello),
		overTLS("http/1.1", ""), overTLS("http/1.1", page), overTLS("http/1.1", form), overTLS("h2", ""), overTLS("h2", http2.ClientPreface),
	}
	done := make(chan struct{})
	var counting, flood sync.WaitGroup
	var asked, served int
	counting.Go(func() { asked, served = l.good(done) })
	var opened, late atomic.Int64
	next := make(chan int)
	for range 64 {
		flood.Go(func() {
			for i := range next {
				c, err := l.dialFrom(sources[i%len(sources)], 10*time.Second)
				if err != nil {
					continue // refused is as good as closed
				}
				opened.Add(1)
				begun := time.Now()
				// One in four goes as far as TLS, which costs the test as much as the box.
				way := ways[i%3]
				if i%4 == 0 {
					way = ways[3+i/4%(len(ways)-3)]
				}
				way(c)
				flood.Go(func() {
					defer c.Close()
					c.SetDeadline(begun.Add(15 * time.Second))
					if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
						late.Add(1)
					}
				})
			}
		})
	}
	for i := range number {
		next <- i
	}
	close(next)
	flood.Wait()
	close(done)
	counting.Wait()
	t.Logf("%d slow connections, %d open after 15 s; %d of %d good requests served", opened.Load(), late.Load(), served, asked)
	if late.Load() != 0 {
		t.Errorf("%d of %d slow connections are open after 15 s", late.Load(), opened.Load())
	}
	if opened.Load() < int64(number)*9/10 || asked < 20 {
		t.Errorf("%d connections and %d good requests prove nothing", opened.Load(), asked)
	}
	if (asked-served)*1000 > asked {
		t.Errorf("%d of %d good requests were served, want 99.9 %%", served, asked)
	}
}

// TestNET7_OneSourceDoesNotStarveOthers opens TLS connections from one source
// as fast as it can: it gets its pace and no more, and another is served.
func TestNET7_OneSourceDoesNotStarveOthers(t *testing.T) {
	l := newLAN(t)
	l.start("unclaimed")
	const lasts = 4 * time.Second
	ctx, cancel := context.WithTimeout(t.Context(), lasts)
	defer cancel()
	var got, tried atomic.Int64
	var flood sync.WaitGroup
	for range 300 {
		flood.Go(func() {
			for ctx.Err() == nil {
				c, err := l.dialFrom(stranger, time.Second)
				if err != nil {
					continue
				}
				tried.Add(1)
				s := tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
				if s.HandshakeContext(ctx) == nil {
					got.Add(1)
				}
				c.Close()
			}
		})
	}
	done := make(chan struct{})
	go func() { flood.Wait(); close(done) }()
	asked, served := l.good(done)
	// A burst of 256, 64 a second, and 128 that may wait for theirs.
	most := int64(256 + 128 + 64*(lasts/time.Second+1))
	t.Logf("%d connections of one source tried, %d got a handshake (at most %d); %d of %d good requests served", tried.Load(), got.Load(), most, served, asked)
	if got.Load() > most {
		t.Errorf("one source got %d handshakes, want at most %d", got.Load(), most)
	}
	if tried.Load() < 2*most {
		t.Errorf("only %d connections were tried: nothing is proved", tried.Load())
	}
	if served != asked {
		t.Errorf("%d of %d good requests were served", served, asked)
	}
}

// TestNET7_ResetsEndTheConnection sends HEADERS and RST_STREAM by the thousand
// to the console through the gateway (CVE-2023-44487). How many handlers run at
// once is counted where they can be seen, in appliance/console.
func TestNET7_ResetsEndTheConnection(t *testing.T) {
	total := int64(100_000)
	if soak() {
		total = 1_000_000
	}
	l := newLAN(t)
	l.start("unclaimed")
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", boxAddress}, {":path", "/setup"}} {
		e.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	var sent, ended, alive atomic.Int64
	var flood sync.WaitGroup
	for range 8 {
		flood.Go(func() {
			for sent.Load() < total && t.Context().Err() == nil {
				c, err := l.dialFrom(stranger, 5*time.Second)
				if err != nil {
					continue
				}
				s := tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
				c.SetDeadline(time.Now().Add(20 * time.Second))
				if s.Handshake() != nil { // over its pace
					c.Close()
					time.Sleep(50 * time.Millisecond)
					continue
				}
				n, out := resets(s, block.Bytes(), 5000)
				sent.Add(int64(n))
				if out {
					ended.Add(1)
				} else {
					alive.Add(1)
				}
				c.Close()
			}
		})
	}
	done := make(chan struct{})
	go func() { flood.Wait(); close(done) }()
	asked, served := l.good(done)
	memory := l.most("console")
	t.Logf("%d requests reset over %d connections; the console had %d MB at most; %d of %d good requests served", sent.Load(), ended.Load(), memory>>10, served, asked)
	if alive.Load() != 0 {
		t.Errorf("%d connections that reset 5000 requests each are still open", alive.Load())
	}
	if served != asked {
		t.Errorf("%d of %d good requests were served", served, asked)
	}
	if memory > 200<<10 {
		t.Errorf("the console had %d MB", memory>>10)
	}
}

// resets abandons requests until there were so many or the box ends it.
func resets(c net.Conn, block []byte, most int) (int, bool) {
	w := bytes.NewBufferString(http2.ClientPreface)
	f := http2.NewFramer(w, c)
	f.WriteSettings()
	heard := make(chan bool, 1)
	go func() {
		for {
			switch frame, err := f.ReadFrame(); {
			case err != nil:
				heard <- false
				return
			case frame.Header().Type == http2.FramePing && frame.Header().Flags.Has(http2.FlagPingAck):
				heard <- true
				return
			}
		}
	}()
	for i := range most {
		id := uint32(2*i + 1)
		f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndStream: true, EndHeaders: true})
		f.WriteRSTStream(id, http2.ErrCodeCancel)
		if i%16 == 15 {
			if _, err := w.WriteTo(c); err != nil {
				return i, true
			}
		}
	}
	f.WritePing(false, [8]byte{7}) // answered once all before it is read
	if _, err := w.WriteTo(c); err != nil {
		return most, true
	}
	return most, !<-heard
}

// most is the largest memory that a role ever held, in KB.
func (b *box) most(role string) int {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.role(role)))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n := 0
			fmt.Sscan(rest, &n)
			return n
		}
	}
	b.Fatal("the kernel does not say how much memory it held")
	return 0
}

// TestNET7_MissingSYNCookiesAreSaid starts on a host whose owner switched them off.
func TestNET7_MissingSYNCookiesAreSaid(t *testing.T) {
	for value, said := range map[string]bool{"0": true, "1": false} {
		b := newBox(t)
		b.host.Sysctl(t, "net/ipv4/tcp_syncookies", value)
		b.start("unclaimed")
		if got := strings.Contains(b.output(), "net.ipv4.tcp_syncookies"); got != said {
			t.Errorf("with %s it is said: %t\n%s", value, got, b.output())
		}
	}
}
