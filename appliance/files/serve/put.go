package serve

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"gatehouse/appliance/files"
	"gatehouse/appliance/files/remote"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/wire"
)

// place is where a put goes.
type place struct {
	path, part string
	dir        string      // of both, with its slash; empty: where the account begins
	old        fs.FileInfo // of what is there now; nil: nothing
	left       int64       // bytes of the part that an earlier put left
	another    error       // says that another put writes to the place: what is there is not this one's
}

func (w *work) place(t remote.Files) (p place, err error) {
	p.path = string(w.q.Path)
	i, err := t.Stat(p.path)
	if err == nil && i.IsDir() && len(w.q.Name) > 0 {
		p.path = strings.TrimRight(p.path, "/") + "/" + string(w.q.Name)
	}
	i, err = t.Lstat(p.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return p, trouble("Writing", p.path, err)
	case i.IsDir():
		return p, wire.Refuse(wire.Invalid, "Writing %s: it is a folder.", files.Shown(p.path))
	case i.Mode()&fs.ModeSymlink != 0:
		to, _ := t.RealPath(p.path) // only to say it
		return p, wire.Refuse(wire.Invalid, "Writing %s: it is a link to %s; name that if it is meant.", files.Shown(p.path), files.Shown(to))
	case !i.Mode().IsRegular():
		return p, wire.Refuse(wire.Invalid, "Writing %s: it is not a file, and would be replaced by one.", files.Shown(p.path))
	default:
		p.old = i
	}
	dir, name := "", p.path
	if i := strings.LastIndexByte(p.path, '/'); i >= 0 {
		dir, name = p.path[:i+1], p.path[i+1:]
	}
	if name == "" || name == "." || name == ".." {
		return p, wire.Refuse(wire.NotFound, "Writing %s: the target has no such folder.", files.Shown(p.path))
	}
	p.dir, p.part = dir, dir+files.PartName(name)
	p.another = wire.Refuse(wire.Failed, "Writing %s: another copy to the same place was begun, and goes on.", files.Shown(p.path))
	return p, nil
}

// claim has the part for this put, until another one comes: that ends ctx. The
// stream stays for a while, so that its end can be told why.
func (w *work) claim(ctx context.Context, t remote.Files, p place) (mine context.Context, release func(), err error) {
	dir, err := t.RealPath(cmp.Or(p.dir, "."))
	if err != nil {
		return nil, nil, err
	}
	mine, end := context.WithCancelCause(ctx)
	part := remote.Part{Address: w.At, Account: w.Account, Path: strings.TrimRight(dir, "/") + "/" + strings.TrimPrefix(p.part, p.dir)}
	free, err := w.Claims.Claim(mine, part, w.Session, func(to session.ID) {
		if to == w.Session {
			// Most likely our own end came again after a loss, and its streams are
			// served in another order: it is to come once more if this is the later.
			end(wire.Refuse(wire.Unreachable, "Writing %s: the same copy was begun again.", files.Shown(p.path)))
		} else {
			end(p.another) // final: coming again would end the other in its turn
		}
		time.AfterFunc(lingering, w.cancel) // it may not be reading what is said to it
	})
	if err != nil {
		end(nil)
		return nil, nil, err
	}
	return mine, func() { free(); end(nil) }, nil
}

// left looks what an earlier put left, removes it where it is not gone on with,
// and whether there is room.
func (w *work) left(t remote.Files, p place) (place, error) {
	i, err := t.Lstat(p.part)
	if err == nil && i.Mode().IsRegular() && w.q.Resume {
		p.left = min(files.Whole(i.Size()), w.q.Size/files.Chunk*files.Chunk)
	}
	switch {
	case err == nil && p.left == 0:
		if err := t.Remove(p.part); err != nil {
			return p, trouble("Removing what an earlier copy left,", p.part, err)
		}
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return p, trouble("Writing", p.part, err)
	}
	if free, known := t.Free(cmp.Or(p.dir, ".")); known && uint64(max(w.q.Size-p.left, 0)) > free {
		return p, full(p.path, w.q.Size, free)
	}
	return p, nil
}

func full(path string, size int64, free uint64) error {
	return wire.Refuse(wire.Failed, "Writing %s: the target's disk is full: %d bytes are free, the file has %d.", files.Shown(path), free, size)
}

// put takes a file: into a part beside its place, which takes the place only
// when what the target gives back of it has the size and hash that were sent.
func (w *work) put(ctx context.Context, t remote.Files) error {
	if err := w.audit(ctx, auditWords[files.Put], "", map[string]string{"size": strconv.FormatInt(w.q.Size, 10)}); err != nil {
		return w.fail(err)
	}
	p, err := w.place(t)
	var got int64
	var end files.End
	if err == nil {
		got, end, err = w.take(ctx, t, p)
	}
	if err != nil {
		err = trouble("Writing", p.path, err)
		return errors.Join(w.fail(err), w.transferred(ctx, p.path, got, "", err))
	}
	return errors.Join(w.f.Say(files.FrameEnd, end), w.s.CloseWrite())
}

