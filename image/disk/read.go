package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/fat32"
	"github.com/diskfs/go-diskfs/partition/gpt"
)

// Files reads files of the EFI system partition of a disk, by a reader that
// shares no code with what wrote them.
func Files(disk *os.File, paths ...string) (map[string][]byte, error) {
	table, err := gpt.Read(noSync{disk}, sectorSize, sectorSize)
	if err != nil {
		return nil, fmt.Errorf("reading the partition table: %w", err)
	}
	for _, p := range table.Partitions {
		if p == nil || p.Type != gpt.EFISystemPartition {
			continue
		}
		system, err := fat32.Read(file.New(noSync{disk}, true), int64(p.End-p.Start+1)*sectorSize, int64(p.Start)*sectorSize, sectorSize)
		if err != nil {
			return nil, fmt.Errorf("reading the EFI system partition: %w", err)
		}
		out := make(map[string][]byte)
		for _, name := range paths {
			if out[name], err = readWhole(system, name); err != nil {
				return nil, fmt.Errorf("reading %s from the EFI system partition: %w", name, err)
			}
		}
		return out, nil
	}
	return nil, errors.New("the disk has no EFI system partition")
}

// readWhole reads in one piece: go-diskfs 1.9.4 reads on beyond the end of a file
// when its last cluster is read in several.
func readWhole(system fs.FS, name string) ([]byte, error) {
	f, err := system.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() < 0 || info.Size() > SlotSize {
		return nil, fmt.Errorf("it has %d bytes", info.Size())
	}
	b := make([]byte, info.Size())
	_, err = io.ReadFull(f, b)
	return b, err
}

// Blank says whether META is all zeros: no box was started from the disk, and
// nobody has set anything on it.
func Blank(disk *os.File) (bool, error) {
	start, err := Meta(disk)
	if err != nil {
		return false, err
	}
	b := make([]byte, MetaSize)
	if _, err := io.ReadFull(io.NewSectionReader(disk, start, MetaSize), b); err != nil {
		return false, fmt.Errorf("reading META: %w", err)
	}
	return len(bytes.Trim(b, "\x00")) == 0, nil
}
