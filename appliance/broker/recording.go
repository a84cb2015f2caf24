package broker

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"gatehouse/appliance/broker/asker"
	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
)

// chunk keeps a part of a recording. It may come after its session is over: the
// line was cut, or the site was off.
func (b *Broker) chunk(ctx context.Context, site string, c attend.Chunk) attend.Kept {
	kept := attend.Kept{Session: c.Session}
	size, err := b.store(ctx, site, c)
	kept.Size = size
	switch {
	case errors.Is(err, errRemoved):
		kept.Removed = true
		b.cfg.Log.Info("a recording that was removed comes from its site", "session", c.Session)
	case err != nil:
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
	if gone, err := b.removed(ctx, c.Session); gone || err != nil {
		return 0, errors.Join(err, errRemoved)
	}
	size, err := b.archive.Append(c.Session, c.At, c.Bytes)
	if err != nil {
		return size, err
	}
	b.mu.Lock()
	if l := b.live[c.Session]; l != nil {
		l.recorded = size
	}
	b.mu.Unlock()
	var noted int64
	err = b.cfg.DB.Update(ctx, func(tx *sql.Tx) error {
		r, err := tx.ExecContext(ctx, "UPDATE remote_session SET recorded = ? WHERE id = ? AND recorded <> ?", size, c.Session[:], removedSize)
		if err != nil {
			return err
		}
		noted, err = r.RowsAffected()
		return err
	})
	if err != nil || noted > 0 {
		return size, err
	}
	// While this part was written: it may have made the file anew.
	if err := b.archive.Remove(c.Session); err != nil && !errors.Is(err, asker.ErrNone) {
		return 0, err
	}
	return 0, errRemoved
}

// removedSize is what the database has in the place of a recording's size once it
// was removed, so that none of it is taken again from a site that still has it.
const removedSize = -1

var errRemoved = errors.New("the recording was removed")

// removed says whether the recording of a session was.
func (b *Broker) removed(ctx context.Context, id session.ID) (gone bool, err error) {
	err = b.cfg.DB.View(ctx, func(tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, "SELECT recorded = ? FROM remote_session WHERE id = ?", removedSize, id[:]).Scan(&gone)
	})
	if err != nil {
		return false, fmt.Errorf("reading whether a recording was removed: %w", err)
	}
	return gone, nil
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
	ids, err := b.archive.IDs()
	if err != nil {
		return nil, err
	}
	var list []api.RecordingInfo
	for _, id := range ids {
		g, err := b.granted(ctx, id)
		if err != nil {
			b.cfg.Log.Warn("a recording belongs to no session", "session", id, "err", err)
			continue
		}
		i := b.archive.Look(id)
		list = append(list, api.RecordingInfo{Session: id, Technician: g.Technician, Target: g.Target, Started: g.From, Size: i.Size, Seconds: i.Seconds, Whole: i.Whole, Problem: i.Problem})
	}
	slices.SortFunc(list, func(a, b api.RecordingInfo) int { return b.Started.Compare(a.Started) })
	return list, nil
}

// Cast writes a recording as asciicast v2.
func (b *Broker) Cast(ctx context.Context, who asker.Who, id session.ID, w io.Writer) error {
	g, err := b.granted(ctx, id)
	if err != nil {
		return err
	}
	return b.archive.Export(id, w, func() error {
		return b.audit(ctx, who, "read recording", g.Target.Name, map[string]string{"session": id.String(), "technician": g.Technician})
	})
}

// RemoveRecording removes one, for good: what its site still has of it goes too.
func (b *Broker) RemoveRecording(ctx context.Context, who asker.Who, id session.ID) error {
	g, err := b.granted(ctx, id)
	if err != nil {
		return err
	}
	b.mu.Lock()
	_, live := b.live[id]
	b.mu.Unlock()
	switch {
	case live:
		return asker.Refuse("The session goes on. End it first.")
	case !b.archive.Has(id):
		return asker.None("There is no recording of this session.")
	}
	if err := b.audit(ctx, who, "remove recording", g.Target.Name, map[string]string{"session": id.String(), "technician": g.Technician, "started": g.From.Format(time.RFC3339)}); err != nil {
		return err
	}
	// Remembered first: nothing of it is taken from here on.
	err = b.cfg.DB.Update(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "UPDATE remote_session SET recorded = ? WHERE id = ?", removedSize, id[:])
		return err
	})
	if err != nil {
		return fmt.Errorf("remembering that a recording is removed: %w", err)
	}
	return b.archive.Remove(id)
}
