package console

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"gatehouse/appliance/console/consoletest"
)

// dialFrom opens TLS from an address of the loopback.
func dialFrom(t testing.TB, b *consoletest.Box, address, protocol string) *tls.Conn {
	t.Helper()
	d := &tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}, Timeout: 20 * time.Second},
		Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}}}
	c, err := d.Dial("tcp", strings.TrimPrefix(b.URL, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*tls.Conn)
}

// headerBlock is the header block of GET.
func headerBlock(b *consoletest.Box, path string) []byte {
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", strings.TrimPrefix(b.URL, "https://")}, {":path", path}} {
		e.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	return block.Bytes()
}

// abandon makes requests and resets each at once, until it has made so many or
// is thrown out. It gives how many it made, and whether it was thrown out.
func abandon(c net.Conn, block []byte, most int) (int, bool) {
	w := bytes.NewBufferString(http2.ClientPreface)
	f := http2.NewFramer(w, c)
	f.WriteSettings()
	heard := make(chan bool, 1) // false: the connection ended
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
		if i%16 != 15 {
			continue
		}
		if _, err := w.WriteTo(c); err != nil || len(heard) > 0 {
			return i, true
		}
	}
	f.WritePing(false, [8]byte{7}) // answered once all before it is read
	if _, err := w.WriteTo(c); err != nil {
		return most, true
	}
	return most, !<-heard
}

// handlers counts the requests of HTTP/2 that this process handles now: those
// that were let in by the guard, and all, with those it is just turning away.
func handlers() (in, all int) {
	var b strings.Builder
	if err := pprof.Lookup("goroutine").WriteTo(&b, 1); err != nil {
		return -1, -1
	}
	for part := range strings.SplitSeq(b.String(), "\n\n") {
		if !strings.Contains(part, "runHandler") {
			continue
		}
		var n int
		head, _, _ := strings.Cut(part, " @")
		fmt.Sscan(head[strings.LastIndexByte(head, '\n')+1:], &n)
		if all += n; strings.Contains(part, "CrossOriginProtection") {
			in += n
		}
	}
	return in, all
}

// TestNET7_ResetsAreBounded makes requests of HTTP/2 and resets each at once
// (CVE-2023-44487), over connections of one source that are made anew whenever
// they are closed. Bar 18: a million of them, and at most 100 handlers at once.
func TestNET7_ResetsAreBounded(t *testing.T) {
	total := int64(30_000)
	if os.Getenv("GATEHOUSE_SOAK") == "1" {
		total = 1_000_000
	}
	b, _ := consoletest.Owned(t, Run)
	block := headerBlock(b, "/sign-in")
	var made, closed atomic.Int64
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	var flood sync.WaitGroup
	for range 8 {
		flood.Go(func() {
			for made.Load() < total && ctx.Err() == nil {
				c := dialFrom(t, b, "127.0.0.66", "h2")
				n, out := abandon(c, block, 20_000)
				made.Add(int64(n))
				if out {
					closed.Add(1)
				} else {
					t.Errorf("%d requests over one connection were all reset, and it is still open", n)
				}
				c.Close()
			}
		})
	}
	done := make(chan struct{})
	go func() { flood.Wait(); close(done) }()
	var most, mostAll, looks int
	var looking sync.WaitGroup
	looking.Go(func() {
		for {
			in, all := handlers()
			most, mostAll, looks = max(most, in), max(mostAll, all), looks+1
			select {
			case <-done:
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	})
	good, served := from(t, "127.0.0.2"), 0
	for running := true; running; served++ {
		select {
		case <-done:
			running = false
		default:
		}
		if got := statusOf(t, good, b.URL+"/sign-in"); got != http.StatusOK {
			t.Errorf("under the flood somebody else gets %d", got)
		}
	}
	looking.Wait()
	t.Logf("%d requests were made and reset; %d handlers at most and %d with those turned away (of %d looks), %d connections closed, %d good requests served", made.Load(), most, mostAll, looks, closed.Load(), served)
	if most > 100 {
		t.Errorf("%d handlers ran at once, want at most 100", most)
	}
	if mostAll == 0 {
		t.Error("no handler was ever seen: nothing is measured")
	}
}

// TestNET7_SteadyResetsAreClosed resets few requests at a time, so that none
// waits for a place and net/http has nothing to object to.
func TestNET7_SteadyResetsAreClosed(t *testing.T) {
	b, _ := consoletest.Owned(t, Run)
	block, c := headerBlock(b, "/sign-in"), dialFrom(t, b, "127.0.0.66", "h2")
	w := bytes.NewBufferString(http2.ClientPreface)
	f := http2.NewFramer(w, c)
	f.WriteSettings()
	made := 0
	for ; made < 1000; made += 4 {
		for i := range 4 {
			id := uint32(2*(made+i) + 1)
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndStream: true, EndHeaders: true})
			f.WriteRSTStream(id, http2.ErrCodeCancel)
		}
		f.WritePing(false, [8]byte{7})
		if _, err := w.WriteTo(c); err != nil {
			break
		}
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				t.Logf("closed after %d requests", made)
				if made < resetsAtOnce/2 {
					t.Errorf("closed after %d requests: a browser that leaves a page would be", made)
				}
				return
			}
			if frame.Header().Type == http2.FramePing {
				break
			}
		}
	}
	t.Errorf("%d requests were all reset, and the connection is still open", made)
}

