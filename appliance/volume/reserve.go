package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// reserveName is a file that holds space and nothing else.
const reserveName = "reserve"

// ReserveSize is the space that Reserve holds.
const ReserveSize = 16 << 20

// Reserve holds ReserveSize bytes in the folder, so that on a full volume
// Release makes room for what must still work: signing in, reading, erasing.
// It says false if there is no room for it now: changes are to be refused then.
func Reserve(folder string) (bool, error) {
	path := filepath.Join(folder, reserveName)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, unix.ENOSPC) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reserving space: %w", err)
	}
	defer f.Close()
	err = unix.Fallocate(int(f.Fd()), 0, 0, ReserveSize)
	if errors.Is(err, unix.ENOSPC) {
		// Half a reserve would hold room that nobody counts on.
		return false, os.Remove(path)
	}
	if err != nil {
		return false, fmt.Errorf("reserving space in %s: %w", folder, err)
	}
	return true, nil
}

// Release gives the reserved space back.
func Release(folder string) error {
	err := os.Remove(filepath.Join(folder, reserveName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("releasing reserved space: %w", err)
	}
	return nil
}
