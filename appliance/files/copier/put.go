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

// Put copies the file name in dir to path, or into it as base if it is a folder.
func (c *Copier) Put(ctx context.Context, dir *os.Root, name, path, base string) (Result, error) {
	p := put{c: c, path: path, base: base, resume: c.Resume}
	for n := 1; ; n++ {
		f, i, err := regular(dir, name, os.O_RDONLY)
		if err != nil {
			return Result{}, err
		}
		p.f, p.name, p.size, p.mode = f, name, i.Size(), i.Mode()
		p.check = func(digest string) error { return p.same(ctx, i, digest) }
		var end files.End
		err = c.again(ctx, name, func() (from int64, err error) {
			end, from, err = p.once(ctx)
			p.resume = true
			return from, err
		})
		f.Close()
		switch {
		case errors.Is(err, errChanged) && n < changes:
			c.say("%s: %v; it is copied anew", files.Shown(name), errChanged)
			p.resume = false
			continue
		case err != nil:
			return Result{}, err
		}
		return Result{Source: name, Destination: p.at, Size: end.Size, SHA256: end.SHA256, Note: end.Note}, nil
	}
}

type put struct {
	c          *Copier
	f          *os.File
	name       string
	size       int64
	mode       fs.FileMode
	path, base string
	at         string                    // where the agent says it goes
	resume     bool                      //
	check      func(digest string) error // that the source is still what was sent
}

// same says whether what was read of the source is whole: it has not changed,
// or only something was appended to it.
func (p *put) same(ctx context.Context, before fs.FileInfo, digest string) error {
	after, err := p.f.Stat()
	if err != nil {
		return local(err)
	}
	if after.Size() == before.Size() && after.ModTime().Equal(before.ModTime()) {
		return nil
	}
	h := sha256.New()
	if err := p.c.digest(ctx, p.name, p.f, h, p.size, p.size); err != nil || sum(h) != digest {
		return errors.Join(errChanged, ctx.Err())
	}
	return nil
}

func (p *put) once(ctx context.Context) (end files.End, from int64, err error) {
	q := files.Request{Op: files.Put, Path: []byte(p.path), Name: []byte(p.base), Size: p.size, Mode: uint32(p.mode.Perm()), Resume: p.resume}
	var ready files.Ready
	s, frames, err := p.c.request(ctx, q, &ready)
	if err != nil {
		return end, 0, err
	}
	defer s.Close()
	if p.at = string(ready.Path); ready.Part < 0 || ready.Part > p.size {
		return end, 0, local(fmt.Errorf("%s: the agent says that %d bytes of %d are there", files.Shown(p.name), ready.Part, p.size))
	}
	h := sha256.New()
	if ready.Part > 0 {
		if err := p.c.digest(ctx, p.name, p.f, h, ready.Part, p.size); err != nil {
			return end, 0, err
		}
		if err := frames.Say(files.FrameHave, files.Have{From: ready.Part, SHA256: sum(h)}); err != nil {
			return end, 0, err
		}
	}
	var begin files.Begin
	if err := frames.Expect(files.FrameBegin, &begin, func(done int64) { p.c.progress(p.name, done, p.size, true) }); err != nil {
		return end, 0, err
	}
	if begin.From != ready.Part {
		if begin.From != 0 {
			return end, 0, local(fmt.Errorf("%s: the agent goes on at %d, there was %d", files.Shown(p.name), begin.From, ready.Part))
		}
		p.c.say("%s: it is copied from its beginning: %s", files.Shown(p.name), begin.Why)
		h.Reset()
	}
	if _, err := p.f.Seek(begin.From, io.SeekStart); err != nil {
		return end, 0, local(err)
	}
	end, err = p.send(s, frames, h, begin.From)
	return end, begin.From, err
}

// send writes the content while it listens: the agent may say at any time that
// nothing comes of it. What it says in the end is the answer.
func (p *put) send(s io.Closer, frames *files.Frames, h hash.Hash, at int64) (end files.End, err error) {
	answer := make(chan error, 1)
	go func() { // ends with the stream, which once closes
		err := frames.Expect(files.FrameEnd, &end, func(done int64) { p.c.progress(p.name, done, p.size, true) })
		if err != nil {
			s.Close() // a write that waits for the agent ends
		}
		answer <- err
	}()
	sending := p.content(frames, h, at)
	if sending != nil && !lost(sending) {
		s.Close()
		<-answer
		return end, sending
	}
	if err := <-answer; err != nil {
		return end, err // says more than that the stream was closed
	}
	if sending != nil {
		return end, sending
	}
	if end.Size != p.size || !sameHash(end.SHA256, sum(h)) {
		return end, fmt.Errorf("%s: the agent says that the target has %d bytes with the SHA-256 %.64q, sent were %d with %s: %w", files.Shown(p.name), end.Size, end.SHA256, p.size, sum(h), ErrWrong)
	}
	return end, nil
}

func (p *put) content(frames *files.Frames, h hash.Hash, at int64) error {
	buf := make([]byte, files.MaxContent)
	for at < p.size {
		n, err := io.ReadFull(p.f, buf[:min(int64(len(buf)), p.size-at)])
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return errChanged // it became shorter
		} else if err != nil {
			return local(err)
		}
		h.Write(buf[:n])
		if err := frames.Write(files.FrameData, buf[:n]); err != nil {
			return err
		}
		at += int64(n)
		p.c.progress(p.name, at, p.size, false)
	}
	if err := p.check(sum(h)); err != nil {
		return err // without an end the agent keeps nothing
	}
	return frames.Say(files.FrameEnd, files.End{Size: p.size, SHA256: sum(h)})
}
