package session

import (
	"crypto/ed25519"
	"fmt"
	"sync"
	"time"
)

const labelTicket = "gatehouse/session/1 ticket"

// Side is one of the two ends.
type Side string

// The sides. The agent waits, the technician picks up.
const (
	AgentSide      Side = "agent"
	TechnicianSide Side = "technician"
)

// Ticket lets one end into one gateway, once. It says neither who nor what: a
// gateway needs to know that two ends belong together, and no more. A session
// takes as many meetings as it needs connections, each with an id of its own.
type Ticket struct {
	ID      ID // of the meeting, the same for both sides
	Side    Side
	Key     Key       // that the end proves to hold
	Gateway Key       // where it counts
	Until   time.Time // to arrive
	End     time.Time // of the session: the gateway cuts it then
}

type rawTicket struct {
	Version int   `json:"version"`
	ID      ID    `json:"id"`
	Side    Side  `json:"side"`
	Key     Key   `json:"key"`
	Gateway Key   `json:"gateway"`
	Until   int64 `json:"until"`
	End     int64 `json:"end"`
}

// Ticket is what a side of the grant shows at a gateway for one meeting, if it
// comes within MaxWait.
func (g Grant) Ticket(meeting ID, side Side, gateway Key, now time.Time) Ticket {
	t := Ticket{ID: meeting, Side: side, Key: g.Key, Gateway: gateway, Until: now.Add(MaxWait).Truncate(time.Second).UTC(), End: g.Until}
	if side == AgentSide {
		t.Key = g.Agent
	}
	if t.Until.After(t.End) {
		t.Until = t.End
	}
	return t
}

// Sign writes the ticket for the end that shows it.
func (t Ticket) Sign(key ed25519.PrivateKey) ([]byte, error) {
	if err := t.check(); err != nil {
		return nil, fmt.Errorf("making a ticket: %w", err)
	}
	return sign(key, labelTicket, MaxTicket, rawTicket{Version, t.ID, t.Side, t.Key, t.Gateway, t.Until.Unix(), t.End.Unix()})
}

// OpenTicket is a gateway's check of what an end shows: signature, version,
// shape, time, that it is for this gateway, and that the end which shows it
// holds the key. Whether it was shown before, Tickets tells.
func OpenTicket(key ed25519.PublicKey, b []byte, now time.Time, gateway, shown Key) (Ticket, error) {
	var r rawTicket
	if err := open(key, labelTicket, MaxTicket, b, &r); err != nil {
		return Ticket{}, fmt.Errorf("reading a ticket: %w", err)
	}
	t := Ticket{r.ID, r.Side, r.Key, r.Gateway, time.Unix(r.Until, 0).UTC(), time.Unix(r.End, 0).UTC()}
	err := t.check()
	switch {
	case err != nil:
	case t.Gateway != gateway:
		err = fmt.Errorf("%w: it is for another gateway", ErrOther)
	case t.Key != shown:
		err = fmt.Errorf("%w: who shows it does not hold its key", ErrOther)
	case t.Until.After(now.Add(MaxWait + time.Minute)): // a minute for clocks that differ
		err = fmt.Errorf("%w: it lasts longer than tickets do", ErrNotYet)
	default:
		err = within(now, time.Unix(0, 0), t.Until)
	}
	if err != nil {
		return Ticket{}, fmt.Errorf("reading a ticket: %w", err)
	}
	return t, nil
}

func (t Ticket) check() error {
	switch {
	case t.ID == ID{}, t.Key == Key{}, t.Gateway == Key{}:
		return fmt.Errorf("%w: it lacks the id of a meeting or a key", ErrMalformed)
	case t.Side != AgentSide && t.Side != TechnicianSide:
		return fmt.Errorf("%w: %.20q is not a side", ErrMalformed, t.Side)
	case t.Until.Unix() <= 0 || t.End.Before(t.Until):
		return fmt.Errorf("%w: it ends before one can arrive with it", ErrMalformed)
	}
	return nil
}

// Tickets remembers which were shown, so that each counts once. It is bounded,
// and when it is full nobody gets in: a forgotten ticket would count again.
type Tickets struct {
	mu    sync.Mutex
	limit int
	shown map[shownTicket]time.Time // until when it could count
}

type shownTicket struct {
	id   ID
	side Side
}

// NewTickets remembers at most limit at a time.
func NewTickets(limit int) *Tickets {
	return &Tickets{limit: limit, shown: make(map[shownTicket]time.Time)}
}

// Use says whether a ticket counts: it has not been used, and there is room to remember it.
func (s *Tickets) Use(t Ticket, now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := shownTicket{t.ID, t.Side}
	if _, used := s.shown[k]; used {
		return fmt.Errorf("%w: this ticket was used before", ErrOther)
	}
	if len(s.shown) >= s.limit {
		for k, until := range s.shown {
			if now.After(until) {
				delete(s.shown, k)
			}
		}
		if len(s.shown) >= s.limit {
			return fmt.Errorf("%w: this gateway remembers %d tickets already", ErrNotYet, s.limit)
		}
	}
	s.shown[k] = t.Until
	return nil
}
