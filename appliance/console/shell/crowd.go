package shell

import (
	"io"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Limits of the requests that are handled at once. An HTTP/2 client can begin
// and abandon them faster than handlers end; and one that sends its form a byte
// at a time holds its place, so no single source has more than a quarter.
const (
	maxRunning = 64
	maxSource  = maxRunning / 4
)

// crowd counts the requests that are handled, in all and by source. When there
// is no place left the one goes whose body has been coming the longest: many
// sources that send their forms a byte at a time push out each other, and
// nobody whose request is there.
type crowd struct {
	mu     sync.Mutex
	places map[*place]struct{}
	by     map[netip.Prefix]int
}

// place is one request that is handled.
type place struct {
	source  netip.Prefix
	writer  http.ResponseWriter
	reading atomic.Int64 // since when its body comes, in ns; 0: it does not
}

// enter gives a place, or nil.
func (c *crowd) enter(source netip.Prefix, w http.ResponseWriter, r *http.Request) *place {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by[source] >= maxSource || len(c.places) >= maxRunning && !c.evict(time.Now()) {
		return nil
	}
	p := &place{source: source, writer: w}
	c.places[p] = struct{}{}
	c.by[source]++
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = &body{ReadCloser: r.Body, place: p}
	}
	return p
}

func (c *crowd) evict(now time.Time) bool {
	var slowest *place
	oldest := now.UnixNano()
	for p := range c.places {
		if since := p.reading.Load(); since != 0 && since < oldest {
			slowest, oldest = p, since
		}
	}
	if slowest == nil {
		return false
	}
	c.remove(slowest)
	// Its handler sees an error at the next read, and ends.
	return http.NewResponseController(slowest.writer).SetReadDeadline(now) == nil
}

func (c *crowd) leave(p *place) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remove(p)
}

func (c *crowd) remove(p *place) {
	if _, there := c.places[p]; !there {
		return
	}
	delete(c.places, p)
	if c.by[p.source]--; c.by[p.source] == 0 {
		delete(c.by, p.source)
	}
}

// body notes whether there is more to come.
type body struct {
	io.ReadCloser
	place *place
}

func (b *body) Read(p []byte) (int, error) {
	b.place.reading.CompareAndSwap(0, time.Now().UnixNano())
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.place.reading.Store(0)
	}
	return n, err
}
