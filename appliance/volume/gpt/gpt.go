// Package gpt reads and grows the one kind of GUID partition table that our disks have.
//
// It is pure: the disk is handed in. It is strict (UEFI 2.10, chapter 5): 128
// entries of 128 bytes, primary table at sector 1, every checksum right, no
// partition out of range or over another. A table that breaks a rule counts as
// broken, and the other copy is used.
//
// Sector 0, the protective MBR, is never written: it has no second copy, and
// a torn write would hide the whole disk from firmware and kernel. So an image
// that is written to a larger disk says 0xFFFFFFFF as its size from the start,
// or the size stays that of the image, which firmware and kernel accept.
package gpt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"unicode/utf16"

	"github.com/google/uuid"
)

const (
	entryCount = 128
	entrySize  = 128
	headerSize = 92
	signature  = "EFI PART"
	revision   = 0x00010000
)

// A Geometry is a disk's size.
type Geometry struct {
	SectorSize int    // bytes: 512 or 4096
	Sectors    uint64 // of SectorSize
}

func (g Geometry) entrySectors() uint64 { return entryCount * entrySize / uint64(g.SectorSize) }

// last is the last sector, where the backup header belongs.
func (g Geometry) last() uint64 { return g.Sectors - 1 }

func (g Geometry) lastUsable() uint64 { return g.last() - g.entrySectors() - 1 }

func (g Geometry) check() error {
	if g.SectorSize != 512 && g.SectorSize != 4096 {
		return fmt.Errorf("sectors of %d bytes: 512 and 4096 are known", g.SectorSize)
	}
	if g.Sectors < 2*g.entrySectors()+16 || g.Sectors > 1<<51 {
		return fmt.Errorf("%d sectors: too small or too large for a partition table", g.Sectors)
	}
	return nil
}

// A Partition is one entry; First and Last are sectors, both inclusive.
type Partition struct {
	Type, ID    uuid.UUID
	First, Last uint64
	Attributes  uint64
	Name        string // at most 36 UTF-16 units
}

// used says whether the entry is a partition at all.
func (p Partition) used() bool { return p.Type != uuid.Nil }

// A Table is a valid partition table. Partition N of the kernel is Entries[N-1].
type Table struct {
	Disk        uuid.UUID
	FirstUsable uint64
	LastUsable  uint64
	Entries     [entryCount]Partition
}

// Health says what is wrong with the copies on disk; a copy is nil when it is whole.
type Health struct {
	Primary error // firmware and kernel use the backup then, or nothing
	Backup  error // at the last sector; not there yet on a disk larger than its image
}

// Whole says that both copies are good.
func (h Health) Whole() bool { return h.Primary == nil && h.Backup == nil }

// ErrNone says that the disk has no GPT at all.
var ErrNone = errors.New("no GPT partition table")

// Read reads the table: the primary if it is whole, else the backup at the
// last sector. Two whole copies that differ are no error: the primary counts
// (see Commit), and Health.Backup says that they differ.
func Read(r io.ReaderAt, g Geometry) (Table, Health, error) {
	if err := g.check(); err != nil {
		return Table{}, Health{}, err
	}
	if err := protective(r); err != nil {
		return Table{}, Health{}, err
	}
	primary, err1 := readCopy(r, g, 1)
	backup, err2 := readCopy(r, g, g.last())
	switch {
	case err1 == nil:
		if err2 == nil && backup != primary {
			err2 = errors.New("it differs from the primary")
		}
		return primary, Health{Backup: err2}, nil
	case err2 == nil:
		return backup, Health{Primary: err1}, nil
	}
	return Table{}, Health{Primary: err1, Backup: err2},
		fmt.Errorf("both partition tables are broken: the first: %w; the last: %w", err1, err2)
}

// protective checks sector 0 as the kernel does: the signature, and one
// partition of type 0xEE that begins at sector 1.
func protective(r io.ReaderAt) error {
	var mbr [512]byte
	if _, err := r.ReadAt(mbr[:], 0); err != nil {
		return fmt.Errorf("reading the first sector: %w", err)
	}
	if mbr[510] != 0x55 || mbr[511] != 0xaa {
		return ErrNone
	}
	for i := range 4 {
		p := mbr[446+16*i:]
		if p[4] == 0xee && binary.LittleEndian.Uint32(p[8:]) == 1 {
			return nil
		}
	}
	return ErrNone
}

// readCopy reads the copy whose header is at sector lba.
func readCopy(r io.ReaderAt, g Geometry, lba uint64) (Table, error) {
	header := make([]byte, g.SectorSize)
	if _, err := r.ReadAt(header, int64(lba)*int64(g.SectorSize)); err != nil {
		return Table{}, fmt.Errorf("reading sector %d: %w", lba, err)
	}
	h, err := parseHeader(header, g, lba)
	if err != nil {
		return Table{}, err
	}
	entries := make([]byte, entryCount*entrySize)
	if _, err := r.ReadAt(entries, int64(h.entries)*int64(g.SectorSize)); err != nil {
		return Table{}, fmt.Errorf("reading the entries at sector %d: %w", h.entries, err)
	}
	if crc32.ChecksumIEEE(entries) != h.entriesCRC {
		return Table{}, errors.New("the checksum of the entries is wrong")
	}
	for i := range entryCount {
		if h.table.Entries[i], err = parseEntry(entries[i*entrySize:][:entrySize]); err != nil {
			return Table{}, fmt.Errorf("entry %d: %w", i+1, err)
		}
	}
	return h.table, h.table.Check()
}

