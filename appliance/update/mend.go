package update

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"gatehouse/appliance/control"
	"gatehouse/firmware"
	"gatehouse/firmware/slot"
)

// Bootable are the slots that the firmware may start by itself should the boot
// loader come back without having started anything: first the one that starts in
// any case, then the other one, if it is whole, opens the data, and nothing is known
// against it. What is on trial is not among them: its one start is the loader's.
func Bootable(r slot.Record, first slot.Slot, epoch uint64) []slot.Slot {
	out := []slot.Slot{first}
	other := first.Other()
	sys, starts := r.In(other), r.In(first)
	if sys == nil || sys.Epoch < epoch || starts != nil && !starts.Approved(*sys) || r.Trial != nil && r.Trial.Slot == other {
		return out
	}
	if v := against(r, sys, starts); v != nil {
		return out
	}
	return append(out, other)
}

// against is how the trial of a system ended that was not kept; nil: nothing is known
// against it, or the same system starts from the other slot too, and is proved by that.
func against(r slot.Record, sys, starts *slot.System) *slot.Verdict {
	v, ok := r.Verdict(sys.SHA256)
	if !ok || v.Kept || starts != nil && starts.SHA256 == sys.SHA256 {
		return nil
	}
	return &v
}

// entries puts the firmware's entries right after something of the slots changed.
func (e *Engine) entries() {
	first, err := e.c.Disk.Default()
	if err != nil {
		e.c.Log.Warn("the firmware's entries are left as they are", "err", err)
		return
	}
	e.mu.Lock()
	epoch := e.trust.Epoch
	e.mu.Unlock()
	e.c.Entries(Bootable(e.c.Book.Record(), first, epoch))
}

// inventory records what runs, if no update brought it, so that it is known when
// it is the other one.
func (e *Engine) inventory() error {
	if e.c.Running == 0 || e.c.Book.Record().In(e.c.Running) != nil {
		return nil
	}
	sum, n, err := e.c.Disk.Digest(e.c.Running)
	if err != nil {
		return err
	}
	if n == 0 {
		return fmt.Errorf("slot %s, from which the box runs, is empty", e.c.Running)
	}
	sys := slot.System{Version: e.c.Version, Epoch: e.c.Epoch, Approver: approver(e.c.Approver), Size: n, SHA256: sum}
	return e.c.Book.Change(func(r slot.Record) (slot.Record, error) { return r.With(e.c.Running, &sys), nil })
}

// mend fills a slot that does not start with the system that runs: two start
// again then.
func (e *Engine) mend(ctx context.Context) error {
	damaged := e.c.Mend
	sys := e.c.Book.Record().In(e.c.Running)
	e.mu.Lock()
	busy := e.transfer != nil // a release that is on its way to that slot, or in it, comes first
	e.mu.Unlock()
	if damaged == 0 || sys == nil || busy {
		return nil
	}
	set := func(s *slot.System) error {
		return e.c.Book.Change(func(r slot.Record) (slot.Record, error) { return r.With(damaged, s), nil })
	}
	// What the firmware starts no more keeps its place in the record until the other is
	// whole: if the power goes, the next start knows that there is something to be done.
	if slices.Contains(Bootable(e.c.Book.Record(), e.c.Running, e.c.Epoch), damaged) {
		if err := set(nil); err != nil {
			return err
		}
	}
	e.entries()
	if err := e.c.Disk.Copy(e.c.Running, damaged, *sys); err != nil {
		return err
	}
	if err := set(sys); err != nil {
		return err
	}
	e.c.Mend = 0
	e.entries()
	e.c.Mended(damaged)
	return e.c.Audit(ctx, control.Event{Actor: "system", Action: "system mended", Object: "slot " + damaged.String(),
		Detail: map[string]string{"version": sys.Version.String(), "from": "slot " + e.c.Running.String()}})
}