// TestNET7_SlowVisitorsAreClosed is bar 17's limit of 15 s, for each way of
// being slow that comes after the ClientHello.
func TestNET7_SlowVisitorsAreClosed(t *testing.T) {
	t.Parallel() // it waits
	b, _ := consoletest.Owned(t, Run)
	host := strings.TrimPrefix(b.URL, "https://")
	page := "GET /sign-in HTTP/1.1\r\nHost: " + host + "\r\n"
	form := "POST /sign-in HTTP/1.1\r\nHost: " + host + "\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 1000\r\n\r\n"
	type slow struct {
		name  string
		conn  net.Conn
		stuck chan time.Time // since when the box can send it nothing more
	}
	var all []slow
	drip := func(name, protocol, first string, every string) {
		c := dialFrom(t, b, "127.0.0.77", protocol)
		c.Write([]byte(first))
		all = append(all, slow{name, c, nil})
		if every == "" {
			return
		}
		go func() {
			for {
				time.Sleep(300 * time.Millisecond)
				if _, err := c.Write([]byte(every)); err != nil {
					return
				}
			}
		}()
	}
	start := time.Now()
	drip("silent", "http/1.1", "", "")
	drip("half a header", "http/1.1", page, "")
	drip("a header now and then", "http/1.1", page, "X-A: b\r\n")
	drip("half a form", "http/1.1", form+"e", "")
	drip("a byte of a form now and then", "http/1.1", form, "e")
	drip("HTTP/2, silent", "h2", "", "")
	drip("HTTP/2, the preface alone", "h2", http2.ClientPreface, "")
	drip("HTTP/2, pings and no request", "h2", http2.ClientPreface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00", "\x00\x00\x08\x06\x00\x00\x00\x00\x00gatehous")
	// Asks for pages and never reads: the answers fill the socket, or wait for
	// a window that never opens, and the pings behind them are not answered.
	deaf := func(name, protocol, ask string) {
		c := dialFrom(t, b, "127.0.0.77", protocol)
		c.NetConn().(*net.TCPConn).SetReadBuffer(4096)
		stuck := make(chan time.Time, 1)
		go func() {
			for wrote := true; wrote && protocol != "h2"; {
				// Until the box takes no more, because it cannot answer.
				c.SetWriteDeadline(time.Now().Add(time.Second))
				_, err := c.Write([]byte(ask))
				wrote = err == nil
			}
			if protocol == "h2" {
				c.Write([]byte(ask))
			}
			stuck <- time.Now()
		}()
		all = append(all, slow{name, c, stuck})
	}
	deaf("never reads", "http/1.1", strings.Repeat(page+"\r\n", 200))
	asked := new(bytes.Buffer)
	asked.WriteString(http2.ClientPreface)
	f := http2.NewFramer(asked, nil)
	f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: headerBlock(b, "/sign-in"), EndStream: true, EndHeaders: true})
	deaf("HTTP/2, never reads", "h2", asked.String())
	var wait sync.WaitGroup
	for _, s := range all {
		wait.Go(func() {
			raw := s.conn.(*tls.Conn).NetConn()
			raw.SetReadDeadline(start.Add(15 * time.Second))
			if s.stuck != nil {
				// The end that the box made stands behind what it had sent, which
				// has to be read first; an open connection would go on after it.
				time.Sleep(15*time.Second - time.Since(<-s.stuck))
				raw.(*net.TCPConn).SetReadBuffer(1 << 20)
				raw.SetReadDeadline(time.Now().Add(10 * time.Second))
			}
			if _, err := io.Copy(io.Discard, raw); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: still open after 15 s", s.name)
			}
		})
	}
	wait.Wait()
}

// TestNET7_HandshakesTakeTurns shows that a source with many handshakes waits
// behind itself.
func TestNET7_HandshakesTakeTurns(t *testing.T) {
	turns := newTurns(1)
	source := func(n byte) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, n}), 32) }
	if err := turns.enter(t.Context(), source(1)); err != nil {
		t.Fatal(err)
	}
	got := make(chan byte)
	waits := func(n byte) {
		go func() {
			if err := turns.enter(t.Context(), source(n)); err == nil {
				got <- n
			}
		}()
		waiting := func() int {
			turns.mu.Lock()
			defer turns.mu.Unlock()
			return len(turns.queues[source(n)])
		}
		for before := waiting(); waiting() == before && before == 0; time.Sleep(time.Millisecond) {
		}
		time.Sleep(5 * time.Millisecond)
	}
	for range 5 {
		waits(1)
	}
	waits(2)
	waits(3)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := turns.enter(gone, source(4)); !errors.Is(err, errBusy) {
		t.Errorf("who gives up gets %v", err)
	}
	var order []byte
	for range 7 {
		turns.leave()
		order = append(order, <-got)
	}
	if want := []byte{1, 2, 3, 1, 1, 1, 1}; !bytes.Equal(order, want) {
		t.Errorf("the turns were %v, want %v", order, want)
	}
	turns.leave()
	if turns.free != 1 || len(turns.order) != 0 {
		t.Errorf("at the end %d are free and %v wait", turns.free, turns.order)
	}
}
