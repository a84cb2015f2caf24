package gateway

import (
	"net/netip"
	"sync"
	"time"

	"gatehouse/appliance/handover"
)

// What one source may open on port 443: a TLS handshake costs the console a
// thousand times what it costs to ask for it. An office behind one address
// that opens all its browsers at once is within the burst; what goes beyond is
// let in at the pace, and beyond the patience closed.
//
// It is here and not in the packet filter because here a source has proved its
// address: a table of sources that a flood of false SYN packets can fill is a
// door to everybody's place in it.
const (
	sourcePace     = 64 // connections a second
	sourceBurst    = 256
	sourcePatience = 2 * time.Second
	// maxPaced bounds the memory: sources that opened a connection lately.
	maxPaced   = 16384
	sweepApart = 100 * time.Millisecond
)

// budget is a bucket of tokens for each source.
type budget struct {
	now func() time.Time

	mu    sync.Mutex
	all   map[netip.Prefix]bucket
	swept time.Time
}

type bucket struct {
	tokens float64 // negative: promised to those who wait
	at     time.Time
}

func newBudget(now func() time.Time) *budget {
	return &budget{now: now, all: make(map[netip.Prefix]bucket)}
}

// take says how long a connection of the source has to wait; false: it is one
// of too many. The local socket has no source, and no limit.
func (b *budget) take(from netip.Addr) (time.Duration, bool) {
	if !from.IsValid() {
		return 0, true
	}
	source, now := handover.Source(from), b.now()
	b.mu.Lock()
	defer b.mu.Unlock()
	s, known := b.all[source]
	switch {
	case known:
		s = s.until(now)
	case len(b.all) >= maxPaced && !b.sweep(now):
		return 0, true // more sources than any one of them is to blame for; the other limits hold
	default:
		s = bucket{tokens: sourceBurst, at: now}
	}
	if s.tokens < 1-sourcePace*sourcePatience.Seconds() {
		b.all[source] = s
		return 0, false
	}
	s.tokens--
	b.all[source] = s
	if s.tokens >= 0 {
		return 0, true
	}
	return time.Duration(-s.tokens / sourcePace * float64(time.Second)), true
}

// until is the bucket as it is now.
func (s bucket) until(now time.Time) bucket {
	if passed := now.Sub(s.at).Seconds(); passed > 0 {
		s.tokens, s.at = min(sourceBurst, s.tokens+passed*sourcePace), now
	}
	return s
}

// sweep forgets sources that are as new ones, and says whether there was any.
func (b *budget) sweep(now time.Time) bool {
	// Looking at all of them for each connection of a flood would be its best effect.
	if passed := now.Sub(b.swept); passed >= 0 && passed < sweepApart {
		return false
	}
	b.swept = now
	before := len(b.all)
	for source, s := range b.all {
		if s.until(now).tokens >= sourceBurst {
			delete(b.all, source)
		}
	}
	return len(b.all) < before
}
