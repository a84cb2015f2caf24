package audit

import (
	"context"
	"crypto/ecdsa"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
)

// Signer makes an ECDSA signature, in ASN.1, of a SHA-256 digest.
type Signer func(ctx context.Context, digest []byte) ([]byte, error)

// Config is what a Writer is made of. Key, Sign, Now and Rand must be given.
type Config struct {
	Key  *ecdsa.PublicKey // the public half of Sign's key, P-256
	Sign Signer
	Now  func() time.Time
	Rand io.Reader
	Log  *slog.Logger // nil: silent
	GID  int          // group that may read; negative: as the process makes it

	SegmentSize int64 // begin a new segment after so many bytes; 0: 1 MiB
	Reserve     int64 // bytes kept free for essential actions; 0: 256 KiB
	// Essential names the actions that are still written when the disk is
	// full; nil: those of Essential.
	Essential func(action string) bool

	open func(dir, name string, gid int) (file, error) // tests make it fail
}

// ErrFull is the refusal of an action that is not essential on a full disk.
var ErrFull = errors.New("the data volume is full: signing in, reading, exporting and erasing still work; erase something first")

// essential is the short list of what must work on a full disk: getting in
// and out, looking, making room, and stopping the box in order.
var essential = []string{
	"sign-in", "sign-out", "reauthenticate", "end session", "end other sessions",
	"read", "export", "export configuration", "download", "verify", "erase", "remove recording", "restart", "switch off", "start", "stop",
}

// Essential says whether an action is accepted on a full disk.
func Essential(action string) bool { return slices.Contains(essential, action) }

// A Writer is the only one that appends to a log. Its methods may be called
// at the same time.
type Writer struct {
	c    Config
	dir  string
	lock *os.File
	key  []byte

	signing chan struct{} // holds one token: one checkpoint at a time

	mu         sync.Mutex
	broken     error // why nothing is accepted any more
	segment    file
	header     header
	month      string
	size       int64 // of the segment
	allocated  int64 // of the segment on disk; 0 if the file system cannot
	last       record
	checkpoint uint64
}

