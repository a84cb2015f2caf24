package bench

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/host"
)

// How much of each. Everything is bounded by bytes and counts, not by time.
const (
	crowd     = 1000      // idle sessions, or waiting agents
	flows     = 50        // streams at once
	volume    = 512 << 20 // bytes of a measurement of throughput
	farVolume = 160 << 20 // of one at 100 ms, of which
	farStart  = 32 << 20  // so many pass before it is measured
	pings     = 2000
	dials     = 100
)

// figures are what is measured of one way, by unit, once a round.
type figures map[string][]float64

func (f figures) add(unit string, v float64) { f[unit] = append(f[unit], v) }

func (f figures) median(unit string) float64 { return median(f[unit]) }

// ratio is the median of the rounds' ratios.
func (f figures) ratio(to figures, unit string) float64 {
	var all []float64
	for i, v := range f[unit] {
		all = append(all, v/to[unit][i])
	}
	return median(all)
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// BenchmarkSession measures ways from a technician to an agent, in turn, each
// in fresh processes, and reports the median of each figure. Ways whose name
// begins with tls have end-to-end TLS over them.
func BenchmarkSession(b *testing.B) {
	w := newWorld(b)
	for _, s := range append(host.Sysctls(), host.Windows(1<<30)...) { // as on a box of 1 GB; the far end is as the kernel makes it
		if key := strings.ReplaceAll(s.Key, ".", "/"); strings.HasPrefix(key, "net/ipv4/tcp_") {
			w.box.Sysctl(b, key, s.Value)
		}
	}
	all := make(map[string]figures)
	for b.Loop() {
		for range rounds {
			for _, y := range ways() {
				if all[y.name] == nil {
					all[y.name] = make(figures)
				}
				w.measure(y, all[y.name])
			}
		}
	}
	for _, y := range ways() {
		b.Run(y.name, func(b *testing.B) { // measured already
			only(b)
			for unit := range all[y.name] {
				b.ReportMetric(all[y.name].median(unit), unit)
			}
		})
	}
	b.Run("ratios", func(b *testing.B) {
		only(b)
		for _, r := range []struct{ of, to, unit string }{
			{"tls-relay", "tls-splice", "1-MB/s"}, {"tls-relay", "tls-splice", fmt.Sprint(flows, "-MB/s")},
			{"carrier", "tls-splice", "1-MB/s"}, {"carrier", "tls-splice", fmt.Sprint(flows, "-MB/s")},
			{"relay", "splice", "1-cpu-s/GB"}, {"relay", "splice", fmt.Sprint(flows, "-cpu-s/GB")},
			{"tls-relay", "tls-splice", "1-cpu-s/GB"}, {"tls-relay", "tls-splice", fmt.Sprint(flows, "-cpu-s/GB")},
		} {
			b.ReportMetric(all[r.of].ratio(all[r.to], r.unit), r.of+"/"+r.to+":"+r.unit)
		}
	})
}

func (w *world) measure(y way, f figures) {
	w.b.Helper()
	r := y.start(w)
	defer r.stop()
	w.latency(r, f)
	for _, n := range []int{1, flows} {
		took, cpu, even := w.throughput(r, n, func() io.ReadWriteCloser { return w.must(r) })
		f.add(fmt.Sprintf("%d-MB/s", n), volume/1e6/took.Seconds())
		if n > 1 {
			f.add("jain", even)
		}
		if r.pids() != nil {
			f.add(fmt.Sprintf("%d-cpu-s/GB", n), cpu.Seconds()/(volume/1e9))
		}
	}
	w.within(r, f)
	w.distance(r, f)
	r.stop()
	r = y.start(w) // for memory and descriptors of its own
	defer r.stop()
	before := w.memory(r)
	idle := w.crowd(r, "joined", func() (io.Closer, error) { c, _, err := r.open(w.box); return c, err }, before, f)
	w.connect(r, "connect", f)
	idle()
	if r.wait == nil {
		return
	}
	r.stop()
	r = y.start(w)
	defer r.stop()
	before = w.memory(r)
	idle = w.crowd(r, "waiting", r.wait, before, f)
	w.connect(r, "connect-waiting", f)
	idle()
}

// must open a connection.
func (w *world) must(r *running) io.ReadWriteCloser {
	w.b.Helper()
	c, _, err := r.open(w.box)
	if err != nil {
		w.b.Fatal(err)
	}
	return c
}

// latency is of 64 bytes there and back, one after the other.
func (w *world) latency(r *running, f figures) {
	w.b.Helper()
	c := w.must(r)
	defer c.Close()
	if _, err := c.Write([]byte{askEcho}); err != nil {
		w.b.Fatal(err)
	}
	var times []time.Duration
	b := make([]byte, 64)
	for i := range pings + 100 {
		began := time.Now()
		if _, err := c.Write(b); err != nil {
			w.b.Fatal(err)
		}
		if _, err := io.ReadFull(c, b); err != nil {
			w.b.Fatal(err)
		}
		if i >= 100 {
			times = append(times, time.Since(began))
		}
	}
	f.add("p50-us", microseconds(percentile(times, 50)))
	f.add("p99-us", microseconds(percentile(times, 99)))
}

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// fetch has the agent send n bytes, and tells of each piece that comes.
func fetch(c io.ReadWriter, n int64, came func(int)) error {
	request := binary.BigEndian.AppendUint64([]byte{askSend}, uint64(n))
	if _, err := c.Write(request); err != nil {
		return err
	}
	b := make([]byte, 128<<10)
	for got := int64(0); got < n; {
		m, err := c.Read(b)
		if err != nil {
			return fmt.Errorf("after %d bytes of %d: %w", got, n, err)
		}
		came(m)
		got += int64(m)
	}
	return nil
}

// throughput is of n streams that share the volume; even is how equal they are
// when half of it has come, by Jain's index.
func (w *world) throughput(r *running, n int, open func() io.ReadWriteCloser) (took, cpu time.Duration, even float64) {
	w.b.Helper()
	var conns []io.ReadWriteCloser
	for range n {
		c := open()
		defer c.Close()
		conns = append(conns, c)
	}
	errs := make(chan error, n)
	got := make([]atomic.Int64, n)
	var sum atomic.Int64
	used := w.cpu(r)
	began := time.Now()
	for i, c := range conns {
		go func() {
			errs <- fetch(c, volume/int64(n), func(m int) {
				got[i].Add(int64(m))
				if now := sum.Add(int64(m)); now >= volume/2 && now-int64(m) < volume/2 {
					even = jain(got)
				}
			})
		}()
	}
	for range conns {
		if err := <-errs; err != nil {
			w.b.Fatal(err)
		}
	}
	return time.Since(began), w.cpu(r) - used, even
}

func jain(all []atomic.Int64) float64 {
	var sum, squares float64
	for i := range all {
		v := float64(all[i].Load())
		sum, squares = sum+v, squares+v*v
	}
	return sum * sum / (float64(len(all)) * squares)
}

// within is what a session of many streams does: flows at once, and a further one.
func (w *world) within(r *running, f figures) {
	w.b.Helper()
	if r.further == nil {
		return
	}
	session := w.must(r)
	defer session.Close()
	further := func() (io.ReadWriteCloser, time.Duration) {
		began := time.Now()
		c, err := r.further(session)
		if err != nil {
			w.b.Fatal(err)
		}
		c, took, err := hear(c, began)
		if err != nil {
			w.b.Fatal(err)
		}
		return c, took
	}
	took, _, _ := w.throughput(r, flows, func() io.ReadWriteCloser { c, _ := further(); return c })
	f.add(fmt.Sprintf("%d-of-one-MB/s", flows), volume/1e6/took.Seconds())
	var times []time.Duration
	for range 10 * dials {
		began := time.Now()
		c, err := r.further(session)
		if err == nil {
			c, _, err = hear(c, began)
		}
		if err != nil { // nobody meets anew here, as the tool does
			w.b.Logf("after %d further streams: %v", len(times), err)
			return
		}
		times = append(times, time.Since(began))
		c.Close()
	}
	f.add("further-p50-ms", milliseconds(percentile(times, 50)))
	f.add("further-p99-ms", milliseconds(percentile(times, 99)))
}

// distance is of one stream to the far place.
func (w *world) distance(r *running, f figures) {
	w.b.Helper()
	c, took, err := r.open(w.far)
	if err != nil {
		w.b.Fatal(err)
	}
	defer c.Close()
	f.add("100ms-connect-ms", milliseconds(took))
	var began time.Time
	came := 0
	if err := fetch(c, farVolume, func(m int) {
		if came += m; came >= farStart && began.IsZero() {
			began = time.Now()
		}
	}); err != nil {
		w.b.Fatal(err)
	}
	f.add("100ms-Mb/s", 8*(farVolume-farStart)/1e6/time.Since(began).Seconds())
}

// crowd opens what stays idle, and says what each costs.
func (w *world) crowd(r *running, name string, open func() (io.Closer, error), before usage, f figures) (leave func()) {
	w.b.Helper()
	var mu sync.Mutex
	var idle []io.Closer
	var failed error
	var wg sync.WaitGroup
	const hands = 8
	for range hands {
		wg.Go(func() {
			for range crowd / hands {
				c, err := open()
				mu.Lock()
				if err != nil {
					failed = err
				} else {
					idle = append(idle, c)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if failed != nil {
		w.b.Fatal(failed)
	}
	if r.pids() != nil {
		time.Sleep(time.Second) // what is only being set up goes
		after := w.memory(r)
		f.add(name+"-KB", float64(after.resident-before.resident)/1e3/crowd)
		f.add(name+"-fds", float64(after.descriptors-before.descriptors)/crowd)
	}
	return func() {
		for _, c := range idle {
			c.Close()
		}
	}
}

// connect is how long a connection takes until the agent's first byte.
func (w *world) connect(r *running, name string, f figures) {
	w.b.Helper()
	var times []time.Duration
	for range dials {
		c, took, err := r.open(w.box)
		if err != nil {
			w.b.Fatal(err)
		}
		times = append(times, took)
		c.Close()
	}
	f.add(name+"-p50-ms", milliseconds(percentile(times, 50)))
	f.add(name+"-p99-ms", milliseconds(percentile(times, 99)))
}

// cpu is the processor time of what relays, exact, dead threads included.
func (w *world) cpu(r *running) (sum time.Duration) {
	w.b.Helper()
	for _, pid := range r.pids() {
		var t unix.Timespec
		// The clock of another process (clock_getcpuclockid(3)): its number inverted, and 2 for what the scheduler counts.
		if err := unix.ClockGettime(int32(^pid<<3|2), &t); err != nil {
			w.b.Fatal(err)
		}
		sum += time.Duration(t.Nano())
	}
	return sum
}

// usage is what processes hold.
type usage struct{ resident, descriptors int }

func (w *world) memory(r *running) (u usage) {
	w.b.Helper()
	for _, pid := range r.pids() {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if err != nil {
			w.b.Fatal(err)
		}
		pages, err := strconv.Atoi(strings.Fields(string(text))[1])
		if err != nil {
			w.b.Fatal(err)
		}
		open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			w.b.Fatal(err)
		}
		u.resident += pages * os.Getpagesize()
		u.descriptors += len(open)
	}
	return u
}
