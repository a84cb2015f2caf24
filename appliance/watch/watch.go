// Package watch tells when a folder may have changed.
package watch

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/fsnotify/fsnotify"

	"gatehouse/appliance/task"
)

// pace is how patient a watch is.
type pace struct {
	settle  time.Duration // of silence after an event: editors write in several steps
	longest time.Duration // from the first event on, in a folder that is never silent
	rescan  time.Duration // for file systems that report nothing
	again   time.Duration // after a look that found nothing to rely on
}

var usual = pace{settle: 200 * time.Millisecond, longest: 2 * time.Second, rescan: time.Minute, again: 2 * time.Second}

// Folder is the task that has look look at a folder: at first, after it has
// changed, after events were lost, and once a minute in any case. Look finds
// out itself what changed; true means that it wants to look again soon. The
// folder may go away and come back, as another one.
func Folder(name, dir string, log *slog.Logger, look func(context.Context) bool) task.Task {
	return task.Func(name, func(ctx context.Context) error { return folder(ctx, dir, log, look, usual) })
}

func folder(ctx context.Context, dir string, log *slog.Logger, look func(context.Context) bool, p pace) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching %s: %w", dir, err)
	}
	defer w.Close()
	for {
		// Before the look, so that nothing can happen between the two unseen.
		// Adding it again is no error, and finds a folder that was replaced.
		absent := w.Add(dir)
		wait := p.rescan
		if look(ctx) || absent != nil {
			wait = p.again
		}
		tick := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			tick.Stop()
			return ctx.Err()
		case <-tick.C:
			continue
		case <-w.Events:
		case err := <-w.Errors:
			log.Warn("watching a folder: looking at all of it", "dir", dir, "err", err)
		}
		tick.Stop()
		if err := quiet(ctx, w, p); err != nil {
			return err
		}
	}
}

// quiet waits until the folder is silent, but not for ever.
func quiet(ctx context.Context, w *fsnotify.Watcher, p pace) error {
	silence, enough := time.NewTimer(p.settle), time.NewTimer(p.longest)
	defer silence.Stop()
	defer enough.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-silence.C:
			return nil
		case <-enough.C:
			return nil
		case <-w.Events:
			silence.Reset(p.settle)
		case <-w.Errors: // lost events: the look comes anyway
		}
	}
}
