// Package admission tells the gateway and the console who may come in, as the filter role has put it in force.
//
// The kernel knows one union of the lists; what a source may reach once it is
// in, and whether it still may, is judged here. Where the program may not
// filter in the kernel this is all there is.
package admission

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"gatehouse/appliance/task"
	"gatehouse/netfilter/allowlist"
)

const (
	// maxFile is what the largest policy needs: 32 bytes a range, and heads.
	maxFile = 33<<20 + 4096
	// lookEvery finds what a lost notification would have told.
	lookEvery = 5 * time.Second
)

// Watch follows the file. Until there is one the lists are off: the supervisor
// puts lists in force before the state in which they judge.
type Watch struct {
	path string
	log  *slog.Logger

	mu      sync.RWMutex
	policy  allowlist.Compiled
	closed  bool // the file was damaged before a good one was seen: nobody
	seen    os.FileInfo
	changed []func()
}

// Open reads the file. Without a path (locked) everyone has every scope, as far
// as the kernel lets him in.
func Open(path string, log *slog.Logger) *Watch {
	w := &Watch{path: path, log: log}
	if path != "" {
		w.look()
	}
	return w
}

// Scopes are what a source has now. Loopback is the machine itself.
func (w *Watch) Scopes(a netip.Addr) allowlist.Scope {
	a = a.Unmap().WithZone("")
	w.mu.RLock()
	defer w.mu.RUnlock()
	switch {
	case a.IsLoopback():
		return allowlist.Everything
	case w.closed:
		return 0
	}
	return w.policy.Admits(a)
}

// Lists are the names of the enabled lists that have the address.
func (w *Watch) Lists(a netip.Addr) []string {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.policy.Lists(a)
}

// OnChange has f called after each change, one call at a time.
func (w *Watch) OnChange(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.changed = append(w.changed, f)
}

func (w *Watch) String() string { return "admission" }

// Run follows the file until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	if w.path == "" {
		<-ctx.Done()
		return ctx.Err()
	}
	files, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching who may come in: %w", err)
	}
	defer files.Close()
	if err := files.Add(filepath.Dir(w.path)); err != nil {
		return fmt.Errorf("watching who may come in: %w", err)
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		w.look()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case <-files.Events:
		case err := <-files.Errors:
			w.log.Warn("watching who may come in", "err", err)
		}
	}
}

var _ task.Task = (*Watch)(nil)

// look reads the file if it is another one. It is replaced by renaming, so it
// is whole whenever it is there.
func (w *Watch) look() {
	fi, err := os.Stat(w.path)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			w.log.Error("reading who may come in; what was known stays", "err", err)
		}
		return
	}
	w.mu.RLock()
	same := w.seen != nil && os.SameFile(w.seen, fi) && w.seen.ModTime().Equal(fi.ModTime()) && w.seen.Size() == fi.Size()
	w.mu.RUnlock()
	if same {
		return
	}
	policy, err := read(w.path)
	w.mu.Lock()
	first := w.seen == nil
	w.seen = fi
	if err != nil {
		w.closed = w.closed || first
		w.mu.Unlock()
		w.log.Error("reading who may come in; what was known stays", "err", err)
		return
	}
	w.policy, w.closed = policy, false
	changed := w.changed
	w.mu.Unlock()
	for _, f := range changed {
		f()
	}
}

func read(path string) (allowlist.Compiled, error) {
	f, err := os.Open(path)
	if err != nil {
		return allowlist.Compiled{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return allowlist.Compiled{}, err
	}
	if len(b) > maxFile {
		return allowlist.Compiled{}, fmt.Errorf("%s has more than %d bytes", path, maxFile)
	}
	return allowlist.Decode(b)
}