type header struct {
	table      Table
	entries    uint64
	entriesCRC uint32
}

func parseHeader(b []byte, g Geometry, lba uint64) (header, error) {
	le := binary.LittleEndian
	var h header
	switch {
	case string(b[:8]) != signature:
		return h, errors.New("no table header")
	case le.Uint32(b[8:]) != revision || le.Uint32(b[12:]) != headerSize:
		return h, errors.New("not a header of revision 1.0 and 92 bytes")
	case le.Uint32(b[16:]) != headerCRC(b):
		return h, errors.New("the checksum of the header is wrong")
	case le.Uint64(b[24:]) != lba:
		return h, fmt.Errorf("the header is for sector %d", le.Uint64(b[24:]))
	case le.Uint32(b[80:]) != entryCount || le.Uint32(b[84:]) != entrySize:
		return h, errors.New("not 128 entries of 128 bytes")
	}
	h.table.FirstUsable, h.table.LastUsable = le.Uint64(b[40:]), le.Uint64(b[48:])
	h.table.Disk = parseGUID(b[56:])
	h.entries, h.entriesCRC = le.Uint64(b[72:]), le.Uint32(b[88:])
	other := le.Uint64(b[32:])
	if h.table.FirstUsable < 2+g.entrySectors() || h.table.LastUsable > g.lastUsable() || h.table.FirstUsable > h.table.LastUsable {
		return h, fmt.Errorf("the usable sectors %d–%d do not fit the disk", h.table.FirstUsable, h.table.LastUsable)
	}
	if lba == 1 { // the backup may still be where the image ended
		if h.entries != 2 || other <= h.table.LastUsable || other > g.last() {
			return h, errors.New("the places of entries or backup are wrong")
		}
	} else if h.entries != lba-g.entrySectors() || other != 1 {
		return h, errors.New("the places of entries or primary are wrong")
	}
	return h, nil
}

// headerCRC is over the header with its own field as zero.
func headerCRC(b []byte) uint32 {
	var h [headerSize]byte
	copy(h[:], b)
	clear(h[16:20])
	return crc32.ChecksumIEEE(h[:])
}

func parseEntry(b []byte) (Partition, error) {
	le := binary.LittleEndian
	p := Partition{Type: parseGUID(b), ID: parseGUID(b[16:]), First: le.Uint64(b[32:]), Last: le.Uint64(b[40:]), Attributes: le.Uint64(b[48:])}
	if !p.used() {
		for _, c := range b {
			if c != 0 {
				return p, errors.New("it is unused but not empty")
			}
		}
		return Partition{}, nil
	}
	units := make([]uint16, 36)
	end := len(units)
	for i := range units {
		units[i] = le.Uint16(b[56+2*i:])
		if units[i] == 0 && end == len(units) {
			end = i
		} else if units[i] != 0 && end != len(units) {
			return p, errors.New("its name goes on after its end")
		}
	}
	p.Name = string(utf16.Decode(units[:end]))
	if strings.ContainsRune(p.Name, '\uFFFD') {
		return p, errors.New("its name is not UTF-16")
	}
	return p, nil
}

// Check refuses partitions that lie out of the usable sectors, over one
// another, or share an id.
func (t *Table) Check() error {
	for i, p := range t.Entries {
		if !p.used() {
			continue
		}
		if p.First < t.FirstUsable || p.Last > t.LastUsable || p.First > p.Last {
			return fmt.Errorf("partition %d is at %d–%d, not in the usable sectors %d–%d", i+1, p.First, p.Last, t.FirstUsable, t.LastUsable)
		}
		if p.ID == uuid.Nil {
			return fmt.Errorf("partition %d has no id", i+1)
		}
		for j, q := range t.Entries[:i] {
			if q.used() && p.First <= q.Last && q.First <= p.Last {
				return fmt.Errorf("partitions %d and %d overlap", j+1, i+1)
			}
			if q.used() && q.ID == p.ID {
				return fmt.Errorf("partitions %d and %d have the same id", j+1, i+1)
			}
		}
	}
	return nil
}

// parseGUID reads the mixed-endian form of disks (UEFI 2.10, appendix A).
func parseGUID(b []byte) uuid.UUID {
	return uuid.UUID{b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]}
}

func putGUID(b []byte, u uuid.UUID) {
	swapped := parseGUID(u[:]) // the swap is its own inverse
	copy(b, swapped[:])
}
