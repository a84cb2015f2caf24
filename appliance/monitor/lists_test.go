package monitor

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/lists"
	"gatehouse/netfilter"
)

// fakeFilter stands for the filter role: a policy is the text of its index.
type fakeFilter struct {
	applied []string // content of the index that was put in force; "" for none
	fail    error
	selfCut bool
}

func (f *fakeFilter) run(_ context.Context, o lists.Order) (lists.Answer, error) {
	var a lists.Answer
	text := ""
	if o.Folder != "" {
		b, err := os.ReadFile(filepath.Join(o.Folder, "allowlists.toml"))
		if err != nil {
			return a, err
		}
		text = string(b)
	}
	if strings.Contains(text, "bad") {
		a.Report.Problems = []control.Problem{{File: "allowlists.toml", Line: 1, Reason: "bad"}}
		return a, nil
	}
	if o.Apply && f.fail != nil {
		return a, f.fail
	}
	a.Enabled = text != "" && !o.Off
	a.Report.Summary, a.Report.SelfCut = []string{text}, f.selfCut
	a.InForce = netfilter.Lists{Off: !a.Enabled, Generation: uint64(len(f.applied) + 1)}
	if o.Apply {
		f.applied = append(f.applied, text)
	}
	return a, nil
}

type listBox struct {
	*box
	filter *fakeFilter
	now    *atomic.Int64 // CLOCK_BOOTTIME
	dir    string
}

func newListBox(t *testing.T, dir string, within time.Duration) *listBox {
	t.Helper()
	l := &listBox{filter: &fakeFilter{}, now: new(atomic.Int64), dir: dir}
	l.now.Store(1000)
	folder, err := lists.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	l.box = newBox(t, func(c *Config) {
		c.Lists = &Lists{Folder: folder, Filter: l.filter.run}
		c.KeepWithin, c.Boottime = within, l.now.Load
	})
	l.vault.claimed = true
	l.ready(t, control.DatabaseClaimed)
	return l
}

func (l *listBox) stage(t *testing.T, text string) {
	t.Helper()
	if err := l.cfg.Lists.Folder.Stage(control.ListsStage{Reset: true, File: "allowlists.toml", Data: []byte(text)}); err != nil {
		t.Fatal(err)
	}
}