func (w *work) take(ctx context.Context, t remote.Files, p place) (got int64, end files.End, err error) {
	ctx, release, err := w.claim(ctx, t, p)
	if err != nil {
		return 0, end, err
	}
	defer release()
	if p, err = w.left(t, p); err != nil {
		return 0, end, err
	}
	if err := w.reply(files.Ready{Path: []byte(p.path), Part: p.left}); err != nil {
		return 0, end, lostOn(err)
	}
	if got, end, err = w.receive(ctx, t, p); err != nil {
		// What failed may have done so because it was told to end.
		var told *wire.Refusal
		if errors.As(context.Cause(ctx), &told) {
			err = told
		}
		err = w.spoiled(t, p, trouble("Writing", p.path, err))
	}
	return got, end, err
}

// lostError is one of the stream, not of the target: the part is good to go on with.
type lostError struct{ err error }

func lostOn(err error) error {
	if err == nil {
		return nil
	}
	return &lostError{err}
}

func (e *lostError) Error() string { return "the technician's end was lost: " + e.err.Error() }
func (e *lostError) Unwrap() error { return e.err }

// spoiled removes a part that will not become a file, so that a target whose
// disk is full gets its room back. SFTP has no error of its own for that.
func (w *work) spoiled(t remote.Files, p place, err error) error {
	var lost *lostError
	if errors.As(err, &lost) || files.Refusal(err).Code == wire.Unreachable || errors.Is(err, p.another) {
		return err // it will go on, or is another's
	}
	free, known := t.Free(cmp.Or(p.dir, "."))
	_ = t.Remove(p.part) // what can be done was done
	if known && free < files.Chunk {
		return full(p.path, w.q.Size, free)
	}
	return err
}

func (w *work) receive(ctx context.Context, t remote.Files, p place) (got int64, end files.End, err error) {
	next := w.reader(ctx)
	begin, err := w.agree(ctx, t, p, next)
	if err != nil {
		return 0, end, err
	}
	if begin.From == 0 && p.left > 0 {
		if err := t.Remove(p.part); err != nil {
			return 0, end, err
		}
	}
	f, err := t.Create(p.part, begin.From > 0)
	if err != nil {
		return 0, end, err
	}
	defer f.Close()
	if err := f.Truncate(begin.From); err != nil {
		return 0, end, err
	}
	if err := w.f.Say(files.FrameBegin, begin); err != nil {
		return 0, end, lostOn(err)
	}
	sent, got, err := w.write(f, begin.From, next)
	if err != nil {
		return got, end, err
	}
	if err := f.Sync(); err != nil {
		return got, end, err
	}
	if i, err := f.Stat(); err != nil || i.Size() != w.q.Size {
		return got, end, errors.Join(err, wrong(p.path, "size"))
	}
	// What counts is what the target has, not what was sent to it: a disk that
	// was full, a second writer, a server that loses writes, all end here.
	h := sha256.New()
	if err := w.digest(ctx, f, h, 0, w.q.Size); err != nil {
		return got, end, err
	}
	if sum(h) != sent.SHA256 {
		return got, end, wrong(p.path, "SHA-256")
	}
	note, err := w.dress(f, p)
	if err != nil {
		return got, end, err
	}
	is, err := f.Stat()
	if err != nil {
		return got, end, err
	}
	if err := f.Close(); err != nil {
		return got, end, err
	}
	// Somebody whom no claim of this agent holds back may write to the same place.
	// They would have begun the part anew; SFTP has no better way to tell that the
	// name is still this file.
	switch i, err := t.Lstat(p.part); {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return got, end, err
	case err != nil, i.Size() != is.Size(), !i.ModTime().Equal(is.ModTime()):
		return got, end, p.another
	}
	// Written down before it takes effect. A power cut between the two leaves a
	// whole part, an entry of the audit that says more than happened, and never
	// a file that it does not have.
	if err := w.transferred(ctx, p.path, w.q.Size, sent.SHA256, nil); err != nil {
		return got, end, err
	}
	return got, files.End{Size: w.q.Size, SHA256: sent.SHA256, Note: note}, t.Replace(p.part, p.path)
}

func wrong(path, what string) error {
	return wire.Refuse(wire.Failed, "Writing %s: the %s of what is at the target now is not that of what was sent; it was removed, and nothing was replaced.", files.Shown(path), what)
}

// frame is what Frames.Read gives.
type frame struct {
	kind    files.FrameKind
	content []byte
	err     error
}

