package update

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"testing"

	"gatehouse/appliance/control"
	"gatehouse/firmware/slot"
)

// A fresh image: nobody recorded what runs. A slot that did not start is filled
// from the one that did, and then both may start.
func TestBOX4_DamagedSlotIsMended(t *testing.T) {
	h := newHouse(t)
	h.content[slot.A], h.whole[slot.A] = []byte("the system that runs"), true
	h.chosen = slot.A
	e := h.up(h.config)
	e.tidy(t.Context())
	if a := h.record().A; a == nil || a.Version != h.config.Version || a.SHA256 != sha256.Sum256(h.content[slot.A]) {
		t.Fatalf("recorded: %+v", a)
	}
	if !slices.Equal(h.direct, []slot.Slot{slot.A}) {
		t.Errorf("the firmware may start %v", h.direct)
	}
	c := h.config
	c.Mend = slot.B
	h.fail["copy"] = errors.New("the disk is broken")
	e = h.up(c)
	e.tidy(t.Context())
	if h.record().B != nil || slices.Contains(h.direct, slot.B) {
		t.Error("not mended, and it counts")
	}
	delete(h.fail, "copy")
	e.tidy(t.Context())
	e.tidy(t.Context())
	if b := h.record().B; b == nil || b.SHA256 != h.record().A.SHA256 || !slices.Equal(h.direct, []slot.Slot{slot.A, slot.B}) {
		t.Errorf("recorded: %+v; the firmware may start %v", b, h.direct)
	}
	if len(h.events) != 1 || h.events[0].Action != "system mended" {
		t.Errorf("recorded: %+v", h.events)
	}
}

// A slot whose system can never start again is filled with the one that runs, and
// counts as what it was until that is whole.
func TestBOX4_SpentSlotIsFilled(t *testing.T) {
	for name, c := range map[string]struct {
		spend func(h *house, other *slot.System)
		left  bool
	}{
		"it failed": {func(h *house, o *slot.System) {
			h.verdict(slot.Verdict{System: *o, Explained: true, Reason: "https: no answer"})
		}, false},
		"an older epoch":            {func(h *house, o *slot.System) { h.config.Epoch, o.Epoch = 2, 1 }, false},
		"another approver":          {func(h *house, o *slot.System) { o.Approver = slot.Digest{9} }, false},
		"it may start":              {func(*house, *slot.System) {}, true},
		"nobody knows why it ended": {func(h *house, o *slot.System) { h.verdict(slot.Verdict{System: *o, Reason: "nothing"}) }, true},
		"what runs is the last resort": {func(h *house, o *slot.System) {
			h.verdict(slot.Verdict{System: *o, Explained: true, Reason: "https: no answer"})
			h.chosen = slot.B
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			h.config.Approver = &key.PublicKey
			h.content[slot.A], h.whole[slot.A] = []byte("the system that runs"), true
			h.content[slot.B], h.whole[slot.B] = []byte("the other one"), true
			h.chosen = slot.A
			other := slot.System{Version: version(1, 3, 0), Epoch: 1, Size: 13, SHA256: sha256.Sum256(h.content[slot.B])}
			c.spend(h, &other)
			h.write(h.record().With(slot.B, &other))
			h.fail["copy"] = errors.New("the power goes")
			h.up(h.config).tidy(t.Context())
			if b := h.record().B; b == nil || b.SHA256 != other.SHA256 {
				t.Fatalf("before it is whole: %+v", b)
			}
			delete(h.fail, "copy")
			e := h.up(h.config)
			e.tidy(t.Context())
			b := h.record().B
			if c.left != (b.SHA256 == other.SHA256) || slices.Contains(h.did, "mended b") == c.left {
				t.Fatalf("the other slot is %+v after %v", b, h.did)
			}
			if !c.left && (b.SHA256 != h.record().A.SHA256 || !slices.Equal(h.direct, []slot.Slot{slot.A, slot.B})) {
				t.Errorf("%+v; the firmware may start %v", b, h.direct)
			}
		})
	}
}