func (l *listBox) try(t *testing.T, text string) control.ListsReport {
	t.Helper()
	l.stage(t, text)
	r, err := l.tryLists(t.Context(), control.Console, control.ListsTry{Actor: "ann", Watch: []netip.Addr{netip.MustParseAddr("192.0.2.9")}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (l *listBox) inKernel() string { return l.filter.applied[len(l.filter.applied)-1] }

func TestNET3_KeepNeedsAYoungerConnection(t *testing.T) {
	l := newListBox(t, t.TempDir(), time.Hour)
	r := l.try(t, "one")
	if r.Candidate == nil || l.inKernel() != "one" {
		t.Fatalf("not in effect: %+v", r)
	}
	for _, accepted := range []int64{0, 999, 1000} {
		if _, err := l.keep(t.Context(), control.Console, control.Keep{ID: r.Candidate.ID, Accepted: accepted, Actor: "ann"}); err == nil || !strings.Contains(err.Error(), "older than the change") {
			t.Errorf("a connection of %d keeps a change of 1000: %v", accepted, err)
		}
	}
	if _, err := l.keep(t.Context(), control.Console, control.Keep{ID: "other", Accepted: 1001, Actor: "ann"}); err == nil {
		t.Error("a change that is not there was kept")
	}
	if l.cfg.Lists.Folder.Kept() != "" {
		t.Error("kept although refused")
	}
	if _, err := l.keep(t.Context(), control.Console, control.Keep{ID: r.Candidate.ID, Accepted: 1001, Actor: "ann"}); err != nil {
		t.Fatal(err)
	}
	if l.Lists().Candidate != nil {
		t.Error("still waits")
	}
	again := newListBox(t, l.dir, time.Hour)
	if again.inKernel() != "one" {
		t.Errorf("after a restart %q is in force", again.inKernel())
	}
}

func TestNET3_NotKeptGoesBackByItself(t *testing.T) {
	l := newListBox(t, t.TempDir(), 20*time.Millisecond)
	r := l.try(t, "one")
	for deadline := time.Now().Add(10 * time.Second); l.Lists().Candidate != nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the change is still in effect")
		}
	}
	if l.inKernel() != "" || l.Lists().Enabled {
		t.Errorf("%q is in force", l.inKernel())
	}
	if _, err := l.keep(t.Context(), control.Console, control.Keep{ID: r.Candidate.ID, Accepted: 2000, Actor: "ann"}); err == nil {
		t.Error("kept after it was taken back")
	}
	l.audit.mu.Lock()
	defer l.audit.mu.Unlock()
	if n := slices.IndexFunc(l.audit.events, func(e control.Event) bool {
		return e.Action == "revert allowlists" && e.Detail["reason"] == "not kept in time"
	}); n < 0 {
		t.Errorf("not in the audit log: %+v", l.audit.events)
	}
}

func TestNET3_RestartBringsWhatWasKept(t *testing.T) {
	l := newListBox(t, t.TempDir(), time.Hour)
	r := l.try(t, "one")
	if _, err := l.keep(t.Context(), control.Console, control.Keep{ID: r.Candidate.ID, Accepted: 1001, Actor: "ann"}); err != nil {
		t.Fatal(err)
	}
	l.try(t, "two")
	if l.inKernel() != "two" {
		t.Fatal("the second is not in effect")
	}
	if again := newListBox(t, l.dir, time.Hour); again.inKernel() != "one" {
		t.Errorf("after a restart %q is in force, want what was kept", again.inKernel())
	}
}

func TestNET3_EscapeAtTheConsole(t *testing.T) {
	l := newListBox(t, t.TempDir(), time.Hour)
	r := l.try(t, "one")
	if err := l.RevertAll(t.Context()); err != nil || l.inKernel() != "" || len(l.Candidates()) != 0 {
		t.Fatalf("undo: %v, %q in force", err, l.inKernel())
	}
	r = l.try(t, "two")
	if _, err := l.keep(t.Context(), control.Console, control.Keep{ID: r.Candidate.ID, Accepted: 1001, Actor: "ann"}); err != nil {
		t.Fatal(err)
	}
	if err := l.ListsOff(t.Context()); err != nil || l.Lists().Enabled {
		t.Errorf("off: %v, %+v", err, l.Lists())
	}
	again := newListBox(t, l.dir, time.Hour)
	if again.Lists().Enabled {
		t.Error("a restart switched the lists on again")
	}
	if again.cfg.Lists.Folder.Kept() == "" {
		t.Error("switching off lost the lists")
	}
}

func TestNET3_TryRefuses(t *testing.T) {
	l := newListBox(t, t.TempDir(), time.Hour)
	if _, err := l.tryLists(t.Context(), control.Console, control.ListsTry{Actor: "ann"}); err == nil {
		t.Error("tried without an edit")
	}
	if r := l.try(t, "bad"); len(r.Problems) != 1 || r.Candidate != nil || l.inKernel() != "" {
		t.Errorf("bad files: %+v", r)
	}
	l.filter.selfCut = true
	if r := l.try(t, "one"); len(r.Problems) != 1 || !strings.Contains(r.Problems[0].Reason, "your own address") || l.inKernel() != "" {
		t.Errorf("self-lockout: %+v", r)
	}
	l.stage(t, "one")
	if r, err := l.tryLists(t.Context(), control.Console, control.ListsTry{Actor: "ann", Force: true}); err != nil || r.Candidate == nil {
		t.Errorf("with force: %+v %v", r, err)
	}
	l.stage(t, "two")
	if _, err := l.tryLists(t.Context(), control.Console, control.ListsTry{Actor: "ann", Force: true}); err == nil || !strings.Contains(err.Error(), "waits to be kept") {
		t.Errorf("a second change while one waits: %v", err)
	}
	if _, err := l.tryLists(t.Context(), control.Console, control.ListsTry{Actor: "ann", DryRun: true}); err != nil {
		t.Errorf("a dry run while one waits: %v", err)
	}
	if l.inKernel() != "one" {
		t.Errorf("%q is in force", l.inKernel())
	}
}

func TestNET2_FilterThatFailsChangesNothing(t *testing.T) {
	l := newListBox(t, t.TempDir(), time.Hour)
	l.stage(t, "one")
	l.filter.fail = errors.New("no memory")
	if _, err := l.tryLists(t.Context(), control.Console, control.ListsTry{Actor: "ann"}); err == nil || !strings.Contains(err.Error(), "no memory") {
		t.Errorf("%v", err)
	}
	if len(l.Candidates()) != 0 || l.Lists().Enabled {
		t.Error("something waits or is in force")
	}
	l.audit.err = errors.New("disk full")
	l.filter.fail = nil
	l.stage(t, "one")
	if _, err := l.tryLists(t.Context(), control.Console, control.ListsTry{Actor: "ann"}); err == nil || l.inKernel() != "" {
		t.Errorf("changed without an audit entry: %v", err)
	}
}

// TestNET2_ListsThatCannotBeLoadedCloseTheBox: never open, and never closed to
// those near it.
func TestNET2_ListsThatCannotBeLoadedCloseTheBox(t *testing.T) {
	l := &listBox{filter: &fakeFilter{fail: errors.New("no module")}, now: new(atomic.Int64)}
	folder, err := lists.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	l.box = newBox(t, func(c *Config) { c.Lists = &Lists{Folder: folder, Filter: l.filter.run} })
	l.vault.claimed = true
	l.ready(t, control.DatabaseClaimed)
	if got := l.states[len(l.states)-1]; got != control.StateLocked {
		t.Errorf("the rules are those of %s", got)
	}
	if s := l.Lists(); len(s.Problems) != 1 || !strings.Contains(s.Sentence, "own networks") {
		t.Errorf("not said: %+v", s)
	}
}

// A folder of lists that cannot be read closes the box to all but its own networks, says why,
// and takes new ones; a change that nobody kept closes it again.
func TestNET2_UnreadListsAreSaidAndMended(t *testing.T) {
	l := &listBox{filter: &fakeFilter{}, now: new(atomic.Int64), dir: t.TempDir()}
	l.now.Store(1000)
	folder := lists.Closed(l.dir, errors.New("the pointer is damaged"))
	l.box = newBox(t, func(c *Config) {
		c.Lists = &Lists{Folder: folder, Filter: l.filter.run}
		c.KeepWithin, c.Boottime = time.Hour, l.now.Load
	})
	l.vault.claimed = true
	l.ready(t, control.DatabaseClaimed)
	closed := func(when string) {
		t.Helper()
		if s := l.Lists(); len(s.Problems) != 1 || !strings.Contains(s.Problems[0].Reason, "the pointer is damaged") || l.states[len(l.states)-1] != control.StateLocked {
			t.Errorf("%s: %+v; the rules are those of %s", when, s.Problems, l.states[len(l.states)-1])
		}
	}
	closed("at the start")
	r := l.try(t, "one")
	if _, err := l.takeBack(t.Context(), control.Console, control.Revert{ID: r.Candidate.ID, Actor: "ann"}); err != nil {
		t.Fatal(err)
	}
	closed("after a change was taken back")
	r = l.try(t, "two")
	if _, err := l.keep(t.Context(), control.Console, control.Keep{ID: r.Candidate.ID, Accepted: 1001, Actor: "ann"}); err != nil {
		t.Fatal(err)
	}
	if s := l.Lists(); len(s.Problems) != 0 || folder.Problem() != "" {
		t.Errorf("kept anew: %+v", s.Problems)
	}
}

// Switching off that fails leaves the change that waits to its own timer.
func TestNET3_SwitchingOffThatFailsForgetsNothing(t *testing.T) {
	l := newListBox(t, t.TempDir(), time.Hour)
	l.try(t, "one")
	l.filter.fail = errors.New("killed")
	if err := l.ListsOff(t.Context()); err == nil {
		t.Error("nothing is said")
	}
	if len(l.Candidates()) != 1 {
		t.Error("nobody takes the change back")
	}
	l.filter.fail = nil
	if err := l.ListsOff(t.Context()); err != nil || len(l.Candidates()) != 0 {
		t.Errorf("%v, and %v wait", err, l.Candidates())
	}
}
