// Package lists keeps the files of the allowlists: what is in force, what is being edited, and what waits to be kept.
//
// It moves bytes and never looks into them: parsing is the filter role's, a
// process of its own that can change nothing here. The files lie in a folder
// each time of their own, and one small file names the folder that counts:
//
//	lists/current    "7\n", or "7 off\n": the commit point
//	lists/7/         allowlists.toml and NAME.list, in force
//	lists/8/         a candidate, forgotten by a restart
//	lists/staging/   edits
package lists

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/durable"
	"gatehouse/netfilter/allowlist"
)

const (
	current = "current"
	staging = "staging"
	// switchedOff follows the number if the lists judge nobody.
	switchedOff = " off"
	// part is the most data of one request; the socket's limit is above it.
	part = 48 << 10
)

// Folder is the one writer of the lists; its methods are not for use at once.
type Folder struct {
	dir  string
	kept string // path of the folder in force; "": there are no lists
	off  bool   // they were switched off at the console
	next int

	problem string // why none of the lists can be read; "": they can

	// OnKept is called after what is kept changed; nil: nobody asks.
	OnKept func()
}

// Open opens the folder, makes it if needed, and removes what an earlier life
// left unfinished. A pointer that cannot be read is an error: to go on without
// lists would open the box to all (Closed).
func Open(dir string) (*Folder, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the folder of the allowlists: %w", err)
	}
	// The umask of a supervisor must not keep the filter role out.
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, fmt.Errorf("opening the folder of the allowlists to the filter: %w", err)
	}
	f := &Folder{dir: dir, next: 1}
	b, err := os.ReadFile(filepath.Join(dir, current))
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("reading which allowlists count: %w", err)
	default:
		number, off := strings.CutSuffix(strings.TrimSuffix(string(b), "\n"), switchedOff)
		n, err := strconv.Atoi(number)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%s says %q: it should hold the number of a folder", filepath.Join(dir, current), b)
		}
		f.next, f.off, f.kept = n+1, off, filepath.Join(dir, strconv.Itoa(n))
		if _, err := os.Stat(f.kept); err != nil {
			return nil, fmt.Errorf("the allowlists that count are not there: %w", err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("reading the folder of the allowlists: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if e.Name() == current || path == f.kept {
			continue
		}
		if os.RemoveAll(path) != nil { // it counts for nothing, and the next start tries again
			n, _ := strconv.Atoi(e.Name())
			f.next = max(f.next, n+1)
		}
	}
	return f, nil
}

// Closed is a folder that does not open: its lists let nobody in, and are not counted
// as none. New ones can be kept, and what is there can be switched off.
func Closed(dir string, why error) *Folder {
	return &Folder{dir: dir, kept: filepath.Join(dir, "unread"), next: newest(dir) + 1,
		problem: why.Error() + ". Nobody but the box's own networks gets in: keep lists anew on the page, or switch the lists off at the console"}
}

// newest is the highest number of a folder; 0: there is none.
func newest(dir string) (n int) {
	entries, _ := os.ReadDir(dir) // what cannot be read has none
	for _, e := range entries {
		if i, err := strconv.Atoi(e.Name()); err == nil {
			n = max(n, i)
		}
	}
	return n
}

// Kept is the folder of the files in force; "" if there are no lists.
func (f *Folder) Kept() string { return f.kept }

// Problem says why no list can be read; "": they can.
func (f *Folder) Problem() string { return f.problem }

// validName keeps paths out: names of lists have neither dots nor slashes.
func validName(name string) bool {
	list, ok := strings.CutSuffix(name, allowlist.Suffix)
	return name == allowlist.Index || ok && allowlist.CheckName(list) == ""
}

func invalid(format string, args ...any) error {
	return &control.Error{Code: control.CodeInvalid, Text: fmt.Sprintf(format, args...)}
}

