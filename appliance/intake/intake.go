// Package intake brings a release into the slot that does not run: from a bundle, in parts, or from a mirror.
//
// It judges nothing: the privileged process looks at the manifest and at every
// byte. What is here is bounded by what that process said the release has.
package intake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/firmware"
)

// Ports are the requests of the privileged process that bring a release in.
type Ports struct {
	Begin func(context.Context, control.UpdateBegin) (control.UpdateOffset, error)
	Write func(context.Context, control.UpdateWrite) (control.UpdateOffset, error)
}

// pieceWait is for one piece; the last one has the whole read back from the disk.
const pieceWait = 5 * time.Minute

// Intake brings in one release at a time.
type Intake struct {
	ports Ports

	mu      sync.Mutex
	current *transfer
}

// transfer is one that runs.
type transfer struct {
	stop context.CancelCauseFunc
	done chan struct{}
}

// New makes an Intake.
func New(p Ports) *Intake { return &Intake{ports: p} }

// Why a transfer ends that could have gone on.
var (
	errOvertaken = invalid("the release is being sent again, or another one is: this transfer ends")
	errBusy      = invalid("a person is bringing in a release")
)

func invalid(format string, a ...any) error {
	return &control.Error{Code: control.CodeInvalid, Text: fmt.Sprintf(format, a...)}
}

// Source is where bytes come from. Interrupt, if there is one, ends a read that
// waits: the connection behind it may be gone without anybody knowing.
type Source struct {
	io.Reader
	Interrupt func()
	// Most is how many bytes can come, by what was said of them; 0 or less: nobody said.
	Most int64
}

// errEarly is an end before the end.
var errEarly = errors.New("what was sent ends before the system does")

// Bundle brings in a bundle from its beginning. What the box has of it already
// is read over.
func (i *Intake) Bundle(ctx context.Context, by control.By, again bool, s Source) (control.UpdateOffset, error) {
	ctx, end, err := i.enter(ctx, s.Interrupt, true)
	if err != nil {
		return control.UpdateOffset{}, err
	}
	defer end()
	note, system, err := firmware.ReadBundle(reader{ctx, s})
	if errors.Is(err, firmware.ErrMalformed) {
		err = invalid("%v", err)
	}
	if err != nil {
		return control.UpdateOffset{}, err
	}
	if err := long(note, s.Most); err != nil {
		return control.UpdateOffset{}, err
	}
	at, err := i.Offer(ctx, control.UpdateBegin{By: by, Manifest: note, Again: again})
	if err != nil {
		return at, err
	}
	over, err := io.CopyN(io.Discard, system, at.Offset)
	if errors.Is(err, io.EOF) {
		return at, invalid("the file has %d bytes of a system of %d: it was not copied as a whole. The box has %d already", over, at.Size, at.Offset)
	}
	if err == nil {
		at, err = i.fill(ctx, at, system)
	}
	if errors.Is(err, errEarly) {
		err = invalid("the file has %d bytes of a system of %d: it was not copied as a whole. Send the whole one, the box goes on from there", at.Offset, at.Size)
	}
	return at, err
}

// long refuses a bundle that cannot hold the system that its manifest names: once it
// is offered, what the other slot had is gone. What is wrong with a manifest the
// privileged process says.
func long(note []byte, most int64) error {
	said, err := firmware.Unverified(note)
	if err != nil || most <= 0 {
		return nil
	}
	system, err := said.System(runtime.GOARCH)
	if err == nil && most-firmware.BundleHead(note) < system.Size {
		return invalid("the file is shorter than the system of %d bytes that its manifest names: it was not copied as a whole. Fetch it again; what the box has stays", system.Size)
	}
	return nil
}

// Offer has a manifest judged, and says from where on its bytes are wanted.
func (i *Intake) Offer(ctx context.Context, q control.UpdateBegin) (control.UpdateOffset, error) {
	at, err := i.ports.Begin(ctx, q)
	if err == nil && (at.Offset < 0 || at.Offset > at.Size || at.Size > firmware.MaxSystem) {
		err = fmt.Errorf("the transfer of version %s stands at %d of %d bytes, which cannot be", at.Version, at.Offset, at.Size)
	}
	return at, err
}

