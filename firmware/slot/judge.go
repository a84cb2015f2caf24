package slot

import (
	"fmt"
	"strings"
	"time"
)

// Evidence is what a start knows of itself and of how the one before it ended.
type Evidence struct {
	// Default is the slot that loader.conf names; 0: it cannot be read.
	Default Slot
	// Running is the slot of the system that runs; 0: it cannot be told. It is the
	// file of the boot option that BootCurrent names or, if that is the boot loader,
	// Selected.
	Running Slot
	// Selected is the last entry that the boot loader was about to start since the
	// machine was reset (LoaderEntrySelected, volatile); 0: the firmware started the
	// system without it. Where it is not Running, the firmware would not load it.
	Selected Slot
	// OneShot says that LoaderEntryOneShot is still there: no boot loader has read it.
	OneShot bool
	// Panic is the first line of a crash record that was found at this start; "":
	// there was none.
	Panic string
	// Watchdog says that the watchdog ended the start before this one.
	Watchdog bool
	// Damaged says that the slot on trial does not hold what the record says. To be
	// looked at when the firmware would not load it.
	Damaged bool
}

// Do is what a start has to do.
type Do int

const (
	// Proceed: the box runs what it should.
	Proceed Do = iota
	// Try: this is a trial. Have it prove itself, then rewrite loader.conf (the
	// commit point) and Keep; or record how it ends and restart.
	Try
	// Finish: loader.conf names what was on trial, so it is kept; the power was cut
	// before the rest was done, which is what follows the commit point.
	Finish
	// Return: what runs is to be left; restart.
	Return
	// Mend: another slot runs than loader.conf names. Check the slot named; if it
	// is damaged, or the firmware refuses it, make the one that runs the default and
	// fill the other anew.
	Mend
	// Rewrite: loader.conf is not one that this box writes; have it name what runs.
	Rewrite
)

// Action is what Judge decides.
type Action struct {
	Do   Do
	Slot Slot // Try: that runs; Finish, Rewrite: to be named; Return: where to; Mend: that did not start
	// Refused says that the firmware would not load that slot (Mend).
	Refused bool
	// Ended is how a trial ended, if one did before this start.
	Ended *Verdict
	// Reason says why, in words; "" where there is nothing to say.
	Reason string
}

// Judge decides at a start. The record it returns is to be written before what it
// says is done; if it is cut off there, the next start decides the same or counts
// one try.
func Judge(r Record, e Evidence, now time.Time) (Record, Action) {
	t := r.Trial
	switch {
	case t == nil:
		return r, steady(e)
	case e.Running == 0:
		return r, Action{Reason: "which slot runs cannot be told: the trial is not judged, and nothing is written"}
	case e.Running == t.Slot && e.Default == t.Slot:
		return r, Action{Do: Finish, Slot: t.Slot, Reason: fmt.Sprintf("version %s was kept, and the power was cut before all was done", t.System.Version)}
	case e.Running == t.Slot && !t.Started:
		return start(r), Action{Do: Try, Slot: t.Slot}
	}
	end := cause(*t, e)
	if e.Running != t.Slot {
		return conclude(r, e, end, now)
	}
	// It was started a second time, which nobody asked for.
	switch again := fmt.Sprintf("version %s was started again: %s", t.System.Version, end.Reason); {
	case !end.Explained && t.Tries < MaxTries:
		r = start(r)
		r.Trial.Tries++
		r.Trial.End = nil
		return r, Action{Do: Try, Slot: t.Slot, Reason: again}
	case e.Selected == e.Default:
		// The firmware came here because the other one would not start: a restart
		// leads here again.
		return conclude(r, e, end, now)
	}
	r = r.ended(end, now)
	v, _ := r.Last()
	return r, Action{Do: Return, Slot: t.Slot.Other(), Ended: &v, Reason: end.Reason}
}

// start is the record of a trial whose PID 1 came as far as this.
func start(r Record) Record {
	t := *r.Trial
	t.Started = true
	r.Trial = &t
	return r
}

// conclude ends the trial, and looks at what runs now.
func conclude(r Record, e Evidence, end End, now time.Time) (Record, Action) {
	s := r.Trial.Slot
	r = r.ended(end, now)
	if e.Damaged {
		r = r.With(s, nil)
	}
	v, _ := r.Last()
	a := steady(e)
	a.Ended = &v
	if a.Reason == "" {
		a.Reason = end.Reason
	}
	return r, a
}

// cause is why a trial ended.
func cause(t Trial, e Evidence) End {
	refused := e.Selected == t.Slot && e.Running != t.Slot
	switch {
	case t.End != nil:
		return *t.End
	case refused && e.Damaged:
		return End{Reason: "its slot is damaged on the disk, and the firmware would not load it"}
	case refused:
		return End{Reason: "the firmware would not load it", Explained: true}
	case e.OneShot:
		return End{Reason: "the boot loader was not started, so that it never ran"}
	case e.Panic != "":
		return End{Reason: "it crashed: " + clean(e.Panic), Explained: true}
	case e.Watchdog:
		return End{Reason: "it hung, and the watchdog ended it", Explained: true}
	case !t.Started:
		return End{Reason: "it ended before its first program ran: it hung or crashed early, or the power was cut"}
	}
	return End{Reason: "it ended and left no reason: the power was cut, or it hung"}
}

// steady decides where no trial is going on.
func steady(e Evidence) Action {
	switch {
	case e.Running == 0:
		return Action{Reason: "which slot runs cannot be told: nothing is written to either"}
	case e.Default == 0:
		return Action{Do: Rewrite, Slot: e.Running, Reason: "loader.conf was not one that this box writes"}
	case e.Running == e.Default:
		return Action{}
	case e.Selected == e.Default:
		return Action{Do: Mend, Slot: e.Default, Refused: true, Reason: fmt.Sprintf("the firmware would not load slot %s, and started slot %s", e.Default, e.Running)}
	case e.Selected == 0:
		return Action{Do: Mend, Slot: e.Default, Reason: fmt.Sprintf("the firmware started slot %s without the boot loader, which names slot %s", e.Running, e.Default)}
	}
	return Action{Do: Mend, Slot: e.Default, Reason: fmt.Sprintf("the boot loader started slot %s in the place of slot %s: it did not find that, or somebody chose", e.Running, e.Default)}
}

// clean is text of foreign origin as one line without control characters.
func clean(s string) string {
	return strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\ufffd' {
			return ' '
		}
		return r
	}, s)), " ")
}