// A release that was received lies in the slot that did not start, and stays there.
func TestBOX4_MendingLeavesAReleaseAlone(t *testing.T) {
	h := newHouse(t)
	h.content[slot.A], h.whole[slot.A] = []byte("the system that runs"), true
	h.receive(h.up(h.config))
	c := h.config
	c.Mend = slot.B
	e := h.up(c)
	e.tidy(t.Context())
	if b := h.record().B; b == nil || b.SHA256 != sha256.Sum256(h.system) || slices.Contains(h.did, "mended b") {
		t.Errorf("in slot b is %+v after %v", b, h.did)
	}
	if err := start(e, false); err != nil {
		t.Errorf("what was received does not start: %v", err)
	}
}

// The version that runs was brought once more and its trial went back. That is in both
// slots now, and nothing is known against it that the start would not disprove.
func TestBOX4_VerdictOverWhatRunsDoesNotCount(t *testing.T) {
	h := newHouse(t)
	h.content[slot.A], h.whole[slot.A] = []byte("the system that runs"), true
	h.up(h.config).tidy(t.Context())
	same := *h.record().A
	h.write(h.record().With(slot.B, &same))
	h.verdict(slot.Verdict{System: same, Explained: true, Reason: "https: no answer"})
	h.did = nil
	e := h.up(h.config)
	e.tidy(t.Context())
	if slices.Contains(h.did, "mended b") || !slices.Equal(h.direct, []slot.Slot{slot.A, slot.B}) {
		t.Errorf("done: %v; the firmware may start %v", h.did, h.direct)
	}
	if u, err := e.View(t.Context()); err != nil || u.Other == nil || u.Other.State != "ready" {
		t.Errorf("the page says %+v, %v", u.Other, err)
	}
}

// A system that somebody chose for one start changes nothing that the box goes by.
func TestKEY10_OneStartSettlesNothing(t *testing.T) {
	h := newHouse(t)
	h.up(h.config)
	c := h.config
	c.Running, c.Stands, c.Version, c.Epoch = slot.B, false, version(9, 0, 0), 9
	h.revokes = 3
	e := h.up(c)
	e.tidy(t.Context())
	if len(h.events) > 0 {
		t.Errorf("recorded: %+v", h.events)
	}
	h.revokes = 0
	if u, err := h.up(h.config).View(t.Context()); err != nil || u.Newest != h.config.Version.String() {
		t.Errorf("newest is %s, %v", u.Newest, err)
	}
	if _, err := h.begin(h.up(h.config), false); err != nil {
		t.Errorf("a release of the epoch before is refused: %v", err)
	}
}

// Only a system that is kept has the firmware refuse others, which is recorded.
func TestKEY10_OnlyAKeptSystemRevokes(t *testing.T) {
	h := newHouse(t)
	h.revokes = 3
	h.trial().tidy(t.Context())
	if len(h.events) > 0 {
		t.Fatalf("on trial: %+v", h.events)
	}
	h = newHouse(t)
	h.content[slot.A], h.whole[slot.A] = []byte("the system that runs"), true
	h.revokes, h.fail["revoke"] = 3, errors.New("the firmware did not take it")
	e := h.up(h.config)
	e.tidy(t.Context())
	h.events = h.events[1:] // the other slot was filled first
	e.tidy(t.Context())
	if len(h.events) != 2 || h.events[0].Outcome != "failed" || !strings.Contains(h.events[0].Detail["error"], "did not take it") {
		t.Fatalf("refused: %+v", h.events)
	}
	if u, err := e.View(t.Context()); err != nil || len(u.Notes) != 1 || !strings.Contains(u.Notes[0], "did not take it") {
		t.Errorf("the page says %q, %v", u.Notes, err)
	}
	delete(h.fail, "revoke")
	e.tidy(t.Context())
	if last := h.events[2]; last.Action != "programs revoked" || last.Detail["programs"] != "3" || last.Outcome != "" {
		t.Errorf("recorded: %+v", h.events)
	}
}

