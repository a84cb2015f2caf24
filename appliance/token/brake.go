package token

import (
	"net/netip"
	"sync"
	"time"
)

// Tokens have 256 bits, so the brake is not what keeps guessers out but what
// keeps them from costing much: each look is a hash and a query. It is the same
// as for all accounts of one address; a program that asks each few seconds with
// an old token does not hit it.
const (
	burst   = 30
	refill  = 3 * time.Second
	sources = 1024
)

type tries struct {
	n    int
	last time.Time
}

type brake struct {
	now     func() time.Time
	mu      sync.Mutex
	by      map[netip.Prefix]*tries
	refused uint64
}

func newBrake(now func() time.Time) *brake {
	return &brake{now: now, by: make(map[netip.Prefix]*tries)}
}

// take counts a try as wrong; one that succeeds is taken back.
func (b *brake) take(source netip.Prefix) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	b.refused++
	t := b.by[source]
	if t == nil {
		if len(b.by) >= sources {
			b.forget()
		}
		t = &tries{last: now}
		b.by[source] = t
	}
	if back := int(now.Sub(t.last) / refill); back > 0 {
		t.n, t.last = max(0, t.n-back), now
	}
	if t.n >= burst {
		return refill
	}
	t.n++
	return 0
}

// forget makes room: the one that was quiet for longest goes, so that those
// who flood stay braked.
func (b *brake) forget() {
	var oldest netip.Prefix
	for k, v := range b.by {
		if o := b.by[oldest]; o == nil || v.last.Before(o.last) {
			oldest = k
		}
	}
	delete(b.by, oldest)
}

func (b *brake) succeeded(source netip.Prefix) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refused--
	if t := b.by[source]; t != nil {
		t.n = max(0, t.n-1)
	}
}

func (b *brake) wrong() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.refused
}