// spent notes a slot to be mended whose system will never start here again: it failed, for a
// reason, the data open for it no more, or the firmware is about to be told what it may
// start, of which nobody here knows whether that is among it. Two start again then.
func (e *Engine) spent(revokes bool) {
	other := e.c.Running.Other()
	r := e.c.Book.Record()
	e.mu.Lock()
	epoch := e.trust.Epoch
	e.mu.Unlock()
	runs, sys := r.In(e.c.Running), r.In(other)
	if e.c.Mend != 0 || runs == nil || sys == nil && !revokes {
		return
	}
	first, err := e.c.Disk.Default()
	if err != nil || first != e.c.Running {
		return // what runs is the last resort itself
	}
	if sys == nil || revokes && sys.SHA256 != runs.SHA256 {
		e.c.Mend = other
		return
	}
	if v := against(r, sys, runs); v != nil && v.Explained || sys.Epoch < epoch || !runs.Approved(*sys) {
		e.c.Mend = other
	}
}

// tidy is what is done in the background after a start, and after a system was kept: each
// part by itself.
func (e *Engine) tidy(ctx context.Context) {
	e.working.Lock()
	defer e.working.Unlock()
	if err := e.inventory(); err != nil {
		e.c.Log.Warn("what runs could not be recorded", "err", err)
	}
	e.mu.Lock()
	trial := e.gate != nil
	e.mu.Unlock()
	// What was chosen for one start says nothing for the box.
	revokes := false
	if !trial && (e.c.Trial || e.c.Stands) {
		var err error
		if revokes, err = e.c.Revokes(); err != nil {
			e.c.Log.Error("what this system has the firmware refuse", "err", err)
		}
	}
	if !trial {
		e.spent(revokes)
	}
	if err := e.mend(ctx); err != nil {
		e.c.Log.Error("a slot that does not start was not mended; the next start tries again", "err", err)
	}
	if e.c.Running != 0 && !trial {
		e.entries()
	}
	if revokes {
		e.revoke(ctx)
	}
	if err := e.c.Book.Failing(); err != nil {
		e.c.Log.Error("a copy of the record of the two systems", "err", err)
		e.note("one of the two copies of the record of these systems fails, and the other one is used: replace the disk")
	}
}

// note tells whoever looks at the page, once.
func (e *Engine) note(text string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !slices.Contains(e.notes, text) {
		e.notes = append(e.notes, text)
	}
}

// revoke comes once the other slot is in order, which may hold the system that the firmware
// is to refuse: while it does, only one would start.
func (e *Engine) revoke(ctx context.Context) {
	r := e.c.Book.Record()
	runs, other := r.In(e.c.Running), r.In(e.c.Running.Other())
	if runs == nil || other == nil || other.SHA256 != runs.SHA256 {
		e.note("this version has the firmware refuse others; it is told once the other system is the same as this one")
		return
	}
	event := control.Event{Actor: "system", Action: "programs revoked", Object: "firmware", Detail: map[string]string{"by": "version " + e.c.Version.String()}}
	n, err := e.c.Revoke(ctx)
	switch {
	case err != nil:
		e.c.Log.Error("the firmware was not told what this system has it refuse; the next start tries again", "err", err)
		e.note("the firmware was not told what this version has it refuse, and the next start tries again: " + err.Error())
		event.Outcome, event.Detail["error"] = "failed", err.Error()
	case n == 0:
		return
	default:
		event.Detail["programs"] = strconv.Itoa(n)
	}
	if err := e.c.Audit(ctx, event); err != nil {
		e.c.Log.Error("what the firmware was told was not recorded", "err", err)
	}
}

// ParseVersion reads the three numbers of a version of the program; what follows a
// plus sign names its commit.
func ParseVersion(s string) (firmware.Version, error) {
	for i, c := range s {
		if c == '+' {
			s = s[:i]
			break
		}
	}
	return firmware.ParseVersion(s)
}
