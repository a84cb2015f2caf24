package files

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pkg/sftp"

	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/session/wire"
)

// ahead is how many chunks are read before they are wanted: with Chunk, what a
// transfer holds in memory at most, whatever the file's size.
const ahead = 3

// read gives the bytes from..to of a file to use, in order, reading ahead.
func read(ctx context.Context, f io.ReaderAt, from, to int64, use func([]byte) error) error {
	type chunk struct {
		b   []byte
		n   int
		err error
	}
	ctx, cancel := context.WithCancel(ctx)
	free := make(chan []byte, ahead)
	full := make(chan chan chunk, ahead)
	for range ahead {
		free <- make([]byte, min(Chunk, max(to-from, 1)))
	}
	var readers sync.WaitGroup
	readers.Go(func() {
		defer close(full)
		for at := from; at < to; {
			var b []byte
			select {
			case b = <-free:
			case <-ctx.Done():
				return
			}
			b = b[:min(Chunk, to-at)]
			one, offset := make(chan chunk, 1), at
			readers.Go(func() {
				n, err := f.ReadAt(b, offset)
				one <- chunk{b, n, err}
			})
			full <- one // never more than there are buffers
			at += int64(len(b))
		}
	})
	defer readers.Wait()
	defer cancel()
	for one := range full {
		c := <-one
		if c.n < len(c.b) {
			if c.err == nil || errors.Is(c.err, io.EOF) {
				return errShrank
			}
			return c.err
		}
		if err := use(c.b); err != nil {
			return err
		}
		free <- c.b[:cap(c.b)]
	}
	return ctx.Err()
}

var errShrank = errors.New("it became shorter while it was read")

// digest adds the bytes from..to of a file to a hash, and says how far it is
// now and then: the technician's end shows it, and sees that the agent lives.
func (w *work) digest(ctx context.Context, f io.ReaderAt, h hash.Hash, from, to int64) error {
	done, told := from, time.Now()
	return read(ctx, f, from, to, func(b []byte) error {
		h.Write(b)
		done += int64(len(b))
		if time.Since(told) < time.Second {
			return nil
		}
		told = time.Now()
		return lostOn(w.f.Say(FrameProgress, End{Size: done}))
	})
}

func sum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// open finds a file that can be read: a device or a pipe might never end.
func (w *work) open(t Target, path string) (Content, fs.FileInfo, error) {
	look := t.Stat
	if w.q.NoLinks {
		look = t.Lstat
	}
	i, err := look(path)
	switch {
	case err != nil:
		return nil, nil, trouble("Opening", path, err)
	case i.IsDir():
		return nil, nil, wire.Refuse(wire.Invalid, "%s is a folder.", Shown(path))
	case !i.Mode().IsRegular():
		return nil, nil, wire.Refuse(wire.Invalid, "%s is not a file: devices, pipes and links are left alone.", Shown(path))
	}
	f, err := t.Open(path)
	if err != nil {
		return nil, nil, trouble("Opening", path, err)
	}
	if i, err = f.Stat(); err != nil {
		f.Close()
		return nil, nil, trouble("Opening", path, err)
	}
	return f, i, nil
}

func (w *work) hash(ctx context.Context, t Target) error {
	path := string(w.q.Path)
	if err := w.audit(ctx, auditWords[Hash], "", nil); err != nil {
		return w.fail(err)
	}
	f, i, err := w.open(t, path)
	if err != nil {
		return w.fail(err)
	}
	defer f.Close()
	if err := w.reply(entry(path, i)); err != nil {
		return err
	}
	h := sha256.New()
	n := min(w.q.Size, i.Size())
	if err := w.digest(ctx, f, h, 0, n); err != nil {
		return w.fail(trouble("Reading", path, err))
	}
	return errors.Join(w.f.Say(FrameEnd, End{Size: n, SHA256: sum(h)}), w.s.CloseWrite())
}

