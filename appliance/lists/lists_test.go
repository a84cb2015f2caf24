package lists

import (
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
