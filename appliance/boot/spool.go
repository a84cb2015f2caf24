package boot

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/vault"
)

const (
	// spoolEvents is how many wait at most: the first half, and the newest.
	spoolEvents = 48
	// spoolText is the most of any text of an event, in bytes.
	spoolText = 96
	// Writes of META: a stranger's tries must not wear it out. What was not
	// written goes with the next that is.
	spoolBurst = 64
	spoolEach  = 30 * time.Second
)

// spooled is an event of a locked box.
type spooled struct {
	At    time.Time     `json:"at"`
	Event control.Event `json:"event"`
}

// spool keeps what happens while the box is locked, in META, until the audit
// log is open. Nothing vouches for it there: whoever holds the disk can write
// it, and so it is told apart in the log.
type spool struct {
	dev vault.Device // nil: in memory alone
	now func() time.Time
	log *slog.Logger

	mu      sync.Mutex
	kept    kept
	written int // of late
	last    time.Time
}

// kept is the content of the place in META, as JSON.
type kept struct {
	LeftOut int       `json:"left_out"`
	Events  []spooled `json:"events"`
}

// openSpool goes on with what an earlier locked start left.
func openSpool(dev vault.Device, now func() time.Time, log *slog.Logger) *spool {
	s := &spool{dev: dev, now: now, log: log}
	if dev == nil {
		return s
	}
	b, err := vault.ReadSpool(dev)
	if err == nil && len(b) > 0 {
		s.kept, err = readSpool(b)
	}
	if err != nil {
		log.Warn("what happened at earlier locked starts cannot be read", "err", err)
		s.kept = kept{}
	}
	return s
}

// readSpool takes nothing that would not fit, since anybody may have written it.
func readSpool(b []byte) (k kept, err error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&k); err != nil {
		return kept{}, err
	}
	if len(k.Events) > spoolEvents || k.LeftOut < 0 {
		return kept{}, fmt.Errorf("%d events, and %d are kept", len(k.Events), spoolEvents)
	}
	for i := range k.Events {
		k.Events[i].Event = bounded(k.Events[i].Event)
	}
	return k, nil
}

// bounded cuts texts, so that any number of events that is kept fits.
func bounded(e control.Event) control.Event {
	cut := func(s string) string { return s[:min(len(s), spoolText)] }
	out := control.Event{Actor: cut(e.Actor), Action: cut(e.Action), Object: cut(e.Object), From: cut(e.From), Outcome: cut(e.Outcome)}
	if text, ok := e.Detail["error"]; ok {
		out.Detail = map[string]string{"error": cut(text)}
	}
	return out
}

// Append keeps an event. Failing to is no reason to refuse what it is about: a
// locked box has little else to offer than being opened.
func (s *spool) Append(e control.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if len(s.kept.Events) >= spoolEvents {
		s.leaveOut()
	}
	s.kept.Events = append(s.kept.Events, spooled{now.UTC().Truncate(time.Second), bounded(e)})
	if back := int(now.Sub(s.last) / spoolEach); back > 0 {
		s.written, s.last = max(0, s.written-back), now
	}
	if s.written >= spoolBurst {
		return
	}
	s.written++
	s.write()
}

// leaveOut drops the oldest of the newer half.
func (s *spool) leaveOut() {
	i := len(s.kept.Events) / 2
	s.kept.Events = slices.Delete(s.kept.Events, i, i+1)
	s.kept.LeftOut++
}

func (s *spool) write() {
	if s.dev == nil {
		return
	}
	b, err := json.Marshal(s.kept)
	for err == nil && len(b) > vault.MaxSpool && len(s.kept.Events) > 0 {
		s.leaveOut()
		b, err = json.Marshal(s.kept)
	}
	if err == nil {
		err = vault.WriteSpool(s.dev, b)
	}
	if err != nil {
		s.log.Warn("what happens while locked is kept in memory only", "err", err)
	}
}

// chain hands all of it to the audit log, marked, and forgets it. A power cut
// in between has it there twice.
func (s *spool) chain(ctx context.Context, appendTo func(context.Context, control.Event) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.kept.Events) == 0 {
		return nil
	}
	for _, x := range s.kept.Events {
		e := x.Event
		detail := map[string]string{"locked": "unauthenticated", "at": x.At.UTC().Format(time.RFC3339)}
		maps.Copy(detail, e.Detail)
		e.Detail = detail
		if e.Actor == "" || e.Action == "" {
			continue // not ours
		}
		if err := appendTo(ctx, e); err != nil {
			return err
		}
	}
	if n := s.kept.LeftOut; n > 0 {
		e := control.Event{Actor: "system", Action: "events left out", Detail: map[string]string{"locked": "unauthenticated", "count": fmt.Sprint(n)}}
		if err := appendTo(ctx, e); err != nil {
			return err
		}
	}
	s.kept = kept{}
	s.write()
	return nil
}
