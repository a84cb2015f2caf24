package monitor

import (
	"context"
	"time"

	"gatehouse/appliance/task"
)

const (
	lookEvery       = 3 * time.Second  // at the links; an address is let in so soon after it came
	keepTimeEvery   = time.Hour        // see floorStep
	checkpointEvery = 10 * time.Minute // at most so much of the log is unsigned
)

// Watch is the task that follows the links, keeps the time for the next start,
// and has the head of the audit log signed while there is something new.
func (m *Monitor) Watch() task.Task {
	return task.Func("monitor", func(ctx context.Context) error {
		look, keep, sign := time.NewTicker(lookEvery), time.NewTicker(keepTimeEvery), time.NewTicker(checkpointEvery)
		defer look.Stop()
		defer keep.Stop()
		defer sign.Stop()
		observe := time.NewTicker(observeEvery)
		defer observe.Stop()
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-look.C:
				m.lookAtLinks()
				m.Refilter()
			case <-observe.C:
				if _, err := m.observe(); err != nil {
					m.cfg.Logger.Debug("reading the filter's counters", "err", err)
				}
			case <-keep.C:
				if err := m.cfg.Clock.Keep(m.cfg.Now()); err != nil {
					m.cfg.Logger.Warn("the clock's floor stays", "err", err)
				}
			case <-sign.C:
				m.checkpoint(ctx)
			}
		}
	})
}

func (m *Monitor) checkpoint(ctx context.Context) {
	if m.cfg.Audit == nil {
		return
	}
	if h := m.cfg.Audit.Head(); h.Sequence <= h.Checkpoint {
		return
	}
	if _, err := m.cfg.Audit.Checkpoint(ctx); err != nil {
		m.cfg.Logger.Error("the head of the audit log was not signed", "err", err)
	}
}
