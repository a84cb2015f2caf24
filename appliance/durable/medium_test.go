package durable

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"
	"syscall"
)

var errCut = errors.New("the power is off")

// medium is a folder on a disk with a cache, as unkind as POSIX allows: names
// are durable after a sync of the folder, content after a sync of the file;
// before that each may or may not have reached the disk, content in any
// prefix. Renames reach it in the order they were made, each as a whole.
type medium struct {
	cached map[string]*inode // what a reader sees now
	// names are the states of the folder since its last sync; a cut leaves any.
	names []map[string]*inode

	calls, failAt, cutAt     int
	noFileSync, noFolderSync bool
}

type inode struct {
	data []byte
	safe []byte // what the last sync made durable
}

func (i *inode) bytes() []byte {
	if i == nil {
		return nil
	}
	return i.data
}

func newMedium(path, content string) *medium {
	d := &medium{cached: map[string]*inode{}}
	if content != "" {
		d.cached[path] = &inode{[]byte(content), []byte(content)}
	}
	d.names = []map[string]*inode{maps.Clone(d.cached)}
	return d
}

// step counts a call and says whether it fails. After a cut all calls fail.
func (d *medium) step() error {
	d.calls++
	if d.cutAt != 0 && d.calls >= d.cutAt {
		return errCut
	}
	if d.failAt == d.calls {
		return syscall.ENOSPC
	}
	return nil
}

func (d *medium) changed() { d.names = append(d.names, maps.Clone(d.cached)) }

// possible are the disks that a cut now may leave.
func (d *medium) possible() []map[string][]byte {
	var disks []map[string][]byte
	for _, names := range d.names {
		// All files at the same stage is enough: there is one that counts.
		for stage := range 12 {
			disk := map[string][]byte{}
			for path, i := range names {
				disk[path] = i.at(stage)
			}
			disks = append(disks, disk)
		}
	}
	return disks
}

// at is the content with a part of what no sync covers.
func (i *inode) at(stage int) []byte {
	if slices.Equal(i.data, i.safe) {
		return i.data
	}
	return i.data[:min(len(i.safe)+stage, len(i.data))]
}

func (d *medium) open(path string, flag int, _ os.FileMode) (file, error) {
	if err := d.step(); err != nil {
		return nil, err
	}
	i := d.cached[path]
	switch {
	case i != nil && flag&os.O_EXCL != 0:
		return nil, fs.ErrExist
	case i == nil && flag&os.O_CREATE == 0:
		return nil, fs.ErrNotExist
	case i == nil:
		i = &inode{}
		d.cached[path] = i
		d.changed()
	}
	return &handle{d, i}, nil
}

func (d *medium) rename(from, to string) error {
	if err := d.step(); err != nil {
		return err
	}
	d.cached[to] = d.cached[from]
	delete(d.cached, from)
	d.changed()
	return nil
}

func (d *medium) link(from, to string) error {
	if err := d.step(); err != nil {
		return err
	}
	if d.cached[to] != nil {
		return fs.ErrExist
	}
	d.cached[to] = d.cached[from]
	d.changed()
	return nil
}

func (d *medium) remove(path string) error {
	if err := d.step(); err != nil {
		return err
	}
	if d.cached[path] == nil {
		return fs.ErrNotExist
	}
	delete(d.cached, path)
	d.changed()
	return nil
}

func (d *medium) syncFolder(string) error {
	if err := d.step(); err != nil {
		return err
	}
	if !d.noFolderSync {
		d.names = []map[string]*inode{maps.Clone(d.cached)}
	}
	return nil
}

type handle struct {
	d *medium
	i *inode
}

// Write on a failing disk writes the half: short writes are what fails.
func (h *handle) Write(p []byte) (int, error) {
	if err := h.d.step(); err != nil {
		if !errors.Is(err, errCut) || h.d.calls == h.d.cutAt {
			h.i.data = append(h.i.data, p[:len(p)/2]...)
		}
		return len(p) / 2, err
	}
	h.i.data = append(h.i.data, p...)
	return len(p), nil
}

func (h *handle) Sync() error {
	if err := h.d.step(); err != nil {
		return err
	}
	if !h.d.noFileSync {
		h.i.safe = slices.Clone(h.i.data)
	}
	return nil
}

func (h *handle) Truncate(size int64) error {
	if err := h.d.step(); err != nil {
		return err
	}
	h.i.data = h.i.data[:size]
	return nil
}

func (h *handle) Size() (int64, error) {
	if err := h.d.step(); err != nil {
		return 0, err
	}
	return int64(len(h.i.data)), nil
}

func (h *handle) Close() error { return h.d.step() }
