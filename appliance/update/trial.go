package update

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/firmware/slot"
	"gatehouse/firmware/window"
)

// Start has what was received started, now or when the window opens. Where there is
// none to wait for, it does not start.
func (e *Engine) Start(ctx context.Context, q control.UpdateStart) error {
	e.working.Lock()
	defer e.working.Unlock()
	if err := e.free(); err != nil {
		return err
	}
	e.mu.Lock()
	t, w := e.transfer, e.window
	e.mu.Unlock()
	if t == nil || !t.Done {
		return refused("no release was received that could be started")
	}
	next := *t
	next.Actor, next.From, next.Later = q.Actor, q.From, q.Later
	if _, ok := w.Next(e.c.Now()); q.Wait && !q.Later && !ok {
		return refused("there is no window to wait for, so version " + t.Version + " waits for a person: set one, or start it now")
	}
	if q.Later || q.Wait {
		e.wait(&next, w)
		return e.keep(&next)
	}
	return e.launch(ctx, &next)
}

// wait says when a release starts by itself: no sooner than people in sessions
// have had their grace, and where that needs a window, while it is open.
func (e *Engine) wait(t *transfer, w window.Window) {
	at, ok := e.c.Now().Add(control.Grace).UTC().Truncate(time.Second), true
	if !t.Later {
		at, ok = w.Next(at)
	}
	t.Restart = nil
	if ok {
		t.Restart = &at
	}
}

// launch is all that comes before the restart, in the order in which a power cut
// does the least: until the last write but one the next start is that of the
// present system, which finds a release that was received.
func (e *Engine) launch(ctx context.Context, t *transfer) error {
	m, s, err := e.open(t.Manifest)
	if err != nil {
		return err
	}
	if err := e.mayTry(s.SHA256, t.Again); err != nil {
		return err
	}
	// What was right when it was written may be another by now.
	if err := e.c.Disk.Check(e.c.Running.Other(), installed(m, s)); err != nil {
		return fmt.Errorf("what was received is not there any more; cancel it and offer the release again: %w", err)
	}
	if err := e.files.store(beforeFile, e.c.Look(ctx)); err != nil {
		return err
	}
	if err := e.c.Keys.ExpectRelease(ctx, m.Approver, m.Epoch); err != nil {
		return err
	}
	// Who insisted, insisted on this start and on none after it.
	next := *t
	next.Restart, next.Later, next.Again = nil, false, false
	if err := e.keep(&next); err != nil {
		return err
	}
	if err := e.arm(ctx, &next, t.Again); err != nil {
		if t.Again {
			left := next
			left.Again = true // it was not started
			err = errors.Join(err, e.keep(&left))
		}
		return err
	}
	e.mu.Lock()
	e.pending = true
	e.mu.Unlock()
	e.c.Restart()
	return nil
}

// arm has the next start be that of the other slot, once.
func (e *Engine) arm(ctx context.Context, t *transfer, again bool) error {
	// What is not in the audit log does not happen.
	if err := e.c.Audit(ctx, control.Event{Actor: t.Actor, From: t.From, Action: "restart for an update", Object: t.Version}); err != nil {
		return err
	}
	other := e.c.Running.Other()
	if err := e.c.Book.Change(func(r slot.Record) (slot.Record, error) { return r.Begin(other, again, e.c.Now()) }); err != nil {
		return err
	}
	err := e.c.Firmware.ArmOneShot(other.Entry())
	if err == nil {
		return nil
	}
	undo := e.c.Book.Change(func(r slot.Record) (slot.Record, error) { return r.Cancel(), nil })
	_, gone := e.c.Firmware.DisarmOneShot()
	if undo := errors.Join(undo, gone); undo != nil {
		e.c.Log.Error("a trial that was not to come was not taken back", "err", undo)
	}
	return err
}

// String names the task.
func (e *Engine) String() string { return "updates" }

// tidyAfter is how long after the start the disk is looked at: first come those who
// wait for the box to answer.
const tidyAfter = 20 * time.Second

// Run is the task that the trial is decided in, and that starts what waits for
// its window.
func (e *Engine) Run(ctx context.Context) error {
	e.report(ctx)
	if !e.c.Trial {
		if err := e.adopt(ctx); err != nil {
			e.c.Log.Error("an update that was kept is not finished; the next start does it", "err", err)
		}
	}
	tidy := time.After(tidyAfter)
	tick := time.NewTicker(lookEach)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tidy:
			e.tidy(ctx)
			continue
		case <-tick.C:
		}
		if e.step(ctx) {
			tidy = time.After(tidyAfter)
		}
		e.due(ctx)
	}
}

