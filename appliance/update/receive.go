package update

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding"
	"errors"
	"fmt"
	"hash"
	"net/url"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/firmware"
	"gatehouse/firmware/approval"
	"gatehouse/firmware/slot"
)

// keepEach is after how many bytes the way so far is made to outlive a power cut.
const keepEach = 1 << 20

// digest is a SHA-256 whose state can be kept.
type digest struct{ hash.Hash }

func newDigest(state []byte) (*digest, error) {
	d := &digest{sha256.New()}
	if len(state) == 0 {
		return d, nil
	}
	if err := d.Hash.(encoding.BinaryUnmarshaler).UnmarshalBinary(state); err != nil {
		return nil, fmt.Errorf("the digest of what came so far: %w", err)
	}
	return d, nil
}

func (d *digest) state() ([]byte, error) {
	return d.Hash.(encoding.BinaryMarshaler).MarshalBinary()
}

// open is what a manifest says for this box, once it is verified.
func (e *Engine) open(note []byte) (firmware.Manifest, firmware.System, error) {
	e.mu.Lock()
	t, problem := e.trust, e.problem
	e.mu.Unlock()
	if problem != "" {
		return firmware.Manifest{}, firmware.System{}, refused("this box takes no updates: " + problem)
	}
	m, err := t.Open(note)
	if err != nil {
		return m, firmware.System{}, invalid(err.Error())
	}
	s, err := m.System(e.c.Arch)
	if err != nil {
		return m, s, invalid(err.Error())
	}
	return m, s, nil
}

// Begin judges a release and makes room for it. The same one goes on where it was.
func (e *Engine) Begin(_ context.Context, q control.UpdateBegin) (control.UpdateOffset, error) {
	e.working.Lock()
	defer e.working.Unlock()
	if err := e.free(); err != nil {
		return control.UpdateOffset{}, err
	}
	m, s, err := e.open(q.Manifest)
	if err != nil {
		return control.UpdateOffset{}, err
	}
	if err := e.mayTry(s.SHA256, q.Again); err != nil {
		return control.UpdateOffset{}, err
	}
	e.mu.Lock()
	t := e.transfer
	e.mu.Unlock()
	other := e.c.Running.Other()
	if t != nil && bytes.Equal(t.Manifest, q.Manifest) {
		next := *t
		next.Again = q.Again
		switch whole, spoilt := e.stuck(t, installed(m, s)); {
		case whole:
			return e.received(&next, installed(m, s))
		case spoilt: // begun anew
		case t.Again != q.Again:
			return next.offset(), e.keep(&next)
		default:
			return t.offset(), nil
		}
	}
	// From here on the other slot counts for nothing, wherever the power goes.
	if err := e.empty(other); err != nil {
		return control.UpdateOffset{}, err
	}
	now := e.c.Now()
	next := &transfer{Manifest: q.Manifest, Version: m.Version.String(), Size: s.Size, Began: now, Changed: now, Actor: q.Actor, From: q.From, Again: q.Again}
	if e.hash, err = newDigest(nil); err != nil {
		return control.UpdateOffset{}, err
	}
	if err := e.keep(next); err != nil {
		return control.UpdateOffset{}, err
	}
	return next.offset(), nil
}

// stuck looks at the slot of a transfer that is not done. It becomes a program first, and
// that is noted then: a power cut or a write that fails between the two leaves the
// whole in a slot that takes no more pieces. What else is no place to go on is spoilt.
func (e *Engine) stuck(t *transfer, want slot.System) (whole, spoilt bool) {
	if t.Done {
		return false, false
	}
	sum, n, err := e.c.Disk.Digest(e.c.Running.Other())
	whole = err == nil && n == want.Size && sum == want.SHA256
	return whole, !whole && (err != nil || n != 0 || t.Offset == t.Size)
}

// empty takes away what the other slot held: the record first, then the
// firmware's entry, then the bytes.
func (e *Engine) empty(s slot.Slot) error {
	e.mu.Lock()
	e.transfer = nil
	e.mu.Unlock()
	if err := e.files.remove(transferFile); err != nil {
		return err
	}
	if err := e.c.Book.Change(func(r slot.Record) (slot.Record, error) { return r.With(s, nil), nil }); err != nil {
		return err
	}
	e.entries()
	return e.c.Disk.Clear(s)
}

// keep has a transfer outlive a power cut.
func (e *Engine) keep(t *transfer) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.replace(t)
}

// free says whether anything may change now.
func (e *Engine) free() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.problem != "":
		return refused("this box takes no updates: " + e.problem)
	case e.gate != nil:
		return refused("version " + e.c.Version.String() + " is being tried: wait until it is kept or has gone back")
	case e.pending:
		return refused("the box is about to restart")
	}
	return nil
}

// mayTry says no to what failed here before, and to a box whose data say less
// than the TPM remembers: what it had taken is not known then.
func (e *Engine) mayTry(sum [32]byte, again bool) error {
	if again {
		return nil
	}
	if why := e.c.Keys.Behind(); why != "" {
		return refused("what this box has had is not known, so an older release could pass for a newer one: " + why + " If you put the older copy back yourself, have the release tried again.")
	}
	if err := e.c.Book.Record().May(sum); err != nil {
		return refused(err.Error())
	}
	return nil
}

func (t *transfer) offset() control.UpdateOffset {
	return control.UpdateOffset{Version: t.Version, Size: t.Size, Offset: t.Offset}
}

