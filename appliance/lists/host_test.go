package lists

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/netfilter/allowlist"
)

// hostFolder is a folder of the host with one list in it.
func hostFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	put(t, dir, allowlist.Index, "enabled = true\n")
	put(t, dir, "office.list", "192.0.2.1\n")
	return dir
}

func put(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestNET2_OnlyPlainBoundedFilesOfTheHost: what is not a list is refused with
// its name, without waiting for it, and nothing is copied.
func TestNET2_OnlyPlainBoundedFilesOfTheHost(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("root's\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	at := func(dir, name string) string { return filepath.Join(dir, name) }
	for name, c := range map[string]struct {
		spoil func(dir string) error
		file  string // that is named
		want  string
	}{
		"link out of the folder": {func(d string) error { return os.Symlink(secret, at(d, "x.list")) }, "x.list", "a link"},
		"link inside":            {func(d string) error { return os.Symlink("office.list", at(d, "x.list")) }, "x.list", "a link"},
		"dangling link":          {func(d string) error { return os.Symlink("nowhere", at(d, "x.list")) }, "x.list", "a link"},
		"pipe":                   {func(d string) error { return unix.Mkfifo(at(d, "x.list"), 0o600) }, "x.list", "a pipe"},
		"device":                 {func(d string) error { return unix.Mknod(at(d, "x.list"), unix.S_IFCHR|0o600, 0x0101) }, "x.list", "a device"},
		"folder":                 {func(d string) error { return os.Mkdir(at(d, "x.list"), 0o755) }, "x.list", "a folder"},
		"index is a link": {func(d string) error {
			return errors.Join(os.Remove(at(d, allowlist.Index)), os.Symlink(secret, at(d, allowlist.Index)))
		}, allowlist.Index, "a link"},
		"everybody's file":   {func(d string) error { return os.Chmod(at(d, "office.list"), 0o666) }, "office.list", "every user of this host"},
		"everybody's folder": {func(d string) error { return os.Chmod(d, 0o777) }, "", "every user of this host"},
		"too large":          {func(d string) error { return os.Truncate(at(d, "office.list"), allowlist.MaxBytes+1) }, "office.list", "64 MiB"},
		"too large in all": {func(d string) error {
			return errors.Join(os.Truncate(at(d, "office.list"), allowlist.MaxBytes/2), os.WriteFile(at(d, "z.list"), nil, 0o600), os.Truncate(at(d, "z.list"), allowlist.MaxBytes/2))
		}, "z.list", "64 MiB"},
		"a thousand files": {func(d string) error {
			var all []error
			for i := range 1000 {
				all = append(all, os.WriteFile(at(d, fmt.Sprintf("l%03d.list", i)), nil, 0o600))
			}
			return errors.Join(all...)
		}, "l064.list", "there are 1001 lists, and the limit is 64"},
		"rubbish without end": {func(d string) error {
			var all []error
			for i := range mostEntries {
				all = append(all, os.WriteFile(at(d, fmt.Sprintf("x%d.tmp", i)), nil, 0o600))
			}
			return errors.Join(all...)
		}, "", "more than 4096 files"},
		"no index": {func(d string) error { return os.Remove(at(d, allowlist.Index)) }, allowlist.Index, "the file is missing"},
		"nothing": {func(d string) error {
			return errors.Join(os.Remove(at(d, allowlist.Index)), os.Remove(at(d, "office.list")))
		}, allowlist.Index, "the file is missing"},
		"no folder": {os.RemoveAll, "", "the folder is not there"},
	} {
		dir := hostFolder(t)
		if err := c.spoil(dir); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if c.file == "" {
			c.file = dir
		}
		f := open(t, t.TempDir())
		before := entries(t, f.dir)
		candidate, _, problems, _ := f.Import(dir)
		if candidate != "" || len(problems) != 1 || problems[0].File != c.file || !strings.Contains(problems[0].Reason, c.want) {
			t.Errorf("%s: candidate %q, %+v, want %q of %s", name, candidate, problems, c.want, c.file)
		}
		if _, again, _ := Survey(dir); len(again) != 1 || again[0] != problems[0] {
			t.Errorf("%s: a survey says %+v", name, again)
		}
		if now := entries(t, f.dir); now != before {
			t.Errorf("%s: left in the folder: %s", name, now)
		}
	}
}

func entries(t *testing.T, dir string) string {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range all {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func TestNET2_FilesOfTheHostAreCopiedWhole(t *testing.T) {
	dir := hostFolder(t)
	for _, drafts := range []string{".office.list.swp", ".#office.list", "office.list~", "4913", "notes.txt"} {
		put(t, dir, drafts, "10.0.0.0/8\n")
	}
	f := open(t, t.TempDir())
	seen, problems, _ := Survey(dir)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	candidate, digest, problems, _ := f.Import(dir)
	if len(problems) > 0 || digest != seen {
		t.Fatalf("%v; digest %x, seen %x", problems, digest, seen)
	}
	if got := entries(t, candidate); got != "allowlists.toml office.list" {
		t.Errorf("copied: %s", got)
	}
	if b, err := os.ReadFile(filepath.Join(candidate, "office.list")); err != nil || string(b) != "192.0.2.1\n" {
		t.Errorf("%q %v", b, err)
	}
	if err := f.Keep(candidate); err != nil {
		t.Fatal(err)
	}
	if kept, err := open(t, f.dir).KeptDigest(); err != nil || kept != digest {
		t.Errorf("after a restart the kept ones have another digest: %x %v", kept, err)
	}
	for what, change := range map[string]func(){
		"a byte":   func() { put(t, dir, "office.list", "192.0.2.2\n") },
		"a name":   func() { os.Rename(filepath.Join(dir, "office.list"), filepath.Join(dir, "home.list")) },
		"one more": func() { put(t, dir, "more.list", "") },
	} {
		before, _, _ := Survey(dir)
		change()
		if after, _, _ := Survey(dir); after == before {
			t.Errorf("%s changed, and the digest did not", what)
		}
	}
}

// TestNET2_PartialWriteIsNotTaken: a file that grows while it is read is never
// taken half, and once it is whole it is.
func TestNET2_PartialWriteIsNotTaken(t *testing.T) {
	dir := hostFolder(t)
	line := []byte("192.0.2.1\n")
	stop, done := make(chan struct{}), make(chan error, 1)
	w, err := os.OpenFile(filepath.Join(dir, "office.list"), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	go func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if n > 4<<20 { // or the limit would be the reason
				w.Truncate(0)
				w.Seek(0, 0)
				n = 0
			}
			if _, err := w.Write(line); err != nil {
				done <- err
				return
			}
		}
	}()
	f := open(t, t.TempDir())
	unsteady := 0
	for end := time.Now().Add(time.Minute); unsteady < 20 && time.Now().Before(end); {
		candidate, _, problems, again := f.Import(dir)
		if len(problems) == 0 {
			// It was still for as long as it was read: then it is whole lines.
			b, err := os.ReadFile(filepath.Join(candidate, "office.list"))
			if err != nil || len(bytes.ReplaceAll(b, line, nil)) != 0 {
				t.Fatalf("taken half: %v, %d bytes", err, len(b))
			}
			continue
		}
		if !again || problems[0].File != "office.list" || !strings.Contains(problems[0].Reason, "being written") {
			t.Fatalf("%+v, again %v", problems, again)
		}
		unsteady++
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if unsteady == 0 {
		t.Error("it was never met while it grew: this test shows nothing")
	}
	if _, _, problems, _ := f.Import(dir); len(problems) > 0 {
		t.Errorf("whole, and refused: %v", problems)
	}
}
