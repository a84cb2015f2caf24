package intake

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"runtime"
	"sync"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/task"
	"gatehouse/firmware"
)

// How often the mirror is asked. Boxes that were switched on together ask at
// different times.
const (
	firstLook = 2 * time.Minute
	lookEvery = 24 * time.Hour
	spread    = 15 * time.Minute
)

// MirrorConfig is what the mirror's task works with.
type MirrorConfig struct {
	View  func(context.Context) (control.Update, error)
	Start func(context.Context, control.UpdateStart) error
	Now   func() time.Time
	Log   *slog.Logger
}

// Mirror asks for releases once a day and when told to.
type Mirror struct {
	c      MirrorConfig
	intake *Intake
	wishes chan wish

	mu    sync.Mutex
	state control.MirrorState
}

// wish is what a person wants of the mirror.
type wish struct {
	by      control.By
	receive bool
	again   bool
}

// system is who acts when nobody does.
var system = control.By{Actor: "system"}

// NewMirror makes one that brings in through i.
func NewMirror(i *Intake, c MirrorConfig) *Mirror {
	return &Mirror{c: c, intake: i, wishes: make(chan wish, 1)}
}

// State is what came of asking last.
func (m *Mirror) State() control.MirrorState {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

// Look has the mirror asked now, for a person; with receive what it has is
// brought in, too, and with again although it failed here before.
func (m *Mirror) Look(by control.By, receive, again bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state.Busy {
		return &control.Error{Code: control.CodeState, Text: "the mirror is being asked already"}
	}
	select {
	case m.wishes <- wish{by, receive, again}:
		m.state.Busy = true
		return nil
	default:
		return &control.Error{Code: control.CodeState, Text: "the mirror is about to be asked"}
	}
}

// Task asks until ctx ends. What fails is shown, and tried again another day.
func (m *Mirror) Task() task.Task { return task.Func("mirror", m.run) }

func (m *Mirror) run(ctx context.Context) error {
	next := time.NewTimer(firstLook + upTo(spread))
	defer next.Stop()
	for {
		w := wish{by: system}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case w = <-m.wishes:
		case <-next.C:
			next.Reset(lookEvery - spread + upTo(2*spread))
		}
		m.ask(ctx, w)
	}
}

// upTo is any time below d.
func upTo(d time.Duration) time.Duration {
	n, _ := rand.Int(rand.Reader, big.NewInt(int64(d))) // crypto/rand does not fail
	return time.Duration(n.Int64())
}

// ask asks once and keeps what came of it.
func (m *Mirror) ask(ctx context.Context, w wish) {
	u, err := m.c.View(ctx)
	if err != nil || u.Policy.Mirror == "" {
		if err != nil && w.by != system {
			m.c.Log.Warn("asking the mirror", "err", err)
		}
		m.mu.Lock()
		m.state = control.MirrorState{}
		m.mu.Unlock()
		return
	}
	m.mu.Lock()
	m.state.Busy = true
	m.mu.Unlock()
	offers, err := m.look(ctx, u, w)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state = control.MirrorState{Offers: offers, Looked: m.c.Now().UTC()}
	if err != nil && ctx.Err() == nil {
		m.state.Problem = err.Error()
		m.c.Log.Warn("the mirror was asked", "mirror", u.Policy.Mirror, "err", err)
	}
}

func (m *Mirror) look(ctx context.Context, u control.Update, w wish) (offers string, err error) {
	f, err := newFolder(u.Policy, m.c.Now)
	if err != nil {
		return "", err
	}
	defer f.close()
	return m.lookIn(ctx, f, u, w)
}

