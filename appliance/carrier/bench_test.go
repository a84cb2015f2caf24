package carrier

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatehouse/appliance/cert/certtest"
	"gatehouse/appliance/relay"
	"gatehouse/appliance/session"
)

// tlsPair is what a path is: the two ends of a session (package relay).
func tlsPair(t testing.TB, here, there net.Conn) (*tls.Conn, *tls.Conn) {
	t.Helper()
	id, err := session.NewID(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	technician, agent := certtest.Self(t), certtest.Self(t)
	g := session.Grant{ID: id, Key: session.KeyOf(technician.Leaf), Agent: session.KeyOf(agent.Leaf)}
	var a, b *tls.Conn
	var errs [2]error
	var wg sync.WaitGroup
	wg.Go(func() { a, errs[0] = relay.Technician(t.Context(), here, g, technician) })
	wg.Go(func() { b, errs[1] = relay.Agent(t.Context(), there, g, agent) })
	wg.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// delay is a pair of connections between which each byte takes as long.
func delay(t testing.TB, d time.Duration) (net.Conn, net.Conn) {
	here, in := tcpPair(t)
	out, there := tcpPair(t)
	for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
		go delayed(way[0], way[1], d)
	}
	t.Cleanup(func() { in.Close(); out.Close() })
	return here, there
}

func delayed(from, to net.Conn, d time.Duration) {
	type piece struct {
		b  []byte
		at time.Time
	}
	line := make(chan piece, 4096) // 64 MiB: more than any window
	go func() {
		defer close(line)
		for {
			b := make([]byte, 16<<10)
			n, err := from.Read(b)
			if n > 0 {
				line <- piece{b[:n], time.Now().Add(d)}
			}
			if err != nil {
				return
			}
		}
	}()
	for p := range line {
		time.Sleep(time.Until(p.at))
		if _, err := to.Write(p.b); err != nil {
			break
		}
	}
	to.Close()
	for range line {
	}
}

// processorTime is what this process has used, user and system.
func processorTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

type writeOnly struct{ io.Writer }
type readOnly struct{ io.Reader }

// pump writes b.N pieces and waits until all of them were read.
func pump(b *testing.B, w io.Writer, closeWrite func() error, r io.Reader) {
	const piece = 32 << 10
	b.SetBytes(piece)
	var wg sync.WaitGroup
	var n int64
	b.ResetTimer()
	before := processorTime()
	wg.Go(func() { n, _ = io.CopyBuffer(writeOnly{io.Discard}, r, make([]byte, piece)) })
	buf := make([]byte, piece)
	left := int64(b.N) * piece
	if from, ok := w.(io.ReaderFrom); ok {
		if _, err := from.ReadFrom(io.LimitReader(endless{}, left)); err != nil {
			b.Fatal(err)
		}
		left = 0
	}
	for ; left > 0; left -= piece {
		if _, err := w.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	if err := closeWrite(); err != nil {
		b.Fatal(err)
	}
	wg.Wait()
	b.ReportMetric(float64(processorTime()-before)/float64(b.N)/piece, "cpu-s/GB")
	if n != int64(b.N)*piece {
		b.Fatalf("%d bytes came of %d", n, int64(b.N)*piece)
	}
}

// carried is a session over TLS with one stream.
func carried(b *testing.B, here, there net.Conn) (ends, *Stream, *Stream) {
	x, y := tlsPair(b, here, there)
	e := newEnds(b, Config{})
	e.attach(b, x, y, Relay)
	s, r := e.stream(b)
	return e, s, r
}

func BenchmarkThroughput(b *testing.B) {
	for _, d := range []time.Duration{0, 50 * time.Millisecond} {
		pair := func(b *testing.B) (net.Conn, net.Conn) {
			if d == 0 {
				return tcpPair(b)
			}
			return delay(b, d)
		}
		name := fmt.Sprint("rtt=", 2*d)
		b.Run(name+"/tls", func(b *testing.B) {
			here, there := pair(b)
			x, y := tlsPair(b, here, there)
			pump(b, x, x.CloseWrite, readOnly{y})
		})
		b.Run(name+"/carrier", func(b *testing.B) {
			here, there := pair(b)
			_, s, r := carried(b, here, there)
			pump(b, writeOnly{s}, s.CloseWrite, readOnly{r})
			b.ReportMetric(float64(r.window)/1024, "KiB-window")
		})
		b.Run(name+"/carrier-copied", func(b *testing.B) { // as io.Copy does it
			here, there := pair(b)
			_, s, r := carried(b, here, there)
			pump(b, s, s.CloseWrite, r)
		})
	}
}

// BenchmarkOpen opens a further stream and has one byte come back, while others
// copy as fast as they can.
func BenchmarkOpen(b *testing.B) {
	for _, copies := range []int{0, 1, 10} {
		b.Run(fmt.Sprint("copies=", copies), func(b *testing.B) {
			here, there := tcpPair(b)
			x, y := tlsPair(b, here, there)
			e := newEnds(b, Config{})
			e.attach(b, x, y, Relay)
			for range copies {
				s, r := e.stream(b)
				go io.Copy(writeOnly{s}, endless{})
				go io.Copy(io.Discard, r)
			}
			go func() {
				for {
					s, err := e.agent.Accept(context.Background())
					if err != nil {
						return
					}
					go func() { io.Copy(s, s); s.Close() }()
				}
			}()
			var took []time.Duration
			one := make([]byte, 1)
			time.Sleep(time.Second) // until the windows have found their size
			b.ResetTimer()
			for range b.N {
				at := time.Now()
				s, err := e.technician.Open(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				s.Write(one)
				if _, err := io.ReadFull(s, one); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(at))
				s.Close()
			}
			b.StopTimer()
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
}

// endless is a reader of zeros.
type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

// BenchmarkIdle holds sessions with one idle stream each, both ends in one process.
func BenchmarkIdle(b *testing.B) {
	for _, with := range []string{"tls", "carrier"} {
		b.Run(with, func(b *testing.B) {
			const n = 100
			var before, after runtime.MemStats
			var conns []net.Conn
			var all []ends
			for range b.N {
				runtime.GC()
				runtime.ReadMemStats(&before)
				for range n {
					here, there := tcpPair(b)
					x, y := tlsPair(b, here, there)
					if with == "tls" {
						conns = append(conns, x, y)
						for _, c := range []net.Conn{x, y} {
							go c.Read(make([]byte, 1))
						}
						continue
					}
					e := newEnds(b, Config{})
					e.attach(b, x, y, Relay)
					s, r := e.stream(b)
					s.Write(make([]byte, 5000))
					io.ReadFull(r, make([]byte, 5000))
					all = append(all, e)
				}
				runtime.GC()
				runtime.GC()
				runtime.ReadMemStats(&after)
			}
			b.ReportMetric(float64(after.HeapAlloc+after.StackInuse-before.HeapAlloc-before.StackInuse)/n/2/1024, "KiB/end")
			for _, c := range conns {
				c.Close()
			}
			for _, e := range all {
				e.technician.Close("")
			}
		})
	}
}
