package monitor

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"gatehouse/appliance/control"
	"gatehouse/appliance/lists"
)

// fileBox is a box whose lists are files of the host.
type fileBox struct {
	*listBox
	files string
}

func newFileBox(t *testing.T, state, files string, change ...func(*fileBox)) *fileBox {
	t.Helper()
	b := &fileBox{files: files, listBox: &listBox{filter: &fakeFilter{}, now: new(atomic.Int64), dir: state}}
	folder, err := lists.Open(state)
	if err != nil {
		t.Fatal(err)
	}
	b.box = newBox(t, func(c *Config) {
		c.Lists = &Lists{Folder: folder, Filter: b.filter.run, Files: files}
	})
	for _, f := range change {
		f(b)
	}
	b.vault.claimed = true
	b.ready(t, control.DatabaseClaimed)
	return b
}

func (b *fileBox) write(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(b.files, "allowlists.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// says checks what is in force and whether the faces are told of a problem.
func (b *fileBox) says(t *testing.T, inForce, problem string) {
	t.Helper()
	l := b.Lists()
	if b.inKernel() != inForce || l.Files != b.files || l.Candidate != nil {
		t.Errorf("%q is in force, want %q: %+v", b.inKernel(), inForce, l)
	}
	switch {
	case problem == "" && len(l.Problems) > 0:
		t.Errorf("problems: %+v", l.Problems)
	case problem != "" && (len(l.Problems) == 0 || !strings.Contains(l.Problems[0].File+": "+l.Problems[0].Reason, problem)):
		t.Errorf("problems: %+v, want %q", l.Problems, problem)
	}
}

// TestNET2_BadFilesOfTheHostChangeNothing, at a change and across restarts.
func TestNET2_BadFilesOfTheHostChangeNothing(t *testing.T) {
	state, files := t.TempDir(), t.TempDir()
	(&fileBox{files: files}).write(t, "one")
	b := newFileBox(t, state, files)
	b.says(t, "one", "")
	b.write(t, "bad")
	if b.ReadFiles(t.Context()) {
		t.Error("a judgement is final until the files change, and it asks for another look")
	}
	b.says(t, "one", "allowlists.toml: bad")
	if err := os.Remove(filepath.Join(files, "allowlists.toml")); err != nil {
		t.Fatal(err)
	}
	b.ReadFiles(t.Context())
	b.says(t, "one", "allowlists.toml: the file is missing")
	again := newFileBox(t, state, files)
	again.says(t, "one", "the file is missing")
	again.write(t, "bad")
	again.ReadFiles(t.Context())
	again.says(t, "one", "bad")
	runs := len(again.filter.applied)
	again.write(t, "one") // as it was: nothing to apply, nothing wrong any more
	again.ReadFiles(t.Context())
	again.says(t, "one", "")
	if len(again.filter.applied) != runs {
		t.Error("the lists in force were put in force once more")
	}
	again.write(t, "bad")
	again.ReadFiles(t.Context())
	again.says(t, "one", "bad")
	again.write(t, "two")
	again.ReadFiles(t.Context())
	again.says(t, "two", "")
	if third := newFileBox(t, state, files); third.inKernel() != "two" {
		t.Errorf("after a restart %q", third.inKernel())
	}
	again.audit.mu.Lock()
	defer again.audit.mu.Unlock()
	if n := slices.IndexFunc(again.audit.events, func(e control.Event) bool {
		return e.Action == "apply allowlists" && e.Actor == "host" && e.Object == files && e.Detail["change"] == "two"
	}); n < 0 {
		t.Errorf("not in the audit log: %+v", again.audit.events)
	}
}

// TestNET2_NoGoodFilesYetClosesTheBox: the operator wants lists; a typing
// mistake in the first must not open the box to all.
func TestNET2_NoGoodFilesYetClosesTheBox(t *testing.T) {
	files := t.TempDir()
	b := newFileBox(t, t.TempDir(), files)
	closed := func() {
		t.Helper()
		if got := b.states[len(b.states)-1]; got != control.StateLocked || len(b.filter.applied) != 0 {
			t.Errorf("the rules are those of %s, %q put in force", got, b.filter.applied)
		}
		if s := b.Status(); !s.Firewall.Closed || s.Firewall.Lists || !strings.Contains(s.Firewall.Sentence, "own networks") {
			t.Errorf("not said: %+v", s.Firewall)
		}
		if l := b.Lists(); len(l.Problems) != 1 || l.Problems[0].File != "allowlists.toml" {
			t.Errorf("not said why: %+v", l)
		}
	}
	closed()
	b.write(t, "bad")
	b.ReadFiles(t.Context())
	closed()
	b.write(t, "one")
	b.filter.fail = errors.New("no memory")
	if !b.ReadFiles(t.Context()) {
		t.Error("after a failure it does not want to try again")
	}
	if l := b.Lists(); b.states[len(b.states)-1] != control.StateLocked || len(l.Problems) != 1 || !strings.Contains(l.Problems[0].Reason, "no memory") {
		t.Errorf("a filter that failed: %+v", l)
	}
	b.filter.fail = nil
	b.ReadFiles(t.Context())
	b.says(t, "one", "")
	if s := b.Status(); s.Firewall.Closed || b.states[len(b.states)-1] != control.StateReady {
		t.Errorf("good files, and still closed: %+v", s.Firewall)
	}
}

func TestNET2_FilesOfTheHostRefuseWhatCannotBeRecorded(t *testing.T) {
	files := t.TempDir()
	(&fileBox{files: files}).write(t, "one")
	b := newFileBox(t, t.TempDir(), files)
	b.audit.err = errors.New("disk full")
	b.write(t, "two")
	if !b.ReadFiles(t.Context()) {
		t.Error("it does not want to try again")
	}
	b.says(t, "one", "disk full")
	b.audit.err = nil
	b.ReadFiles(t.Context())
	b.says(t, "two", "")
	b.filter.fail = errors.New("no memory")
	b.write(t, "three")
	b.ReadFiles(t.Context())
	b.says(t, "two", "no memory")
	if names, err := os.ReadDir(b.dir); err != nil || len(names) != 2 {
		t.Errorf("refused candidates stay on the disk: %v %v", names, err)
	}
}

func TestNET2_FilesOfTheHostAreEditedOnTheHostAlone(t *testing.T) {
	files := t.TempDir()
	(&fileBox{files: files}).write(t, "one")
	b := newFileBox(t, t.TempDir(), files)
	if err := b.cfg.Lists.Folder.Stage(control.ListsStage{Reset: true, File: "allowlists.toml", Data: []byte("two")}); err != nil {
		t.Fatal(err)
	}
	for _, dry := range []bool{false, true} {
		if _, err := b.tryLists(t.Context(), control.Console, control.ListsTry{Actor: "ann", DryRun: dry, Force: true}); err == nil || !strings.Contains(err.Error(), "files of the host: change them there, in "+files) {
			t.Errorf("tried, dry %v: %v", dry, err)
		}
	}
	b.says(t, "one", "")
	if again := newListBox(t, b.dir, 0); again.inKernel() != "one" || again.Lists().Files != "" {
		t.Errorf("without the folder in the configuration: %+v", again.Lists())
	}
}
