// Package durable replaces files so that a power cut leaves the old content or the new.
//
// What each call promises once it has returned without error: the content and
// the name survive a power cut. What it promises before: a reader, and the
// system after a power cut, find the old state or the new, never a part.
// That rests on the file system: rename is atomic on ext4, and fsync of file
// and folder reach the medium unless the medium lies about its cache.
package durable

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// WriteFile replaces the file with data. The order is the promise:
//
//  1. write PATH.new, fsync it      cut here: PATH is untouched, PATH.new is rubbish and is overwritten next time
//  2. rename it to PATH             cut here: the folder holds the old name or the new one
//  3. fsync the folder              only now has the new one happened
//
// One writer per path: two at once would share PATH.new.
func WriteFile(path string, data []byte, mode os.FileMode) error {
	return write(system{}, path, data, mode)
}

// Create makes the file with data; it fails with fs.ErrExist if there is one.
// The content is complete before the name appears: link, unlike rename, never
// replaces.
func Create(path string, data []byte, mode os.FileMode) error {
	return create(system{}, path, data, mode)
}

// Append adds data to the file, which it makes if needed, and returns when
// that is on the medium. A power cut inside leaves any prefix of data at the
// end: the reader must recognise an unfinished record, and a failed Append
// cuts the file back to its length before.
func Append(path string, data []byte, mode os.FileMode) error {
	return appendTo(system{}, path, data, mode)
}

// Remove deletes the file; one that is not there is fs.ErrNotExist.
func Remove(path string) error { return remove(system{}, path) }

// SyncFolder makes names that were made or removed in a folder durable.
func SyncFolder(path string) error {
	if err := (system{}).syncFolder(path); err != nil {
		return fmt.Errorf("syncing folder %s: %w", path, err)
	}
	return nil
}

// file is an open file.
type file interface {
	io.Writer
	Sync() error
	Truncate(size int64) error
	Size() (int64, error)
	Close() error
}

// filesystem is what the functions need of the system; a test cuts the power
// at each call.
type filesystem interface {
	open(path string, flag int, mode os.FileMode) (file, error)
	rename(from, to string) error
	link(from, to string) error
	remove(path string) error
	syncFolder(path string) error
}

func temporary(path string) string { return path + ".new" }

func write(fs filesystem, path string, data []byte, mode os.FileMode) error {
	tmp := temporary(path)
	if err := fill(fs, tmp, data, mode); err != nil {
		return fmt.Errorf("replacing %s (the old one stays): %w", path, err)
	}
	if err := fs.rename(tmp, path); err != nil {
		return fmt.Errorf("replacing %s (the old one stays): %w", path, errors.Join(err, fs.remove(tmp)))
	}
	if err := fs.syncFolder(filepath.Dir(path)); err != nil {
		return fmt.Errorf("replacing %s (it is not known which one a power cut would leave): %w", path, err)
	}
	return nil
}

func create(fs filesystem, path string, data []byte, mode os.FileMode) error {
	tmp := temporary(path)
	if err := fill(fs, tmp, data, mode); err != nil {
		return fmt.Errorf("creating %s: %w", path, err)
	}
	err := fs.link(tmp, path)
	if gone := fs.remove(tmp); err == nil {
		err = gone
	}
	if err == nil {
		err = fs.syncFolder(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("creating %s: %w", path, err)
	}
	return nil
}

// fill writes a complete file and syncs it; on failure it removes what it
// made, which matters when the cause is a full disk. The mode holds even for
// a rest of an earlier attempt: that is removed first.
func fill(fs filesystem, path string, data []byte, mode os.FileMode) (err error) {
	if err := fs.remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := fs.open(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err != nil {
		err = errors.Join(err, fs.remove(path))
	}
	return err
}

func appendTo(fs filesystem, path string, data []byte, mode os.FileMode) error {
	f, err := fs.open(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, mode)
	if err != nil {
		return fmt.Errorf("appending to %s: %w", path, err)
	}
	size, err := f.Size()
	if err == nil {
		if _, err = f.Write(data); err == nil {
			err = f.Sync()
		}
		if err != nil { // a full disk: the half record must not stay before the next one
			err = errors.Join(err, f.Truncate(size))
		}
	}
	err = errors.Join(err, f.Close())
	if err == nil && size == 0 { // perhaps a new name
		err = fs.syncFolder(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("appending to %s: %w", path, err)
	}
	return nil
}

func remove(fs filesystem, path string) error {
	if err := fs.remove(path); err != nil {
		return fmt.Errorf("removing %s: %w", path, err)
	}
	if err := fs.syncFolder(filepath.Dir(path)); err != nil {
		return fmt.Errorf("removing %s: %w", path, err)
	}
	return nil
}

// system is the real file system.
type system struct{}

type osFile struct{ *os.File }

func (f osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (system) open(path string, flag int, mode os.FileMode) (file, error) {
	f, err := os.OpenFile(path, flag, mode)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (system) rename(from, to string) error { return os.Rename(from, to) }
func (system) link(from, to string) error   { return os.Link(from, to) }
func (system) remove(path string) error     { return os.Remove(path) }

func (system) syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
