package spool

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/session"
)

// left puts recordings of sessions that are over into a folder.
func left(t *testing.T, ids ...session.ID) (folder string) {
	t.Helper()
	folder = t.TempDir()
	for _, id := range ids {
		if err := os.WriteFile(filepath.Join(folder, id.String()+suffix), make([]byte, 3*attend.MaxChunk), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

func files(t *testing.T, folder string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		names = append(names, f.Name())
	}
	return names
}

// TestSES9_NoProgressLetsTheOthersPass: a hub that lost what it had answers each
// part, and gets no further. What waits behind it is handed over, and itself from
// the beginning the next time.
func TestSES9_NoProgressLetsTheOthersPass(t *testing.T) {
	folder := left(t, session.ID{1}, session.ID{2}, session.ID{3})
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		h := newHub()
		var first session.ID // that is handed over: folders have no order
		l := &Leftovers{Folder: folder, Log: slog.New(slog.DiscardHandler)}
		h.word = l.Kept
		l.Tell = func(m attend.FromSite) error {
			c := m.Chunk
			switch {
			case first == session.ID{}:
				first = c.Session
			case c.Session == first && c.At > 0:
				l.Kept(attend.Kept{Session: first})
				return nil
			}
			return h.tell(m)
		}
		if err := l.look(ctx); err == nil || !strings.Contains(err.Error(), first.String()) || ctx.Err() != nil {
			t.Errorf("%v, %v", err, ctx.Err())
		}
		if f := files(t, folder); len(f) != 1 || f[0] != first.String()+suffix {
			t.Errorf("still here: %v", f)
		}
		l.Tell = h.tell
		if err := l.look(ctx); err != nil {
			t.Error(err)
		}
		if f := files(t, folder); len(f) != 0 || len(h.kept[first]) != 3*attend.MaxChunk {
			t.Errorf("still here: %v; the hub has %d bytes", f, len(h.kept[first]))
		}
	})
}

// TestSES9_RemovedAtTheHubIsRemovedHere: what was removed there is not kept for
// another time, and is no problem.
func TestSES9_RemovedAtTheHubIsRemovedHere(t *testing.T) {
	folder := left(t, session.ID{1}, session.ID{2})
	l := &Leftovers{Folder: folder, Log: slog.New(slog.DiscardHandler)}
	l.Tell = func(m attend.FromSite) error {
		l.Kept(attend.Kept{Session: m.Chunk.Session, Removed: true})
		return nil
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := l.look(ctx); err != nil {
		t.Error(err)
	}
	if f := files(t, folder); len(f) != 0 {
		t.Errorf("still here: %v", f)
	}

	// And of a session that has ended a moment ago, before the hub had all of it.
	h := newHub()
	h.deaf = true
	r, _ := start(t, folder, session.ID{3}, h)
	r.End()
	r.Kept(attend.Kept{Session: session.ID{3}, Removed: true})
	select {
	case <-r.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("it is told on")
	}
	if f := files(t, folder); len(f) != 0 {
		t.Errorf("still here: %v", f)
	}

	// One that goes on cannot: nobody would have it. It says so, and goes with its end.
	r, _ = start(t, folder, session.ID{4}, h)
	r.Kept(attend.Kept{Session: session.ID{4}, Removed: true})
	if err := r.Output([]byte("more")); err == nil || !strings.Contains(err.Error(), "removed there") {
		t.Errorf("it goes on: %v", err)
	}
	r.End()
	select {
	case <-r.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("it is told on")
	}
	if f := files(t, folder); len(f) != 0 {
		t.Errorf("still here: %v", f)
	}
}
