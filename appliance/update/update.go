// Package update takes a release into the slot that does not run, tries it, and keeps it or goes back.
//
// It is the engine behind control.OpUpdate: doors to disk, firmware, keys and
// clock are handed in. What may be taken says package firmware, how a start is
// judged package firmware/slot.
package update

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/firmware"
	"gatehouse/firmware/slot"
	"gatehouse/firmware/window"
)

// Disk is the two slots on the EFI system partition; *esp.Partition is one. It is
// used by one goroutine at a time.
type Disk interface {
	// Clear makes a slot no program any more.
	Clear(s slot.Slot) error
	// Write writes a piece into a slot that was cleared.
	Write(s slot.Slot, b []byte, off int64) error
	// Sync has what was written on the medium.
	Sync() error
	// Complete reads back what was written and makes it a program.
	Complete(s slot.Slot, want slot.System) error
	// Check says whether a slot holds a system, from the medium.
	Check(s slot.Slot, want slot.System) error
	// Commit has the loader start what runs: the commit point.
	Commit() error
	// Default is the slot that the loader starts.
	Default() (slot.Slot, error)
	// Digest is what a slot holds.
	Digest(s slot.Slot) (slot.Digest, int64, error)
	// Copy fills a slot with what the other holds.
	Copy(from, to slot.Slot, want slot.System) error
}

// Firmware is the machine's own.
type Firmware interface {
	ArmOneShot(entry string) error
	DisarmOneShot() (bool, error)
}

// Keys are the box's.
type Keys interface {
	// ExpectRelease has the key open for a release of another approver or epoch.
	ExpectRelease(ctx context.Context, approver *ecdsa.PublicKey, epoch uint64) error
	// Settle makes what opened this start the only thing that opens.
	Settle(ctx context.Context) error
	// Behind says that the data are older than the TPM remembers; "": they are not.
	Behind() string
}

// Config is what an engine is made of.
type Config struct {
	Product  string
	Arch     string
	Version  firmware.Version // that runs
	Epoch    uint64           // of what runs
	Approver *ecdsa.PublicKey // of what runs; nil: nobody
	Signers  firmware.Keys    // that the running image brings
	Running  slot.Slot
	Trial    bool          // what runs is not kept yet
	Stands   bool          // what runs is what the next start starts too
	Until    time.Time     // the end of the trial
	Problem  string        // why no update can be taken; "": nothing
	Notes    []string      // what was mended at this start
	Ended    *slot.Verdict // of a trial that went back just before this start
	Mend     slot.Slot     // would not start, and is to be filled from what runs; 0: none

	Disk     Disk
	Book     *Book
	Firmware Firmware
	Keys     Keys
	Dir      string   // folder on the data volume
	MAC      [32]byte // key of what is kept there
	Look     func(ctx context.Context) Look
	Audit    func(ctx context.Context, e control.Event) error
	Restart  func()
	// Kept tells that the trial is over, and well.
	Kept func()
	// Revokes says whether this system has the firmware refuse something that it does
	// not know yet.
	Revokes func() (bool, error)
	// Revoke tells the firmware what this system, which is kept, has it refuse, and returns
	// how many programs that are; 0 if it knows.
	Revoke func(ctx context.Context) (programs int, err error)
	// Mended tells that a slot was filled anew.
	Mended func(slot.Slot)
	// Entries has the firmware start these slots by itself, in this order.
	Entries func(direct []slot.Slot)
	Now     func() time.Time
	Log     *slog.Logger
}

// Engine is the two systems of a box: monitor.Systems.
type Engine struct {
	c     Config
	files files

	working sync.Mutex // one change at a time

	mu       sync.Mutex // what follows
	trust    firmware.Trust
	problem  string
	transfer *transfer
	policy   control.UpdateSettings
	window   window.Window
	gate     *Gate
	rate     meter
	pending  bool     // the restart is about to come
	notes    []string // besides those of the start

	hash *digest // of the transfer; working
}

