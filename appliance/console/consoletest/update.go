package consoletest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"gatehouse/appliance/control"
	"gatehouse/firmware"
	"gatehouse/firmware/window"
)

// systems is the two systems of a double. Manifests are judged as on a box, and
// so is every byte; only nothing restarts.
type systems struct {
	there   bool
	now     control.Update
	trust   firmware.Trust
	note    []byte
	system  firmware.System
	content []byte
	pieces  int
	refuses error // the next piece
	begun   []control.UpdateBegin
}

// Releaser makes releases for a double.
type Releaser struct {
	t      testing.TB
	keys   firmware.Keys
	signer note.Signer
}

// NewReleaser makes one with a key of its own.
func NewReleaser(t testing.TB) *Releaser {
	t.Helper()
	secret, public, err := note.GenerateKey(rand.Reader, "ada")
	must(t, err)
	s, err := note.NewSigner(secret)
	must(t, err)
	return &Releaser{t, firmware.Keys{Threshold: 1, Keys: []string{public}}, s}
}

// Make is a release: its signed manifest, and the system for this machine.
func (r *Releaser) Make(version string, size int) (manifest, system []byte) {
	r.t.Helper()
	v, err := firmware.ParseVersion(version)
	must(r.t, err)
	system = bytes.Repeat([]byte("system "+version+" "), size/10+1)[:size]
	m := firmware.Manifest{Product: "gatehouse", Version: v, Epoch: 1, Minimum: firmware.Version{Patch: 1}, Issued: time.Date(2026, 11, 28, 0, 0, 0, 0, time.UTC), Keys: r.keys,
		Systems: []firmware.System{{Arch: runtime.GOARCH, Size: int64(size), SHA256: sha256.Sum256(system)}}}
	manifest, err = m.Sign(r.signer)
	must(r.t, err)
	return manifest, system
}

// Bundle is Make as one file.
func (r *Releaser) Bundle(version string, size int) []byte {
	r.t.Helper()
	manifest, system := r.Make(version, size)
	var b bytes.Buffer
	must(r.t, firmware.WriteBundle(&b, manifest, bytes.NewReader(system)))
	return b.Bytes()
}

// GiveSystems makes the box one with two slots, that goes by the releaser's key.
func (b *Box) GiveSystems(r *Releaser) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.systems = systems{there: true, trust: firmware.Trust{Product: "gatehouse", Keys: r.keys, Version: firmware.Version{Minor: 1}, Newest: firmware.Version{Minor: 1}, Epoch: 1},
		now: control.Update{
			Running: control.System{Slot: "a", Version: "0.1.0+test", Epoch: 1, State: "running"}, Newest: "0.1.0", Signers: []string{"ada"}, Needed: 1, Stage: control.UpdateIdle,
		}}
}

// Systems is what stands of them.
func (b *Box) Systems() control.Update {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.systems.now
}

// Received is what came of the release that is or was on its way.
func (b *Box) Received() (content []byte, pieces int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.systems.content), b.systems.pieces
}

// Offered are the releases that were offered.
func (b *Box) Offered() []control.UpdateBegin {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.systems.begun
}

// SetSystems changes what stands of them.
func (b *Box) SetSystems(f func(*control.Update)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(&b.systems.now)
}

// RefusePiece makes the next piece fail.
func (b *Box) RefusePiece(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.systems.refuses = err
}

// EndTrial is how the trial ends.
func (b *Box) EndTrial(kept, explained bool, reason string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	u := &b.systems.now
	u.Last = &control.Outcome{Version: u.Trial.Version, When: time.Now().UTC(), Kept: kept, Explained: explained, Reason: reason, Tries: 1}
	u.Stage, u.Trial = control.UpdateIdle, nil
	if !kept && !explained { // it stays received, to be tried again
		now := time.Now().UTC()
		size := int64(len(b.systems.content))
		u.Stage, u.Transfer = control.UpdateReceived, &control.Transfer{Version: u.Last.Version, Size: size, Received: size, Began: now, Changed: now, Actor: "ada@example.org"}
	}
	if !kept {
		u.Running, *u.Other = *u.Other, u.Running
		if explained {
			u.Other.State, u.Other.Reason = "refused", reason
		}
	}
	u.Running.State = "running"
}

