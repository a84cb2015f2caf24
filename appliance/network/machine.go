package network

import (
	"fmt"
	"time"
)

// deed is what the holder of a lease has to do next.
type deed int

const (
	discover deed = iota // find a server; nothing is held
	rest                 // hold the lease until the given time
	renew                // ask the server of the lease
	rebind               // ask any server
	drop                 // the lease has ended: take the address away, then discover
)

func (d deed) String() string {
	return [...]string{"discover", "rest", "renew", "rebind", "drop"}[d]
}

// Retries: of discovery, doubling between these; of renewing and rebinding,
// half of what remains but not more often than each minute (RFC 2131 section
// 4.4.5).
const (
	firstRetry = 2 * time.Second
	lastRetry  = 32 * time.Second
	renewRetry = time.Minute
)

// machine is the client's side of a lease, RFC 2131 figure 5, without the
// wire: next says what to do and when, the other methods tell what came of it.
// Times carry the monotonic clock: setting the wall clock, which this same
// process causes, must not end a lease.
type machine struct {
	held     *lease
	since    time.Time // when the held lease was granted
	retry    time.Time // not before this
	attempts int       // without an answer
	jitter   func(time.Duration) time.Duration
}

// next says what to do at the time now, and for rest and a delayed discover
// until when to wait first.
func (m *machine) next(now time.Time) (deed, time.Time) {
	if m.held == nil {
		if now.Before(m.retry) {
			return discover, m.retry
		}
		return discover, now
	}
	t1, t2, end := m.since.Add(m.held.Renew), m.since.Add(m.held.Rebind), m.since.Add(m.held.Valid)
	switch {
	case !now.Before(end):
		return drop, now
	case now.Before(t1):
		return rest, t1
	case now.Before(m.retry):
		return rest, earliest(m.retry, end)
	case now.Before(t2):
		return renew, now
	}
	return rebind, now
}

// granted takes a new or renewed lease.
func (m *machine) granted(l lease, now time.Time) {
	m.held, m.since, m.attempts, m.retry = &l, now, 0, now
}

// ended forgets the lease: it expired, or the server said no. A server that
// says no to everything must not make a loop of it, so discovery waits.
func (m *machine) ended(now time.Time) {
	m.held = nil
	m.unanswered(now)
}

// unanswered sets when to try again after silence or a useless answer.
func (m *machine) unanswered(now time.Time) {
	if m.held != nil {
		t2, end := m.since.Add(m.held.Rebind), m.since.Add(m.held.Valid)
		goal := t2
		if !now.Before(t2) {
			goal = end
		}
		m.retry = earliest(now.Add(max(goal.Sub(now)/2, renewRetry)), goal)
		return
	}
	wait := min(firstRetry<<min(m.attempts, 10), lastRetry)
	m.attempts++
	if m.jitter != nil {
		wait += m.jitter(wait / 4)
	}
	m.retry = now.Add(wait)
}

// end is when the held lease ends.
func (m *machine) end() time.Time { return m.since.Add(m.held.Valid) }

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// String is for the log.
func (l lease) String() string {
	if !l.Address.IsValid() {
		return fmt.Sprintf("resolvers %v", l.Resolvers)
	}
	return fmt.Sprintf("%v for %v from %v", l.Address, l.Valid, l.Server)
}