// Stage makes one edit.
func (f *Folder) Stage(s control.ListsStage) error {
	dir := filepath.Join(f.dir, staging)
	if s.Reset {
		if err := f.reset(dir); err != nil {
			return fmt.Errorf("beginning an edit of the allowlists: %w", err)
		}
	}
	if s.File == "" {
		return nil
	}
	if !validName(s.File) {
		return invalid("%q is no file of allowlists: there are %s and NAME%s, with a name of a to z, 0 to 9 and -", s.File, allowlist.Index, allowlist.Suffix)
	}
	if _, err := os.Stat(dir); err != nil {
		return &control.Error{Code: control.CodeState, Text: "no edit was begun: begin anew"}
	}
	path := filepath.Join(dir, s.File)
	if s.Remove {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("removing a list from the edit: %w", err)
		}
		return nil
	}
	if len(s.Data) > part {
		return invalid("%d bytes in one part: the limit is %d", len(s.Data), part)
	}
	return f.write(dir, path, s)
}

func (f *Folder) write(dir, path string, s control.ListsStage) error {
	size, files, err := usage(dir)
	if err != nil {
		return err
	}
	if size+int64(len(s.Data)) > allowlist.MaxBytes || files > allowlist.MaxLists+1 {
		return invalid("the lists would have more than %d MiB or %d files: that is the limit", allowlist.MaxBytes>>20, allowlist.MaxLists)
	}
	flags := os.O_WRONLY | os.O_CREATE
	if s.Offset == 0 {
		flags |= os.O_TRUNC
	}
	w, err := os.OpenFile(path, flags, 0o644)
	if err != nil {
		return fmt.Errorf("writing an edit of the allowlists: %w", err)
	}
	defer w.Close()
	fi, err := w.Stat()
	if err != nil {
		return fmt.Errorf("writing an edit of the allowlists: %w", err)
	}
	if fi.Size() != s.Offset {
		return invalid("%s has %d bytes so far: a part at %d would leave a hole or overwrite", s.File, fi.Size(), s.Offset)
	}
	if _, err := w.WriteAt(s.Data, s.Offset); err != nil {
		return fmt.Errorf("writing an edit of the allowlists: %w", err)
	}
	return w.Chmod(0o644)
}

func usage(dir string) (size int64, files int, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, 0, fmt.Errorf("reading the edit of the allowlists: %w", err)
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			return 0, 0, fmt.Errorf("reading the edit of the allowlists: %w", err)
		}
		size += fi.Size()
	}
	return size, len(entries), nil
}