// New reads what is kept on the data volume. What is wrong with updates is shown,
// and the box goes on without them.
func New(c Config) *Engine {
	e := &Engine{c: c, files: files{c.Dir, c.MAC}, problem: c.Problem}
	if err := e.openTrust(); err != nil {
		if e.problem == "" {
			e.problem = err.Error()
		}
		c.Log.Error("updates are switched off", "err", err)
	}
	e.loadPolicy()
	if err := e.loadTransfer(); err != nil {
		c.Log.Warn("a release that was on its way is forgotten", "err", err, "gone", e.files.remove(transferFile))
	}
	if c.Trial {
		var before Look
		if err := e.files.load(beforeFile, &before); err != nil {
			// Nothing to compare with: everything has to be good.
			c.Log.Warn("what was seen before the trial cannot be read", "err", err)
			before = everything()
		}
		e.gate = NewGate(before, c.Now(), c.Until)
	}
	return e
}

func (e *Engine) loadPolicy() {
	var err error
	if e.policy, err = e.files.loadSettings(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		e.c.Log.Warn("the settings of updates are those of a new box", "err", err)
	}
	if e.window, err = window.Parse(e.policy.Window); err != nil {
		e.c.Log.Warn("the settings of updates", "err", err)
		e.policy.Window = ""
	}
}

// loadTransfer goes on with what an earlier life left. A system that is known to be
// bad is not offered again by itself.
func (e *Engine) loadTransfer() error {
	t, err := e.files.loadTransfer()
	if errors.Is(err, fs.ErrNotExist) || e.problem != "" {
		return nil
	}
	if err != nil {
		return err
	}
	m, s, err := e.open(t.Manifest)
	if err != nil {
		return err
	}
	// A trial that is not concluded yet was of a system that somebody insisted upon.
	r := e.c.Book.Record()
	if v, ok := r.Verdict(s.SHA256); !e.c.Trial && r.Trial == nil && ok && v.Explained && !t.Again {
		return e.files.remove(transferFile)
	}
	if !t.Done {
		if e.hash, err = newDigest(t.Digest); err != nil {
			return err
		}
	}
	t.Version = m.Version.String()
	e.transfer = t
	return nil
}

// everything good: the severest of what could have been before.
func everything() Look {
	l := make(Look)
	for _, name := range checks {
		l[name] = Seen{Good: true}
	}
	return l
}

// openTrust reads what the box goes by, or begins with what the image brings.
// What runs and starts the next time as well was taken for good.
func (e *Engine) openTrust() error {
	t, err := e.files.loadTrust()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if len(e.c.Signers.Keys) == 0 {
			return errors.New("the image of this box does not say who signs its releases: it takes no updates; write an image of a release to the disk")
		}
		if e.c.Trial {
			return errors.New("what the box goes by is gone from the data volume")
		}
		t = firmware.Trust{Product: e.c.Product, Keys: e.c.Signers, Version: e.c.Version, Newest: e.c.Version, Epoch: e.c.Epoch}
		err = e.files.storeTrust(t)
	case err == nil && e.c.Stands:
		next := t
		next.Version, next.Epoch = e.c.Version, max(t.Epoch, e.c.Epoch)
		if next.Version.Compare(next.Newest) > 0 {
			next.Newest = next.Version
		}
		if next.Version != t.Version || next.Newest != t.Newest || next.Epoch != t.Epoch {
			t, err = next, e.files.storeTrust(next)
		}
	}
	if err != nil {
		return err
	}
	if err := t.Keys.Check(); err != nil {
		return err
	}
	e.trust = t
	return nil
}