// step looks once, and keeps the new system or goes back.
func (e *Engine) step(ctx context.Context) (kept bool) {
	e.mu.Lock()
	gate := e.gate
	e.mu.Unlock()
	if gate == nil {
		return false
	}
	look := e.c.Look(ctx)
	e.mu.Lock()
	keep, back, bad := gate.Step(e.c.Now(), look)
	e.mu.Unlock()
	switch {
	case keep:
		err := e.take(ctx)
		if err != nil {
			// The commit point was not reached: until the end of the trial it is tried again.
			e.c.Log.Error("the new system could not be kept", "err", err)
		}
		return err == nil
	case back:
		e.Back("It did not become as good as the system before. " + bad + ".")
	}
	return false
}

// take keeps the new system. The sector that chooses is the commit point; what
// follows is done again at the next start if the power goes.
func (e *Engine) take(ctx context.Context) error {
	e.working.Lock()
	defer e.working.Unlock()
	if err := e.c.Disk.Commit(); err != nil {
		return err
	}
	if err := e.c.Book.Change(func(r slot.Record) (slot.Record, error) { return r.Keep(e.c.Now()), nil }); err != nil {
		return err
	}
	e.mu.Lock()
	e.gate = nil
	e.mu.Unlock()
	e.c.Kept()
	return e.adopt(ctx)
}

// adopt brings everything in line with a system that was kept: who signs the next
// release, what the keys open for, the firmware's entries, the audit log. What is
// left of the transfer goes last, so that a power cut has the next start do it again.
func (e *Engine) adopt(ctx context.Context) error {
	e.mu.Lock()
	t := e.transfer
	e.mu.Unlock()
	if t == nil || !t.Done {
		return nil
	}
	m, s, err := e.open(t.Manifest)
	if err != nil {
		return err
	}
	// One that went back and runs all the same, because nothing else starts, is not kept.
	record := e.c.Book.Record()
	if runs := record.In(e.c.Running); runs == nil || runs.SHA256 != s.SHA256 {
		return nil
	}
	if v, ok := record.Verdict(s.SHA256); !ok || !v.Kept {
		return nil
	}
	if err := e.c.Keys.Settle(ctx); err != nil {
		return err
	}
	e.entries()
	event := control.Event{Actor: "system", Action: "update kept", Object: t.Version, Detail: map[string]string{"asked by": t.Actor}}
	if err := e.c.Audit(ctx, event); err != nil {
		return err
	}
	// From here on the manifest opens no more, if it changed who signs.
	e.mu.Lock()
	next := e.trust.Next(m)
	e.mu.Unlock()
	if err := e.files.storeTrust(next); err != nil {
		return err
	}
	e.mu.Lock()
	e.trust, e.transfer = next, nil
	e.mu.Unlock()
	return errors.Join(e.files.remove(transferFile), e.files.remove(beforeFile))
}

// report records how a trial ended that went back just before this start. Only
// the system that is back can know of every way to end.
func (e *Engine) report(ctx context.Context) {
	o := e.c.Ended
	if o == nil {
		return
	}
	event := control.Event{Actor: "system", Action: "update gone back", Object: o.System.Version.String(), Outcome: "failed", Detail: map[string]string{"error": o.Reason, "tries": strconv.Itoa(o.Tries)}}
	if err := e.c.Audit(ctx, event); err != nil {
		e.c.Log.Error("that an update went back was not recorded", "err", err)
	}
	e.c.Ended = nil
}

// Back has the box restart into the system before, and says there why.
func (e *Engine) Back(why string) {
	e.mu.Lock()
	pending := e.pending
	e.pending = true
	e.mu.Unlock()
	if pending {
		return
	}
	if err := e.c.Book.Change(func(r slot.Record) (slot.Record, error) { return r.Ending(why, true), nil }); err != nil {
		e.c.Log.Error("why the new system goes back could not be recorded", "err", err)
	}
	e.c.Restart()
}

// missed is how late a restart may be. One that is later was not seen coming: the
// box was off, or its clock was set. People get their grace anew, and a window is
// waited for again.
const missed = time.Minute

// ready is the transfer whose time has come, or nil.
func (e *Engine) ready() *transfer {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.transfer
	if t == nil || !t.Done || t.Restart == nil || e.pending || e.c.Now().Before(*t.Restart) {
		return nil
	}
	return t
}

// due starts what waited for its window.
func (e *Engine) due(ctx context.Context) {
	if e.ready() == nil {
		return
	}
	e.working.Lock()
	defer e.working.Unlock()
	// Who was changing something until now had the last word.
	t := e.ready()
	if t == nil {
		return
	}
	next := *t
	if e.c.Now().Sub(*t.Restart) > missed {
		e.mu.Lock()
		w := e.window
		e.mu.Unlock()
		e.wait(&next, w)
		if err := e.keep(&next); err != nil {
			e.c.Log.Error("when a release starts that waits could not be kept", "err", err)
		}
		return
	}
	if err := e.launch(ctx, &next); err != nil {
		e.c.Log.Error("a release that waited could not be started", "err", err)
		next.Restart, next.Later = nil, false
		if err := e.keep(&next); err != nil {
			e.c.Log.Error("what waits could not be kept", "err", err)
		}
	}
}
