package remote

import (
	"context"
	"sync"

	"gatehouse/appliance/session"
)

// Part is where a put writes until it is whole, told so that two sessions say
// the same of one: their targets may have other names, their paths other spellings.
type Part struct {
	Address string // of the target, host:port
	Account string // that the agent signs in with there
	Path    string // as the target resolves it
}

// Claims has one put at a time write to a part. An agent has one for all its
// sessions: who comes back after a loss comes in another one, while the agent
// still waits for the first. The zero Claims is ready.
type Claims struct {
	mu     sync.Mutex
	latest map[Part]*claim
}

// claim is a put that writes to a part, or waits to.
type claim struct {
	yield func(to session.ID)
	ended chan struct{} // closed when it writes no more, nor any before it
}

// Claim waits until nobody else writes to the part, after which it is the
// caller's until release. The later put is meant: yield is called when another
// one comes, of any session, and has the caller end soon, ctx too if it still waits.
func (c *Claims) Claim(ctx context.Context, p Part, who session.ID, yield func(to session.ID)) (release func(), err error) {
	mine := &claim{yield, make(chan struct{})}
	c.mu.Lock()
	before := c.latest[p]
	if c.latest == nil {
		c.latest = map[Part]*claim{}
	}
	c.latest[p] = mine
	c.mu.Unlock()
	end := sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.latest[p] == mine {
			delete(c.latest, p)
		}
		close(mine.ended)
	})
	if before == nil {
		return end, nil
	}
	before.yield(who)
	select {
	case <-before.ended:
	case <-ctx.Done():
		go func() { // ends with the one before: who waits for this one waits for that
			<-before.ended
			end()
		}()
		return nil, context.Cause(ctx)
	}
	if ctx.Err() != nil {
		end()
		return nil, context.Cause(ctx)
	}
	return end, nil
}
