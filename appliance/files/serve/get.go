package serve

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"io/fs"
	"strconv"
	"sync"
	"time"

	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/files"
	"gatehouse/appliance/files/remote"
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
		free <- make([]byte, min(files.Chunk, max(to-from, 1)))
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
			b = b[:min(files.Chunk, to-at)]
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
		return lostOn(w.f.Say(files.FrameProgress, files.End{Size: done}))
	})
}

func sum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// open finds a file that can be read: a device or a pipe might never end.
func (w *work) open(t remote.Files, path string) (remote.File, fs.FileInfo, error) {
	look := t.Stat
	if w.q.NoLinks {
		look = t.Lstat
	}
	i, err := look(path)
	switch {
	case err != nil:
		return nil, nil, trouble("Opening", path, err)
	case i.IsDir():
		return nil, nil, wire.Refuse(wire.Invalid, "%s is a folder.", files.Shown(path))
	case !i.Mode().IsRegular():
		return nil, nil, wire.Refuse(wire.Invalid, "%s is not a file: devices, pipes and links are left alone.", files.Shown(path))
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

func (w *work) hash(ctx context.Context, t remote.Files) error {
	path := string(w.q.Path)
	if err := w.audit(ctx, auditWords[files.Hash], "", nil); err != nil {
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
	return errors.Join(w.f.Say(files.FrameEnd, files.End{Size: n, SHA256: sum(h)}), w.s.CloseWrite())
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
	way := map[files.Op]string{files.Get: "received", files.Put: "sent"}[w.q.Op]
	detail := map[string]string{"path": files.Shown(path), "size": strconv.FormatInt(size, 10)}
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
func (w *work) get(ctx context.Context, t remote.Files) error {
	path := string(w.q.Path)
	if err := w.audit(ctx, auditWords[files.Get], "", map[string]string{"from": strconv.FormatInt(w.q.From, 10)}); err != nil {
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
	return errors.Join(w.f.Say(files.FrameEnd, end), w.s.CloseWrite())
}

func (w *work) sendAll(ctx context.Context, t remote.Files, path string) (sent int64, end files.End, err error) {
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
	return sent, files.End{Size: i.Size(), SHA256: digest, Changed: changed}, nil
}

func (w *work) send(ctx context.Context, f remote.File, i fs.FileInfo) (sent int64, digest string, err error) {
	h, begin := sha256.New(), files.Begin{}
	switch {
	case w.q.From > i.Size():
		begin.Why = "the file at the target is shorter than what is here already"
	case w.q.From > 0:
		if err := w.digest(ctx, f, h, 0, w.q.From); err != nil {
			return 0, "", err
		}
		if begin.From = w.q.From; sum(h) != w.q.SHA256 {
			h, begin = sha256.New(), files.Begin{Why: "the file at the target begins otherwise than what is here already"}
		}
	}
	if err := w.f.Say(files.FrameBegin, begin); err != nil {
		return 0, "", lostOn(err)
	}
	err = read(ctx, f, begin.From, i.Size(), func(b []byte) error {
		h.Write(b)
		sent += int64(len(b))
		return lostOn(w.f.Write(files.FrameData, b))
	})
	return sent, sum(h), err
}
