package durable

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	if err := Create(path, []byte("first"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Create(path, []byte("second"), 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create over a file = %v, want fs.ErrExist", err)
	}
	expect(t, path, "first")
	if err := WriteFile(filepath.Join(dir, "no", "b"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "the old one stays") {
		t.Errorf("WriteFile into a folder that is not there = %v", err)
	}
	if err := Append(filepath.Join(dir, "no", "b"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Append into a folder that is not there = %v", err)
	}
	if err := Remove(filepath.Join(dir, "b")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Remove of nothing = %v", err)
	}
	if err := SyncFolder(filepath.Join(dir, "no")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("SyncFolder of nothing = %v", err)
	}
	only(t, dir, "a")
}

// A symbolic link in the place of the temporary file must not be followed,
// and a left-over with a wide mode must not lend it to the new content.
func TestLeftOverIsNotTrusted(t *testing.T) {
	dir := t.TempDir()
	path, victim := filepath.Join(dir, "a"), filepath.Join(dir, "victim")
	writeFile(t, victim, "untouched", 0o644)
	if err := os.Symlink(victim, path+".new"); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(path, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, victim, "untouched")
	expect(t, path, "secret")
	writeFile(t, path+".new", "half", 0o666)
	if err := WriteFile(path, []byte("secret 2"), 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	only(t, dir, "a", "victim")
}

func TestRealFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	for _, text := range []string{"one", "", "three, longer"} {
		if err := WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		expect(t, path, text)
	}
	log := filepath.Join(dir, "log")
	for range 3 {
		if err := Append(log, []byte("line\n"), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, log, "line\nline\nline\n")
	if err := errors.Join(Remove(log), SyncFolder(dir)); err != nil {
		t.Fatal(err)
	}
	only(t, dir, "a")
}

// A disk that fails or is full at any call: the path holds the old content,
// or the new if the failure came after the rename; nothing half, no left-over
// that holds space.
func TestFailureAtEachCall(t *testing.T) {
	for name, c := range map[string]struct {
		do  func(filesystem, string) error
		old string // "" for no file
		new string
	}{
		"replace": {func(f filesystem, p string) error { return write(f, p, []byte("new content"), 0o600) }, "old", "new content"},
		"create":  {func(f filesystem, p string) error { return create(f, p, []byte("new content"), 0o600) }, "", "new content"},
		"append":  {func(f filesystem, p string) error { return appendTo(f, p, []byte(" and new"), 0o600) }, "old", "old and new"},
		"remove":  {func(f filesystem, p string) error { return remove(f, p) }, "old", ""},
	} {
		for n := 1; ; n++ {
			d := newMedium("/d/a", c.old)
			d.failAt = n
			err := c.do(d, "/d/a")
			if d.calls < n {
				if err != nil {
					t.Errorf("%s without a failure: %v", name, err)
				}
				break
			}
			got, there := d.cached["/d/a"]
			if state := string(got.bytes()); (state != c.old && state != c.new) || (!there && c.old != "" && c.new != "") {
				t.Errorf("%s, call %d fails: %q is there (%v)", name, n, state, there)
			}
			if err == nil && string(got.bytes()) != c.new {
				t.Errorf("%s, call %d fails: success was reported, %q is there", name, n, got.bytes())
			}
		}
	}
}

// The power is cut before each call and inside each write: what is on the
// medium then is the old content or the new, and after success it is the new.
func TestPowerCutAtEachCall(t *testing.T) {
	for name, c := range map[string]struct {
		do       func(filesystem, string) error
		old, new string
		prefix   bool // any prefix of what was appended may be there
	}{
		"replace": {func(f filesystem, p string) error { return write(f, p, []byte("new content"), 0o600) }, "old", "new content", false},
		"first":   {func(f filesystem, p string) error { return write(f, p, []byte("new content"), 0o600) }, "", "new content", false},
		"create":  {func(f filesystem, p string) error { return create(f, p, []byte("new content"), 0o600) }, "", "new content", false},
		"append":  {func(f filesystem, p string) error { return appendTo(f, p, []byte(" and new"), 0o600) }, "old", "old and new", true},
		"log":     {func(f filesystem, p string) error { return appendTo(f, p, []byte("and new"), 0o600) }, "", "and new", true},
		"remove":  {func(f filesystem, p string) error { return remove(f, p) }, "old", "", false},
	} {
		seenOld, seenNew := false, false
		for n := 1; ; n++ {
			d := newMedium("/d/a", c.old)
			d.cutAt = n
			err := c.do(d, "/d/a")
			done := d.calls < n
			for _, disk := range d.possible() {
				got := string(disk["/d/a"])
				ok := got == c.old || got == c.new || c.prefix && strings.HasPrefix(c.new, got) && strings.HasPrefix(got, c.old)
				if !ok {
					t.Errorf("%s, cut at call %d: %q", name, n, got)
				}
				if done && got != c.new {
					t.Errorf("%s returned (%v), then the power went: %q", name, err, got)
				}
				seenOld, seenNew = seenOld || got == c.old, seenNew || got == c.new
			}
			if done {
				break
			}
		}
		if !seenOld || !seenNew {
			t.Errorf("%s: the cuts never showed both states", name)
		}
	}
}

// The test of the test: leaving out either sync must be seen.
func TestPowerCutSeesMissingSyncs(t *testing.T) {
	for name, f := range map[string]func(*medium){
		"file": func(d *medium) { d.noFileSync = true }, "folder": func(d *medium) { d.noFolderSync = true },
	} {
		d := newMedium("/d/a", "old")
		f(d)
		if err := write(d, "/d/a", []byte("new content"), 0o600); err != nil {
			t.Fatal(err)
		}
		lost := false
		for _, disk := range d.possible() {
			lost = lost || !bytes.Equal(disk["/d/a"], []byte("new content"))
		}
		if !lost {
			t.Errorf("without the sync of the %s nothing was ever lost: the double is too kind", name)
		}
	}
}

func writeFile(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s holds %q, %v; want %q", filepath.Base(path), got, err, want)
	}
}

func only(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(names, " ") {
		t.Errorf("the folder holds %q, want %q", got, names)
	}
}
