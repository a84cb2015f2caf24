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
	"strings"
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
	if s == m.chosen || m.whole[s] {
		m.t.Error("a system was written over")
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
func (m *machine) DisarmOneShot() (bool, error)  { m.oneShot = ""; return true, m.do("disarm") }

func (m *machine) ExpectRelease(_ context.Context, _ *ecdsa.PublicKey, epoch uint64) error {
	m.expected = append(m.expected, epoch)
	return m.do("expect")
}
func (m *machine) Settle(context.Context) error { return m.do("settle") }
func (m *machine) Behind() string               { return m.behind }

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
		Product: "gatehouse", Arch: "amd64", Version: version(1, 4, 0), Epoch: 1, Signers: h.keys, Running: slot.A,
		Disk: h.machine, Firmware: h.machine, Keys: h.machine, Dir: filepath.Join(t.TempDir(), "update"), MAC: [32]byte{1},
		Look:    func(context.Context) Look { return h.look },
		Audit:   func(_ context.Context, e control.Event) error { h.events = append(h.events, e); return h.fail["audit"] },
		Restart: func() { h.restarts++; h.did = append(h.did, "restart") },
		Mended:  func(s slot.Slot) { h.did = append(h.did, "mended "+s.String()) },
		Kept:    func() { h.did = append(h.did, "kept") },
		Revoke:  func(context.Context) (int, error) { return h.revokes, h.fail["revoke"] },
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
	c.Running, c.Trial, c.Until, c.Version, c.Epoch = slot.B, true, h.now.Add(Patience), h.release.Version, h.release.Epoch
	return h.up(c)
}

func TestBOX4_RefusedBeforeAnythingIsWritten(t *testing.T) {
	for name, c := range map[string]struct {
		change func(h *house)
		who    []int
		want   string
	}{
		"an older version":         {func(h *house) { h.release.Version = version(1, 3, 9) }, []int{0, 1}, "the box has had 1.4.0"},
		"an older epoch":           {func(h *house) { h.config.Epoch = 2 }, []int{0, 1}, "the box has reached 2"},
		"one signature":            {func(*house) {}, []int{2}, "too few of the release keys"},
		"another product":          {func(h *house) { h.release.Product = "hub" }, []int{0, 1}, "not for this box"},
		"asks for a newer":         {func(h *house) { h.release.Minimum = version(1, 4, 1) }, []int{0, 1}, "take that one first"},
		"for another system":       {func(h *house) { h.release.Systems[0].Arch = "arm64" }, []int{0, 1}, "amd64"},
		"an image without signers": {func(h *house) { h.config.Signers = firmware.Keys{} }, []int{0, 1}, "does not say who signs"},
		"no variables":             {func(h *house) { h.config.Problem = "no variables" }, []int{0, 1}, "no variables"},
		"data that are behind":     {func(h *house) { h.behind = "The audit log ends early." }, []int{0, 1}, "ends early"},
		"known to be bad": {func(h *house) {
			h.ended("the kernel panicked", true, 1)
		}, []int{0, 1}, "the kernel panicked"},
		"tried three times": {func(h *house) {
			h.ended("it did not come back", false, 3)
		}, []int{0, 1}, "started 3 times"},
	} {
		h := newHouse(t)
		c.change(h)
		e := h.up(h.config)
		_, err := e.Begin(t.Context(), control.UpdateBegin{Manifest: h.note(c.who...)})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if len(h.did) != 0 {
			t.Errorf("%s: refused, and then %q", name, h.did)
		}
		if _, err := h.send(e, h.system, 0, 100); err == nil {
			t.Errorf("%s: bytes were taken", name)
		}
	}
}

func TestBOX4_InsistedUpon(t *testing.T) {
	h := newHouse(t)
	h.ended("x", true, 1)
	e := h.up(h.config)
	if _, err := h.begin(e, true); err != nil {
		t.Fatal(err)
	}
	if _, err := h.send(e, h.system, 0, int64(len(h.system))); err != nil {
		t.Fatal(err)
	}
	if err := start(h.up(h.config), false); err != nil || h.oneShot == "" {
		t.Errorf("insisted upon, and after a restart: %v", err)
	}
}

