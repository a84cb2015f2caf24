package consoletest

import (
	"context"
	"crypto/rand"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
)

// trials doubles the changes that wait to be kept. One waits until it is kept
// or taken back: no timer runs.
type trials struct {
	waiting map[string]*waiting // by what it is about
}

type waiting struct {
	control.Candidate
	keep, revert func() error
}

func (t *trials) candidate(about string) *control.Candidate {
	if w := t.waiting[about]; w != nil {
		return &w.Candidate
	}
	return nil
}

func (t *trials) free(about string) error {
	if t.waiting[about] != nil {
		return refused(control.CodeState, "a change waits to be kept: keep it or take it back first")
	}
	return nil
}

func (t *trials) begin(about, actor string, summary []string, keep, revert func() error) *control.Candidate {
	if t.waiting == nil {
		t.waiting = make(map[string]*waiting)
	}
	w := &waiting{control.Candidate{ID: rand.Text()[:12], About: about, Actor: actor, Seconds: 60, Applied: boottime(), Summary: summary, Until: time.Now().Add(time.Minute)}, keep, revert}
	t.waiting[about] = w
	return &w.Candidate
}

func (t *trials) end(id string, accepted int64, keep bool) error {
	for about, w := range t.waiting {
		if w.ID != id {
			continue
		}
		do := w.revert
		if keep {
			if accepted <= w.Applied {
				return refused(control.CodeState, "this connection is older than the change: keep it over a new one")
			}
			do = w.keep
		}
		delete(t.waiting, about)
		return do()
	}
	return refused(control.CodeState, "this change does not wait to be kept any more")
}

func (b *Box) handleTrials(s *control.Server) {
	control.Handle(s, control.OpKeep, func(_ context.Context, _ control.Role, q control.Keep) (control.None, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.keptBy = q
		return control.None{}, b.trials.end(q.ID, q.Accepted, true)
	})
	control.Handle(s, control.OpRevert, func(_ context.Context, _ control.Role, q control.Revert) (control.None, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		return control.None{}, b.trials.end(q.ID, 0, false)
	})
}

// KeptBy is the confirmation that was asked for last.
func (b *Box) KeptBy() control.Keep {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.keptBy
}

func boottime() int64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		panic(err) // every kernel that Go runs on has it
	}
	return now.Nano()
}