// lookIn reads what the mirror has, and takes it where that is wanted. The version
// that is read here decides only whether it is worth asking for.
func (m *Mirror) lookIn(ctx context.Context, f *folder, u control.Update, w wish) (offers string, err error) {
	note, err := f.manifest(ctx)
	if err != nil {
		return "", err
	}
	said, err := firmware.Unverified(note)
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", f.name("release"), err)
	}
	if _, err := said.System(runtime.GOARCH); err != nil {
		return "", err
	}
	version := said.Version.String()
	if stale(u, said.Version) && !w.again {
		return "", nil
	}
	switch received := u.Stage == control.UpdateReceived || u.Stage == control.UpdateWaiting; {
	case u.Stage == control.UpdateTrial:
		return version, nil
	case received && u.Transfer != nil && u.Transfer.Version == version:
		// A trial that ended without a reason left it here: it has another one.
		return version, m.start(ctx, w.by, version)
	case !w.receive && (!u.Policy.Automatic || m.taken(u, said.Version)):
		return version, nil
	}
	if err := m.receive(ctx, f, control.UpdateBegin{By: w.by, Manifest: note, Again: w.again}, version); err != nil {
		return version, err
	}
	return version, m.start(ctx, w.by, version)
}

// start has what was received wait for the window, as the owner wants it now: a
// transfer may have taken hours.
func (m *Mirror) start(ctx context.Context, by control.By, version string) error {
	u, err := m.c.View(ctx)
	if err != nil || !u.Policy.Automatic || u.Policy.Window == "" || u.Stage != control.UpdateReceived || u.Transfer == nil || u.Transfer.Version != version {
		return err
	}
	return m.c.Start(ctx, control.UpdateStart{By: by, Wait: true})
}

// abandoned is how long nothing came of half a release that a person sends, until
// it is in nobody's way any more.
const abandoned = 24 * time.Hour

// taken says whether the other slot is a person's, or has something newer: a mirror
// that lags behind does not overwrite that by itself. What had its trial and went back,
// or will never be whole, gives way.
func (m *Mirror) taken(u control.Update, v firmware.Version) bool {
	t := u.Transfer
	if t == nil {
		return false
	}
	if u.Stage == control.UpdateReceiving {
		return t.Actor != system.Actor && m.c.Now().Sub(t.Changed) < abandoned
	}
	if there, err := firmware.ParseVersion(t.Version); err == nil && there.Compare(v) > 0 {
		return true
	}
	tried := u.Last != nil && !u.Last.Kept && u.Last.Version == t.Version
	return t.Actor != system.Actor && (u.Stage == control.UpdateWaiting || !tried)
}

// stale says whether the box has had a version, or knows it to be bad.
func stale(u control.Update, v firmware.Version) bool {
	if newest, err := firmware.ParseVersion(u.Newest); err == nil && v.Compare(newest) <= 0 {
		return true
	}
	return u.Last != nil && !u.Last.Kept && u.Last.Explained && u.Last.Version == v.String()
}

// A transfer goes on after a cut, within one asking: after so many in which
// nothing came, or so long, it waits for the next day.
const (
	tries = 5
	whole = 6 * time.Hour
)

// receive brings in what the mirror has. The privileged process judges the
// manifest first; what it does not take, nobody asks for.
func (m *Mirror) receive(ctx context.Context, f *folder, q control.UpdateBegin, version string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, whole, fmt.Errorf("it was not here within %s", whole))
	defer cancel()
	ctx, end, err := m.intake.enter(ctx, nil, false)
	if err != nil {
		return err
	}
	defer end()
	at, err := m.intake.Offer(ctx, q)
	if err != nil {
		return err
	}
	name := "gatehouse-" + version + "-" + runtime.GOARCH + ".efi"
	for left := tries; at.Offset < at.Size; left-- {
		before := at.Offset
		at, err = m.part(ctx, f, name, at)
		if err == nil {
			break
		}
		if at.Offset >= before+control.MaxUpdateWrite {
			left = tries
		}
		var refused *control.Error
		if ctx.Err() != nil || left == 1 || errors.As(err, &refused) || errors.Is(err, errMirror) {
			return fmt.Errorf("reading %s: %w", f.name(name), err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(f.pause * time.Duration(tries-left+1)):
		}
	}
	return nil
}

func (m *Mirror) part(ctx context.Context, f *folder, name string, at control.UpdateOffset) (control.UpdateOffset, error) {
	body, end, err := f.system(ctx, name, at)
	if err != nil {
		return at, err
	}
	defer end()
	return m.intake.fill(ctx, at, reader{ctx, body})
}
