package lists

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatehouse/appliance/control"
)

func open(t *testing.T, dir string) *Folder {
	t.Helper()
	f, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func stage(t *testing.T, f *Folder, s ...control.ListsStage) {
	t.Helper()
	for _, one := range s {
		if err := f.Stage(one); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNET2_StagingRefuses(t *testing.T) {
	f := open(t, t.TempDir())
	if err := f.Stage(control.ListsStage{File: "office.list", Data: []byte("x")}); err == nil {
		t.Error("an edit that was not begun")
	}
	stage(t, f, control.ListsStage{Reset: true})
	for name, s := range map[string]control.ListsStage{
		"path":            {File: "../office.list"},
		"absolute":        {File: "/etc/office.list"},
		"folder":          {File: "a/b.list"},
		"other ending":    {File: "office.txt"},
		"hidden":          {File: ".list"},
		"upper case":      {File: "Office.list"},
		"the pointer":     {File: "current"},
		"hole":            {File: "office.list", Offset: 1, Data: []byte("x")},
		"negative":        {File: "office.list", Offset: -1, Data: []byte("x")},
		"part too large":  {File: "office.list", Data: make([]byte, part+1)},
		"NUL in the name": {File: "a\x00.list"},
	} {
		if err := f.Stage(s); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for i := range 65 {
		stage(t, f, control.ListsStage{File: "l" + strings.Repeat("x", i%30) + string(rune('a'+i%26)) + ".list", Data: nil})
	}
	if _, err := f.Read(control.ListsRead{File: "../../etc/passwd"}); err == nil {
		t.Error("read outside")
	}
}

func TestNET3_OnlyWhatWasKeptSurvives(t *testing.T) {
	dir := t.TempDir()
	f := open(t, dir)
	stage(t, f, control.ListsStage{Reset: true, File: "office.list", Data: []byte("192.0.2.")}, control.ListsStage{File: "office.list", Offset: 8, Data: []byte("1\n")})
	if _, err := f.Candidate(); err != nil {
		t.Fatal(err)
	}
	if open(t, dir).Kept() != "" {
		t.Fatal("a candidate counts after a restart")
	}
	f = open(t, dir)
	stage(t, f, control.ListsStage{Reset: true, File: "office.list", Data: []byte("192.0.2.1\n")})
	one, err := f.Candidate()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Keep(one); err != nil {
		t.Fatal(err)
	}
	// A second edit begins from the first and does not change it.
	stage(t, f, control.ListsStage{Reset: true}, control.ListsStage{File: "office.list", Offset: 10, Data: []byte("192.0.2.2\n")})
	two, err := f.Candidate()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Drop(f.Kept()); err != nil {
		t.Fatal(err)
	}
	part, err := f.Read(control.ListsRead{File: "office.list"})
	if err != nil || string(part.Data) != "192.0.2.1\n" || part.Size != 10 {
		t.Errorf("in force: %q %v", part.Data, err)
	}
	if b, err := os.ReadFile(filepath.Join(two, "office.list")); err != nil || string(b) != "192.0.2.1\n192.0.2.2\n" {
		t.Errorf("the candidate: %q %v", b, err)
	}
	g := open(t, dir)
	if g.Kept() != one {
		t.Errorf("after a restart %s counts", g.Kept())
	}
	if _, err := os.Stat(two); err == nil {
		t.Error("what was not kept is still there")
	}
	if err := g.SwitchOff(); err != nil || !g.Off() || !open(t, dir).Off() {
		t.Errorf("switched off: %v", err)
	}
	stage(t, g, control.ListsStage{Reset: true})
	three, err := g.Candidate()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Keep(three); err != nil || g.Off() || open(t, dir).Off() {
		t.Errorf("keeping a change leaves it off: %v", err)
	}
}

// TestNET2_DamagedPointerIsNoEmptyList: to go on without lists would open the box.
func TestNET2_DamagedPointerIsNoEmptyList(t *testing.T) {
	for _, text := range []string{"", "x\n", "-1\n", "7\n", "1 on\n", "../1\n"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, current), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if f, err := Open(dir); err == nil {
			t.Errorf("%q: opened, kept %q", text, f.Kept())
		}
	}
}

// A folder that does not open lets nobody in, loses nothing, and is mended by a person: with
// new lists, or by switching them off.
func TestNET2_ClosedFolderIsMended(t *testing.T) {
	for name, mend := range map[string]func(*Folder) error{
		"new ones": func(f *Folder) error {
			stage(t, f, control.ListsStage{Reset: true, File: "home.list", Data: []byte("192.0.2.9\n")})
			c, err := f.Candidate()
			if err != nil {
				return err
			}
			return f.Keep(c)
		},
		"off": (*Folder).SwitchOff,
	} {
		dir := t.TempDir()
		f := open(t, dir)
		stage(t, f, control.ListsStage{Reset: true, File: "office.list", Data: []byte("192.0.2.1\n")})
		one, err := f.Candidate()
		if err != nil || f.Keep(one) != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, current), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		_, why := Open(dir)
		if why == nil {
			t.Fatal("a damaged pointer opens")
		}
		f = Closed(dir, why)
		if _, err := os.Stat(f.Kept()); err == nil || f.Kept() == "" || !strings.Contains(f.Problem(), "own networks") {
			t.Errorf("%s: kept %q, problem %q", name, f.Kept(), f.Problem())
		}
		if _, err := os.Stat(one); err != nil {
			t.Errorf("%s: what was there is lost: %v", name, err)
		}
		if err := mend(f); err != nil || f.Problem() != "" {
			t.Errorf("%s: %v, %q", name, err, f.Problem())
		}
		if g := open(t, dir); g.Kept() != f.Kept() || g.Off() != (name == "off") || (g.Kept() == one) != (name == "off") {
			t.Errorf("%s: after a restart %s counts, off %v", name, g.Kept(), g.Off())
		}
	}
	f := Closed(t.TempDir(), os.ErrPermission)
	if err := f.SwitchOff(); err != nil || !open(t, f.dir).Off() {
		t.Errorf("without any list: %v", err)
	}
}

// A candidate that was not kept is dropped, so the pointer must not name it.
func TestNET3_PointerIsPutBack(t *testing.T) {
	for _, off := range []bool{false, true} {
		dir := t.TempDir()
		f := open(t, dir)
		stage(t, f, control.ListsStage{Reset: true, File: "office.list", Data: []byte("192.0.2.1\n")})
		one, err := f.Candidate()
		if err != nil || f.Keep(one) != nil {
			t.Fatal(err)
		}
		if off {
			if err := f.SwitchOff(); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(f.point("7"), f.pointBack()); err != nil {
			t.Fatal(err)
		}
		if g := open(t, dir); g.Kept() != one || g.Off() != off {
			t.Errorf("%s counts, off %v", g.Kept(), g.Off())
		}
	}
	f := open(t, t.TempDir())
	if err := errors.Join(f.point("7"), f.pointBack()); err != nil || open(t, f.dir).Kept() != "" {
		t.Errorf("without any list: %v", err)
	}
}
