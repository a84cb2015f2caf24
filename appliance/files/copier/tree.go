package copier

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"gatehouse/appliance/files"
	"gatehouse/appliance/session/wire"
)

// Limits of a tree: one that a hostile target invents ends.
const (
	maxDepth = 100
	maxFiles = 1_000_000
)

// Problem is what was left out of a tree, and why.
type Problem struct {
	Path string
	Err  error
}

// Tree is what became of one.
type Tree struct {
	Files    []Result
	Problems []Problem
	seen     int
}

func (t *Tree) problem(path string, err error) {
	t.Problems = append(t.Problems, Problem{path, err})
}

// Ends says whether an error ends all that is being copied: the next file would meet it too.
func Ends(ctx context.Context, err error) bool {
	var r *wire.Refusal
	return ctx.Err() != nil || errors.Is(err, ErrLost) || errors.Is(err, syscall.ENOSPC) || errors.As(err, &r) && (r.Code == wire.Denied || r.Code == wire.HostKey || r.Code == wire.Credential)
}

// CheckName takes a name that a target sent for one that can be made here: one
// step of a path, whatever the system. Control characters are a name's own affair.
func CheckName(name string) error {
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") || strings.ContainsRune(name, filepath.Separator):
		return errors.New("it is no name of a file")
	case len(name) > 255:
		return errors.New("its name is too long")
	case !filepath.IsLocal(name):
		return errors.New("a file of that name cannot be made here")
	case files.IsPart(name):
		return errors.New("it is what an interrupted copy left")
	}
	return nil
}

// names finds two names of one folder that are the same file here, as on a
// disk that does not tell capitals apart.
type names map[string][]string

// clash refuses a name that is the same as one that was made before. same asks the disk.
func (n names) clash(name string, same func(a, b string) bool) error {
	key := strings.ToLower(name)
	for _, other := range n[key] {
		if other == name || same(other, name) {
			return fmt.Errorf("here it is the same as %s", files.Shown(other))
		}
	}
	n[key] = append(n[key], name)
	return nil
}

// GetTree copies the folder at path into dir, which is there. Links and
// devices are left out.
func (c *Copier) GetTree(ctx context.Context, path string, dir *os.Root) (Tree, error) {
	var t Tree
	return t, c.getTree(ctx, &t, path, dir, 0)
}

func (c *Copier) getTree(ctx context.Context, t *Tree, path string, dir *os.Root, depth int) error {
	if depth > maxDepth {
		t.problem(path, fmt.Errorf("it is more than %d folders deep", maxDepth))
		return nil
	}
	entries, more, err := c.List(ctx, path)
	if err != nil {
		if depth == 0 || Ends(ctx, err) {
			return err
		}
		t.problem(path, err)
		return nil
	}
	if more {
		t.problem(path, errors.New("it holds more than is listed"))
	}
	made := names{}
	for _, e := range entries {
		name := string(e.Name)
		at := strings.TrimRight(path, "/") + "/" + name
		if t.seen++; t.seen > maxFiles {
			return fmt.Errorf("%s: it holds more than %d files", files.Shown(path), maxFiles)
		}
		err := CheckName(name)
		if err == nil {
			err = made.clash(name, func(a, b string) bool { return sameFile(dir, a, b) })
		}
		if err == nil {
			err = c.getEntry(ctx, t, e, at, dir, name, depth)
		}
		if err != nil && Ends(ctx, err) {
			return err
		} else if err != nil {
			t.problem(at, err)
		}
	}
	return nil
}

func (c *Copier) getEntry(ctx context.Context, t *Tree, e files.Entry, at string, dir *os.Root, name string, depth int) error {
	switch e.Kind {
	case files.File:
		r, err := c.Get(ctx, at, dir, name, true)
		if err == nil {
			r.Destination = filepath.Join(dir.Name(), name)
			t.Files = append(t.Files, r)
		}
		return err
	case files.Folder:
		// Ours to write to, whatever the target's says.
		if err := dir.Mkdir(name, fs.FileMode(e.Mode)&fs.ModePerm|0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return local(err)
		}
		sub, err := dir.OpenRoot(name)
		if err != nil {
			return local(err)
		}
		defer sub.Close()
		return c.getTree(ctx, t, at, sub, depth+1)
	case files.Link:
		return errors.New("it is a link; links are not followed")
	}
	return errors.New("it is a device, a pipe or a socket")
}

func sameFile(dir *os.Root, a, b string) bool {
	x, errX := dir.Lstat(a)
	y, errY := dir.Lstat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// PutTree copies the folder dir to path: a folder that is made if it is not there.
func (c *Copier) PutTree(ctx context.Context, dir *os.Root, path string) (Tree, error) {
	var t Tree
	i, err := dir.Stat(".")
	if err != nil {
		return t, local(err)
	}
	if err := c.Mkdir(ctx, path, i.Mode()|0o700, false); err != nil {
		return t, err
	}
	return t, c.putTree(ctx, &t, dir, path, 0)
}

func (c *Copier) putTree(ctx context.Context, t *Tree, dir *os.Root, path string, depth int) error {
	if depth > maxDepth {
		t.problem(dir.Name(), fmt.Errorf("it is more than %d folders deep", maxDepth))
		return nil
	}
	entries, err := fs.ReadDir(dir.FS(), ".")
	if err != nil {
		return local(err)
	}
	for _, e := range entries {
		name, at := e.Name(), strings.TrimRight(path, "/")+"/"+e.Name()
		if t.seen++; t.seen > maxFiles {
			return fmt.Errorf("%s: it holds more than %d files", files.Shown(path), maxFiles)
		}
		err := error(nil)
		switch {
		case files.IsPart(name):
			err = errors.New("it is what an interrupted copy left")
		case e.IsDir():
			err = c.putFolder(ctx, t, dir, name, at, depth)
		case e.Type().IsRegular():
			var r Result
			if r, err = c.Put(ctx, dir, name, at, ""); err == nil {
				r.Source = filepath.Join(dir.Name(), name)
				t.Files = append(t.Files, r)
			}
		case e.Type()&fs.ModeSymlink != 0:
			err = errors.New("it is a link; links are not followed")
		default:
			err = errors.New("it is a device, a pipe or a socket")
		}
		if err != nil && Ends(ctx, err) {
			return err
		} else if err != nil {
			t.problem(filepath.Join(dir.Name(), name), err)
		}
	}
	return nil
}

func (c *Copier) putFolder(ctx context.Context, t *Tree, dir *os.Root, name, at string, depth int) error {
	sub, err := dir.OpenRoot(name)
	if err != nil {
		return local(err)
	}
	defer sub.Close()
	i, err := sub.Stat(".")
	if err != nil {
		return local(err)
	}
	if err := c.Mkdir(ctx, at, i.Mode()|0o700, true); err != nil {
		return err
	}
	return c.putTree(ctx, t, sub, at, depth+1)
}
