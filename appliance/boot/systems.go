package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"gatehouse/appliance/host"
	"gatehouse/appliance/monitor"
	"gatehouse/appliance/update"
	"gatehouse/appliance/volume/esp"
	"gatehouse/firmware"
	"gatehouse/firmware/bootentry"
	"gatehouse/firmware/slot"
)

// systems is what this start knows of the two systems of the box.
type systems struct {
	place    bootentry.Partition
	disk     update.Disk // nil: there is none, and problem says why
	running  slot.Slot   // 0: it cannot be told
	book     *update.Book
	trial    atomic.Bool // what runs is not kept yet
	stands   atomic.Bool // what runs is what the next start starts too
	until    time.Time   // when the trial goes back by itself
	overdue  *time.Timer
	ended    *slot.Verdict // of a trial that ended before this start
	mend     slot.Slot     // would not start; 0: none
	waits    atomic.Bool   // a trial, for somebody to type the passphrase
	notes    []string      // what was mended
	problem  string        // why no update can be taken
	leave    string        // why what runs is to be left at once; "": it is not
	variable bool          // the firmware keeps variables
}

// Names of our entries in the firmware's boot menu.
const (
	loaderEntry = "Gatehouse"
	entryPrefix = "Gatehouse, slot "
)

func entryName(s slot.Slot) string { return entryPrefix + s.String() }