// fail says that nothing comes of it, as the answer or instead of the end.
func (w *work) fail(err error) error {
	if !w.replied {
		return refuse(w.s, err)
	}
	return errors.Join(err, w.f.Fail(err), w.s.CloseWrite())
}

// transferred writes down the end of a transfer, here and at the hub.
func (w *work) transferred(ctx context.Context, path string, size int64, hash string, failure error) error {
	way := map[Op]string{Get: "received", Put: "sent"}[w.q.Op]
	detail := map[string]string{"path": Shown(path), "size": strconv.FormatInt(size, 10)}
	outcome := "ok"
	if failure != nil {
		outcome = "failed"
		detail["error"] = failure.Error()
	} else {
		detail["sha256"] = hash
	}
	if err := w.outcome(ctx, auditWords[w.q.Op], outcome, detail); err != nil {
		return err
	}
	detail["way"] = way
	_ = w.Tell(attend.FromSite{Event: &attend.Event{Session: w.Session, What: attend.File, Detail: detail}}) // see Config
	return nil
}

// get sends a file as it is long now; what is appended meanwhile is not in it.
func (w *work) get(ctx context.Context, t Target) error {
	path := string(w.q.Path)
	if err := w.audit(ctx, auditWords[Get], "", map[string]string{"from": strconv.FormatInt(w.q.From, 10)}); err != nil {
		return w.fail(err)
	}
	sent, end, err := w.sendAll(ctx, t, path)
	if err != nil {
		err = trouble("Reading", path, err)
		return errors.Join(w.fail(err), w.transferred(ctx, path, sent, "", err))
	}
	// Without the end the other side has no file, so it is written down before.
	if err := w.transferred(ctx, path, end.Size, end.SHA256, nil); err != nil {
		return w.fail(err)
	}
	return errors.Join(w.f.Say(FrameEnd, end), w.s.CloseWrite())
}

func (w *work) sendAll(ctx context.Context, t Target, path string) (sent int64, end End, err error) {
	f, i, err := w.open(t, path)
	if err != nil {
		return 0, end, err
	}
	defer f.Close()
	if err := w.reply(entry(path, i)); err != nil {
		return 0, end, err
	}
	sent, digest, err := w.send(ctx, f, i)
	if err != nil {
		return sent, end, err
	}
	after, err := f.Stat()
	if err != nil {
		return sent, end, err
	}
	changed := after.Size() != i.Size() || !after.ModTime().Equal(i.ModTime())
	return sent, End{Size: i.Size(), SHA256: digest, Changed: changed}, nil
}

func (w *work) send(ctx context.Context, f Content, i fs.FileInfo) (sent int64, digest string, err error) {
	h, begin := sha256.New(), Begin{}
	switch {
	case w.q.From > i.Size():
		begin.Why = "the file at the target is shorter than what is here already"
	case w.q.From > 0:
		if err := w.digest(ctx, f, h, 0, w.q.From); err != nil {
			return 0, "", err
		}
		if begin.From = w.q.From; sum(h) != w.q.SHA256 {
			h, begin = sha256.New(), Begin{Why: "the file at the target begins otherwise than what is here already"}
		}
	}
	if err := w.f.Say(FrameBegin, begin); err != nil {
		return 0, "", lostOn(err)
	}
	err = read(ctx, f, begin.From, i.Size(), func(b []byte) error {
		h.Write(b)
		sent += int64(len(b))
		return lostOn(w.f.Write(FrameData, b))
	})
	return sent, sum(h), err
}

// place is where a put goes.
type place struct {
	path, part string
	dir        string      // of both, with its slash; empty: where the account begins
	old        fs.FileInfo // of what is there now; nil: nothing
	left       int64       // bytes of the part that an earlier put left
}

