package archive

import (
	"errors"
	"os"
	"testing"

	"gatehouse/appliance/session"
)

// disk is an archive whose syncs are counted, and fail when the disk does.
type disk struct {
	*testing.T
	*Archive
	syncs int
	fails error
}

func newDisk(t *testing.T) *disk {
	a, err := Open(t.TempDir(), nil, func() (uint64, error) { return 1 << 40, nil })
	if err != nil {
		t.Fatal(err)
	}
	d := &disk{T: t, Archive: a}
	a.sync = func(f *os.File) error {
		d.syncs++
		return errors.Join(d.fails, f.Sync())
	}
	return d
}

// has checks what lies there.
func (d *disk) has(id session.ID, want string) {
	d.Helper()
	if b, err := os.ReadFile(d.file(id)); string(b) != want || err != nil && want != "" {
		d.Errorf("the disk has %q, not %q, %v", b, want, err)
	}
}

// TestSES9_KeptIsOnTheDisk: the site removes its copy of what is said to be kept,
// so nothing is that was not synced, by whomever it was written.
func TestSES9_KeptIsOnTheDisk(t *testing.T) {
	d := newDisk(t)
	id := session.ID{1}
	want := func(what string, at int64, part string, size int64, fails bool) {
		t.Helper()
		if n, err := d.Append(id, at, []byte(part)); n != size || (err != nil) != fails {
			t.Errorf("%s: %d, %v", what, n, err)
		}
	}
	want("the first", 0, "one ", 4, false)
	d.fails = errors.New("the disk is broken")
	want("on a broken disk", 4, "two ", 4, true)
	d.has(id, "one ")
	want("again", 4, "two ", 4, true)
	d.fails = nil
	want("once it is whole", 4, "two ", 8, false)
	d.has(id, "one two ")
	if err := d.Remove(id); err != nil {
		t.Fatal(err)
	}

	// The console was killed between writing a part and syncing it.
	killed := func() {
		t.Helper()
		if err := os.WriteFile(d.file(id), []byte("one two "), 0o600); err != nil {
			t.Fatal(err)
		}
		d.Archive.synced = make(map[session.ID]int64)
		d.syncs = 0
	}
	for what, c := range map[string]struct {
		at   int64
		part string
	}{
		"told anew":          {4, "two "},
		"the end of it":      {8, ""},
		"one comes too soon": {12, "four"},
	} {
		killed()
		want(what, c.at, c.part, 8, false)
		if d.syncs == 0 {
			t.Errorf("%s: kept, and not synced", what)
		}
		d.has(id, "one two ")
		killed()
		d.fails = errors.New("the disk is broken")
		want(what+", on a broken disk", c.at, c.part, 0, true)
		d.fails = nil
		// The kernel says once that it could not write, and takes it for written then.
		d.has(id, "")
		want(what+", from the beginning", 0, "one two ", 8, false)
	}
	// What has no room says how much is kept, too.
	killed()
	d.free = func() (uint64, error) { return LeaveFree, nil }
	want("no room", 8, "three", 8, true)
	if d.syncs == 0 {
		t.Error("no room: kept, and not synced")
	}
}

// TestSES9_OnlyABeginningMakesARecording: a part that fits nowhere, of one that was
// removed, leaves no empty one behind.
func TestSES9_OnlyABeginningMakesARecording(t *testing.T) {
	d := newDisk(t)
	free := d.free
	for what, c := range map[string]struct {
		at   int64
		part string
		full bool
	}{
		"from the middle":  {4, "two ", false},
		"the end":          {4, "", false},
		"nothing":          {0, "", false},
		"without any room": {0, "one ", true},
	} {
		d.free = free
		if c.full {
			d.free = func() (uint64, error) { return LeaveFree, nil }
		}
		if n, err := d.Append(session.ID{1}, c.at, []byte(c.part)); n != 0 || (err != nil) != c.full {
			t.Errorf("%s: %d, %v", what, n, err)
		}
		if d.Has(session.ID{1}) {
			t.Errorf("%s: there is one", what)
		}
	}
}
