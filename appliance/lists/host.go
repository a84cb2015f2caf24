package lists

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
	"gatehouse/netfilter/allowlist"
)

// mostEntries bounds what one folder of the host may make this process read.
const mostEntries = 4096

// Digest names the content of a folder of lists: names and bytes.
type Digest [sha256.Size]byte

// changed means that a file was written while it was read.
type changed struct{ file string }

func (c changed) Error() string {
	return c.file + ": it is being written: write it under another name and rename it, then it is whole whenever it is there"
}

// Survey reads a folder of the host, and gives the digest of its lists. Problems
// say why they cannot be had; again, that a second look may find them whole.
//
// Only plain files are read, never through a link and never more than the
// limits, and what is in them is not looked at.
func Survey(dir string) (d Digest, problems []control.Problem, again bool) {
	d, err := walk(dir, "")
	problems, again = problemOf(err)
	return d, problems, again
}

// Import copies the lists of a folder of the host, as Survey reads them, into a
// candidate that nobody can change any more.
func (f *Folder) Import(dir string) (candidate string, d Digest, problems []control.Problem, again bool) {
	candidate = filepath.Join(f.dir, strconv.Itoa(f.next))
	d, err := f.copy(candidate, dir)
	if err != nil {
		problems, again = problemOf(err)
		if err := os.RemoveAll(candidate); err != nil {
			problems = append(problems, control.Problem{Reason: err.Error()})
		}
		return "", d, problems, again
	}
	f.next++
	return candidate, d, nil, false
}

func (f *Folder) copy(to, from string) (Digest, error) {
	if err := os.RemoveAll(to); err != nil {
		return Digest{}, fmt.Errorf("copying the lists of the host: %w", err)
	}
	if err := os.Mkdir(to, 0o755); err != nil {
		return Digest{}, fmt.Errorf("copying the lists of the host: %w", err)
	}
	if err := os.Chmod(to, 0o755); err != nil { // whatever the umask says
		return Digest{}, fmt.Errorf("copying the lists of the host: %w", err)
	}
	return walk(from, to)
}

// KeptDigest is that of the lists in force; the zero one if there are none.
func (f *Folder) KeptDigest() (Digest, error) {
	if f.kept == "" || f.problem != "" {
		return Digest{}, nil
	}
	return walk(f.kept, "")
}

// refused is a problem on its way up.
type refused control.Problem

func (r refused) Error() string { return r.File + ": " + r.Reason }

func refuse(file, format string, args ...any) error {
	return refused{File: file, Reason: fmt.Sprintf(format, args...)}
}

func problemOf(err error) (p []control.Problem, again bool) {
	var r refused
	var c changed
	switch {
	case err == nil:
		return nil, false
	case errors.As(err, &r):
		return []control.Problem{control.Problem(r)}, false
	case errors.As(err, &c):
		return []control.Problem{{File: c.file, Reason: strings.TrimPrefix(c.Error(), c.file+": ")}}, true
	}
	return []control.Problem{{Reason: err.Error()}}, true
}

// walk reads each list of a folder once, and copies it if there is a place.
func walk(dir, to string) (Digest, error) {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return Digest{}, refuse(dir, "the folder is not there: make it, with %s in it", allowlist.Index)
	}
	if err != nil {
		return Digest{}, fmt.Errorf("opening the lists of the host: %w", err)
	}
	defer root.Close()
	names, err := listed(root, dir)
	if err != nil {
		return Digest{}, err
	}
	sum := sha256.New()
	left := int64(allowlist.MaxBytes)
	for _, name := range names {
		n, err := one(root, name, to, left, sum)
		if err != nil {
			return Digest{}, err
		}
		left -= n
	}
	return Digest(sum.Sum(nil)), nil
}

