package gpt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"unicode/utf16"

	"github.com/google/uuid"
)

// A Device is a disk that can be written.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// Find gives the only partition of a type and its number as the kernel counts.
// None, or more than one, is not found: which of two is ours cannot be told.
func (t *Table) Find(kind uuid.UUID) (number int, p Partition, ok bool) {
	for i, e := range t.Entries {
		if e.Type != kind || !e.used() {
			continue
		}
		if number != 0 {
			return 0, Partition{}, false
		}
		number, p = i+1, e
	}
	return number, p, number != 0
}

// alignment of partitions, in bytes: erase blocks of flash, and whole
// encryption sectors.
const alignment = 1 << 20

// Append adds a partition from behind the last one to the end of the disk, in
// the first unused entry after the used ones, and widens the usable sectors to
// the disk. Nothing is written: see Commit.
func (t *Table) Append(g Geometry, kind, id uuid.UUID, name string, least uint64) (number int, err error) {
	next := *t
	next.LastUsable = g.lastUsable()
	first := next.FirstUsable
	for i, e := range next.Entries {
		if e.used() {
			number, first = i+1, max(first, e.Last+1)
		}
	}
	if number == entryCount {
		return 0, errors.New("the partition table has no free entry")
	}
	step := uint64(alignment / g.SectorSize)
	first = (first + step - 1) / step * step
	end := (next.LastUsable + 1) / step * step // not included
	if end <= first || (end-first)*uint64(g.SectorSize) < least {
		free := uint64(0)
		if end > first {
			free = (end - first) * uint64(g.SectorSize)
		}
		return 0, fmt.Errorf("the disk has %d MiB free behind its last partition, and %d MiB are needed: use a larger disk", free>>20, least>>20)
	}
	if len(utf16.Encode([]rune(name))) > 36 {
		return 0, fmt.Errorf("the name %q is longer than 36 characters", name)
	}
	next.Entries[number] = Partition{Type: kind, ID: id, First: first, Last: end - 1, Name: name}
	if err := next.Check(); err != nil {
		return 0, err
	}
	*t = next
	return number + 1, nil
}

// Commit makes t the table of the disk. A power cut, at any write and with any
// sector torn or any unsynced write missing, leaves the old table or the new
// one for Read:
//
//  0. A broken primary is first written anew from the backup that Read used,
//     and synced. Cut here: the backup is untouched, and whole.
//  1. The new backup is written at the end of the disk, and synced. Cut here:
//     the primary is untouched, and whole: the old table. What lies at the end
//     may be half a backup, or a whole one that is newer than the primary;
//     Read does not look at it while the primary is whole.
//  2. The new primary is written, entries and header, and synced. Cut here:
//     the header's checksums cover header and entries, so that any part of
//     the two is either the whole old table, the whole new one, or broken;
//     broken means the backup, which is the new one since step 1.
//
// The step into the new table is the sector that makes the primary invalid or
// new: one commit point. At no time are both copies being written without a
// sync between them. (A kernel that writes whole pages writes sector 0 and the
// header together, sector 0 with what it had.) The backup of a smaller image, somewhere in the middle
// of the disk, is left: it is in the new partition or in free space, and
// nobody looks for it there once the primary says otherwise.
func Commit(d Device, g Geometry, t Table) error {
	old, health, err := Read(d, g)
	if err != nil {
		return fmt.Errorf("writing the partition table: there is none to begin with: %w", err)
	}
	t.LastUsable = g.lastUsable()
	if err := t.Check(); err != nil {
		return fmt.Errorf("writing the partition table: %w", err)
	}
	if health.Primary != nil {
		if err := writeCopy(d, g, old, 1); err != nil {
			return fmt.Errorf("mending the first partition table: %w", err)
		}
	}
	if err := writeCopy(d, g, t, g.last()); err != nil {
		return fmt.Errorf("writing the partition table at the end of the disk (the old one counts): %w", err)
	}
	if err := writeCopy(d, g, t, 1); err != nil {
		return fmt.Errorf("writing the partition table at the beginning of the disk (the one at its end counts): %w", err)
	}
	return nil
}

// Heal makes both copies whole and equal if they are not, and moves the
// backup to the end of a disk that grew. It says whether it wrote anything.
func Heal(d Device, g Geometry) (bool, error) {
	t, health, err := Read(d, g)
	if err != nil || health.Whole() {
		return false, err
	}
	return true, Commit(d, g, t)
}

// writeCopy writes one copy and syncs it.
func writeCopy(d Device, g Geometry, t Table, lba uint64) error {
	entries := make([]byte, entryCount*entrySize)
	for i, p := range t.Entries {
		putEntry(entries[i*entrySize:], p)
	}
	at, other := uint64(2), g.last()
	if lba != 1 {
		at, other = lba-g.entrySectors(), 1
	}
	le := binary.LittleEndian
	h := make([]byte, g.SectorSize)
	copy(h, signature)
	le.PutUint32(h[8:], revision)
	le.PutUint32(h[12:], headerSize)
	le.PutUint64(h[24:], lba)
	le.PutUint64(h[32:], other)
	le.PutUint64(h[40:], t.FirstUsable)
	le.PutUint64(h[48:], t.LastUsable)
	putGUID(h[56:], t.Disk)
	le.PutUint64(h[72:], at)
	le.PutUint32(h[80:], entryCount)
	le.PutUint32(h[84:], entrySize)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(entries))
	le.PutUint32(h[16:], headerCRC(h))
	if _, err := d.WriteAt(entries, int64(at)*int64(g.SectorSize)); err != nil {
		return err
	}
	if _, err := d.WriteAt(h, int64(lba)*int64(g.SectorSize)); err != nil {
		return err
	}
	return d.Sync()
}

func putEntry(b []byte, p Partition) {
	if !p.used() {
		return
	}
	le := binary.LittleEndian
	putGUID(b, p.Type)
	putGUID(b[16:], p.ID)
	le.PutUint64(b[32:], p.First)
	le.PutUint64(b[40:], p.Last)
	le.PutUint64(b[48:], p.Attributes)
	for i, u := range utf16.Encode([]rune(p.Name)) {
		le.PutUint16(b[56+2*i:], u)
	}
}
