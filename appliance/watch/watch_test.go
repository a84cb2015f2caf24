package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// never is a pace at which only events count.
var never = pace{settle: 20 * time.Millisecond, longest: 200 * time.Millisecond, rescan: time.Hour, again: 20 * time.Millisecond}

// start watches a folder; each look sends what the file in it says.
func start(t *testing.T, dir string, p pace) chan string {
	t.Helper()
	looks := make(chan string, 10_000)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- folder(ctx, dir, slog.New(slog.DiscardHandler), func(context.Context) bool {
			b, err := os.ReadFile(filepath.Join(dir, "file"))
			if err != nil {
				b = []byte("none")
			}
			looks <- string(b)
			return false
		}, p)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	return looks
}

func await(t *testing.T, looks chan string, want string) (n int) {
	t.Helper()
	for end := time.After(30 * time.Second); ; n++ {
		select {
		case got := <-looks:
			if got == want {
				return n
			}
		case <-end:
			t.Fatalf("%q was never seen", want)
		}
	}
}

func write(t *testing.T, dir, text string) {
	t.Helper()
	next := filepath.Join(dir, "next")
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, filepath.Join(dir, "file")); err != nil {
		t.Fatal(err)
	}
}

func TestNET2_FolderThatComesAndGoes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lists")
	looks := start(t, dir, never)
	await(t, looks, "none")
	for i := range 3 {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, dir, fmt.Sprint("made ", i))
		await(t, looks, fmt.Sprint("made ", i))
		write(t, dir, fmt.Sprint("changed ", i))
		await(t, looks, fmt.Sprint("changed ", i))
		old := fmt.Sprint(dir, ".", i) // renamed away, and another one in its place
		if err := os.Rename(dir, old); err != nil {
			t.Fatal(err)
		}
		await(t, looks, "none")
	}
}

// TestNET2_RenameStorm: thousands of renames cost a few looks, and the last
// state is seen.
func TestNET2_RenameStorm(t *testing.T) {
	dir := t.TempDir()
	looks := start(t, dir, never)
	await(t, looks, "none")
	for i := range 5000 {
		write(t, dir, fmt.Sprint(i))
	}
	write(t, dir, "last")
	if n := await(t, looks, "last"); n > 500 {
		t.Errorf("%d looks for 5001 changes", n)
	}
}

// TestNET2_NeverSilentFolderIsStillSeen: somebody who writes without a pause
// must not keep changes from being read.
func TestNET2_NeverSilentFolderIsStillSeen(t *testing.T) {
	dir := t.TempDir()
	looks := start(t, dir, never)
	await(t, looks, "none")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			os.WriteFile(filepath.Join(dir, "noise"), nil, 0o600)
			time.Sleep(time.Millisecond)
		}
	}()
	defer func() { cancel(); <-done }()
	write(t, dir, "here")
	await(t, looks, "here")
}
