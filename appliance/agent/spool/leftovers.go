package spool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/session"
)

const (
	lookTime  = time.Minute
	giveUp    = time.Minute // on one recording of which the hub takes no more: the next has its turn
	maxFolder = 10_000      // files that are looked at
)

// Leftovers hands to the hub what sessions left in the folder: recordings that
// were cut when the agent was killed or the power went, and those that the hub
// did not take while their session lasted. One after the other, without haste.
type Leftovers struct {
	Folder string
	Tell   func(attend.FromSite) error
	Log    *slog.Logger

	mu   sync.Mutex
	now  session.ID // the one that is handed over
	kept chan attend.Kept
}

// Kept is the hub's word about a recording; about one that is not under way
// here it means nothing.
func (l *Leftovers) Kept(k attend.Kept) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.kept == nil || k.Session != l.now {
		return
	}
	select {
	case l.kept <- k:
	default: // it says more the next time
	}
}

// String names the task.
func (l *Leftovers) String() string { return "recordings left over" }

// Run looks at once, and each minute.
func (l *Leftovers) Run(ctx context.Context) error {
	for {
		if err := l.look(ctx); err != nil && ctx.Err() == nil {
			l.Log.Warn("recordings that wait for the hub", "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lookTime):
		}
	}
}

func (l *Leftovers) look(ctx context.Context) error {
	root, err := os.OpenRoot(l.Folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was ever recorded
	}
	if err != nil {
		return err
	}
	defer root.Close()
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	names, err := d.ReadDir(maxFolder)
	d.Close()
	var errs []error
	for _, e := range names {
		if id, ok := parse(e.Name()); ok && ctx.Err() == nil {
			if err := l.one(ctx, root, e.Name(), id); err != nil {
				errs = append(errs, fmt.Errorf("of session %s: %w", id, err))
			}
		}
	}
	if len(names) == 0 {
		err = nil // the end of an empty folder
	}
	return errors.Join(append(errs, err)...)
}

// one hands one recording over, and removes it when the hub has it, or has
// removed it.
func (l *Leftovers) one(ctx context.Context, root *os.Root, name string, id session.ID) error {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("it is no file")
	}
	if lock(f) != nil {
		return nil // its session goes on
	}
	kept := make(chan attend.Kept, 4)
	l.mu.Lock()
	l.now, l.kept = id, kept
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.kept = nil
		l.mu.Unlock()
	}()
	if err := l.hand(ctx, feed{session: id, from: f}, info.Size(), kept); err != nil {
		return err
	}
	return root.Remove(name)
}

func (l *Leftovers) hand(ctx context.Context, f feed, size int64, kept <-chan attend.Kept) error {
	heard := time.Now() // of progress: a hub that lost what it had answers for ever
	for {
		for {
			c, all, err := f.next(size, true, time.Now())
			if err != nil || all {
				return err
			}
			if c == nil {
				break
			}
			if err := l.Tell(attend.FromSite{Chunk: c}); err != nil {
				return err
			}
		}
		if time.Since(heard) > giveUp {
			return errors.New("the hub does not say that it has more of it")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case k := <-kept:
			if k.Removed {
				l.Log.Info("a recording that was removed at the hub is removed here", "session", k.Session)
				return nil
			}
			if k.Problem != "" {
				return fmt.Errorf("the hub does not keep it: %.200s", k.Problem)
			}
			was := f.kept
			if f.keep(k.Size, size, time.Now()); f.kept > was {
				heard = time.Now()
			}
		case <-time.After(again):
		}
	}
}
