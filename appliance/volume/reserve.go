package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// reserveName is a file that holds space and nothing else.
const reserveName = "reserve"

// ReserveSize is the space that Reserve holds.
const ReserveSize = 16 << 20

// Reserve holds ReserveSize bytes in the folder, so that on a full volume
// Release makes room for what must still work: signing in, reading, erasing.
// It says false if there is no room for it now.
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

// On a volume with less than fullBelow free nobody could sign in: a session is
// written. The reserve is taken when as much again is left for others, or what
// was just given back would be taken again.
const (
	fullBelow   = 4 << 20
	reserveFrom = 2 * ReserveSize
	lookEvery   = 10 * time.Second
)

// Balance gives the reserve back when the volume is full, takes it when there is
// room, and says whether it is held now.
func Balance(folder string) (held bool, err error) {
	_, free, err := Usage(folder)
	if err != nil {
		return false, err
	}
	i, err := os.Lstat(filepath.Join(folder, reserveName))
	held = err == nil && i.Mode().IsRegular() && i.Size() == ReserveSize // else a power cut came between
	switch {
	case free < fullBelow:
		return false, Release(folder)
	case held:
		return true, nil
	case free < reserveFrom:
		return false, nil
	}
	return Reserve(folder)
}

// KeepBalanced balances, says whether the reserve is held, and goes on until ctx
// ends or the volume is not at the folder any more.
func KeepBalanced(ctx context.Context, folder string, log *slog.Logger) (held bool, err error) {
	k := &keeper{folder: folder, log: log}
	if held, err = k.begin(); err != nil {
		return held, err
	}
	go func() {
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if !k.look() {
				return
			}
		}
	}()
	return held, nil
}

// keeper looks after the reserve of one volume.
type keeper struct {
	folder string
	log    *slog.Logger
	dev    uint64 // of the file system
	held   bool
	failed string // what went wrong last, so that it is said once
}

func (k *keeper) begin() (held bool, err error) {
	if k.dev, err = deviceOf(k.folder); err == nil {
		k.held, err = Balance(k.folder)
	}
	return k.held, err
}

// look balances once; false: the volume is gone.
func (k *keeper) look() bool {
	if dev, err := deviceOf(k.folder); err != nil || dev != k.dev {
		return false
	}
	held, err := Balance(k.folder)
	said := k.failed
	k.failed = fmt.Sprint(err)
	switch {
	case err != nil && said != k.failed:
		k.log.Error("looking after the reserve of the data volume", "err", err)
	case k.held && !held:
		k.log.Warn("the data volume is full; the reserve was given back, so that people can sign in and make room")
	case !k.held && held:
		k.log.Info("the data volume has room again, and its reserve")
	}
	k.held = held
	return true
}

func deviceOf(folder string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(folder, &st); err != nil {
		return 0, fmt.Errorf("asking for the file system at %s: %w", folder, err)
	}
	return uint64(st.Dev), nil
}

// Release gives the reserved space back.
func Release(folder string) error {
	err := os.Remove(filepath.Join(folder, reserveName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("releasing reserved space: %w", err)
	}
	return nil
}