func TestBOX4_PiecesThatDoNotFit(t *testing.T) {
	h := newHouse(t)
	e := h.up(h.config)
	write := func(version string, offset int64, data []byte) (control.UpdateOffset, error) {
		return e.Write(t.Context(), control.UpdateWrite{Version: version, Offset: offset, Data: data})
	}
	if _, err := write("1.5.0", 0, h.system[:10]); err == nil {
		t.Error("taken before a release was offered")
	}
	if _, err := h.begin(e, false); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		version string
		offset  int64
		data    []byte
	}{
		"another version": {"1.6.0", 0, h.system[:10]}, "a gap": {"1.5.0", 1, h.system[1:10]}, "before the beginning": {"1.5.0", -1, h.system[:10]},
		"nothing": {"1.5.0", 0, nil}, "too much": {"1.5.0", 0, h.system[:control.MaxUpdateWrite+1]},
	} {
		if at, err := write(c.version, c.offset, c.data); err == nil || at.Offset != 0 {
			t.Errorf("%s: taken, %+v", name, at)
		}
	}
	size := int64(len(h.system))
	if _, err := h.send(e, h.system, 0, size-10); err != nil {
		t.Fatal(err)
	}
	if at, err := write("1.5.0", size-10, make([]byte, 11)); err == nil || at.Offset != size-10 {
		t.Errorf("longer than it is: %+v, %v", at, err)
	}
	if err := start(e, false); err == nil || len(h.oneShot) > 0 {
		t.Errorf("half a system was started: %v", err)
	}
	if h.stage(e) != control.UpdateReceiving {
		t.Error(h.stage(e))
	}
}

func TestBOX4_OtherBytesAreNotTaken(t *testing.T) {
	for name, spoil := range map[string]func(h *house, e *Engine) error{
		"sent otherwise": func(h *house, e *Engine) error {
			bad := bytes.Clone(h.system)
			bad[1000] ^= 1
			_, err := h.send(e, bad, 0, int64(len(bad)))
			return err
		},
		"the disk forgets": func(h *house, e *Engine) error {
			if _, err := h.send(e, h.system, 0, int64(len(h.system))-1); err != nil {
				return err
			}
			h.content[slot.B][1<<20] ^= 1
			_, err := h.send(e, h.system, int64(len(h.system))-1, int64(len(h.system)))
			return err
		},
	} {
		h := newHouse(t)
		e := h.up(h.config)
		if _, err := h.begin(e, false); err != nil {
			t.Fatal(err)
		}
		if err := spoil(h, e); err == nil || !strings.Contains(err.Error(), "SHA-256") {
			t.Errorf("%s: %v", name, err)
		}
		if h.record().B != nil || h.stage(e) != control.UpdateIdle {
			t.Errorf("%s: the slot counts, %s", name, h.stage(e))
		}
		if err := start(e, false); err == nil {
			t.Errorf("%s: started", name)
		}
		h.receive(h.up(h.config)) // and the right ones after it
	}
}

// What was right when it was received may be another when it is started.
func TestBOX4_SwappedBeforeTheStart(t *testing.T) {
	h := newHouse(t)
	e := h.up(h.config)
	h.receive(e)
	h.content[slot.B][77] ^= 1
	if err := start(e, false); err == nil || h.oneShot != "" || h.restarts != 0 || h.record().Trial != nil {
		t.Errorf("%v: %+v", err, h.did)
	}
}

