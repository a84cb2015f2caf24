package broker

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/recording"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
)

// Limits of what recordings may take. What is beyond is refused, not rotated
// away: a recording that was forced must not vanish because another came.
const (
	maxRecording = 1 << 30  // bytes of one
	leaveFree    = 64 << 20 // bytes of the disk for everything else
)

// castCache remembers what was read of recordings, which do not change.
type castCache struct {
	sync.Mutex
	known map[session.ID]cast
}

type cast struct {
	size    int64
	seconds float64
	whole   bool
	problem string
}

// chunk keeps a part of a recording, at its place and nowhere else. A recording
// may come after its session is over: the line was cut, or the site was off.
func (b *Broker) chunk(ctx context.Context, site string, c attend.Chunk) attend.Kept {
	kept := attend.Kept{Session: c.Session}
	size, err := b.store(ctx, site, c)
	kept.Size = size
	if err != nil {
		kept.Problem = err.Error()
		b.cfg.Log.Warn("a part of a recording is not kept", "session", c.Session, "err", err)
	}
	return kept
}

func (b *Broker) store(ctx context.Context, site string, c attend.Chunk) (int64, error) {
	if len(c.Bytes) > attend.MaxChunk || c.At < 0 {
		return 0, errors.New("the part is larger than parts are")
	}
	if err := b.recorded(ctx, site, c.Session); err != nil {
		return 0, err
	}
	f, err := os.OpenFile(b.file(c.Session), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return 0, fmt.Errorf("opening the recording: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	size := st.Size()
	switch {
	case c.At > size:
		return size, nil // the site sends again from here
	case c.At+int64(len(c.Bytes)) <= size:
		return size, nil // it was here before
	case c.At+int64(len(c.Bytes)) > maxRecording:
		return size, fmt.Errorf("a recording has at most %d MiB", maxRecording>>20)
	}
	free, err := b.cfg.Free()
	if err != nil {
		return size, err
	}
	if free < leaveFree+uint64(len(c.Bytes)) {
		return size, errors.New("the hub's disk is full: remove recordings")
	}
	if _, err := f.WriteAt(c.Bytes, c.At); err != nil {
		// What was half written is beyond the size that counts, or cut by the next try.
		return size, errors.Join(fmt.Errorf("writing the recording: %w", err), f.Truncate(size))
	}
	if err := f.Sync(); err != nil {
		return size, fmt.Errorf("writing the recording: %w", err)
	}
	size = c.At + int64(len(c.Bytes))
	b.mu.Lock()
	if l := b.live[c.Session]; l != nil {
		l.recorded = size
	}
	b.mu.Unlock()
	err = b.cfg.DB.Update(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "UPDATE remote_session SET recorded = ? WHERE id = ?", size, c.Session[:])
		return err
	})
	return size, err
}

// recorded says whether a session is one of the site's, and is recorded at all.
func (b *Broker) recorded(ctx context.Context, site string, id session.ID) error {
	g, err := b.granted(ctx, id)
	switch {
	case err != nil:
		return err
	case g.Site != site || g.Recording == session.RecordingOff:
		return errors.New("no recording of this session is wanted")
	}
	return nil
}

// granted is the grant of a session, over or not.
func (b *Broker) granted(ctx context.Context, id session.ID) (session.Grant, error) {
	b.mu.Lock()
	l := b.live[id]
	b.mu.Unlock()
	if l != nil {
		return l.grant, nil
	}
	var signed []byte
	err := b.cfg.DB.View(ctx, func(tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, "SELECT grant_ FROM remote_session WHERE id = ?", id[:]).Scan(&signed)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return session.Grant{}, errNoSession
	}
	if err != nil {
		return session.Grant{}, fmt.Errorf("reading a session: %w", err)
	}
	return session.ReadGrant(b.keys.public(), signed)
}