// listed are the names of the files that count, sorted.
func listed(root *os.Root, dir string) ([]string, error) {
	d, err := root.Open(".")
	if err != nil {
		return nil, fmt.Errorf("reading the lists of the host: %w", err)
	}
	defer d.Close()
	fi, err := d.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading the lists of the host: %w", err)
	}
	if err := notEverybodys(dir, fi); err != nil {
		return nil, err
	}
	all, err := d.Readdirnames(mostEntries + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading the lists of the host: %w", err)
	}
	if len(all) > mostEntries {
		return nil, refuse(dir, "there are more than %d files: keep nothing but lists in this folder", mostEntries)
	}
	// What begins with a dot is a lock or a draft of an editor.
	names := slices.DeleteFunc(all, func(n string) bool {
		return strings.HasPrefix(n, ".") || n != allowlist.Index && !strings.HasSuffix(n, allowlist.Suffix)
	})
	slices.Sort(names)
	if !slices.Contains(names, allowlist.Index) {
		// No lists at all would mean that everyone may come in. That is said in
		// words, in this file, and never by leaving it out.
		return nil, refuse(allowlist.Index, "the file is missing: it names the lists, their order and their scopes; enabled = false in it lets everyone in")
	}
	if lists := len(names) - 1; lists > allowlist.MaxLists {
		over := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == allowlist.Index })[allowlist.MaxLists]
		return nil, refuse(over, "there are %d lists, and the limit is %d: this is the first too many", lists, allowlist.MaxLists)
	}
	return names, nil
}

// notEverybodys refuses what any user of the host could open the door with.
func notEverybodys(name string, fi fs.FileInfo) error {
	if fi.Mode().Perm()&0o002 != 0 {
		return refuse(name, "every user of this host may change it, so any of them could let anyone in: take that right away with chmod o-w")
	}
	return nil
}

// one reads one file. It is not opened before it is known to be plain, because
// opening a device does things; a pipe in its place a moment later does not
// block, and is found by being another file.
func one(root *os.Root, name, to string, limit int64, sum hash.Hash) (int64, error) {
	before, err := root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, changed{name}
	}
	if err != nil {
		return 0, refuse(name, "it cannot be looked at: %v", errors.Unwrap(err))
	}
	if !before.Mode().IsRegular() {
		return 0, refuse(name, "it is no plain file but %s: put the list itself there", kind(before.Mode()))
	}
	if err := notEverybodys(name, before); err != nil {
		return 0, err
	}
	if before.Size() > limit {
		return 0, refuse(name, "with this file the lists have more than %d MiB in all: that is the limit", allowlist.MaxBytes>>20)
	}
	r, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return 0, changed{name}
		}
		return 0, refuse(name, "it cannot be read: %v", errors.Unwrap(err))
	}
	defer r.Close()
	if same, err := still(r, before); err != nil || !same {
		return 0, errors.Join(err, changed{name})
	}
	fmt.Fprintf(sum, "%d %s %d\n", len(name), name, before.Size())
	n, err := pour(r, name, to, before.Size(), sum)
	if err != nil {
		return n, fmt.Errorf("reading %s: %w", name, err)
	}
	if same, err := still(r, before); err != nil || !same || n != before.Size() {
		return n, errors.Join(err, changed{name})
	}
	return n, nil
}

// still says whether the open file is the one that was looked at, unchanged.
func still(r *os.File, before fs.FileInfo) (bool, error) {
	now, err := r.Stat()
	if err != nil {
		return false, err
	}
	return os.SameFile(now, before) && now.Mode() == before.Mode() && now.Size() == before.Size() && now.ModTime().Equal(before.ModTime()), nil
}

// pour reads at most one byte more than there should be.
func pour(r io.Reader, name, to string, size int64, sum hash.Hash) (int64, error) {
	r = io.LimitReader(r, size+1)
	if to == "" {
		return io.Copy(sum, r)
	}
	w, err := os.OpenFile(filepath.Join(to, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(io.MultiWriter(w, sum), r)
	return n, errors.Join(err, w.Chmod(0o644), w.Close())
}

func kind(m fs.FileMode) string {
	switch {
	case m&fs.ModeSymlink != 0:
		return "a link"
	case m.IsDir():
		return "a folder"
	case m&fs.ModeNamedPipe != 0:
		return "a pipe"
	case m&fs.ModeDevice != 0:
		return "a device"
	case m&fs.ModeSocket != 0:
		return "a socket"
	}
	return "something else"
}