func TestBOX4_GoesOnWhereItWas(t *testing.T) {
	h := newHouse(t)
	e := h.up(h.config)
	if _, err := h.begin(e, false); err != nil {
		t.Fatal(err)
	}
	const half = 3<<20/2 + 5
	if _, err := h.send(e, h.system, 0, half); err != nil {
		t.Fatal(err)
	}
	if at, err := h.begin(e, false); err != nil || at.Offset != half {
		t.Errorf("offered again: %+v, %v", at, err)
	}
	// The power goes. What was not synced is noise.
	copy(h.content[slot.B][h.synced[slot.B]:], bytes.Repeat([]byte("x"), half))
	e = h.up(h.config)
	at, err := h.begin(e, false)
	if err != nil || at.Offset == 0 || at.Offset > int64(h.synced[slot.B]) {
		t.Fatalf("after a power cut: %+v, %v; %d bytes are safe", at, err, h.synced[slot.B])
	}
	if _, err := h.send(e, h.system, at.Offset, int64(len(h.system))); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(h.content[slot.B], h.system) || h.stage(e) != control.UpdateReceived || h.stage(h.up(h.config)) != control.UpdateReceived {
		t.Error("it did not arrive")
	}
	if at, err := h.begin(e, false); err != nil || at.Offset != at.Size {
		t.Errorf("offered once more: %+v, %v", at, err)
	}
}

func TestBOX4_AnotherReleaseTakesItsPlace(t *testing.T) {
	h := newHouse(t)
	e := h.up(h.config)
	h.receive(e)
	h.release.Version = version(1, 6, 0)
	if at, err := h.begin(e, false); err != nil || at.Offset != 0 || at.Version != "1.6.0" {
		t.Errorf("%+v, %v", at, err)
	}
	if h.record().B != nil {
		t.Error("the slot still counts as what it was")
	}
	if err := start(e, false); err == nil {
		t.Error("started what is not there")
	}
}