func (s *systems) begin(q control.UpdateBegin) (at control.UpdateOffset, err error) {
	if s.now.Stage == control.UpdateTrial {
		return at, refused(control.CodeState, "version %s is on trial: wait until it is kept or gone back", s.now.Trial.Version)
	}
	m, err := s.trust.Open(q.Manifest)
	if err != nil {
		return at, refused(control.CodeInvalid, "%v", err)
	}
	system, err := m.System(runtime.GOARCH)
	if err != nil {
		return at, refused(control.CodeInvalid, "%v", err)
	}
	if l := s.now.Last; l != nil && !l.Kept && l.Explained && l.Version == m.Version.String() && !q.Again {
		return at, refused(control.CodeState, "version %s failed on this box: %s. Say that it is to be tried again, if you know better", l.Version, l.Reason)
	}
	s.begun = append(s.begun, q)
	if !bytes.Equal(s.note, q.Manifest) || s.now.Transfer == nil {
		s.note, s.system, s.content, s.pieces = q.Manifest, system, nil, 0
		now := time.Now().UTC()
		s.now.Stage, s.now.Restart = control.UpdateReceiving, nil
		s.now.Transfer = &control.Transfer{Version: m.Version.String(), Size: system.Size, Began: now, Changed: now, Actor: q.Actor}
	}
	return s.offset(), nil
}

func (s *systems) offset() control.UpdateOffset {
	t := s.now.Transfer
	return control.UpdateOffset{Version: t.Version, Size: t.Size, Offset: t.Received}
}

func (s *systems) write(q control.UpdateWrite) (at control.UpdateOffset, err error) {
	t := s.now.Transfer
	if s.refuses != nil {
		err, s.refuses = s.refuses, nil
		return at, refused(control.CodeFailed, "%v", err)
	}
	switch {
	case t == nil || s.now.Stage != control.UpdateReceiving || q.Version != t.Version:
		return at, refused(control.CodeState, "version %s is not being received", q.Version)
	case q.Offset != t.Received || q.Offset+int64(len(q.Data)) > t.Size || len(q.Data) > control.MaxUpdateWrite:
		return at, refused(control.CodeInvalid, "a piece of %d bytes at %d does not fit: %d of %d bytes are there", len(q.Data), q.Offset, t.Received, t.Size)
	}
	// As the slot does: a copy, and at the end the whole is read back.
	s.content = append(s.content, q.Data...)
	s.pieces++
	t.Received, t.Changed = int64(len(s.content)), time.Now().UTC()
	t.Rate = float64(t.Received) / max(time.Since(t.Began).Seconds(), 0.001)
	if t.Received < t.Size {
		return s.offset(), nil
	}
	if _, err := io.Copy(io.Discard, s.system.Content(bytes.NewReader(s.content))); err != nil {
		s.now.Stage, s.now.Transfer, s.content = control.UpdateIdle, nil, nil
		return at, refused(control.CodeInvalid, "%v", err)
	}
	s.now.Stage = control.UpdateReceived
	s.now.Other = &control.System{Slot: "b", Version: t.Version, Epoch: 1, State: "ready"}
	return s.offset(), nil
}

func (s *systems) start(q control.UpdateStart) error {
	if s.now.Stage != control.UpdateReceived && s.now.Stage != control.UpdateWaiting {
		return refused(control.CodeState, "no release is received that could be started")
	}
	if q.Later {
		at := time.Now().Add(control.Grace)
		s.now.Stage, s.now.Restart = control.UpdateWaiting, &at
		return nil
	}
	if q.Wait {
		w, err := window.Parse(s.now.Policy.Window)
		if err != nil {
			return refused(control.CodeInvalid, "%v", err)
		}
		at, ok := w.Next(time.Now().Add(control.Grace))
		if !ok {
			return refused(control.CodeState, "there is no window to wait for")
		}
		s.now.Stage, s.now.Restart = control.UpdateWaiting, &at
		return nil
	}
	now := time.Now().UTC()
	version := s.now.Transfer.Version
	s.now.Stage, s.now.Transfer, s.now.Restart = control.UpdateTrial, nil, nil
	s.now.Running, *s.now.Other = *s.now.Other, s.now.Running
	s.now.Running.State, s.now.Other.State = "running", "ready"
	s.now.Trial = &control.Trial{Version: version, Began: now, Until: now.Add(10 * time.Minute), Checks: []control.Check{
		{Name: "vault", State: "good", Detail: "the data opened without a person"},
		{Name: "https", State: "waiting", Detail: "443 answers since 20 s, want 60 s"},
		{Name: "hub", State: "skipped", Detail: "it was not there before either"},
	}}
	return nil
}

