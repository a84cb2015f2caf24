// Package herald tells the people in sessions of a restart that is to come, and ends their sessions with the reason when it does.
//
// It asks the privileged process what is planned, since that alone restarts the
// box, and passes on what it hears: to package broker, which grants sessions and
// is asked by both of their ends.
package herald

import (
	"context"
	"log/slog"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/session/api"
	"gatehouse/appliance/task"
)

const (
	// before a restart sessions are ended: with the reason, and not by a silence.
	before = 5 * time.Second
	// each time so long it is asked what is planned, and sooner when something was.
	each = 10 * time.Second
)

// Config is what a Herald works with.
type Config struct {
	Planned  func(context.Context) (*control.Restart, error) // nil: no restart
	Announce func(*api.Notice)                               // nil: there is nothing to tell any more
	End      func(ctx context.Context, why string)           // ends every session
	Now      func() time.Time
	Log      *slog.Logger
}

// Herald tells of restarts.
type Herald struct {
	c     Config
	look  chan struct{}
	ended time.Time // sessions were ended for the restart of that time
}

// New makes one.
func New(c Config) *Herald { return &Herald{c: c, look: make(chan struct{}, 1)} }

// Look has it asked at once what is planned: something may have changed.
func (h *Herald) Look() {
	select {
	case h.look <- struct{}{}:
	default: // it is about to
	}
}

// AtOnce ends the sessions that a restart cuts which is under way.
func (h *Herald) AtOnce(ctx context.Context, r control.Restart) { h.c.End(ctx, Words(r)) }

// Task asks and tells until ctx ends.
func (h *Herald) Task() task.Task {
	return task.Func("herald", func(ctx context.Context) error {
		for {
			rest := h.step(ctx)
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-h.look:
			case <-time.After(rest):
			}
		}
	})
}

// step asks once, and says when to ask again.
func (h *Herald) step(ctx context.Context) time.Duration {
	r, err := h.c.Planned(ctx)
	if err != nil {
		// What was told may still be so.
		if ctx.Err() == nil {
			h.c.Log.Warn("asking when the box restarts", "err", err)
		}
		return each
	}
	if r == nil {
		h.c.Announce(nil)
		return each
	}
	h.c.Announce(&api.Notice{At: r.At, Text: Words(*r)})
	left := r.At.Sub(h.c.Now()) - before
	if left > 0 {
		return min(each, left)
	}
	if !h.ended.Equal(r.At) {
		h.ended = r.At
		h.c.End(ctx, Words(*r))
	}
	return each
}

// Words say what happens, without a full stop: they go on with when.
func Words(r control.Restart) string {
	switch {
	case r.Off:
		return "the box is switched off"
	case r.Version != "":
		return "the box restarts into version " + r.Version
	}
	return "the box restarts"
}