// Write takes the next piece. The last one answers when the whole was read back.
func (e *Engine) Write(_ context.Context, q control.UpdateWrite) (control.UpdateOffset, error) {
	e.working.Lock()
	defer e.working.Unlock()
	if err := e.free(); err != nil {
		return control.UpdateOffset{}, err
	}
	e.mu.Lock()
	t := e.transfer
	e.mu.Unlock()
	switch {
	case t == nil:
		return control.UpdateOffset{}, refused("no release is on its way: offer it first")
	case q.Version != t.Version:
		return t.offset(), refused("version " + t.Version + " is on its way, and this is a piece of " + q.Version)
	case t.Done, q.Offset != t.Offset:
		return t.offset(), refused(fmt.Sprintf("%d bytes of version %s are here: go on from there, not from %d", t.Offset, t.Version, q.Offset))
	case len(q.Data) == 0, len(q.Data) > control.MaxUpdateWrite:
		return t.offset(), invalid(fmt.Sprintf("a piece has 1 to %d bytes, not %d", control.MaxUpdateWrite, len(q.Data)))
	case int64(len(q.Data)) > t.Size-t.Offset:
		return t.offset(), invalid(fmt.Sprintf("version %s has %d bytes, and this would be more", t.Version, t.Size))
	}
	if err := e.c.Disk.Write(e.c.Running.Other(), q.Data, q.Offset); err != nil {
		return t.offset(), err
	}
	e.hash.Write(q.Data)
	next := *t
	next.Offset += int64(len(q.Data))
	next.Changed = e.c.Now()
	e.mu.Lock()
	e.transfer = &next
	e.rate.add(next.Changed, len(q.Data))
	e.mu.Unlock()
	if next.Offset == next.Size {
		return e.finish(&next)
	}
	if next.Offset/keepEach != t.Offset/keepEach {
		if err := e.checkpoint(&next); err != nil {
			return next.offset(), err
		}
	}
	return next.offset(), nil
}

// checkpoint has the bytes so far on the medium, then says so.
func (e *Engine) checkpoint(t *transfer) (err error) {
	if err := e.c.Disk.Sync(); err != nil {
		return err
	}
	if t.Digest, err = e.hash.state(); err != nil {
		return err
	}
	return e.keep(t)
}

// finish is what follows the last piece: the digest of what came, and of what the
// medium gives back. Only then the slot holds a program.
func (e *Engine) finish(t *transfer) (control.UpdateOffset, error) {
	m, s, err := e.open(t.Manifest)
	if err != nil {
		return t.offset(), err
	}
	other := e.c.Running.Other()
	again := func(cause error) (control.UpdateOffset, error) {
		return control.UpdateOffset{Version: t.Version, Size: t.Size}, errors.Join(cause, e.empty(other))
	}
	if sum := [32]byte(e.hash.Sum(nil)); sum != s.SHA256 {
		return again(invalid(fmt.Sprintf("the system that came is not the one that the release names: its SHA-256 is %x, and not %x; offer it again", sum, s.SHA256)))
	}
	filled := installed(m, s)
	if err := e.c.Disk.Complete(other, filled); err != nil {
		return again(err)
	}
	return e.received(t, filled)
}

// received notes that the slot of a transfer holds the whole.
func (e *Engine) received(t *transfer, filled slot.System) (control.UpdateOffset, error) {
	other := e.c.Running.Other()
	if err := e.c.Book.Change(func(r slot.Record) (slot.Record, error) { return r.With(other, &filled), nil }); err != nil {
		return t.offset(), err
	}
	e.entries()
	next := *t
	next.Done, next.Offset, next.Digest, next.Changed = true, t.Size, nil, e.c.Now()
	if err := e.keep(&next); err != nil {
		return t.offset(), err
	}
	e.c.Log.Info("a release was received", "version", t.Version, "bytes", t.Size, "took", next.Changed.Sub(t.Began).Round(time.Second))
	return next.offset(), nil
}

// installed is a release's system as the record has it.
func installed(m firmware.Manifest, s firmware.System) slot.System {
	return slot.System{Version: m.Version, Epoch: m.Epoch, Approver: approver(m.Approver), Size: s.Size, SHA256: s.SHA256}
}

// approver is a key as the record has it.
func approver(key *ecdsa.PublicKey) slot.Digest {
	if key == nil {
		return slot.Digest{}
	}
	b, err := approval.EncodeKey(key)
	if err != nil {
		return slot.Digest{} // no key that anything was approved with
	}
	return sha256.Sum256(b)
}

// Cancel forgets what is on its way or waits.
func (e *Engine) Cancel(context.Context) error {
	e.working.Lock()
	defer e.working.Unlock()
	if err := e.free(); err != nil {
		return err
	}
	e.mu.Lock()
	none := e.transfer == nil
	e.mu.Unlock()
	if none {
		return refused("no release is on its way")
	}
	return e.empty(e.c.Running.Other())
}

// checkMirror takes the address of a folder.
func checkMirror(address string) error {
	if address == "" {
		return nil
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || len(address) > 500 {
		return fmt.Errorf("%.100q is not the address of a folder, such as https://mirror.example.org/gatehouse/", address)
	}
	return nil
}

// meter is how fast bytes come, of late.
type meter struct {
	from  time.Time
	bytes float64
	last  time.Time
}

// span is how far back "of late" goes.
const span = 10 * time.Second

func (m *meter) add(now time.Time, n int) {
	if m.from.IsZero() || now.Sub(m.last) > span {
		*m = meter{from: now}
	}
	if d := now.Sub(m.from); d > 2*span {
		// Forget half: what came long ago says little.
		m.bytes, m.from = m.bytes/2, now.Add(-d/2)
	}
	m.bytes += float64(n)
	m.last = now
}

func (m *meter) rate(now time.Time) float64 {
	if d := now.Sub(m.from); !m.from.IsZero() && now.Sub(m.last) <= span && d > 0 {
		return m.bytes / d.Seconds()
	}
	return 0
}