// reader gives what reads the stream's frames and returns when ctx ends, too:
// what waits for a stream that is lost and not known to be is to end at once,
// and closing the stream would leave nothing to say so on. Content is good until
// the next frame is asked for.
func (w *work) reader(ctx context.Context) (next func() frame) {
	ask, come := make(chan struct{}), make(chan frame, 1)
	go func() { // ends with ctx, or with the stream if it reads
		for {
			select {
			case <-ask:
			case <-ctx.Done():
				return
			}
			kind, content, err := w.f.Read()
			come <- frame{kind, content, lostOn(err)} // has room: one is asked for at a time
		}
	}()
	return func() frame {
		select {
		case ask <- struct{}{}:
		case <-ctx.Done():
			return frame{err: context.Cause(ctx)}
		}
		select {
		case x := <-come:
			return x
		case <-ctx.Done():
			return frame{err: context.Cause(ctx)}
		}
	}
}

// agree finds out from where to go on.
func (w *work) agree(ctx context.Context, t remote.Files, p place, next func() frame) (begin files.Begin, err error) {
	if p.left == 0 {
		return begin, nil
	}
	var have files.Have
	switch x := next(); {
	case x.err != nil:
		return begin, x.err
	case x.kind != files.FrameHave:
		return begin, lostOn(fmt.Errorf("a frame of kind %q came where %q was due", x.kind, files.FrameHave))
	default:
		if err := files.Message(x.content, &have); err != nil {
			return begin, lostOn(err)
		}
	}
	if have.From != p.left || !isHash(have.SHA256) {
		return begin, wire.Refuse(wire.Invalid, "of the part of %d bytes the hash of %d came", p.left, have.From)
	}
	f, err := t.Open(p.part)
	if err != nil {
		return begin, err
	}
	defer f.Close()
	h := sha256.New()
	if err := w.digest(ctx, f, h, 0, p.left); err != nil && !errors.Is(err, errShrank) {
		return begin, err
	}
	if sum(h) != have.SHA256 {
		return files.Begin{Why: "what an earlier copy left at the target is of other content"}, nil
	}
	return files.Begin{From: p.left}, nil
}

// write takes content from the stream to the end frame: one chunk is read
// while the one before is written.
func (w *work) write(f remote.File, at int64, next func() frame) (end files.End, got int64, err error) {
	free, written := make(chan []byte, 2), make(chan error, 1)
	free <- make([]byte, 0, files.Chunk)
	free <- make([]byte, 0, files.Chunk)
	written <- nil
	flush := func(b []byte) error {
		if err := <-written; err != nil {
			written <- err
			return err
		}
		offset := at
		at += int64(len(b))
		go func() { // its end is waited for below
			_, err := f.WriteAt(b, offset)
			free <- b[:0]
			written <- err
		}()
		return nil
	}
	b := <-free
	for err == nil {
		x := next()
		if err = x.err; err != nil {
			break
		}
		kind, data := x.kind, x.content
		switch {
		case kind == files.FrameEnd:
			err = files.Message(data, &end)
			if err == nil && (at+int64(len(b)) != w.q.Size || end.Size != w.q.Size || !isHash(end.SHA256)) {
				err = wire.Refuse(wire.Invalid, "%d bytes and an end of %d came, the file was to have %d", at+int64(len(b)), end.Size, w.q.Size)
			}
			if err == nil && len(b) > 0 {
				err = flush(b)
			}
			if broken := <-written; err == nil {
				err = broken
			}
			return end, got, err
		case kind != files.FrameData:
			err = wire.Refuse(wire.Invalid, "a frame of kind %q came among the content", kind)
		case at+int64(len(b)+len(data)) > w.q.Size:
			err = wire.Refuse(wire.Invalid, "more came than the %d bytes that were announced", w.q.Size)
		}
		got += int64(len(data))
		for err == nil && len(data) > 0 {
			n := min(files.Chunk-len(b), len(data))
			b, data = append(b, data[:n]...), data[n:]
			if len(b) == files.Chunk {
				if err = flush(b); err == nil {
					b = <-free
				}
			}
		}
	}
	// The chunks before the cut are kept: the next one goes on after them. The rest
	// is not written now, though it would save a chunk: a loss is noticed late, and
	// the file may be somebody's by then who went on with the part and is done.
	return end, got, cmp.Or(<-written, err)
}

// dress gives the part the permissions and the owner of what it replaces, as a
// copy over it would leave them; a new file has those of its source, less what
// lets others write.
func (w *work) dress(f remote.File, p place) (note string, err error) {
	if p.old == nil {
		return "", f.Chmod(fs.FileMode(w.q.Mode &^ 0o022))
	}
	new, err := f.Stat()
	if err != nil {
		return "", err
	}
	uid, gid, known := remote.Owner(p.old)
	if u, g, ok := remote.Owner(new); known && ok && (u != uid || g != gid) {
		if err := f.Chown(uid, gid); err != nil {
			note = fmt.Sprintf("its owner was %d:%d and is now %d:%d", uid, gid, u, g)
		}
	}
	return note, f.Chmod(p.old.Mode().Perm())
}
