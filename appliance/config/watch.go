package config

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"

	"gatehouse/appliance/task"
)

const (
	settle = 200 * time.Millisecond // editors write in several steps
	rescan = time.Minute            // for file systems that report nothing
)

// Watch is the task that loads the configuration again whenever its file
// changes. A good one is given to on; of a wrong one on hears why, and the last
// good one stays. The folder is watched and not the file, because editors and
// Kubernetes replace files by rename.
func Watch(s Sources, log *slog.Logger, on func(Config, error)) task.Task {
	return task.Func("configuration", func(ctx context.Context) error {
		if s.File == "" {
			<-ctx.Done()
			return ctx.Err()
		}
		return watch(ctx, s, log, on, settle, rescan)
	})
}

func watch(ctx context.Context, s Sources, log *slog.Logger, on func(Config, error), settle, rescan time.Duration) error {
	dir := filepath.Dir(s.File)
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching %s: %w", dir, err)
	}
	defer w.Close()
	if err := w.Add(dir); err != nil {
		return fmt.Errorf("watching %s: %w", dir, err)
	}
	var (
		seen    []byte
		readErr error
	)
	quiet := time.NewTimer(0) // it may have changed since the caller read it
	defer quiet.Stop()
	tick := time.NewTicker(rescan)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case _, ok := <-w.Events:
			if !ok {
				return fmt.Errorf("watching %s: the watch has ended", dir)
			}
			quiet.Reset(settle)
			continue
		case err := <-w.Errors: // events were lost: look for ourselves
			log.Warn("watching the configuration", "dir", dir, "err", err)
		case <-quiet.C:
		case <-tick.C:
			// The folder may have been replaced; this is no error if it is the same.
			if err := w.Add(dir); err != nil {
				log.Warn("watching the configuration", "dir", dir, "err", err)
			}
		}
		b, err := read(s.File)
		if bytes.Equal(b, seen) && errText(err) == errText(readErr) {
			continue
		}
		seen, readErr = b, err
		c, err := Load(s)
		if err != nil {
			log.Error("configuration refused, the last good one stays", "err", err)
			on(Config{}, err)
			continue
		}
		log.Info("configuration read again", "file", s.File)
		on(c, nil)
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