// Recordings are those that are kept, newest first.
func (b *Broker) Recordings(ctx context.Context) ([]api.RecordingInfo, error) {
	files, err := os.ReadDir(b.cfg.Folder)
	if err != nil {
		return nil, fmt.Errorf("listing recordings: %w", err)
	}
	var list []api.RecordingInfo
	for _, f := range files {
		var id session.ID
		name := f.Name()
		if len(name) < 5 || name[len(name)-4:] != ".rec" || id.UnmarshalText([]byte(name[:len(name)-4])) != nil {
			continue
		}
		g, err := b.granted(ctx, id)
		if err != nil {
			b.cfg.Log.Warn("a recording belongs to no session", "file", name, "err", err)
			continue
		}
		r := api.RecordingInfo{Session: id, Technician: g.Technician, Target: g.Target, Started: g.From}
		c := b.look(id)
		r.Size, r.Seconds, r.Whole, r.Problem = c.size, c.seconds, c.whole, c.problem
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b api.RecordingInfo) int { return b.Started.Compare(a.Started) })
	return list, nil
}

// look reads what a list shows of a recording.
func (b *Broker) look(id session.ID) cast {
	st, err := os.Stat(b.file(id))
	if err != nil {
		return cast{problem: "it cannot be read: " + err.Error()}
	}
	b.casts.Lock()
	c, known := b.casts.known[id]
	b.casts.Unlock()
	if known && c.size == st.Size() {
		return c
	}
	c = cast{size: st.Size()}
	rd, closer, err := b.open(id)
	if err == nil {
		c.seconds, c.whole = rd.Length().Seconds(), rd.Whole
		err = closer.Close()
	}
	if err != nil {
		c.problem = err.Error()
	}
	b.casts.Lock()
	defer b.casts.Unlock()
	b.casts.known[id] = c
	return c
}

func (b *Broker) open(id session.ID) (*recording.Reader, io.Closer, error) {
	f, err := os.Open(b.file(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, none("There is no recording of this session.")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("opening a recording: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	rd, err := recording.Open(f, st.Size(), b.keys.recorder)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("opening a recording: %w", err), f.Close())
	}
	return rd, f, nil
}

// Cast writes a recording as asciicast v2. One that is damaged is written as far
// as it is right, and ends with a mark that says so.
func (b *Broker) Cast(ctx context.Context, who Who, id session.ID, w io.Writer) error {
	g, err := b.granted(ctx, id)
	if err != nil {
		return err
	}
	rd, closer, err := b.open(id)
	if err != nil {
		return err
	}
	defer closer.Close()
	if err := b.audit(ctx, who, "read recording", g.Target.Name, map[string]string{"session": id.String(), "technician": g.Technician}); err != nil {
		return err
	}
	err = rd.Export(w)
	if errors.Is(err, recording.ErrTampered) {
		b.cfg.Log.Warn("a recording is damaged", "session", id, "err", err)
		_, err = fmt.Fprintf(w, "[%f, \"m\", \"From here on the recording was changed after it was written, and is not shown.\"]\n", rd.Length().Seconds())
	}
	return err
}

// RemoveRecording removes one.
func (b *Broker) RemoveRecording(ctx context.Context, who Who, id session.ID) error {
	g, err := b.granted(ctx, id)
	if err != nil {
		return err
	}
	b.mu.Lock()
	_, live := b.live[id]
	b.mu.Unlock()
	if live {
		return refuse("The session goes on. End it first.")
	}
	if _, err := os.Stat(b.file(id)); errors.Is(err, fs.ErrNotExist) {
		return none("There is no recording of this session.")
	}
	if err := b.audit(ctx, who, "remove recording", g.Target.Name, map[string]string{"session": id.String(), "technician": g.Technician, "started": g.From.Format(time.RFC3339)}); err != nil {
		return err
	}
	if err := os.Remove(b.file(id)); err != nil {
		return fmt.Errorf("removing a recording: %w", err)
	}
	b.casts.Lock()
	delete(b.casts.known, id)
	b.casts.Unlock()
	return b.cfg.DB.Update(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "UPDATE remote_session SET recorded = 0 WHERE id = ?", id[:])
		return err
	})
}
