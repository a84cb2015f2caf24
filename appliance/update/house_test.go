package update

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"gatehouse/appliance/control"
	"gatehouse/firmware"
	"gatehouse/firmware/slot"
)

// machine is the doors of an engine, and what was done at them in order. Its
// contract is that of a box: what was written and not synced is lost with the
// power, what the record says is not.
type machine struct {
	t    *testing.T
	did  []string
	fail map[string]error

	revokes int // programs that the system that runs has the firmware refuse

	content  map[slot.Slot][]byte
	synced   map[slot.Slot]int
	whole    map[slot.Slot]bool
	chosen   slot.Slot
	runs     slot.Slot
	meta     *meta
	oneShot  string
	direct   []slot.Slot // what the firmware may start by itself
	behind   string
	expected []uint64
	look     Look
	now      time.Time
	restarts int
	events   []control.Event
}

func (m *machine) do(what string) error {
	m.did = append(m.did, what)
	return m.fail[what]
}

func (m *machine) Clear(s slot.Slot) error {
	if err := m.do("clear"); err != nil {
		return err
	}
	m.whole[s], m.synced[s] = false, 0
	return nil
}

func (m *machine) Write(s slot.Slot, p []byte, offset int64) error {
	if err := m.fail["write"]; err != nil {
		return err
	}
	if s == m.chosen {
		m.t.Error("a system was written over")
	}
	if m.whole[s] {
		return errors.New("it holds a program: it has to be cleared first")
	}
	c := m.content[s]
	if n := int(offset) + len(p); n > len(c) {
		c = append(c, make([]byte, n-len(c))...)
	}
	copy(c[offset:], p)
	m.content[s] = c
	return nil
}

func (m *machine) Sync() error {
	for s, c := range m.content {
		m.synced[s] = len(c)
	}
	return m.do("sync")
}

func (m *machine) Complete(s slot.Slot, want slot.System) error {
	m.whole[s] = true
	err := errors.Join(m.do("complete"), m.Check(s, want))
	m.whole[s] = err == nil
	return err
}

func (m *machine) Check(s slot.Slot, want slot.System) error {
	if err := m.do("check"); err != nil {
		return err
	}
	sum, n, err := m.Digest(s)
	if err == nil && (n != want.Size || sum != want.SHA256) {
		err = errors.New("it has another SHA-256")
	}
	return err
}

func (m *machine) Digest(s slot.Slot) (slot.Digest, int64, error) {
	if !m.whole[s] {
		return slot.Digest{}, 0, nil
	}
	return sha256.Sum256(m.content[s]), int64(len(m.content[s])), m.fail["digest"]
}

func (m *machine) Default() (slot.Slot, error) { return m.chosen, m.fail["default"] }

func (m *machine) Commit() error {
	if err := m.do("commit"); err != nil {
		return err
	}
	m.chosen = m.runs
	return nil
}

func (m *machine) Copy(from, to slot.Slot, want slot.System) error {
	if to == m.chosen {
		m.t.Error("the slot that starts was copied over")
	}
	if err := errors.Join(m.do("copy"), m.Check(from, want)); err != nil {
		return err
	}
	m.content[to], m.whole[to] = bytes.Clone(m.content[from]), true
	return nil
}

// meta is a META partition in memory.
type meta struct {
	bytes []byte
	fail  error
}

func (m *meta) ReadAt(p []byte, off int64) (int, error) { return copy(p, m.bytes[off:]), nil }

func (m *meta) WriteAt(p []byte, off int64) (int, error) {
	if m.fail != nil {
		return 0, m.fail
	}
	return copy(m.bytes[off:], p), nil
}

func (m *meta) Sync() error { return nil }

// record is what the next start would read.
func (m *machine) record() slot.Record {
	m.t.Helper()
	r, err := slot.ReadRecord(m.meta)
	if err != nil {
		m.t.Fatal(err)
	}
	return r
}

func (m *machine) write(r slot.Record) {
	m.t.Helper()
	if err := slot.WriteRecord(m.meta, r); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) ArmOneShot(entry string) error { m.oneShot = entry; return m.do("arm") }

func (m *machine) DisarmOneShot() (bool, error) { m.oneShot = ""; return true, m.do("disarm") }

func (m *machine) ExpectRelease(_ context.Context, _ *ecdsa.PublicKey, epoch uint64) error {
	m.expected = append(m.expected, epoch)
	return m.do("expect")
}

func (m *machine) Settle(context.Context) error { return m.do("settle") }

func (m *machine) Behind() string { return m.behind }

func version(a, b, c uint32) firmware.Version { return firmware.Version{Major: a, Minor: b, Patch: c} }

// house is who signs, a release, and the box.
type house struct {
	*machine
	config  Config
	signers []note.Signer
	keys    firmware.Keys
	system  []byte
	release firmware.Manifest
}