// The other slot may hold what the firmware is to refuse. It is filled with what runs first,
// and while that is not done, or a release is on its way there, the firmware is not told.
func TestKEY10_TheOtherSlotIsInOrderFirst(t *testing.T) {
	h := newHouse(t)
	h.content[slot.A], h.whole[slot.A] = []byte("the system that runs"), true
	h.content[slot.B], h.whole[slot.B] = []byte("the one before"), true
	before := slot.System{Version: version(1, 3, 0), Epoch: 1, Size: 14, SHA256: sha256.Sum256(h.content[slot.B])}
	h.write(h.record().With(slot.B, &before))
	h.revokes, h.fail["copy"] = 1, errors.New("the power goes")
	e := h.up(h.config)
	e.tidy(t.Context())
	if u, err := e.View(t.Context()); slices.Contains(h.did, "revoke") || err != nil || len(u.Notes) != 1 || !strings.Contains(u.Notes[0], "once the other system is the same") {
		t.Fatalf("done: %v; the page says %q, %v", h.did, u.Notes, err)
	}
	delete(h.fail, "copy")
	h.receive(e)
	e.tidy(t.Context())
	if slices.Contains(h.did, "revoke") {
		t.Fatal("a release that was received is the other system, and the firmware was told")
	}
	if err := e.Cancel(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.content[slot.B], h.whole[slot.B] = []byte("the one before"), true
	h.write(h.record().With(slot.B, &before))
	h.did = nil
	h.up(h.config).tidy(t.Context())
	if mended := slices.Index(h.did, "mended b"); mended < 0 || slices.Index(h.did, "revoke") < mended || h.record().B.SHA256 != h.record().A.SHA256 {
		t.Errorf("done: %v", h.did)
	}
}

// A release that is on its way, or waits, is not overwritten with what runs.
func TestBOX4_ReceivedReleaseIsNotSpent(t *testing.T) {
	h := newHouse(t)
	h.content[slot.A], h.whole[slot.A] = []byte("the system that runs"), true
	h.chosen = slot.A
	h.ended("https: no answer", true, 1)
	e := h.up(h.config)
	if _, err := h.begin(e, true); err != nil {
		t.Fatal(err)
	}
	if _, err := h.send(e, h.system, 0, int64(len(h.system))); err != nil {
		t.Fatal(err)
	}
	e.tidy(t.Context())
	if b := h.record().B; b == nil || b.SHA256 != sha256.Sum256(h.system) || h.stage(e) != control.UpdateReceived {
		t.Errorf("%+v, %s", b, h.stage(e))
	}
}

func TestBOX4_WhatTheFirmwareMayStart(t *testing.T) {
	one, two := slot.System{Epoch: 1, Size: 1, SHA256: slot.Digest{1}}, slot.System{Epoch: 2, Size: 1, SHA256: slot.Digest{2}}
	both := slot.Record{A: &one, B: &two}
	with := func(r slot.Record, f func(*slot.Record)) slot.Record { f(&r); return r }
	approved := func(r slot.Record, a, b byte) slot.Record {
		x, y := *r.A, *r.B
		x.Approver, y.Approver = slot.Digest{a}, slot.Digest{b}
		return r.With(slot.A, &x).With(slot.B, &y)
	}
	for name, c := range map[string]struct {
		r     slot.Record
		first slot.Slot
		epoch uint64
		want  string
	}{
		"nothing is known":         {slot.Record{}, slot.A, 0, "a"},
		"both":                     {both, slot.A, 1, "ab"},
		"the other way":            {both, slot.B, 1, "ba"},
		"of an older epoch":        {both, slot.B, 2, "b"},
		"of another approver":      {approved(both, 1, 2), slot.A, 1, "a"},
		"of the same approver":     {approved(both, 1, 1), slot.A, 1, "ab"},
		"of one that is not known": {approved(both, 1, 0), slot.A, 1, "ab"},
		"on trial":                 {with(both, func(r *slot.Record) { r.Trial = &slot.Trial{Slot: slot.B} }), slot.A, 1, "a"},
		"failed":                   {with(both, func(r *slot.Record) { r.Verdicts = []slot.Verdict{{System: two}} }), slot.A, 1, "a"},
		"kept":                     {with(both, func(r *slot.Record) { r.Verdicts = []slot.Verdict{{System: two, Kept: true}} }), slot.A, 1, "ab"},
		"emptied for a release":    {both.With(slot.B, nil), slot.A, 1, "a"},
	} {
		got := ""
		for _, s := range Bootable(c.r, c.first, c.epoch) {
			got += s.String()
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestBOX4_VersionOfTheProgram(t *testing.T) {
	for s, want := range map[string]string{"0.1.0": "0.1.0", "0.1.0+abc.changed": "0.1.0", "1.2": "", "0.1.0-dev": "", "": ""} {
		if v, err := ParseVersion(s); (err == nil) != (want != "") || err == nil && v.String() != want {
			t.Errorf("%q: %s, %v", s, v, err)
		}
	}
}
