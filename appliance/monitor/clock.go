package monitor

import (
	"fmt"
	"sync"
	"time"

	"gatehouse/appliance/control"
)

// floorStep is how far one save of the floor may carry it. Saves come once an
// hour, so someone who lies about the time can push the floor a day for each
// hour that he is believed, and an honest year of absence is made up in a
// fortnight.
const floorStep = 24 * time.Hour

// ceiling is how far from the build a time may be at all, and with it the
// floor: a server that says 2099 is not believed, and one that lies for months
// cannot carry the floor, and the ceiling with it, away without end. A program
// that is older takes no time any more; it has other troubles.
const ceiling = 10 * 365 * 24 * time.Hour

// Clock keeps what is known of the time: where it came from, and a floor below
// which it is never set (the program's build time, and the last time seen).
type Clock struct {
	mu    sync.Mutex
	built time.Time
	known control.Clock
	save  func(time.Time) error
}

// NewClock makes a clock whose floor is the later of the build and the last
// time seen. Save keeps the floor over a restart; it may be nil.
func NewClock(built, seen time.Time, source string, save func(time.Time) error) *Clock {
	floor := built
	if seen.After(floor) {
		floor = seen
	}
	if last := built.Add(ceiling); floor.After(last) {
		floor = last
	}
	return &Clock{built: built, known: control.Clock{Source: source, Floor: floor, Trusted: source == "host"}, save: save}
}

// Status is the clock as faces show it.
func (c *Clock) Status(now time.Time) control.Clock {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.known
	k.Time = now
	return k
}

// Check says whether a time may be set, and why not in words.
func (c *Clock) Check(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.Before(c.known.Floor) {
		return &control.Error{Code: control.CodeInvalid, Text: fmt.Sprintf("%s is before %s, when this box was last sure of the time: the clock is not set back beyond that",
			t.UTC().Format(time.DateTime), c.known.Floor.UTC().Format(time.DateTime))}
	}
	if t.After(c.built.Add(ceiling)) {
		return &control.Error{Code: control.CodeInvalid, Text: fmt.Sprintf("%s is more than ten years after this program was made: set the clock from another source", t.UTC().Format(time.DateTime))}
	}
	return nil
}

// Nearest is the time to set for one that servers agree on. A clock far ahead of
// the floor was pushed there: should the servers be honest now, and the floor
// have crept past the true time meanwhile, then the floor is as near as the
// clock can come. It gives a liar nothing: he could name the floor himself. A time
// before the build is never honest.
func (c *Clock) Nearest(t, now time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !t.Before(c.built) && t.Before(c.known.Floor) && now.After(c.known.Floor.Add(floorStep)) {
		return c.known.Floor
	}
	return t
}

// Set records where the time now comes from. A person's word and three
// agreeing servers are trusted; fewer servers are used but not trusted.
func (c *Clock) Set(source string, servers int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known.Source, c.known.Servers = source, servers
	c.known.Trusted = source == "browser" || servers >= 3
}

// Keep raises the floor towards now, at most one step, and saves it.
func (c *Clock) Keep(now time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !now.After(c.known.Floor) {
		return nil
	}
	if limit := c.known.Floor.Add(floorStep); now.After(limit) {
		now = limit
	}
	if last := c.built.Add(ceiling); now.After(last) {
		now = last
	}
	if c.save != nil {
		if err := c.save(now); err != nil {
			return fmt.Errorf("keeping the time for the next start: %w", err)
		}
	}
	c.known.Floor = now
	return nil
}

// Reset puts the floor back to the build, as its owner wishes. The clock itself
// stays as it is until somebody sets it; it is not trusted until then.
func (c *Clock) Reset() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.save != nil {
		if err := c.save(c.built); err != nil {
			return fmt.Errorf("resetting the floor of the clock: %w", err)
		}
	}
	c.known.Floor, c.known.Trusted = c.built, false
	return nil
}