func newHouse(t *testing.T) *house {
	t.Helper()
	h := &house{machine: &machine{t: t, fail: map[string]error{}, content: map[slot.Slot][]byte{}, synced: map[slot.Slot]int{}, whole: map[slot.Slot]bool{}, chosen: slot.A,
		meta: &meta{bytes: make([]byte, 1<<20)}, look: all(), now: noon}}
	for _, name := range []string{"ada", "bob", "eve"} {
		secret, public, err := note.GenerateKey(rand.Reader, name)
		if err != nil {
			t.Fatal(err)
		}
		s, err := note.NewSigner(secret)
		if err != nil {
			t.Fatal(err)
		}
		h.signers, h.keys.Keys = append(h.signers, s), append(h.keys.Keys, public)
	}
	h.keys.Threshold = 2
	h.system = make([]byte, 5<<20/2+77)
	if _, err := rand.Read(h.system); err != nil {
		t.Fatal(err)
	}
	h.release = firmware.Manifest{
		Product: "gatehouse", Version: version(1, 5, 0), Epoch: 1, Issued: time.Date(2026, 11, 28, 0, 0, 0, 0, time.UTC), Keys: h.keys,
		Systems: []firmware.System{{Arch: "amd64", Size: int64(len(h.system)), SHA256: sha256.Sum256(h.system)}},
	}
	h.config = Config{
		Product: "gatehouse", Arch: "amd64", Version: version(1, 4, 0), Epoch: 1, Signers: h.keys, Running: slot.A, Stands: true,
		Disk: h.machine, Firmware: h.machine, Keys: h.machine, Dir: filepath.Join(t.TempDir(), "update"), MAC: [32]byte{1},
		Look:    func(context.Context) Look { return h.look },
		Audit:   func(_ context.Context, e control.Event) error { h.events = append(h.events, e); return h.fail["audit"] },
		Restart: func() { h.restarts++; h.did = append(h.did, "restart") },
		Mended:  func(s slot.Slot) { h.did = append(h.did, "mended "+s.String()) },
		Kept:    func() { h.did = append(h.did, "kept") },
		Revokes: func() (bool, error) { return h.revokes > 0, nil },
		Revoke:  func(context.Context) (int, error) { return h.revokes, h.do("revoke") },
		Entries: func(direct []slot.Slot) { h.did, h.direct = append(h.did, "entries"), direct },
		Now:     func() time.Time { h.now = h.now.Add(time.Millisecond); return h.now }, Log: slog.New(slog.DiscardHandler),
	}
	return h
}

// up is the engine of a start, with the record as it is on the disk.
func (h *house) up(c Config) *Engine {
	c.Book, h.runs = NewBook(h.meta, h.record()), c.Running
	return New(c)
}

// ended writes down how a trial of the release ended.
func (h *house) ended(reason string, explained bool, tries int) slot.Verdict {
	h.t.Helper()
	r := h.record()
	r.Trial = nil
	v := slot.Verdict{System: slot.System{Version: h.release.Version, Epoch: h.release.Epoch, Size: int64(len(h.system)), SHA256: h.release.Systems[0].SHA256},
		When: noon, Explained: explained, Tries: tries, Reason: reason}
	r.Verdicts = []slot.Verdict{v}
	h.write(r)
	return v
}

// verdict writes down how a trial of some system ended.
func (h *house) verdict(v slot.Verdict) {
	h.t.Helper()
	v.When, v.Tries = noon, 1
	r := h.record()
	r.Verdicts = append(r.Verdicts, v)
	h.write(r)
}

func (h *house) read(path string) []byte {
	h.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		h.t.Fatal(err)
	}
	return b
}

func (h *house) put(path string, b []byte) {
	h.t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) note(who ...int) []byte {
	h.t.Helper()
	var s []note.Signer
	for _, i := range who {
		s = append(s, h.signers[i])
	}
	b, err := h.release.Sign(s...)
	if err != nil {
		h.t.Fatal(err)
	}
	return b
}

func (h *house) begin(e *Engine, again bool) (control.UpdateOffset, error) {
	return e.Begin(h.t.Context(), control.UpdateBegin{By: control.By{Actor: "ada@example.org"}, Manifest: h.note(0, 1), Again: again})
}

// send writes content from an offset on, in pieces, up to an end.
func (h *house) send(e *Engine, content []byte, from, to int64) (at control.UpdateOffset, err error) {
	for from < to {
		n := min(to-from, control.MaxUpdateWrite)
		at, err = e.Write(h.t.Context(), control.UpdateWrite{Version: h.release.Version.String(), Offset: from, Data: content[from : from+n]})
		if err != nil {
			return at, err
		}
		from += n
	}
	return at, nil
}

func (h *house) receive(e *Engine) {
	h.t.Helper()
	if _, err := h.begin(e, false); err != nil {
		h.t.Fatal(err)
	}
	at, err := h.send(e, h.system, 0, int64(len(h.system)))
	if err != nil || at.Offset != at.Size {
		h.t.Fatalf("%+v, %v", at, err)
	}
}

func (h *house) stage(e *Engine) string {
	h.t.Helper()
	u, err := e.View(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	return u.Stage
}

func start(e *Engine, wait bool) error {
	return e.Start(context.Background(), control.UpdateStart{By: control.By{Actor: "bob@example.org"}, Wait: wait})
}

// trial is the engine of the system in slot B, at its first start.
func (h *house) trial() *Engine {
	c := h.config
	c.Stands = false
	c.Running, c.Trial, c.Until, c.Version, c.Epoch = slot.B, true, h.now.Add(Patience), h.release.Version, h.release.Epoch
	return h.up(c)
}

// order says that the machine did these things one after the other.
func (h *house) order(want ...string) {
	h.t.Helper()
	at := 0
	for _, w := range want {
		i := slices.Index(h.did[at:], w)
		if i < 0 {
			h.t.Fatalf("no %q in its place: %q", w, h.did)
		}
		at += i + 1
	}
}
