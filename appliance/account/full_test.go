package account

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"gatehouse/appliance/volume"
)

// Signing in writes: a guess, the step of a code, a session. The reserve of the
// volume is the room for it, after a restart too, when the write-ahead log is gone.
func TestAUD1_SigningInOnAFullVolume(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatalf("mounting a small file system (this test needs root): %v", err)
	}
	b := newBox(t)
	t.Cleanup(func() {
		b.db.Close()
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	b.db.Close()
	b.path = filepath.Join(dir, "db")
	b.open(t)
	p, err := b.AddPendingOwner(t.Context(), ada)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.FinishClaim(t.Context()); err != nil {
		t.Fatal(err)
	}
	if held, err := volume.Balance(dir); !held || err != nil {
		t.Fatalf("the reserve: %v, %v", held, err)
	}
	// The files that a database needs to be opened at all are there; nothing else has room.
	b.db.Close()
	_, free, err := volume.Usage(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hog"), make([]byte, free-36<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	b.open(t)
	signIn := func() error {
		if _, err := b.CheckPassword(t.Context(), ada.Email, goodPassword, "", home); err != nil {
			return fmt.Errorf("the password: %w", err)
		}
		_, _, err := b.Start(t.Context(), p, StageFull, home, "")
		return err
	}
	if err := signIn(); err == nil {
		t.Fatal("the volume is not full, so this shows nothing")
	}
	if held, err := volume.Balance(dir); held || err != nil {
		t.Fatalf("the reserve is kept on a full volume: %v, %v", held, err)
	}
	for range 3 {
		if err := signIn(); err != nil {
			t.Error(err)
		}
	}
}