// View is how it stands.
func (e *Engine) View(context.Context) (control.Update, error) {
	r := e.c.Book.Record()
	e.mu.Lock()
	defer e.mu.Unlock()
	u := control.Update{
		Running: control.System{Slot: string(rune(e.c.Running)), Version: e.c.Version.String(), Epoch: e.c.Epoch, State: "running"},
		Newest:  e.trust.Newest.String(), Needed: e.trust.Keys.Threshold, Signers: names(e.trust.Keys),
		Stage: control.UpdateIdle, Problem: e.problem, Notes: slices.Concat(e.c.Notes, e.notes), Policy: e.policy,
	}
	if v, ok := r.Last(); ok {
		u.Last = outcome(v)
	}
	other := e.c.Running.Other()
	if i := r.In(other); i != nil {
		u.Other = &control.System{Slot: string(rune(other)), Version: i.Version.String(), Epoch: i.Epoch, State: "ready"}
		if v := against(r, i, r.In(e.c.Running)); v != nil && v.Explained {
			u.Other.State, u.Other.Reason = "refused", v.Reason
		} else if i.Epoch < e.trust.Epoch {
			u.Other.State, u.Other.Reason = "refused", fmt.Sprintf("it is of epoch %d, and the box has reached %d: it opens nothing", i.Epoch, e.trust.Epoch)
		} else if runs := r.In(e.c.Running); runs != nil && e.transfer == nil && !runs.Approved(*i) {
			u.Other.State, u.Other.Reason = "refused", "the data open for what another key approved: it opens nothing"
		}
	}
	if e.gate != nil {
		u.Stage = control.UpdateTrial
		u.Trial = &control.Trial{Version: e.c.Version.String(), Began: e.gate.began, Until: e.gate.until, Checks: e.gate.Checks()}
		return u, nil
	}
	if t := e.transfer; t != nil {
		u.Stage = control.UpdateReceiving
		u.Transfer = &control.Transfer{Version: t.Version, Size: t.Size, Received: t.Offset, Began: t.Began, Changed: t.Changed, Rate: e.rate.rate(e.c.Now()), Actor: t.Actor}
		if t.Done {
			u.Stage = control.UpdateReceived
			if t.Restart != nil {
				u.Stage, u.Restart = control.UpdateWaiting, t.Restart
			}
		}
	}
	return u, nil
}

// Set changes when and whence.
func (e *Engine) Set(_ context.Context, s control.UpdateSettings) error {
	e.working.Lock()
	defer e.working.Unlock()
	w, err := window.Parse(s.Window)
	if err != nil {
		return invalid(err.Error())
	}
	if err := checkMirror(s.Mirror); err != nil {
		return invalid(err.Error())
	}
	// The console reads them, which asks the mirror; here they are only kept.
	if len(s.Roots) > control.MaxUpdateRoots {
		return invalid(fmt.Sprintf("the certificates that vouch for the mirror have %d bytes, at most %d are taken", len(s.Roots), control.MaxUpdateRoots))
	}
	if s.Automatic && s.Mirror == "" {
		return invalid("updates without a question need a mirror to come from")
	}
	if err := e.files.store(settingsFile, s); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.policy, e.window = s, w
	// What waits, waits for the new window; without one it waits for a person.
	if t := e.transfer; t != nil && t.Restart != nil && !t.Later {
		next := *t
		e.wait(&next, w)
		return e.replace(&next)
	}
	return nil
}

// replace stores a transfer, then has it in memory. e.mu is held.
func (e *Engine) replace(t *transfer) error {
	if err := e.files.store(transferFile, t); err != nil {
		return err
	}
	e.transfer = t
	return nil
}

func invalid(text string) error { return &control.Error{Code: control.CodeInvalid, Text: text} }

func refused(text string) error { return &control.Error{Code: control.CodeState, Text: text} }

// names are those of the people whose keys they are.
func names(k firmware.Keys) []string {
	out := []string{}
	for _, key := range k.Keys {
		name, _, _ := strings.Cut(key, "+")
		out = append(out, name)
	}
	return out
}

func outcome(v slot.Verdict) *control.Outcome {
	return &control.Outcome{Version: v.System.Version.String(), When: v.When, Kept: v.Kept, Reason: v.Reason, Explained: v.Explained, Tries: v.Tries}
}