// Part goes on with a release that was offered: its bytes from at.Offset on, as
// many as come.
func (i *Intake) Part(ctx context.Context, at control.UpdateOffset, s Source) (control.UpdateOffset, error) {
	if at.Offset < 0 || at.Offset > at.Size || at.Size > firmware.MaxSystem {
		return at, invalid("a part begins within the system, which has %d bytes", at.Size)
	}
	ctx, end, err := i.enter(ctx, s.Interrupt, true)
	if err != nil {
		return at, err
	}
	defer end()
	at, err = i.fill(ctx, at, reader{ctx, s})
	if errors.Is(err, errEarly) {
		err = nil
	}
	return at, err
}

// enter makes room for a transfer. One that a person sends ends the one before;
// the mirror's waits for another time.
func (i *Intake) enter(ctx context.Context, interrupt func(), person bool) (context.Context, func(), error) {
	ctx, stop := context.WithCancelCause(ctx)
	t := &transfer{stop: stop, done: make(chan struct{})}
	for {
		i.mu.Lock()
		before := i.current
		if before == nil {
			i.current = t
			i.mu.Unlock()
			break
		}
		i.mu.Unlock()
		if !person {
			stop(nil)
			return nil, nil, errBusy
		}
		before.stop(errOvertaken)
		select {
		case <-before.done:
		case <-ctx.Done():
			stop(nil)
			return nil, nil, context.Cause(ctx)
		}
	}
	quiet := func() {}
	if interrupt != nil {
		over := make(chan struct{})
		asleep := context.AfterFunc(ctx, func() {
			defer close(over)
			interrupt()
		})
		// The connection is its owner's again only when nobody touches it any more.
		quiet = func() {
			if !asleep() {
				<-over
			}
		}
	}
	return ctx, func() {
		quiet()
		i.mu.Lock()
		i.current = nil
		i.mu.Unlock()
		stop(nil)
		close(t.done)
	}, nil
}

// reader reads until ctx ends.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(b []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	n, err := r.r.Read(b)
	if cause := context.Cause(r.ctx); err != nil && cause != nil {
		err = cause
	}
	return n, err
}

// fill writes what comes until the system is whole. The last piece is written
// once it is known that nothing comes after it.
func (i *Intake) fill(ctx context.Context, at control.UpdateOffset, r io.Reader) (control.UpdateOffset, error) {
	b := make([]byte, control.MaxUpdateWrite+1)
	for at.Offset < at.Size {
		want := min(at.Size-at.Offset, control.MaxUpdateWrite)
		read := want
		if at.Offset+want == at.Size {
			read++
		}
		n, end := io.ReadFull(r, b[:read])
		if int64(n) > want {
			return at, invalid("the file goes on after the system that its manifest names: it is not what was released")
		}
		if errors.Is(end, io.EOF) || errors.Is(end, io.ErrUnexpectedEOF) {
			end = errEarly
		}
		if n > 0 {
			next, err := i.write(ctx, control.UpdateWrite{Version: at.Version, Offset: at.Offset, Data: b[:n]})
			if err != nil {
				return at, err
			}
			if next.Offset != at.Offset+int64(n) {
				return next, invalid("somebody else brings in a release at the same time: it stands at %d of %d bytes", next.Offset, next.Size)
			}
			at = next
		}
		if end != nil && at.Offset < at.Size {
			return at, end
		}
	}
	return at, nil
}

// write has a piece written. It comes to its end though its sender went away, so
// that nobody asks where the transfer stands while it moves.
func (i *Intake) write(ctx context.Context, q control.UpdateWrite) (control.UpdateOffset, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pieceWait)
	defer cancel()
	return i.ports.Write(ctx, q)
}