func (f *Folder) reset(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	from := f.kept
	if f.problem != "" {
		from = "" // which of them counted is not known; who edits begins with the newest, and sees it
		if n := newest(f.dir); n > 0 {
			from = filepath.Join(f.dir, strconv.Itoa(n))
		}
	}
	if from == "" {
		return nil
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		// A link costs nothing; an edit at offset 0 must not write through it.
		if err := copyFile(filepath.Join(dir, e.Name()), filepath.Join(from, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(to, from string) error {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	err = errors.Join(err, w.Chmod(0o644), w.Close())
	if fi, e := r.Stat(); err == nil && e == nil {
		err = os.Chtimes(to, time.Time{}, fi.ModTime()) // the ranges did not change
	}
	return err
}

// Staged is the folder with the edits.
func (f *Folder) Staged() (string, error) {
	dir := filepath.Join(f.dir, staging)
	if _, err := os.Stat(dir); err != nil {
		return "", &control.Error{Code: control.CodeState, Text: "nothing was edited: begin anew"}
	}
	return dir, nil
}

// Candidate makes of the edits a folder of its own, which no later edit changes.
func (f *Folder) Candidate() (string, error) {
	dir, err := f.Staged()
	if err != nil {
		return "", err
	}
	to := filepath.Join(f.dir, strconv.Itoa(f.next))
	if err := os.Rename(dir, to); err != nil {
		return "", fmt.Errorf("setting a candidate aside: %w", err)
	}
	f.next++
	return to, nil
}

// Keep makes a candidate the one that counts; a power cut leaves the old or
// the new. An empty folder means that there are no lists.
func (f *Folder) Keep(candidate string) error {
	entries, err := os.ReadDir(candidate)
	if err != nil {
		return fmt.Errorf("keeping the allowlists: %w", err)
	}
	for _, e := range entries {
		if err := sync(filepath.Join(candidate, e.Name())); err != nil {
			return fmt.Errorf("keeping the allowlists: %w", err)
		}
	}
	if err := errors.Join(durable.SyncFolder(candidate), durable.SyncFolder(f.dir)); err != nil {
		return fmt.Errorf("keeping the allowlists: %w", err)
	}
	if err := f.point(filepath.Base(candidate)); err != nil {
		// It may have failed behind the rename: the candidate is dropped now, and must
		// not be what the next start looks for.
		return fmt.Errorf("keeping the allowlists: %w", errors.Join(err, f.pointBack()))
	}
	old := f.kept
	f.kept, f.off, f.problem = candidate, false, ""
	if old != "" {
		// Kept is kept: what is left of the old is removed at the next start.
		_ = os.RemoveAll(old)
	}
	f.tell()
	return nil
}

func (f *Folder) tell() {
	if f.OnKept != nil {
		f.OnKept()
	}
}

func sync(path string) error {
	w, err := os.Open(path)
	if err != nil {
		return err
	}
	defer w.Close()
	return w.Sync()
}

// Drop forgets a candidate.
func (f *Folder) Drop(candidate string) error {
	if candidate == "" || candidate == f.kept || filepath.Dir(candidate) != f.dir {
		return nil
	}
	return os.RemoveAll(candidate)
}

// Read reads a part of a file in force.
func (f *Folder) Read(q control.ListsRead) (control.ListsPart, error) {
	if !validName(q.File) || q.Offset < 0 {
		return control.ListsPart{}, invalid("%q is no file of allowlists", q.File)
	}
	if f.kept == "" {
		return control.ListsPart{}, &control.Error{Code: control.CodeInvalid, Text: "there are no allowlists yet"}
	}
	r, err := os.Open(filepath.Join(f.kept, q.File))
	if errors.Is(err, os.ErrNotExist) {
		return control.ListsPart{}, invalid("there is no %s", q.File)
	}
	if err != nil {
		return control.ListsPart{}, fmt.Errorf("reading an allowlist: %w", err)
	}
	defer r.Close()
	fi, err := r.Stat()
	if err != nil {
		return control.ListsPart{}, fmt.Errorf("reading an allowlist: %w", err)
	}
	b := make([]byte, part)
	n, err := r.ReadAt(b, q.Offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return control.ListsPart{}, fmt.Errorf("reading an allowlist: %w", err)
	}
	return control.ListsPart{Data: slices.Clip(b[:n]), Size: fi.Size()}, nil
}

// SwitchOff keeps the files and has them judge nobody, for a person at the
// console. The next candidate that is kept counts as it is written.
func (f *Folder) SwitchOff() error {
	if f.kept == "" {
		return nil
	}
	kept := f.kept
	if f.problem != "" {
		// Which of them counted is not known; none does now, and the newest is what a
		// person finds on the page.
		n := newest(f.dir)
		if n == 0 {
			n = f.next
			f.next++
		}
		kept = filepath.Join(f.dir, strconv.Itoa(n))
		if err := os.MkdirAll(kept, 0o755); err != nil {
			return fmt.Errorf("switching the allowlists off: %w", err)
		}
	}
	if err := f.point(filepath.Base(kept) + switchedOff); err != nil {
		return fmt.Errorf("switching the allowlists off: %w", err)
	}
	f.kept, f.off, f.problem = kept, true, ""
	f.tell()
	return nil
}

// Off says whether the lists in force were switched off at the console.
func (f *Folder) Off() bool { return f.off }

// pointBack has the pointer name what counts.
func (f *Folder) pointBack() error {
	switch {
	case f.problem != "":
		return nil // it named nothing that could be read
	case f.kept == "":
		return os.RemoveAll(filepath.Join(f.dir, current))
	case f.off:
		return f.point(filepath.Base(f.kept) + switchedOff)
	}
	return f.point(filepath.Base(f.kept))
}

func (f *Folder) point(text string) error {
	return durable.WriteFile(filepath.Join(f.dir, current), []byte(text+"\n"), 0o644)
}
