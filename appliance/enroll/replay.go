package enroll

import (
	"fmt"
	"sync"
	"time"
)

// Limits of what a Replay remembers. Only authenticated messages come here, so
// a stranger cannot fill it, and one site cannot fill another's part.
const (
	maxNonces = 4096 // of one key in 600 s, nearly seven a second
	maxKeys   = 4096
)

// Replay remembers the nonces of the time in which a message could be taken
// again. It is lost with the process; what was recorded before cannot be used
// then either, since the channel is another.
type Replay struct {
	mu   sync.Mutex
	keys map[ID]map[Nonce]time.Time // when it can be forgotten
}

// NewReplay makes an empty one.
func NewReplay() *Replay { return &Replay{keys: make(map[ID]map[Nonce]time.Time)} }

// Check refuses a message whose time is more than MaxSkew away or whose nonce
// was seen, and remembers the nonce. When there is no room it refuses.
func (r *Replay) Check(id ID, n Nonce, sent, now time.Time) error {
	if d := now.Sub(sent); d > MaxSkew || d < -MaxSkew {
		return fmt.Errorf("%w: the site says %s, the hub says %s", ErrSkew,
			sent.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := r.keys[id]
	if seen == nil {
		if len(r.keys) >= maxKeys {
			r.forget(now)
		}
		if len(r.keys) >= maxKeys {
			return fmt.Errorf("%w, or there is no room to remember it: try again in 10 minutes", ErrReplay)
		}
		seen = make(map[Nonce]time.Time)
		r.keys[id] = seen
	}
	if _, ok := seen[n]; ok {
		return ErrReplay
	}
	if len(seen) >= maxNonces {
		prune(seen, now)
	}
	if len(seen) >= maxNonces {
		return fmt.Errorf("%w, or there were more than %d in 10 minutes", ErrReplay, maxNonces)
	}
	seen[n] = sent.Add(MaxSkew)
	return nil
}

func (r *Replay) forget(now time.Time) {
	for id, seen := range r.keys {
		if prune(seen, now); len(seen) == 0 {
			delete(r.keys, id)
		}
	}
}

// prune keeps a nonce for as long as its message's time would still be taken.
func prune(seen map[Nonce]time.Time, now time.Time) {
	for n, until := range seen {
		if now.After(until) {
			delete(seen, n)
		}
	}
}
