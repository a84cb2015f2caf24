package vault

import (
	"fmt"
	"os"
	"path/filepath"
)

// File is META as a file, for the hosted form, or as the partition's device.
type File struct{ *os.File }

// OpenFile opens META at path; a missing file is made, 0600 and MetaSize long.
func OpenFile(path string) (*File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening META: %w", err)
	}
	info, err := f.Stat()
	if err == nil && info.Mode().IsRegular() && info.Size() < MetaSize {
		err = grow(f)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("preparing META at %s: %w", path, err)
	}
	return &File{f}, nil
}

// grow makes the file as long as META, and its name durable: a power cut
// before leaves a shorter file, which reads as blank and is grown again.
func grow(f *os.File) error {
	if err := f.Truncate(MetaSize); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(f.Name()))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