func TestBOX4_Cancelled(t *testing.T) {
	h := newHouse(t)
	e := h.up(h.config)
	if err := e.Cancel(t.Context()); err == nil {
		t.Error("cancelled nothing")
	}
	h.receive(e)
	if err := e.Cancel(t.Context()); err != nil {
		t.Fatal(err)
	}
	if h.stage(e) != control.UpdateIdle || h.stage(h.up(h.config)) != control.UpdateIdle {
		t.Error("it is still there")
	}
	if err := start(e, false); err == nil {
		t.Error("started what was cancelled")
	}
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

func TestBOX4_TriedAndKept(t *testing.T) {
	h := newHouse(t)
	h.release.Epoch = 2
	e := h.up(h.config)
	h.receive(e)
	h.did = nil
	if err := start(e, false); err != nil {
		t.Fatal(err)
	}
	h.order("check", "expect", "arm", "restart")
	if tr := h.record().Trial; tr == nil || tr.Slot != slot.B || tr.Tries != 1 || tr.System.SHA256 != h.release.Systems[0].SHA256 {
		t.Errorf("recorded: %+v", tr)
	}
	if h.oneShot != "gatehouse-b.efi" || h.chosen != slot.A || h.expected[0] != 2 {
		t.Errorf("armed %q, %c starts otherwise, expected %v", h.oneShot, h.chosen, h.expected)
	}
	if err := start(e, false); err == nil {
		t.Error("started twice")
	}

	e = h.trial()
	if h.stage(e) != control.UpdateTrial {
		t.Error(h.stage(e))
	}
	if _, err := h.begin(e, false); err == nil {
		t.Error("another release was taken in the middle of a trial")
	}
	h.did = nil
	ctx := t.Context()
	for range 59 {
		e.step(ctx)
		h.now = h.now.Add(time.Second)
	}
	if h.chosen != slot.A || len(h.did) != 0 {
		t.Fatalf("kept too early: %q", h.did)
	}
	h.now = h.now.Add(2 * time.Second)
	e.step(ctx)
	h.order("commit", "settle", "entries")
	if v, ok := h.record().Last(); !ok || !v.Kept || h.record().Trial != nil {
		t.Errorf("recorded: %+v", h.record())
	}
	u, err := e.View(ctx)
	if err != nil || u.Stage != control.UpdateIdle || u.Newest != "1.5.0" || u.Running.Slot != "b" {
		t.Errorf("%+v, %v", u, err)
	}
	last := h.events[len(h.events)-1]
	if last.Action != "update kept" || last.Object != "1.5.0" || last.Detail["asked by"] != "bob@example.org" {
		t.Errorf("recorded: %+v", last)
	}
	// From now on nothing older, and nothing of an older epoch.
	c := h.config
	c.Running, c.Version, c.Epoch = slot.B, h.release.Version, 2
	e = h.up(c)
	h.release.Epoch = 1
	if _, err := h.begin(e, false); err == nil || !strings.Contains(err.Error(), "epoch") {
		t.Errorf("an older epoch: %v", err)
	}
}

// The power goes after the commit point, at each of the steps behind it: the next
// start does what is missing.
func TestBOX4_KeptAndThePowerGoes(t *testing.T) {
	for _, at := range []string{"record", "settle", "audit"} {
		h := newHouse(t)
		other := newHouse(t)
		h.release.Keys = other.keys // who signs changes
		e := h.up(h.config)
		h.receive(e)
		if err := start(e, false); err != nil {
			t.Fatal(err)
		}
		e = h.trial()
		h.fail[at] = errors.New("the power is gone")
		if at == "record" {
			h.meta.fail = h.fail[at]
		}
		e.step(t.Context())
		h.now = h.now.Add(Steady + time.Second)
		e.step(t.Context())
		if h.chosen != slot.B {
			t.Fatalf("%s: not kept: %q", at, h.did)
		}
		delete(h.fail, at)
		h.meta.fail = nil
		h.write(h.record().Keep(h.now)) // as package slot has the next start do
		c := h.config
		c.Running, c.Version = slot.B, h.release.Version
		e = h.up(c)
		h.did = nil
		if err := e.adopt(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.order("settle", "entries")
		u, err := h.up(c).View(t.Context())
		if err != nil || u.Stage != control.UpdateIdle || u.Newest != "1.5.0" {
			t.Errorf("%s: %+v, %v", at, u, err)
		}
		if _, err := h.begin(h.up(c), false); err == nil {
			t.Errorf("%s: those who signed before sign on", at)
		}
	}
}

func TestBOX4_GoesBackAndSaysWhy(t *testing.T) {
	h := newHouse(t)
	e := h.up(h.config)
	h.receive(e)
	if err := start(e, false); err != nil {
		t.Fatal(err)
	}
	e = h.trial()
	h.look = without(CheckHTTPS)
	h.restarts = 0
	e.step(t.Context())
	h.now = h.now.Add(Patience + time.Second)
	e.step(t.Context())
	e.step(t.Context())
	end := h.record().Trial.End
	if h.chosen != slot.A || h.restarts != 1 || end == nil || !end.Explained || !strings.Contains(end.Reason, "https: no https") {
		t.Fatalf("%c starts, %d restarts, %+v", h.chosen, h.restarts, end)
	}
	// The system before is back. It says why, and does not offer it again.
	c := h.config
	v := h.ended(end.Reason, true, 1)
	c.Ended = &v
	e = h.up(c)
	h.events = nil
	e.report(t.Context())
	e.report(t.Context())
	if len(h.events) != 1 || h.events[0].Action != "update gone back" || h.events[0].Detail["error"] != end.Reason {
		t.Errorf("recorded: %+v", h.events)
	}
	if h.stage(e) != control.UpdateIdle {
		t.Errorf("it is offered again: %s", h.stage(e))
	}
	if _, err := h.begin(e, false); err == nil {
		t.Error("taken again")
	}
}

// The one that went back runs all the same, because the other does not start: that
// has not made it any better.
func TestBOX4_CondemnedThatRunsIsNotKept(t *testing.T) {
	h := newHouse(t)
	e := h.up(h.config)
	h.receive(e)
	if err := start(e, false); err != nil {
		t.Fatal(err)
	}
	h.ended("it ended and left no reason", false, 1)
	c := h.config
	c.Running, c.Version = slot.B, h.release.Version
	e = h.up(c)
	h.did, h.events = nil, nil
	if err := e.adopt(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(h.did) != 0 || len(h.events) != 0 {
		t.Errorf("done: %q, recorded: %+v", h.did, h.events)
	}
}

// Somebody pulled the plug: the version is as good as it was, and there.
func TestBOX4_UnexplainedIsOfferedAgain(t *testing.T) {
	h := newHouse(t)
	e := h.up(h.config)
	h.receive(e)
	if err := start(e, false); err != nil {
		t.Fatal(err)
	}
	h.ended("it ended without a word", false, 2)
	e = h.up(h.config)
	if h.stage(e) != control.UpdateReceived {
		t.Errorf("it is %s", h.stage(e))
	}
	if err := start(e, false); err != nil {
		t.Error(err)
	}
	h.ended("it ended without a word", false, 3)
	if err := start(h.up(h.config), false); err == nil || !strings.Contains(err.Error(), "3 times") {
		t.Errorf("a fourth time: %v", err)
	}
}

func TestBOX4_WaitsForItsWindow(t *testing.T) {
	h := newHouse(t)
	e := h.up(h.config)
	for _, bad := range []control.UpdateSettings{{Window: "Sunday"}, {Mirror: "ftp://x/"}, {Mirror: "https://"}, {Mirror: "https://a:b@x/"}, {Automatic: true}} {
		if err := e.Set(t.Context(), bad); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
	if err := e.Set(t.Context(), control.UpdateSettings{Window: "Sun 14:00-16:00", Mirror: "https://mirror.example.org/gatehouse/", Automatic: true}); err != nil {
		t.Fatal(err)
	}
	h.receive(e)
	if err := start(e, true); err != nil || h.stage(e) != control.UpdateWaiting {
		t.Fatalf("%v, %s", err, h.stage(e))
	}
	e.due(t.Context())
	e = h.up(h.config) // the box was restarted by somebody
	e.due(t.Context())
	if h.restarts != 0 || h.stage(e) != control.UpdateWaiting {
		t.Fatalf("started too early; it is %s", h.stage(e))
	}
	h.now = noon.Add(2*time.Hour + time.Second)
	e.due(t.Context())
	e.due(t.Context())
	if h.restarts != 1 || h.oneShot == "" {
		t.Errorf("%d restarts, %q", h.restarts, h.did)
	}
	last := h.events[len(h.events)-1]
	if last.Actor != "bob@example.org" || last.Object != "1.5.0" {
		t.Errorf("recorded: %+v", last)
	}
}

// Nobody is thrown out of a session without a word: there are five minutes
// between it and the restart, whoever wants it, and whatever was missed meanwhile.
func TestBOX4_PeopleHaveTheirGrace(t *testing.T) {
	later := control.UpdateStart{By: control.By{Actor: "bob@example.org"}, Later: true}
	due := func(h *house, e *Engine, after time.Duration) (restarts int, at time.Time) {
		h.now = noon.Add(after)
		e.due(t.Context())
		u, err := e.View(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if u.Restart != nil {
			at = *u.Restart
		}
		return h.restarts, at
	}
	for name, c := range map[string]struct {
		window string
		start  control.UpdateStart
		at     time.Duration // from noon of a Sunday
	}{
		"by hand":                         {"", later, 5 * time.Minute},
		"by hand, not at the window":      {"Sun 14:00-16:00", later, 5 * time.Minute},
		"at a window that is open":        {"Sun 11:00-13:00", control.UpdateStart{Wait: true}, 5 * time.Minute},
		"at a window that ends too soon":  {"Sun 11:00-12:05", control.UpdateStart{Wait: true}, 7*24*time.Hour - time.Hour},
		"at a window that opens too soon": {"Sun 12:01-12:30", control.UpdateStart{Wait: true}, 5 * time.Minute},
	} {
		h := newHouse(t)
		e := h.up(h.config)
		if err := e.Set(t.Context(), control.UpdateSettings{Window: c.window}); err != nil {
			t.Fatal(err)
		}
		h.receive(e)
		h.now = noon
		if err := e.Start(t.Context(), c.start); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if n, at := due(h, e, c.at-time.Second); n != 0 || !at.Equal(noon.Add(c.at)) {
			t.Errorf("%s: %d restarts, at %s", name, n, at)
		}
		// The box was off then, or its clock was set: that is no restart out of the blue.
		if n, at := due(h, e, c.at+3*time.Hour); n != 0 || !at.After(h.now.Add(4*time.Minute)) {
			t.Errorf("%s, missed: %d restarts, at %s", name, n, at)
		}
		_, at := due(h, e, c.at+3*time.Hour)
		if n, _ := due(h, e, at.Sub(noon)+time.Second); n != 1 {
			t.Errorf("%s: %d restarts at its time", name, n)
		}
	}
	// What a person asked for is not put off by another window.
	h := newHouse(t)
	e := h.up(h.config)
	h.receive(e)
	h.now = noon
	if err := e.Start(t.Context(), later); err != nil {
		t.Fatal(err)
	}
	if err := e.Set(t.Context(), control.UpdateSettings{Window: "Mon 02:00-04:00"}); err != nil {
		t.Fatal(err)
	}
	if n, at := due(h, e, 0); n != 0 || !at.Equal(noon.Add(5*time.Minute)) {
		t.Errorf("after the settings: %d restarts, at %s", n, at)
	}
}

func TestBOX4_WhatCannotBeArmedIsNotTried(t *testing.T) {
	for _, at := range []string{"expect", "record", "arm", "audit"} {
		h := newHouse(t)
		e := h.up(h.config)
		h.receive(e)
		h.fail[at] = errors.New("it does not work")
		if at == "record" {
			h.meta.fail = h.fail[at]
		}
		if err := start(e, false); err == nil || h.restarts != 0 {
			t.Errorf("%s: %v, %d restarts", at, err, h.restarts)
		}
		if h.record().Trial != nil || h.oneShot != "" {
			t.Errorf("%s: the next start is a trial", at)
		}
		if h.stage(e) != control.UpdateReceived {
			t.Errorf("%s: it is %s", at, h.stage(e))
		}
	}
}

// Who holds the disk spoils what the box goes by.
func TestBOX4_TrustIsAuthenticated(t *testing.T) {
	h := newHouse(t)
	h.up(h.config)
	name := filepath.Join(h.config.Dir, trustFile)
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for what, bad := range map[string][]byte{
		"another threshold": bytes.Replace(good, []byte(`"threshold":2`), []byte(`"threshold":1`), 1),
		"noise":             []byte("noise"), "cut": good[:len(good)/2], "empty": nil, "no MAC": []byte(`{}`),
	} {
		if bytes.Equal(good, bad) {
			t.Fatalf("%s: nothing was spoilt: %s", what, good)
		}
		if err := os.WriteFile(name, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := h.begin(h.up(h.config), false); err == nil || !strings.Contains(err.Error(), "changed by something else") {
			t.Errorf("%s: %v", what, err)
		}
	}
	c := h.config
	c.MAC[0]++
	if err := os.WriteFile(name, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.begin(h.up(c), false); err == nil {
		t.Error("of another installation, and believed")
	}
	if _, err := h.begin(h.up(h.config), false); err != nil {
		t.Errorf("put back: %v", err)
	}
}

func TestBOX4_RateIsOfLate(t *testing.T) {
	var m meter
	if r := m.rate(noon); r != 0 {
		t.Errorf("nothing came: %v", r)
	}
	now := noon
	for range 100 {
		m.add(now, 1000)
		now = now.Add(time.Second)
	}
	if r := m.rate(now); r < 900 || r > 1200 {
		t.Errorf("1000 bytes a second are %v", r)
	}
	if r := m.rate(now.Add(time.Minute)); r != 0 {
		t.Errorf("nothing came for a minute: %v", r)
	}
}