// Open opens the log in a folder, or begins one. What a power cut left of an
// unacknowledged line is removed and noted; a line that no power cut explains
// is left as it is, noted, and the log goes on in a new segment, so that the
// box works and Verify finds the place for ever.
func Open(dir string, c Config) (*Writer, error) {
	key, err := marshalKey(c.Key)
	if err != nil {
		return nil, err
	}
	if c.SegmentSize == 0 {
		c.SegmentSize = 1 << 20
	}
	if c.Reserve == 0 {
		c.Reserve = 256 << 10
	}
	if c.Essential == nil {
		c.Essential = Essential
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.open == nil {
		c.open = openSegment
	}
	w := &Writer{c: c, dir: dir, key: key, signing: make(chan struct{}, 1)}
	if err := w.lockDir(); err != nil {
		return nil, err
	}
	if err := w.resume(); err != nil {
		w.Close()
		return nil, fmt.Errorf("opening the audit log in %s: %w", dir, err)
	}
	return w, nil
}

func (w *Writer) lockDir() error {
	if err := os.MkdirAll(w.dir, 0o750); err != nil {
		return fmt.Errorf("making the audit log's folder: %w", err)
	}
	if w.c.GID >= 0 {
		if err := os.Chown(w.dir, -1, w.c.GID); err != nil {
			return fmt.Errorf("giving the audit log's folder to its readers: %w", err)
		}
	}
	d, err := os.Open(w.dir)
	if err != nil {
		return fmt.Errorf("opening the audit log's folder: %w", err)
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		d.Close()
		return fmt.Errorf("the audit log in %s is being written by another process: %w", w.dir, err)
	}
	w.lock = d
	return nil
}

// resume finds the end of the log and goes on there.
func (w *Writer) resume() error {
	names, err := segments(w.dir)
	if err != nil {
		return err
	}
	var notes []record
	for len(names) > 0 {
		name := names[len(names)-1]
		path := filepath.Join(w.dir, name)
		t, err := readTail(path)
		if err != nil {
			return err
		}
		if t.last != nil {
			w.last, w.header, w.month = *t.last, *t.header, month(t.last.Time.Time)
			w.checkpoint = max(w.checkpoint, t.checkpoint)
		}
		if t.damaged != nil {
			w.c.Log.Error("the audit log is damaged", "segment", name, "line", t.damaged.Line, "what", t.damaged.What)
			notes = append(notes, record{Kind: KindDamage, Damage: t.damaged})
			if t.last == nil {
				return errors.Join(w.before(names[:len(names)-1], t.lost), w.begin(notes...))
			}
			// Numbers that may stand in the unreadable part are not given again.
			w.last.Sequence += t.lost
			return w.begin(notes...)
		}
		if t.torn > 0 {
			w.c.Log.Warn("removing a torn line from the audit log", "segment", name, "bytes", t.torn)
			notes = append(notes, record{Kind: KindRecovered, Recovered: &recovered{Bytes: t.torn}})
		}
		if t.last == nil {
			// A cut while the segment was begun: nothing in it was acknowledged.
			if err := os.Remove(path); err != nil {
				return err
			}
			names = names[:len(names)-1]
			continue
		}
		return w.continueIn(name, t, notes)
	}
	return w.begin(notes...)
}

// before takes up the newest good entry of the segments before one that is
// damaged from its first line.
func (w *Writer) before(names []string, lost uint64) error {
	for _, name := range slices.Backward(names) {
		t, err := readTail(filepath.Join(w.dir, name))
		if err != nil {
			return err
		}
		lost += t.lost
		if t.last != nil {
			w.last, w.header, w.checkpoint = *t.last, *t.header, t.checkpoint
			break
		}
	}
	w.last.Sequence += lost
	return nil
}

// continueIn opens an existing segment for appending and cuts what is torn.
func (w *Writer) continueIn(name string, t tail, notes []record) error {
	f, err := w.c.open(w.dir, name, w.c.GID)
	if err != nil {
		return err
	}
	w.segment, w.size = f, t.size
	if t.torn > 0 {
		if err := f.Truncate(t.size); err != nil {
			return fmt.Errorf("removing a torn line: %w", err)
		}
		if err := f.Sync(); err != nil {
			return fmt.Errorf("removing a torn line: %w", err)
		}
	}
	if err := w.reserve(); err != nil && !errors.Is(err, ErrFull) {
		return err
	}
	if !slices.Equal(w.header.Key, w.key) {
		h := w.header
		h.Key = w.key
		notes = append(notes, record{Kind: KindHeader, Header: &h})
	}
	return w.writeAll(notes)
}

// begin starts a new segment with its header. A power cut before the header
// is whole leaves a segment without entries, which resume removes.
func (w *Writer) begin(notes ...record) error {
	h := header{Version: Version, Log: w.header.Log, Key: w.key}
	if h.Log == nil {
		h.Log = make([]byte, 16)
		if _, err := io.ReadFull(w.c.Rand, h.Log); err != nil {
			return fmt.Errorf("drawing the log's id: %w", err)
		}
	}
	name := fmt.Sprintf(segmentName, w.last.Sequence+1)
	f, err := w.c.open(w.dir, name, w.c.GID)
	if err != nil {
		return err
	}
	old, oldSize, oldAllocated := w.segment, w.size, w.allocated
	w.segment, w.size, w.allocated = f, 0, 0
	switch err := w.reserve(); {
	case errors.Is(err, ErrFull) && old != nil:
		// The old segment has its reserve still: the log goes on there.
		w.segment, w.size, w.allocated = old, oldSize, oldAllocated
		return errors.Join(f.Close(), os.Remove(filepath.Join(w.dir, name)))
	case err != nil && !errors.Is(err, ErrFull):
		return err
	}
	if old != nil {
		// Gives back the blocks reserved beyond its end; what is in it was synced line by line.
		if err := errors.Join(old.Truncate(oldSize), old.Close()); err != nil {
			w.c.Log.Warn("closing a segment of the audit log", "error", err)
		}
	}
	if err := w.writeAll(append([]record{{Kind: KindHeader, Header: &h}}, notes...)); err != nil {
		return w.stop(err) // no entry may stand in a segment without its header
	}
	return nil
}

func (w *Writer) writeAll(records []record) error {
	for _, r := range records {
		if err := w.write(r); err != nil {
			return err
		}
	}
	return nil
}

// write appends one record and returns when it is on disk. The line is the
// commit point: cut before its newline is durable, it is removed at the next
// start and was never acknowledged; cut after, it stands.
func (w *Writer) write(r record) error {
	now := w.c.Now().UTC().Truncate(time.Microsecond)
	r.Sequence, r.Time = w.last.Sequence+1, stamp{now}
	if w.last.Hash != nil {
		r.Prev = *w.last.Hash
	}
	line, err := r.seal()
	if err != nil {
		return err
	}
	if _, err := w.segment.Write(line); err != nil {
		if errors.Is(err, syscall.ENOSPC) && w.segment.Truncate(w.size) == nil {
			return ErrFull // the reserve is used up; the log stands as before
		}
		return w.stop(err)
	}
	// After a failed fsync the kernel may have dropped the pages and call the
	// next one a success: what is on disk is no longer known.
	if err := w.segment.Sync(); err != nil {
		return w.stop(err)
	}
	w.size += int64(len(line))
	w.last, w.month = r, month(now)
	switch r.Kind {
	case KindCheckpoint:
		w.checkpoint = r.Sequence
	case KindHeader:
		w.header = *r.Header
	}
	return nil
}

func (w *Writer) stop(err error) error {
	w.broken = fmt.Errorf("the audit log cannot be written and nothing is accepted until a restart: %w", err)
	w.c.Log.Error("the audit log has stopped", "error", err)
	return w.broken
}

// reserve keeps blocks beyond the end of the segment, so that essential
// actions find room when everything else has been used up.
func (w *Writer) reserve() error {
	if w.allocated-w.size >= w.c.Reserve {
		return nil
	}
	want := w.size + w.c.Reserve + w.c.Reserve/4
	switch err := w.segment.Allocate(want); {
	case err == nil:
		w.allocated = want
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return ErrFull
	case errors.Is(err, errors.ErrUnsupported):
		// Some file systems of NAS boxes; then a full disk refuses everything.
		return nil
	default:
		return w.stop(err)
	}
}

func month(t time.Time) string { return t.Format("2006-01") }

// Append writes an event and returns when it is on disk. When it returns an
// error the action must not happen.
func (w *Writer) Append(ctx context.Context, e control.Event) (control.Appended, error) {
	if e.Actor == "" || e.Action == "" {
		return control.Appended{}, errors.New("an audit event must say who did what")
	}
	e = valid(e)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.ready(ctx); err != nil {
		return control.Appended{}, err
	}
	full := w.reserve()
	// What was refused did not happen and needs no room: strangers who guess
	// would use up the reserve that the owner's sign-in is kept for.
	essential := w.c.Essential(e.Action) && e.Outcome != "refused"
	if full != nil && (!errors.Is(full, ErrFull) || !essential) {
		return control.Appended{}, full
	}
	if full == nil && w.due() {
		if err := w.begin(); err != nil {
			return control.Appended{}, err
		}
	}
	return w.appended(w.write(record{Kind: KindEvent, Event: &e}))
}

// valid replaces what is not UTF-8: JSON has two spellings for the
// replacement character, and the log must have one.
func valid(e control.Event) control.Event {
	fix := func(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
	e.Actor, e.Action, e.Object, e.From, e.Outcome = fix(e.Actor), fix(e.Action), fix(e.Object), fix(e.From), fix(e.Outcome)
	detail := make(map[string]string, len(e.Detail))
	for k, v := range e.Detail {
		detail[fix(k)] = fix(v)
	}
	e.Detail = detail
	return e
}

func (w *Writer) ready(ctx context.Context) error {
	if w.broken != nil {
		return w.broken
	}
	return ctx.Err()
}

// due says whether the next entry belongs into a new segment.
func (w *Writer) due() bool {
	return w.size >= w.c.SegmentSize || month(w.c.Now().UTC()) != w.month
}

func (w *Writer) appended(err error) (control.Appended, error) {
	if err != nil {
		return control.Appended{}, err
	}
	return control.Appended{Sequence: w.last.Sequence, Hash: hex.EncodeToString(w.last.Hash[:])}, nil
}

// Checkpoint signs the newest entry. If it is a checkpoint already, nothing
// is written. The log goes on while the signer works, which a TPM may do for
// a second or never: what is signed is the head as it was.
func (w *Writer) Checkpoint(ctx context.Context) (control.Appended, error) {
	select {
	case w.signing <- struct{}{}:
		defer func() { <-w.signing }()
	case <-ctx.Done():
		return control.Appended{}, ctx.Err()
	}
	w.mu.Lock()
	err := w.ready(ctx)
	head, log, done := w.last, w.header.Log, w.last.Kind == KindCheckpoint
	w.mu.Unlock()
	if err != nil || done {
		return control.Appended{Sequence: head.Sequence, Hash: hex.EncodeToString(head.Hash[:])}, err
	}
	sig, err := w.c.Sign(ctx, checkpointDigest(log, head.Sequence, *head.Hash))
	if err != nil {
		return control.Appended{}, fmt.Errorf("signing the head of the audit log: %w", err)
	}
	if !ecdsa.VerifyASN1(w.c.Key, checkpointDigest(log, head.Sequence, *head.Hash), sig) {
		return control.Appended{}, errors.New("signing the head of the audit log: the signature is not by the log's key")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.ready(ctx); err != nil {
		return control.Appended{}, err
	}
	return w.appended(w.write(record{Kind: KindCheckpoint, Checkpoint: &checkpoint{Covers: head.Sequence, Head: *head.Hash, Signature: sig}}))
}

// Head is the newest entry, for status.
func (w *Writer) Head() control.AuditHead {
	w.mu.Lock()
	defer w.mu.Unlock()
	return control.AuditHead{
		Sequence: w.last.Sequence, Hash: hex.EncodeToString(w.last.Hash[:]),
		Checkpoint: w.checkpoint, At: w.last.Time.Time,
	}
}

// Close ends the writer. Nothing is lost by not calling it.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken = errors.New("the audit log is closed")
	var err error
	if w.segment != nil {
		err = w.segment.Close()
		w.segment = nil
	}
	if w.lock != nil {
		err = errors.Join(err, w.lock.Close())
		w.lock = nil
	}
	return err
}
