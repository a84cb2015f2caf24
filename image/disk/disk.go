// Package disk writes the box's disk: a partition table, the EFI system partition with both slots, and META.
package disk

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/google/uuid"
)

// Partition types of docs/architecture.md. The data partition is made by the
// box at first boot, to the end of whatever disk it finds itself on.
const (
	MetaType = "6B1D2C4E-5F0A-4C9E-9D5B-2F6F0A7E4D11"
	DataType = "0E7A7F3C-9A4B-4F5E-8A55-7D1C3B2E9F20"
)

const (
	mebibyte  = 1 << 20
	espStart  = 1 * mebibyte
	espSize   = 160 * mebibyte
	metaStart = espStart + espSize
	// MetaSize is the size of the META partition, all zeros until first boot.
	MetaSize = 4 * mebibyte
	// Size is the smallest disk: up to META and the second partition table.
	Size = metaStart + MetaSize + 1*mebibyte
	// SlotSize is what each of the two UKI files may grow to.
	SlotSize = 64 * mebibyte
)

// A File is one file of the EFI system partition.
type File struct {
	Path    string
	Content []byte
	// Reserve keeps this many bytes for the file, in one run on the disk. A
	// file that is shorter can be overwritten in place by a longer one: no
	// cluster changes hands, so no power cut can lose one. Without content
	// the file is that long and reads as zeros.
	Reserve int64
}

// Write writes a disk of zeros into one that starts. id names the content:
// every identifier on the disk is derived from it, so that one content is one
// image. (A box that needs identifiers of its own makes them at first boot.)
func Write(f *os.File, esp []File, id []byte) error {
	if err := f.Truncate(Size); err != nil {
		return fmt.Errorf("sizing the disk: %w", err)
	}
	sum := sha256.Sum256(append([]byte("gatehouse disk\x00"), id...))
	files, err := newFAT(io.NewOffsetWriter(f, espStart), espStart, espSize, clusterSectors, "GATEHOUSE", binary.LittleEndian.Uint32(sum[:]))
	if err != nil {
		return fmt.Errorf("making the EFI system partition: %w", err)
	}
	if err := files.write(esp); err != nil {
		return fmt.Errorf("making the EFI system partition: %w", err)
	}
	table := &gpt.Table{
		LogicalSectorSize: sectorSize, PhysicalSectorSize: sectorSize, ProtectiveMBR: true,
		GUID: derive(sum, "disk"),
		Partitions: []*gpt.Partition{
			partition(1, espStart, espSize, gpt.EFISystemPartition, "ESP", derive(sum, "esp")),
			partition(2, metaStart, MetaSize, MetaType, "gatehouse-meta", derive(sum, "meta")),
		},
	}
	if err := table.Write(noSync{f}, Size); err != nil {
		return fmt.Errorf("writing the partition table: %w", err)
	}
	return nil
}

func partition(index int, start, size int64, kind gpt.Type, name, id string) *gpt.Partition {
	return &gpt.Partition{
		Index: index, Start: uint64(start / sectorSize), End: uint64((start+size)/sectorSize - 1),
		Type: kind, Name: name, GUID: id,
	}
}

// derive makes an identifier of what it names (RFC 9562 section 5.8, version 8).
func derive(sum [sha256.Size]byte, name string) string {
	h := sha256.Sum256(append(sum[:], name...))
	id := uuid.UUID(h[:16])
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id.String()
}

// Meta finds META on a disk by its type, for tools on the host, and returns
// its first byte.
func Meta(disk *os.File) (int64, error) {
	table, err := gpt.Read(noSync{disk}, sectorSize, sectorSize)
	if err != nil {
		return 0, fmt.Errorf("reading the partition table: %w", err)
	}
	for _, p := range table.Partitions {
		if p != nil && strings.EqualFold(string(p.Type), MetaType) {
			return int64(p.Start) * sectorSize, nil
		}
	}
	return 0, errors.New("the disk has no META partition: it is not a Gatehouse's")
}

// noSync keeps go-diskfs from syncing a file that nobody reads before it is
// complete: four flushes of a big sparse file take seconds.
type noSync struct{ f *os.File }

func (n noSync) Stat() (fs.FileInfo, error)                   { return n.f.Stat() }
func (n noSync) Read(p []byte) (int, error)                   { return n.f.Read(p) }
func (n noSync) Close() error                                 { return nil }
func (n noSync) ReadAt(p []byte, off int64) (int, error)      { return n.f.ReadAt(p, off) }
func (n noSync) WriteAt(p []byte, off int64) (int, error)     { return n.f.WriteAt(p, off) }
func (n noSync) Seek(offset int64, whence int) (int64, error) { return n.f.Seek(offset, whence) }
