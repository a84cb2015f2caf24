package boot

import (
	"context"
	"encoding/json"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/firmware"
)

// watch asks a box for its status twice a second, from one moment to another; or for its
// memory, seldom enough that asking is no work for an emulated machine.
type watch struct {
	p    *person
	end  context.CancelFunc
	done sync.WaitGroup

	mu     sync.Mutex
	last   time.Time     // that an answer came
	away   time.Duration // the longest time without one
	lowest uint64        // memory that was available, bytes
}

func (p *person) watch(memory bool) *watch {
	ctx, end := context.WithCancel(p.t.Context())
	w := &watch{p: p, end: end, last: time.Now()}
	path, each := "/api/v1/status", 500*time.Millisecond
	if memory {
		path, each = "/api/v1/details", 5*time.Second
	}
	ask := func() {
		var d control.Status
		ctx, end := context.WithTimeout(ctx, 10*each)
		defer end()
		req, err := http.NewRequestWithContext(ctx, "GET", p.base+path, nil)
		if err != nil {
			return
		}
		resp, err := p.Do(req)
		if err != nil {
			p.CloseIdleConnections() // to the life before
			return
		}
		defer resp.Body.Close()
		if json.NewDecoder(resp.Body).Decode(&d) != nil || resp.StatusCode != http.StatusOK {
			return
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		now := time.Now()
		w.away, w.last = max(w.away, now.Sub(w.last)), now
		if d.Memory.Total > 0 && (w.lowest == 0 || d.Memory.Available < w.lowest) {
			w.lowest = d.Memory.Available
		}
	}
	w.done.Go(func() {
		for ctx.Err() == nil {
			w.done.Go(ask) // one that hangs holds up no other
			time.Sleep(each)
		}
	})
	return w
}

// stop returns the longest time without an answer, and the least memory that was available.
func (w *watch) stop() (away time.Duration, lowest uint64) {
	w.end()
	w.done.Wait()
	return w.away, w.lowest
}

// BenchmarkUpdate measures a release in the box of the tests (512 MB, UEFI, Secure Boot,
// TPM): its bytes; seconds until it is received and read back; from its start until it is
// kept, of which 60 are the health gate's; how long the page is away, beside a plain
// restart of the same box; what memory it takes to receive it, beside the minute before.
func BenchmarkUpdate(b *testing.B) {
	for b.Loop() {
		m := reachable(secure(b, newDisk(b)))
		m.State = filepath.Join(b.TempDir(), "state")
		guest := start(b, m)
		p, _ := owned(b, guest)
		p.Timeout = patience

		w := p.watch(false)
		if resp, err := p.PostForm(p.base+"/system/restart", nil); err == nil {
			resp.Body.Close()
		}
		boots.firmware.Add(1)
		state(b, guest, "ready", "url")
		p.again()
		plain, _ := w.stop()

		n := next{version: firmware.Version{Minor: 2}, program: "cmd/gatehoused"}
		n.make(b)
		w = p.watch(true)
		time.Sleep(time.Minute)
		_, idle := w.stop()
		w = p.watch(true)
		p.signsIn(p.tool)
		began := time.Now()
		if status, body := p.post("/api/v1/update", "application/octet-stream", n.bundle(b)); status != http.StatusOK {
			b.Fatalf("the bundle was answered %d: %s", status, body)
		}
		received := time.Since(began)
		_, busy := w.stop()

		w = p.watch(false)
		began = time.Now()
		if resp, err := p.Post(p.base+"/api/v1/update/start", "application/json", strings.NewReader(`{"wait":false}`)); err == nil {
			resp.Body.Close()
		}
		boots.firmware.Add(1)
		say(b, guest, `gatehouse: systems: version 0\.2\.0 is kept`)
		kept := time.Since(began)
		away, _ := w.stop()
		off(b, guest)

		b.ReportMetric(0, "ns/op")
		b.ReportMetric(float64(len(n.bytes))/1e6, "release-MB")
		b.ReportMetric(received.Seconds(), "receive-s")
		b.ReportMetric(kept.Seconds(), "start-to-kept-s")
		b.ReportMetric(plain.Seconds(), "restart-away-s")
		b.ReportMetric(away.Seconds(), "update-away-s")
		b.ReportMetric(away.Seconds()/plain.Seconds(), "away-ratio")
		b.ReportMetric((float64(idle)-float64(busy))/1e6, "memory-MB")
	}
}