func (w *work) place(t Target) (p place, err error) {
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
		return p, wire.Refuse(wire.Invalid, "Writing %s: it is a folder.", Shown(p.path))
	case i.Mode()&fs.ModeSymlink != 0:
		to, _ := t.RealPath(p.path) // only to say it
		return p, wire.Refuse(wire.Invalid, "Writing %s: it is a link to %s; name that if it is meant.", Shown(p.path), Shown(to))
	case !i.Mode().IsRegular():
		return p, wire.Refuse(wire.Invalid, "Writing %s: it is not a file, and would be replaced by one.", Shown(p.path))
	default:
		p.old = i
	}
	dir, name := "", p.path
	if i := strings.LastIndexByte(p.path, '/'); i >= 0 {
		dir, name = p.path[:i+1], p.path[i+1:]
	}
	if name == "" || name == "." || name == ".." {
		return p, wire.Refuse(wire.NotFound, "Writing %s: the target has no such folder.", Shown(p.path))
	}
	p.dir, p.part = dir, dir+PartName(name)
	return p, nil
}

// left looks what an earlier put left, removes it where it is not gone on with,
// and whether there is room.
func (w *work) left(t Target, p place) (place, error) {
	i, err := t.Lstat(p.part)
	if err == nil && i.Mode().IsRegular() && w.q.Resume {
		p.left = min(Whole(i.Size()), w.q.Size/Chunk*Chunk)
	}
	switch {
	case err == nil && p.left == 0:
		if err := t.Remove(p.part); err != nil {
			return p, trouble("Removing what an earlier copy left,", p.part, err)
		}
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return p, trouble("Writing", p.part, err)
	}
	if free, known := t.Free(cmpOr(p.dir, ".")); known && uint64(max(w.q.Size-p.left, 0)) > free {
		return p, full(p.path, w.q.Size, free)
	}
	return p, nil
}

