package sealed

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// replace is write, fsync, rename, fsync of the folder. A cut before the
// rename leaves the old file and a .new beside it, which the next write
// overwrites; the rename is the commit point.
func replace(path string, b []byte) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("replacing %s: %w", path, err)
		}
	}()
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