func (s *systems) cancel() error {
	switch s.now.Stage {
	case control.UpdateTrial:
		return refused(control.CodeState, "a trial is not cancelled: it goes back by a restart")
	case control.UpdateIdle:
		return refused(control.CodeState, "there is nothing to cancel")
	}
	s.now.Stage, s.now.Transfer, s.now.Restart, s.note, s.content = control.UpdateIdle, nil, nil, nil, nil
	return nil
}

func (s *systems) set(p control.UpdateSettings) error {
	w, err := window.Parse(p.Window)
	if err != nil {
		return refused(control.CodeInvalid, "%v", err)
	}
	p.Window = w.String()
	s.now.Policy = p
	return nil
}

// changeSystems does what the monitor does around each wish.
func (b *Box) changeSystems(ctx context.Context, by control.By, action, object string, f func(*systems) error) error {
	b.mu.Lock()
	there := b.systems.there
	b.mu.Unlock()
	if !there {
		return errNoSystems()
	}
	if s := b.State(); s != control.StateReady {
		return refused(control.CodeState, "systems are changed on a box that has an owner and is open")
	}
	if _, err := b.append(ctx, control.Event{Actor: by.Actor, From: by.From, Action: action, Object: object}); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return f(&b.systems)
}

func errNoSystems() error {
	return refused(control.CodeState, "this form of Gatehouse runs on a system of somebody else's: it is updated as its packages are")
}

func (b *Box) handleUpdate(s *control.Server) {
	control.Handle(s, control.OpUpdate, func(context.Context, control.Role, control.None) (control.Update, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if !b.systems.there {
			return control.Update{}, errNoSystems()
		}
		return copied(b.systems.now), nil
	})
	control.Handle(s, control.OpUpdateBegin, func(ctx context.Context, _ control.Role, q control.UpdateBegin) (at control.UpdateOffset, err error) {
		err = b.changeSystems(ctx, q.By, "update offered", "", func(s *systems) (err error) {
			at, err = s.begin(q)
			return err
		})
		return at, err
	})
	control.Handle(s, control.OpUpdateWrite, func(_ context.Context, _ control.Role, q control.UpdateWrite) (control.UpdateOffset, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.systems.write(q)
	})
	control.Handle(s, control.OpUpdateStart, func(ctx context.Context, _ control.Role, q control.UpdateStart) (control.None, error) {
		return control.None{}, b.changeSystems(ctx, q.By, "update started", "", func(s *systems) error { return s.start(q) })
	})
	control.Handle(s, control.OpUpdateCancel, func(ctx context.Context, _ control.Role, by control.By) (control.None, error) {
		return control.None{}, b.changeSystems(ctx, by, "update cancelled", "", (*systems).cancel)
	})
	control.Handle(s, control.OpUpdateSet, func(ctx context.Context, _ control.Role, q control.UpdateSet) (control.None, error) {
		return control.None{}, b.changeSystems(ctx, q.By, "update settings changed", q.Settings.Mirror, func(s *systems) error { return s.set(q.Settings) })
	})
}

// copied shares nothing that changes.
func copied(u control.Update) control.Update {
	if u.Transfer != nil {
		t := *u.Transfer
		u.Transfer = &t
	}
	if u.Other != nil {
		o := *u.Other
		u.Other = &o
	}
	u.Signers = strings.Fields(strings.Join(u.Signers, " "))
	return u
}
