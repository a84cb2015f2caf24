package copier

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"

	"gatehouse/appliance/files"
)

// Get copies the file at path into dir as name. noLinks refuses a path that is a link.
func (c *Copier) Get(ctx context.Context, path string, dir *os.Root, name string, noLinks bool) (Result, error) {
	g := get{c: c, path: path, dir: dir, name: name, noLinks: noLinks, resume: c.Resume}
	if i, err := dir.Lstat(name); err == nil && i.IsDir() {
		return Result{}, local(fmt.Errorf("%s is a folder here", files.Shown(name)))
	}
	for n := 1; ; n++ {
		var end files.End
		err := c.again(ctx, path, func() (at int64, err error) {
			end, at, err = g.once(ctx)
			g.resume = true // what this one left is ours
			return at, err
		})
		if errors.Is(err, ErrWrong) {
			_ = dir.Remove(files.PartName(name)) // it is of no use
		}
		if err != nil {
			return Result{}, err
		}
		if end.Changed {
			// Where only something was appended, as to a log, what came is whole.
			same, err := c.unchanged(ctx, path, end.Size, end.SHA256)
			if err != nil {
				return Result{}, err
			}
			if !same && n < changes {
				c.say("%s: %v; it is copied anew", files.Shown(path), errChanged)
				g.resume = false
				continue
			} else if !same {
				_ = dir.Remove(files.PartName(name))
				return Result{}, fmt.Errorf("%s: %w, %d times", files.Shown(path), errChanged, changes)
			}
		}
		if err := dir.Rename(files.PartName(name), name); err != nil {
			return Result{}, local(err)
		}
		return Result{Source: path, Destination: name, Size: end.Size, SHA256: end.SHA256}, nil
	}
}

type get struct {
	c       *Copier
	path    string
	dir     *os.Root
	name    string
	noLinks bool
	resume  bool
}

// once is one stream's worth of it. What comes is kept in the part.
func (g *get) once(ctx context.Context) (end files.End, at int64, err error) {
	q := files.Request{Op: files.Get, Path: []byte(g.path), NoLinks: g.noLinks}
	h, f, have, err := g.part(ctx)
	if err != nil {
		return end, 0, err
	}
	if have > 0 {
		q.From, q.SHA256 = have, sum(h)
	}
	defer func() {
		if f != nil {
			f.Close()
		}
	}()
	var e files.Entry
	s, frames, err := g.c.request(ctx, q, &e)
	if err != nil {
		return end, 0, err
	}
	defer s.Close()
	var begin files.Begin
	if err := frames.Expect(files.FrameBegin, &begin, func(done int64) { g.c.progress(g.path, done, e.Size, true) }); err != nil {
		return end, 0, err
	}
	if begin.From != have {
		if begin.From != 0 {
			return end, 0, local(fmt.Errorf("%s: the agent goes on at %d, asked was %d", files.Shown(g.path), begin.From, have))
		}
		g.c.say("%s: it is copied from its beginning: %s", files.Shown(g.path), begin.Why)
		f.Close()
		f, h, have = nil, sha256.New(), 0
	}
	if f == nil {
		if f, err = g.create(fs.FileMode(e.Mode)); err != nil {
			return end, 0, err
		}
	}
	if end, at, err = g.receive(frames, f, h, have, e.Size); err != nil {
		return end, at, err
	}
	if err := f.Sync(); err != nil {
		return end, at, local(err)
	}
	closing := f
	f = nil
	return end, at, local(closing.Close())
}

// part opens what an earlier try left and hashes it.
func (g *get) part(ctx context.Context) (hash.Hash, *os.File, int64, error) {
	h := sha256.New()
	if !g.resume {
		return h, nil, 0, nil
	}
	f, i, err := regular(g.dir, files.PartName(g.name), os.O_RDWR)
	if err != nil {
		return h, nil, 0, nil // it is made anew, or that fails with the reason
	}
	// What was written before a power cut may be zeros at its end: the hash tells.
	if err := g.c.digest(ctx, g.path, f, h, i.Size(), i.Size()); err != nil {
		f.Close()
		return nil, nil, 0, err
	}
	return h, f, i.Size(), nil
}

// create makes the part: a new file, so that nobody else holds it open, and
// never through a link.
func (g *get) create(mode fs.FileMode) (*os.File, error) {
	part := files.PartName(g.name)
	if err := g.dir.Remove(part); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, local(err)
	}
	f, err := g.dir.OpenFile(part, os.O_RDWR|os.O_CREATE|os.O_EXCL, mode.Perm()|0o600)
	return f, local(err)
}

func (g *get) receive(frames *files.Frames, f io.Writer, h hash.Hash, at, size int64) (end files.End, reached int64, err error) {
	for {
		kind, b, err := frames.Read()
		switch {
		case err != nil:
			return end, at, err
		case kind == files.FrameData && at+int64(len(b)) <= size:
			if _, err := f.Write(b); err != nil {
				return end, at, local(err)
			}
			h.Write(b)
			at += int64(len(b))
			g.c.progress(g.path, at, size, false)
		case kind == files.FrameData:
			return end, at, local(fmt.Errorf("%s: more came than its %d bytes", files.Shown(g.path), size))
		case kind != files.FrameEnd:
			return end, at, local(fmt.Errorf("%s: a frame of kind %q came among the content", files.Shown(g.path), kind))
		default:
			if err := files.Message(b, &end); err != nil {
				return end, at, local(err)
			}
			if at != size || end.Size != size || !sameHash(end.SHA256, sum(h)) {
				return end, at, fmt.Errorf("%s: what came has %d bytes and the SHA-256 %s, what was sent %d and %.64q: %w", files.Shown(g.path), at, sum(h), end.Size, end.SHA256, ErrWrong)
			}
			return end, at, nil
		}
	}
}
