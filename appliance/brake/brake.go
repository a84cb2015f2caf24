// Package brake bounds how often strangers may have the box do work for them: each source by itself, and all together.
package brake

import (
	"net/netip"
	"sync"
	"time"
)

// Rate is a bucket: so many at once, then one each so often.
type Rate struct {
	Burst int
	Each  time.Duration
}

const maxSources = 1024

// Brake counts tries. It knows times by what it is told, which should be a
// clock that nobody sets.
type Brake struct {
	source, all Rate

	mu       sync.Mutex
	bySource map[netip.Prefix]*bucket
	together bucket
}

// New makes one.
func New(source, all Rate) *Brake {
	return &Brake{source: source, all: all, bySource: make(map[netip.Prefix]*bucket)}
}

type bucket struct {
	n    int
	last time.Time
}

// take takes one out of a bucket that refills.
func (b *bucket) take(now time.Time, r Rate) bool {
	if back := int(now.Sub(b.last) / r.Each); back > 0 {
		b.n, b.last = max(0, b.n-back), now
	}
	if b.n >= r.Burst {
		return false
	}
	b.n++
	return true
}

// Take counts a try and says whether it may go on.
func (b *Brake) Take(now time.Time, source netip.Prefix) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.bySource[source]
	if s == nil {
		if len(b.bySource) >= maxSources {
			clear(b.bySource) // the bound on all together still holds
		}
		s = &bucket{last: now}
		b.bySource[source] = s
	}
	return s.take(now, b.source) && b.together.take(now, b.all)
}