func cmpOr(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func full(path string, size int64, free uint64) error {
	return wire.Refuse(wire.Failed, "Writing %s: the target's disk is full: %d bytes are free, the file has %d.", Shown(path), free, size)
}

// put takes a file: into a part beside its place, which takes the place only
// when what the target gives back of it has the size and hash that were sent.
func (w *work) put(ctx context.Context, t Target) error {
	if err := w.audit(ctx, auditWords[Put], "", map[string]string{"size": strconv.FormatInt(w.q.Size, 10)}); err != nil {
		return w.fail(err)
	}
	p, err := w.place(t)
	var got int64
	var end End
	if err == nil {
		got, end, err = w.take(ctx, t, p)
	}
	if err != nil {
		err = trouble("Writing", p.path, err)
		return errors.Join(w.fail(err), w.transferred(ctx, p.path, got, "", err))
	}
	return errors.Join(w.f.Say(FrameEnd, end), w.s.CloseWrite())
}

func (w *work) take(ctx context.Context, t Target, p place) (got int64, end End, err error) {
	release, err := w.Files.claim(ctx, p.part, w.cancel)
	if err != nil {
		return 0, end, err
	}
	defer release()
	if p, err = w.left(t, p); err != nil {
		return 0, end, err
	}
	if err := w.reply(Ready{[]byte(p.path), p.left}); err != nil {
		return 0, end, lostOn(err)
	}
	if got, end, err = w.receive(ctx, t, p); err != nil {
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
func (w *work) spoiled(t Target, p place, err error) error {
	var lost *lostError
	if errors.As(err, &lost) || asRefusal(err).Code == wire.Unreachable {
		return err // it will go on
	}
	free, known := t.Free(cmpOr(p.dir, "."))
	_ = t.Remove(p.part) // what can be done was done
	if known && free < Chunk {
		return full(p.path, w.q.Size, free)
	}
	return err
}

func (w *work) receive(ctx context.Context, t Target, p place) (got int64, end End, err error) {
	begin, err := w.agree(ctx, t, p)
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
	if err := w.f.Say(FrameBegin, begin); err != nil {
		return 0, end, lostOn(err)
	}
	sent, got, err := w.write(f, begin.From)
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
	// Another session may write to the same place. It would have begun its part
	// anew; SFTP has no better way to tell that the name is still this file.
	if i, err := t.Lstat(p.part); err != nil || i.Size() != is.Size() || !i.ModTime().Equal(is.ModTime()) {
		return got, end, wire.Refuse(wire.Failed, "Writing %s: another copy to the same place goes on.", Shown(p.path))
	}
	// Written down before it takes effect. A power cut between the two leaves a
	// whole part, an entry of the audit that says more than happened, and never
	// a file that it does not have.
	if err := w.transferred(ctx, p.path, w.q.Size, sent.SHA256, nil); err != nil {
		return got, end, err
	}
	return got, End{Size: w.q.Size, SHA256: sent.SHA256, Note: note}, t.Replace(p.part, p.path)
}

func wrong(path, what string) error {
	return wire.Refuse(wire.Failed, "Writing %s: the %s of what is at the target now is not that of what was sent; it was removed, and nothing was replaced.", Shown(path), what)
}

// agree finds out from where to go on.
func (w *work) agree(ctx context.Context, t Target, p place) (begin Begin, err error) {
	if p.left == 0 {
		return begin, nil
	}
	var have Have
	if err := w.f.Expect(FrameHave, &have, nil); err != nil {
		return begin, lostOn(err)
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
		return Begin{Why: "what an earlier copy left at the target is of other content"}, nil
	}
	return Begin{From: p.left}, nil
}

// write takes content from the stream to the end frame: one chunk is read
// while the one before is written.
func (w *work) write(f Content, at int64) (end End, got int64, err error) {
	free, written := make(chan []byte, 2), make(chan error, 1)
	free <- make([]byte, 0, Chunk)
	free <- make([]byte, 0, Chunk)
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
		var kind FrameKind
		var data []byte
		if kind, data, err = w.f.Read(); err != nil {
			err = lostOn(err)
			break
		}
		switch {
		case kind == FrameEnd:
			err = Message(data, &end)
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
		case kind != FrameData:
			err = wire.Refuse(wire.Invalid, "a frame of kind %q came among the content", kind)
		case at+int64(len(b)+len(data)) > w.q.Size:
			err = wire.Refuse(wire.Invalid, "more came than the %d bytes that were announced", w.q.Size)
		}
		got += int64(len(data))
		for err == nil && len(data) > 0 {
			n := min(Chunk-len(b), len(data))
			b, data = append(b, data[:n]...), data[n:]
			if len(b) == Chunk {
				if err = flush(b); err == nil {
					b = <-free
				}
			}
		}
	}
	// What came before the cut is kept: the next one goes on after it.
	if broken := <-written; broken != nil {
		return end, got, broken
	}
	var lost *lostError
	if errors.As(err, &lost) && len(b) > 0 {
		_, _ = f.WriteAt(b, at) // less to send again if it works
	}
	return end, got, err
}

// dress gives the part the permissions and the owner of what it replaces, as a
// copy over it would leave them; a new file has those of its source, less what
// lets others write.
func (w *work) dress(f Content, p place) (note string, err error) {
	if p.old == nil {
		return "", f.Chmod(fs.FileMode(w.q.Mode &^ 0o022))
	}
	new, err := f.Stat()
	if err != nil {
		return "", err
	}
	was, ok1 := p.old.Sys().(*sftp.FileStat)
	is, ok2 := new.Sys().(*sftp.FileStat)
	if ok1 && ok2 && (was.UID != is.UID || was.GID != is.GID) {
		if err := f.Chown(int(was.UID), int(was.GID)); err != nil {
			note = fmt.Sprintf("its owner was %d:%d and is now %d:%d", was.UID, was.GID, is.UID, is.GID)
		}
	}
	return note, f.Chmod(p.old.Mode().Perm())
}
