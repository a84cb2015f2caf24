package update

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/firmware"
	"gatehouse/firmware/slot"
)

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

// The slot is whole, and the power goes, or a write fails, before all is noted of
// that: the same release again is the rest of it.
func TestBOX4_WholeAndNotYetNoted(t *testing.T) {
	transfer := func(h *house) string { return filepath.Join(h.config.Dir, transferFile) }
	for name, c := range map[string]struct {
		cut   func(h *house) func() // before the last piece; what it returns, after it
		fails bool                  // the last piece is not told that all is well
		bad   bool                  // what is in the slot is another thing
	}{
		"cut before the record": {func(h *house) func() {
			meta, kept := bytes.Clone(h.meta.bytes), h.read(transfer(h))
			return func() { copy(h.meta.bytes, meta); h.put(transfer(h), kept) }
		}, false, false},
		"cut before the transfer": {func(h *house) func() {
			kept := h.read(transfer(h))
			return func() { h.put(transfer(h), kept) }
		}, false, false},
		"the record cannot be written": {func(h *house) func() {
			h.meta.fail = errors.New("no space")
			return func() { h.meta.fail = nil }
		}, true, false},
		"the transfer cannot be written": {func(h *house) func() {
			kept := h.read(transfer(h))
			if err := errors.Join(os.Remove(transfer(h)), os.MkdirAll(filepath.Join(transfer(h), "x"), 0o700)); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := os.RemoveAll(transfer(h)); err != nil {
					t.Fatal(err)
				}
				h.put(transfer(h), kept)
			}
		}, true, false},
		"cut, and then damaged": {func(h *house) func() {
			kept := h.read(transfer(h))
			return func() { h.put(transfer(h), kept); h.content[slot.B][5] ^= 1 }
		}, false, true},
	} {
		for _, restart := range []bool{true, false} {
			h := newHouse(t)
			e := h.up(h.config)
			if _, err := h.begin(e, false); err != nil {
				t.Fatal(err)
			}
			size := int64(len(h.system))
			if _, err := h.send(e, h.system, 0, size-9); err != nil {
				t.Fatal(err)
			}
			after := c.cut(h)
			if _, err := h.send(e, h.system, size-9, size); (err != nil) != c.fails {
				t.Fatalf("%s: the last piece: %v", name, err)
			}
			after()
			if restart {
				e = h.up(h.config)
			} else if !c.fails {
				continue // a cut is a start
			}
			if err := start(e, false); err == nil {
				t.Errorf("%s: what is not noted was started", name)
			}
			at, err := h.begin(e, false)
			if err == nil && c.bad {
				if at.Offset != 0 {
					t.Errorf("%s: it goes on at %d", name, at.Offset)
				}
				at, err = h.send(e, h.system, 0, size)
			}
			if err != nil || at.Offset != size || at.Size != size || h.stage(e) != control.UpdateReceived || h.stage(h.up(h.config)) != control.UpdateReceived {
				t.Errorf("%s, restarted %v: %+v, %v, %s", name, restart, at, err, h.stage(e))
				continue
			}
			if b := h.record().B; b == nil || b.SHA256 != h.release.Systems[0].SHA256 || !slices.Contains(h.direct, slot.B) {
				t.Errorf("%s: recorded %+v, the firmware may start %v", name, b, h.direct)
			}
			if err := start(e, false); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// All came, and the slot is no program: what was in it cannot be told to be right any
// more.
func TestBOX4_AllCameAndNothingIsThere(t *testing.T) {
	h := newHouse(t)
	e := h.up(h.config)
	h.receive(e)
	for _, restart := range []bool{false, true} {
		e.transfer.Done, h.whole[slot.B] = false, false
		if err := e.keep(e.transfer); err != nil {
			t.Fatal(err)
		}
		if restart {
			e = h.up(h.config)
		}
		if at, err := h.begin(e, false); err != nil || at.Offset != 0 || h.record().B != nil {
			t.Fatalf("restarted %v: it goes on at %d, %v", restart, at.Offset, err)
		}
		h.receive(e)
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
