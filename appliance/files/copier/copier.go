// Package copier is the technician's side of package files: it copies files to and from a target, and goes on by itself where a connection was lost.
//
// What a target says is not believed: names become local ones only if they are
// plain, everything is written below an os.Root, into parts that take their
// place when size and SHA-256 are right, and every number has a limit.
package copier

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"gatehouse/appliance/files"
	"gatehouse/appliance/session/wire"
)

// Copier copies over streams of a session.
type Copier struct {
	// Open opens a stream and reads the answer, over a new connection where the
	// last was lost. A refusal is a *wire.Refusal.
	Open func(context.Context, wire.Open) (wire.Stream, wire.Reply, error)
	// Resume goes on with what an earlier copy left, not only this one.
	Resume bool
	// Progress and Say tell a person; nil for nobody. Texts of Say and names are
	// not made harmless for a terminal.
	Progress func(Progress)
	Say      func(text string)
	// Pause waits before try number n of one thing; nil: longer each time.
	Pause func(ctx context.Context, n int) error

	telling sync.Mutex
}

// Progress is how far one file is.
type Progress struct {
	Name       string
	Done, Size int64
	Checking   bool // hashes are compared, nothing flows
}

// Result is a file that was copied.
type Result struct {
	Source, Destination string
	Size                int64
	SHA256              string
	Note                string
}

// ErrWrong is wrapped by errors about content that is not what was sent.
var ErrWrong = errors.New("it was not kept")

// ErrLost is wrapped by errors about a connection that did not come back.
var ErrLost = errors.New("the connection was lost, and did not come back")

// tries is how often one thing is tried without any byte of progress; with the
// pauses that is a good two minutes.
const tries = 12

// changes is how often a file is copied anew because it was written to meanwhile.
const changes = 3

// maxListing is the most that is read of one folder, in bytes.
const maxListing = 32 << 20

// errChanged: a source was written to while it was copied.
var errChanged = errors.New("it was written to while it was copied")

// localError is of this computer: trying again would not help.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

// Final marks an error of Open after which it is not asked again.
func Final(err error) error { return local(err) }

func local(err error) error {
	if err == nil {
		return nil
	}
	return &localError{err}
}

// lost says whether trying again can help: the stream broke, or the agent lost the target.
func lost(err error) bool {
	var r *wire.Refusal
	var l *localError
	switch {
	case err == nil, errors.As(err, &l), errors.Is(err, errChanged), errors.Is(err, ErrWrong):
		return false
	case errors.As(err, &r):
		return r.Code == wire.Unreachable
	}
	return true
}

func (c *Copier) say(format string, args ...any) {
	if c.Say != nil {
		c.Say(fmt.Sprintf(format, args...))
	}
}