func entryFile(s slot.Slot) string { return `\` + strings.ReplaceAll(s.Path(), "/", `\`) }

// runningSlot tells which slot was started: by the firmware's own entry if that
// names one, else by what the loader selected. The loader's word stands also when
// the firmware went on to another entry after it.
func runningSlot(s host.Started) (running, selected slot.Slot) {
	for _, x := range []slot.Slot{slot.A, slot.B} {
		if strings.EqualFold(s.Selected, x.Entry()) {
			selected = x
		}
	}
	if o, err := bootentry.Decode(s.Current); err == nil {
		for _, x := range []slot.Slot{slot.A, slot.B} {
			if strings.EqualFold(o.File, entryFile(x)) {
				return x, selected
			}
		}
	}
	return selected, selected
}

// judgeSystems decides what this start is: the ordinary one, a trial, or the one
// after a trial. It comes before the keys, so that a system that cannot open them
// is one that goes back.
func (b *box) judgeSystems(context.Context) error {
	s := &b.systems
	if b.meta == nil {
		s.problem = "there is no disk of this box"
		return nil
	}
	b.undoChoice()
	if err := b.openSystems(); err != nil {
		s.problem = err.Error()
		// A disk without slots that was started without the loader has no other system.
		if record, unread := slot.ReadRecord(b.meta); unread == nil && s.running == 0 {
			s.stands.Store(b.starts(record))
		}
		return err
	}
	record, err := slot.ReadRecord(b.meta)
	if errors.Is(err, slot.ErrRecord) {
		b.log.Warn("the record of the two systems is begun anew", "err", err)
	} else if err != nil {
		s.problem = err.Error()
		return err
	}
	return b.decide(b.meta, record, time.Now())
}

// undoChoice removes what a key at the boot menu set, which would count more than
// loader.conf at every start. It asks nothing of the disk.
func (b *box) undoChoice() {
	there, err := b.machine.ForgetDefault()
	if err != nil {
		b.log.Warn("what a key at the boot menu set", "err", err)
	} else if there {
		b.systems.notes = append(b.systems.notes, "somebody chose another default at the boot menu: that is undone")
	}
}

// decide judges, records that, and does it.
func (b *box) decide(meta slot.Device, record slot.Record, now time.Time) error {
	s := &b.systems
	e := b.evidence(record)
	next, action := slot.Judge(record, e, now)
	s.book = update.NewBook(meta, record)
	// A trial whose record cannot be written is one all the same: it has an end, and
	// nothing is settled in it.
	unwritten := s.book.Change(func(slot.Record) (slot.Record, error) { return next, nil })
	if action.Reason != "" && (e.Running != 0 || next.Trial != nil) {
		b.say("systems: " + action.Reason)
		s.notes = append(s.notes, action.Reason)
	}
	s.ended = action.Ended
	err := b.follow(action, now)
	s.stands.Store(b.starts(next))
	return errors.Join(unwritten, err)
}

// starts says whether the next start is that of what runs as well. A system that somebody
// chose at the boot menu, or that is on trial, leaves keys, counter and firmware
// as they are: the one that starts has to open the data the next time.
func (b *box) starts(r slot.Record) bool {
	s := &b.systems
	if s.trial.Load() || s.leave != "" {
		return false
	}
	if s.running == 0 { // no boot loader started it, so there is no other one to leave room for
		return r.Trial == nil
	}
	first, err := s.disk.Default()
	return err == nil && first == s.running
}

// openSystems finds the slots on the disk, and which of them runs.
func (b *box) openSystems() error {
	s := &b.systems
	started, err := b.machine.Started()
	if err != nil {
		b.log.Warn("how this system was started is not known in full", "err", err)
	}
	s.running, _ = runningSlot(started)
	if s.place, err = b.disk.ESPPlace(); err != nil {
		return err
	}
	part, err := b.disk.ESP()
	if err != nil {
		return err
	}
	_, menuErr := b.machine.BootMenu()
	s.variable = menuErr == nil
	if s.disk, err = esp.Open(part, s.running); err != nil {
		return err
	}
	switch {
	case s.running == 0:
		s.problem = "this system was not started from one of the two slots of its disk"
	case !s.variable:
		s.problem = "the firmware keeps no variables, so a new system could not be tried for one start"
	}
	return nil
}

// evidence is what there is to judge by. What was armed for one start, and no loader
// has read, is removed on the way.
func (b *box) evidence(r slot.Record) (e slot.Evidence) {
	s := &b.systems
	started, _ := b.machine.Started() // said in openSystems
	e.Running, e.Selected = runningSlot(started)
	e.OneShot = started.OneShot != ""
	var err error
	if e.Default, err = s.disk.Default(); err != nil {
		b.log.Warn("which slot starts", "err", err)
	}
	e.Panic = b.machine.Panic()
	if b.watchdog != nil {
		e.Watchdog = b.watchdog.LastReset() != ""
	}
	if t := r.Trial; t != nil && e.Running != t.Slot && e.Selected == t.Slot { // the firmware would not load it
		e.Damaged = errors.Is(s.disk.Check(t.Slot, t.System), esp.ErrDamaged)
	}
	if e.OneShot {
		if _, err := b.machine.DisarmOneShot(); err != nil {
			b.log.Warn("what was armed for one start", "err", err)
		}
	}
	return e
}

// follow does what was decided.
func (b *box) follow(a slot.Action, now time.Time) error {
	s := &b.systems
	switch a.Do {
	case slot.Try:
		s.until = now.Add(update.Patience)
		s.trial.Store(true)
		b.say(fmt.Sprintf("systems: version %s is tried until %s", b.release.Version, s.until.UTC().Format("15:04:05")))
		// Whatever hangs after this, the way back is open: the next start is that of
		// the system before. The gate decides earlier.
		s.overdue = time.AfterFunc(update.Patience+graceTime, b.giveUp)
	case slot.Finish:
		return s.book.Change(func(r slot.Record) (slot.Record, error) { return r.Keep(now), nil })
	case slot.Return:
		s.leave = a.Reason
	case slot.Rewrite:
		return s.disk.Commit()
	case slot.Mend:
		return b.replaceDefault(a)
	}
	return nil
}

// giveUp is the last way out of a trial. One that waits for a passphrase has not
// begun to prove anything: the system before would wait as well.
func (b *box) giveUp() {
	if b.systems.waits.Load() {
		b.systems.overdue.Reset(update.Patience + graceTime)
		return
	}
	b.endTrial("it did not come to a decision in time", true)
	if err := b.machine.Restart(); err != nil {
		b.log.Error("going back", "err", err)
	}
}

// graceTime is how much later than the gate the last way out of a trial is.
const graceTime = 30 * time.Second

// replaceDefault looks at the slot that should have started and did not. One that is
// damaged, or that the firmware refuses, is filled anew from what runs, which becomes
// the one that starts.
func (b *box) replaceDefault(a slot.Action) error {
	s := &b.systems
	bad := a.Refused
	if want := s.book.Record().In(a.Slot); want != nil {
		err := s.disk.Check(a.Slot, *want)
		if err != nil {
			s.notes = append(s.notes, err.Error())
		}
		bad = bad || errors.Is(err, esp.ErrDamaged)
	}
	if !bad {
		return nil // somebody chose; loader.conf stays
	}
	if err := s.disk.Commit(); err != nil {
		return err
	}
	s.mend = a.Slot
	s.notes = append(s.notes, fmt.Sprintf("slot %s is filled anew from slot %s, which starts from now on", a.Slot, s.running))
	return nil
}

// endTrial records why a trial ends before the restart that ends it. explained: the
// system itself is bad.
func (b *box) endTrial(why string, explained bool) {
	if !b.systems.trial.Load() {
		return
	}
	err := b.systems.book.Change(func(r slot.Record) (slot.Record, error) { return r.Ending(why, explained), nil })
	if err != nil {
		b.log.Error("why the trial ends could not be recorded", "err", err)
	}
}

// leaveTrial has the box restart at once where what runs cannot prove itself: true
// if it is to end.
func (b *box) leaveTrial() bool {
	s := &b.systems
	switch {
	case s.leave != "":
	case s.trial.Load() && b.keys == nil && b.broken.WaitsForPassphrase():
		b.systems.waits.Store(true)
		return false
	case s.trial.Load() && b.keys == nil:
		b.failTrial()
	default:
		return false
	}
	b.say("systems: going back: " + s.leave)
	b.mu.Lock()
	b.ending = "restart"
	b.mu.Unlock()
	return true
}

// failTrial ends the trial of a system that does not open the data.
func (b *box) failTrial() {
	b.systems.leave = "It does not open the data: " + b.locked
	b.endTrial(b.systems.leave, true)
}

// say tells the log and whoever stands at the console.
func (b *box) say(text string) {
	b.log.Warn(text)
	fmt.Fprintf(os.Stderr, "gatehouse: %s\n", text)
}

// setEntries has the firmware start the boot loader, then these slots by itself:
// a loader that cannot start a system goes back to the firmware, which would stop.
func (b *box) setEntries(direct []slot.Slot) {
	if !b.systems.variable {
		return
	}
	menu, err := b.machine.BootMenu()
	if err != nil {
		b.log.Warn("the firmware's boot menu", "err", err)
		return
	}
	entry := func(name, file string) bootentry.Option {
		return bootentry.Option{Active: true, Description: name, Partition: b.systems.place, File: file}
	}
	want := []bootentry.Option{entry(loaderEntry, loaderFile)}
	for _, s := range direct {
		want = append(want, entry(entryName(s), entryFile(s)))
	}
	change := bootentry.Mend(menu, want, []string{loaderEntry, entryName(slot.A), entryName(slot.B)})
	if change.None() {
		return
	}
	if err := b.machine.ChangeBootMenu(change); err != nil {
		b.log.Warn("the firmware's boot menu was not mended", "err", err)
		return
	}
	b.log.Info("the firmware's boot menu was mended", "what", strings.Join(change.Notes, "; "))
}

// releaseKeysFile says who signs the release after the one that runs.
const releaseKeysFile = "/etc/gatehouse/release-keys"

// engine is the one for updates of a box whose data are open. look and record are
// those of the monitor, which is made after it.
func (b *box) engine(m func() *monitor.Monitor) *update.Engine {
	s := &b.systems
	if b.systems.waits.Swap(false) { // the data are open now, and the trial begins
		s.until = time.Now().Add(update.Patience)
		s.overdue.Reset(update.Patience + graceTime)
	}
	c := update.Config{
		Product: "gatehouse", Arch: arch, Epoch: b.epoch(), Approver: b.approver(), Running: s.running,
		Trial: s.trial.Load(), Stands: s.stands.Load(), Until: s.until, Problem: s.problem, Notes: s.notes, Ended: s.ended, Mend: s.mend,
		Disk: s.disk, Book: s.book, Firmware: b.machine, Keys: b.keys, Dir: filepath.Join(dataPath, "update"),
		Look:    func(ctx context.Context) update.Look { return b.look(ctx, m()) },
		Audit:   func(ctx context.Context, e event) error { return m().Record(ctx, e) },
		Restart: func() { b.power("restart") },
		Kept:    b.kept,
		Revokes: func() (bool, error) { return b.keyring().Revokes() },
		Revoke:  b.revoke,
		Mended:  b.mended,
		Entries: b.setEntries, Now: time.Now, Log: b.log,
	}
	s.ended = nil // recorded once
	var err error
	if c.MAC, err = b.keys.Subkey("update/trust"); err != nil && c.Problem == "" {
		c.Problem = err.Error()
	}
	if c.Version, err = update.ParseVersion(b.release.Version); err != nil && c.Problem == "" {
		c.Problem = fmt.Sprintf("the version of this system, %s, is not one of a release: %v", b.release.Version, err)
	}
	if text, err := os.ReadFile(releaseKeysFile); err == nil {
		if c.Signers, err = firmware.ParseKeys(string(text)); err != nil && c.Problem == "" {
			c.Problem = err.Error()
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		b.log.Warn("who signs releases", "err", err)
	}
	return update.New(c)
}

// revoke tells the firmware what this image has it refuse.
func (b *box) revoke(ctx context.Context) (int, error) {
	n, err := b.keyring().Revoke(ctx)
	if err == nil && n > 0 {
		b.say(fmt.Sprintf("keys: the firmware refuses what version %s revokes: %d", b.release.Version, n))
	}
	return n, err
}

// mended notes that a slot is in order again: roles that start anew have nothing to mend.
func (b *box) mended(which slot.Slot) {
	b.systems.mend = 0
	b.say("systems: slot " + which.String() + " was filled anew")
}

// kept ends the trial.
func (b *box) kept() {
	b.say(fmt.Sprintf("systems: version %s is kept", b.release.Version))
	b.systems.trial.Store(false)
	b.systems.stands.Store(true)
	if b.systems.overdue != nil {
		b.systems.overdue.Stop()
	}
}
