package update

import (
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/firmware/slot"
)

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

// Who insists, insists on one start: what comes of that is judged as any end is.
func TestBOX4_InsistedIsOneStart(t *testing.T) {
	insisted := func() *house {
		h := newHouse(t)
		h.ended("the kernel panicked", true, 1)
		e := h.up(h.config)
		if _, err := h.begin(e, true); err != nil {
			t.Fatal(err)
		}
		if _, err := h.send(e, h.system, 0, int64(len(h.system))); err != nil {
			t.Fatal(err)
		}
		// A start that does not come about is none.
		h.fail["arm"] = errors.New("the firmware takes no variable")
		if err := start(e, false); err == nil {
			t.Fatal("armed")
		}
		delete(h.fail, "arm")
		h.oneShot = ""
		if err := start(h.up(h.config), false); err != nil || h.oneShot == "" || h.record().Trial == nil {
			t.Fatalf("insisted upon: %v, armed %q", err, h.oneShot)
		}
		h.oneShot = ""
		return h
	}
	refused := func(h *house, words string) {
		t.Helper()
		for range 2 {
			if err := start(h.up(h.config), false); err == nil || !strings.Contains(err.Error(), words) || h.oneShot != "" {
				t.Errorf("another start: %v, want %q", err, words)
			}
		}
	}
	h := insisted()
	h.ended("the kernel panicked", true, 2)
	refused(h, "no release was received")
	if _, err := h.begin(h.up(h.config), false); err == nil {
		t.Error("taken again without a word")
	}
	h = insisted()
	h.ended("it ended without a word", false, 3)
	refused(h, "3 times")
	h = insisted()
	h.ended("it ended without a word", false, 2)
	h.behind = "The audit log ends early."
	refused(h, "ends early")
	// It is kept, and the next start cannot write that down at once.
	h = insisted()
	if h.trial().transfer == nil {
		t.Error("the trial does not know of what release it is")
	}
	c := h.config
	c.Running, c.Version = slot.B, h.release.Version
	h.up(c)
	h.write(h.record().Keep(h.now))
	e := h.up(c)
	if err := e.adopt(t.Context()); err != nil || e.transfer != nil || e.trust.Newest != h.release.Version {
		t.Errorf("not adopted: %v, %+v", err, e.trust)
	}
	if last := h.events[len(h.events)-1]; last.Action != "update kept" {
		t.Errorf("recorded: %+v", last)
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

// Somebody took the window away while the release came: it waits for a person then,
// and no word to wait is a word to start.
func TestBOX4_NoWindowNoStartByItself(t *testing.T) {
	h := newHouse(t)
	e := h.up(h.config)
	if err := e.Set(t.Context(), control.UpdateSettings{Window: "Sun 14:00-16:00"}); err != nil {
		t.Fatal(err)
	}
	h.receive(e)
	if err := e.Set(t.Context(), control.UpdateSettings{}); err != nil {
		t.Fatal(err)
	}
	err := start(e, true)
	if err == nil || !strings.Contains(err.Error(), "no window") || h.restarts != 0 || h.oneShot != "" || h.stage(e) != control.UpdateReceived {
		t.Errorf("%v: %d restarts, armed %q, %s", err, h.restarts, h.oneShot, h.stage(e))
	}
	if err := start(e, false); err != nil || h.restarts != 1 {
		t.Errorf("a person's word: %v, %d restarts", err, h.restarts)
	}
}

// At the second of the restart somebody is changing what it is about: the restart
// comes after that, and goes by it.
func TestBOX4_TheLastWordBeforeARestartCounts(t *testing.T) {
	for name, c := range map[string]struct {
		change   func(h *house, e *Engine) error
		restarts int
		stage    string
	}{
		"the window is taken away": {func(h *house, e *Engine) error {
			return e.Set(t.Context(), control.UpdateSettings{})
		}, 0, control.UpdateReceived},
		"another window": {func(h *house, e *Engine) error {
			return e.Set(t.Context(), control.UpdateSettings{Window: "Mon 02:00-04:00"})
		}, 0, control.UpdateWaiting},
		"cancelled": {func(h *house, e *Engine) error { return e.Cancel(t.Context()) }, 0, control.UpdateIdle},
		"another release": {func(h *house, e *Engine) error {
			h.release.Version = version(1, 6, 0)
			_, err := h.begin(e, false)
			return err
		}, 0, control.UpdateReceiving},
		"the same settings": {func(h *house, e *Engine) error {
			return e.Set(t.Context(), control.UpdateSettings{Window: "Sun 14:00-16:00", Mirror: "https://mirror.example.org/"})
		}, 0, control.UpdateWaiting},
		"nothing": {nil, 1, control.UpdateReceived},
	} {
		h := newHouse(t)
		var e *Engine
		var now func() time.Time
		config := h.config
		config.Now = func() time.Time {
			if now != nil {
				return now()
			}
			return h.config.Now()
		}
		e = h.up(config)
		if err := e.Set(t.Context(), control.UpdateSettings{Window: "Sun 14:00-16:00"}); err != nil {
			t.Fatal(err)
		}
		h.receive(e)
		if err := start(e, true); err != nil {
			t.Fatal(err)
		}
		h.now = noon.Add(2*time.Hour + time.Second)
		changed := make(chan error, 1)
		now = func() time.Time { // as due looks whether it is time
			at := h.now
			now = nil
			if c.change == nil {
				changed <- nil
				return at
			}
			go func() { changed <- c.change(h, e) }()
			for e.working.TryLock() { // until that is under way
				e.working.Unlock()
				runtime.Gosched()
			}
			return at
		}
		e.due(t.Context())
		if err := <-changed; err != nil {
			t.Errorf("%s: %v", name, err)
		}
		e.due(t.Context())
		if h.restarts != c.restarts || h.oneShot != "" != (c.restarts > 0) || h.stage(e) != c.stage || h.stage(h.up(h.config)) != c.stage {
			t.Errorf("%s: %d restarts, armed %q, %s, after a start %s", name, h.restarts, h.oneShot, h.stage(e), h.stage(h.up(h.config)))
		}
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