func (c *Copier) pause(ctx context.Context, n int) error {
	if c.Pause != nil {
		return c.Pause(ctx, n)
	}
	t := time.NewTimer(min(250*time.Millisecond<<min(n, 10), 15*time.Second))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// again does something until it works, is refused, or nothing helps any more.
// f says how far the whole has come: as long as it comes further it goes on.
func (c *Copier) again(ctx context.Context, what string, f func() (int64, error)) error {
	best := int64(0)
	for n := 0; ; n++ {
		at, err := f()
		switch {
		case ctx.Err() != nil && err != nil:
			return ctx.Err()
		case !lost(err):
			return err
		case at > best:
			n, best = 0, at
		case n+1 >= tries:
			return fmt.Errorf("%s: %w in %d tries: %w", files.Shown(what), ErrLost, tries, err)
		}
		c.say("%s: the connection was lost (%v); trying again", files.Shown(what), err)
		if err := c.pause(ctx, n); err != nil {
			return err
		}
	}
}

// request opens a stream and asks. The Args of the answer go into v.
func (c *Copier) request(ctx context.Context, q files.Request, v any) (wire.Stream, *files.Frames, error) {
	args, err := json.Marshal(q)
	if err != nil {
		return nil, nil, local(err)
	}
	s, p, err := c.Open(ctx, wire.Open{Do: wire.Files, Args: args})
	if err != nil {
		return nil, nil, err
	}
	closed := stream{s, context.AfterFunc(ctx, func() { s.Close() })}
	if v != nil {
		if err := files.Message(p.Args, v); err != nil {
			closed.Close()
			return nil, nil, local(err)
		}
	}
	return closed, files.NewFrames(s), nil
}

// stream is one that its context ends.
type stream struct {
	wire.Stream
	stop func() bool
}

func (s stream) Close() error {
	s.stop()
	return s.Stream.Close()
}

// ask is an operation of one answer.
func (c *Copier) ask(ctx context.Context, q files.Request, v any) error {
	return c.again(ctx, string(q.Path), func() (int64, error) {
		s, _, err := c.request(ctx, q, v)
		if err == nil {
			s.Close()
		}
		return 0, err
	})
}

// Stat says what a path is.
func (c *Copier) Stat(ctx context.Context, path string) (e files.Entry, err error) {
	return e, c.ask(ctx, files.Request{Op: files.Stat, Path: []byte(path)}, &e)
}

// Mkdir makes a folder, or finds it there. With noLinks a link does not count as one.
func (c *Copier) Mkdir(ctx context.Context, path string, mode fs.FileMode, noLinks bool) error {
	return c.ask(ctx, files.Request{Op: files.Mkdir, Path: []byte(path), Mode: uint32(mode.Perm()), NoLinks: noLinks}, nil)
}

// Rename gives a file or folder another path, never over another. It is not
// tried again: after a loss it may have been done.
func (c *Copier) Rename(ctx context.Context, from, to string) error {
	s, _, err := c.request(ctx, files.Request{Op: files.Rename, Path: []byte(from), To: []byte(to)}, nil)
	if err != nil {
		return err
	}
	return s.Close()
}

// Remove removes a file, a link or an empty folder. It is not tried again.
func (c *Copier) Remove(ctx context.Context, path string) error {
	s, _, err := c.request(ctx, files.Request{Op: files.Remove, Path: []byte(path)}, nil)
	if err != nil {
		return err
	}
	return s.Close()
}

// List is what a folder holds, in the target's order; more says that it holds more.
func (c *Copier) List(ctx context.Context, path string) (entries []files.Entry, more bool, err error) {
	err = c.again(ctx, path, func() (int64, error) {
		entries, more, err = c.list(ctx, path)
		return 0, err
	})
	return entries, more, err
}

func (c *Copier) list(ctx context.Context, path string) (entries []files.Entry, more bool, err error) {
	s, f, err := c.request(ctx, files.Request{Op: files.List, Path: []byte(path)}, nil)
	if err != nil {
		return nil, false, err
	}
	defer s.Close()
	for size := 0; ; {
		kind, b, err := f.Read()
		if err != nil {
			return nil, false, err
		}
		switch size += len(b); kind {
		case files.FrameEntries:
			var page []files.Entry
			if err := files.Message(b, &page); err != nil {
				return nil, false, local(err)
			}
			if entries = append(entries, page...); len(entries) > files.MaxEntries || size > maxListing {
				return nil, false, local(fmt.Errorf("listing %s: the agent sends more than %d names or %d bytes", files.Shown(path), files.MaxEntries, maxListing))
			}
		case files.FrameEnd:
			var l files.Listed
			if err := files.Message(b, &l); err != nil {
				return nil, false, local(err)
			}
			return entries, l.More, nil
		default:
			return nil, false, local(fmt.Errorf("listing %s: a frame of kind %q came", files.Shown(path), kind))
		}
	}
}

func sum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

func (c *Copier) progress(name string, done, size int64, checking bool) {
	c.telling.Lock()
	defer c.telling.Unlock()
	if c.Progress != nil {
		c.Progress(Progress{name, done, size, checking})
	}
}

// digest adds the first n bytes of a local file to a hash, and leaves the file behind them.
func (c *Copier) digest(ctx context.Context, name string, f io.ReadSeeker, h hash.Hash, n, size int64) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return local(err)
	}
	buf := make([]byte, files.Chunk)
	for done := int64(0); done < n; {
		k, err := io.ReadFull(f, buf[:min(int64(len(buf)), n-done)])
		if err != nil {
			return local(err)
		}
		h.Write(buf[:k])
		done += int64(k)
		c.progress(name, done, size, true)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// unchanged asks whether a file at the target still begins with what came of it.
func (c *Copier) unchanged(ctx context.Context, path string, size int64, digest string) (same bool, err error) {
	err = c.again(ctx, path, func() (int64, error) {
		var e files.Entry
		s, f, err := c.request(ctx, files.Request{Op: files.Hash, Path: []byte(path), Size: size}, &e)
		if err != nil {
			return 0, err
		}
		defer s.Close()
		var end files.End
		err = f.Expect(files.FrameEnd, &end, func(done int64) { c.progress(path, done, size, true) })
		same = err == nil && end.Size == size && end.SHA256 == digest
		return 0, err
	})
	return same, err
}

// regular opens a local file that is one, without following a link out of dir.
func regular(dir *os.Root, name string, flags int) (*os.File, fs.FileInfo, error) {
	i, err := dir.Lstat(name)
	if err == nil && !i.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file: devices, pipes and links are left alone", files.Shown(name))
	}
	if err != nil {
		return nil, nil, local(err)
	}
	f, err := dir.OpenFile(name, flags, 0)
	if err != nil {
		return nil, nil, local(err)
	}
	now, err := f.Stat()
	if err == nil && !os.SameFile(i, now) {
		err = fmt.Errorf("%s became another file while it was opened", files.Shown(name))
	}
	if err != nil {
		f.Close()
		return nil, nil, local(err)
	}
	return f, now, nil
}

func sameHash(a, b string) bool { return len(a) == 64 && bytes.Equal([]byte(a), []byte(b)) }
