// Package esp reads the systems of both slots on the box's EFI system partition and overwrites the one that does not run, in place.
//
// It works on the raw partition and never mounts it. The image gives each slot 64
// MiB in one run of clusters, so that a new system changes no table: only sectors
// of the slot, one directory sector (the length of its file) and the one sector
// of loader.conf. What this package never writes: the slot that runs, the slot that
// loader.conf names, boot sector, both tables, the free count, and every other
// file. docs/decisions/0046 has what else could have been done.
//
// The order of an update, and where a power cut leaves it:
//
//	Clear     length 0, synced      the slot is no program any more, before a byte of it changes
//	Write …   pieces, in any order  the slot is empty for firmware and boot loader, whatever they read
//	Complete  synced, read back     still empty
//	          length, synced        the slot holds the whole new system, which nobody starts yet
//	(a trial: the boot loader is told by a variable, once)
//	Commit    loader.conf, synced   the commit point: the system that runs is the one that starts
//
// At each point loader.conf names a whole system. That a sector is written whole or
// not at all is taken for granted, as everywhere; a sector torn in loader.conf
// would still name one of two, since two configurations differ in one byte.
//
// A Partition is used by one goroutine at a time.
package esp

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"gatehouse/firmware/slot"
)

// Device is the raw partition. It is read and written in whole sectors of 512
// bytes alone, so that it can be one that goes past the page cache.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// Errors that callers tell apart.
var (
	// ErrDamaged: a slot does not hold the system that it should.
	ErrDamaged = errors.New("the system is damaged on the disk")
	// ErrContent: what was written is not the system that was to be written.
	ErrContent = errors.New("what is in the slot is not the system that was announced")
)

// errForgets: what was written reads as before.
var errForgets = errors.New("the disk does not keep what is written to it: replace it")

// InUse is the refusal to write a slot that has to stay as it is.
type InUse struct {
	Slot slot.Slot
	Why  string
}

func (e *InUse) Error() string { return fmt.Sprintf("slot %s is not written: %s", e.Slot, e.Why) }

// piece is how much is read or written at once.
const piece = 64 << 10

// Partition is the box's EFI system partition.
type Partition struct {
	dev     Device
	running slot.Slot
	layout  *layout
}

// Open finds the slots. running is the slot of the system that runs; 0, where it
// cannot be told, makes a partition that is only read. The error is ErrLayout
// where somebody else laid it out.
func Open(dev Device, running slot.Slot) (*Partition, error) {
	l, err := find(dev)
	if err != nil {
		return nil, err
	}
	return &Partition{dev: dev, running: running, layout: l}, nil
}

// Default is the slot that loader.conf names.
func (p *Partition) Default() (slot.Slot, error) {
	b := make([]byte, slot.SectorSize)
	if _, err := p.dev.ReadAt(b, p.layout.config.start); err != nil {
		return 0, fmt.Errorf("reading loader.conf: %w", err)
	}
	return slot.Default(b)
}

// Commit has loader.conf name the slot that runs: the commit point of an update.
// It names no other, ever: what runs has shown that it starts. A cut before the
// end of the one write leaves the old configuration, one after it the new.
func (p *Partition) Commit() error {
	if p.running != slot.A && p.running != slot.B {
		return errors.New("rewriting loader.conf: which slot runs cannot be told")
	}
	if at, err := p.Default(); err == nil && at == p.running {
		return nil
	}
	_, err := p.dev.WriteAt(slot.Config(p.running), p.layout.config.start)
	if err == nil {
		err = p.dev.Sync()
	}
	if err != nil {
		return fmt.Errorf("rewriting loader.conf: %w", err)
	}
	at, err := p.Default()
	if err == nil && at != p.running {
		err = fmt.Errorf("rewriting loader.conf: %w", errForgets)
	}
	return err
}

// Length is how long the file of a slot is; 0: it is no program.
func (p *Partition) Length(s slot.Slot) (int64, error) {
	_, e, err := p.entry(s)
	if err != nil {
		return 0, err
	}
	n := int64(binary.LittleEndian.Uint32(e[lengthAt:]))
	if n > slot.Size {
		return 0, fmt.Errorf("its file is %d bytes long, and %d are kept for it", n, slot.Size)
	}
	return n, nil
}

// entry reads the directory sector of a slot, and the entry in it, which has to
// be where Open found it.
func (p *Partition) entry(s slot.Slot) (sector, entry []byte, err error) {
	f := p.layout.of(s)
	sector = make([]byte, sectorSize)
	if _, err := p.dev.ReadAt(sector, f.entry/sectorSize*sectorSize); err != nil {
		return nil, nil, fmt.Errorf("reading the folder of %s: %w", f.name, err)
	}
	entry = sector[f.entry%sectorSize:][:entrySize]
	first := uint32(binary.LittleEndian.Uint16(entry[20:]))<<16 | uint32(binary.LittleEndian.Uint16(entry[26:]))
	if [11]byte(entry[:11]) != f.short || first != f.first {
		return nil, nil, refuse("%s was moved while it was in use", f.name)
	}
	return sector, entry, nil
}

// Content is what is in a slot, as long as its file says.
func (p *Partition) Content(s slot.Slot) (*io.SectionReader, error) {
	n, err := p.Length(s)
	if err != nil {
		return nil, err
	}
	return io.NewSectionReader(unaligned{p.dev}, p.layout.of(s).start, n), nil
}

// Room is all the bytes kept for a slot, whatever its length: what was written of
// a system that is not complete.
func (p *Partition) Room(s slot.Slot) *io.SectionReader {
	return io.NewSectionReader(unaligned{p.dev}, p.layout.of(s).start, slot.Size)
}

// Program is another file of the partition, as the boot loader is: it is read, and never
// written. The image has it in one run of clusters.
func (p *Partition) Program(path string) (*io.SectionReader, error) {
	v, err := openVolume(p.dev)
	if err != nil {
		return nil, err
	}
	f, err := v.lookup(path)
	if err != nil {
		return nil, err
	}
	if f.size == 0 || f.size > slot.Size {
		return nil, refuse("%s is %d bytes long", path, f.size)
	}
	if err := v.inOneRun(f, (f.size+clusterSize-1)/clusterSize); err != nil {
		return nil, err
	}
	return io.NewSectionReader(unaligned{p.dev}, f.start, int64(f.size)), nil
}

// Check says whether a slot holds a system, and nothing else: length and SHA-256,
// read from the disk. The error is ErrDamaged if not, with what is wrong; a sector
// that cannot be read is damage, too.
func (p *Partition) Check(s slot.Slot, want slot.System) error {
	n, err := p.Length(s)
	switch {
	case errors.Is(err, ErrLayout):
		return err
	case err != nil:
		return fmt.Errorf("slot %s: %w: %w", s, ErrDamaged, err)
	case n == 0:
		return fmt.Errorf("slot %s: %w: it is empty", s, ErrDamaged)
	case n != want.Size:
		return fmt.Errorf("slot %s: %w: it has %d bytes, and not %d", s, ErrDamaged, n, want.Size)
	}
	sum, err := p.digest(s, n)
	if err != nil {
		return fmt.Errorf("slot %s: %w: %w", s, ErrDamaged, err)
	}
	if sum != want.SHA256 {
		return fmt.Errorf("slot %s: %w: its SHA-256 is %s, and not %s", s, ErrDamaged, sum, want.SHA256)
	}
	return nil
}

// Digest is the SHA-256 of what is in a slot, as long as its file says, and that
// length; 0: nothing that starts.
func (p *Partition) Digest(s slot.Slot) (slot.Digest, int64, error) {
	n, err := p.Length(s)
	if err != nil || n == 0 {
		return slot.Digest{}, 0, err
	}
	sum, err := p.digest(s, n)
	return sum, n, err
}

func (p *Partition) digest(s slot.Slot, n int64) (slot.Digest, error) {
	h := sha256.New()
	buf := make([]byte, piece)
	start := p.layout.of(s).start
	for at := int64(0); at < n; at += piece {
		part := buf[:align(min(piece, n-at))]
		if _, err := p.dev.ReadAt(part, start+at); err != nil {
			return slot.Digest{}, fmt.Errorf("reading %s at byte %d: %w", s.Path(), at, err)
		}
		h.Write(part[:min(piece, n-at)])
	}
	return slot.Digest(h.Sum(nil)), nil
}

// unaligned reads any bytes of a device that gives whole sectors.
type unaligned struct{ dev io.ReaderAt }

func (u unaligned) ReadAt(b []byte, off int64) (int, error) {
	begin := off / sectorSize * sectorSize
	buf := make([]byte, align(off+int64(len(b)))-begin)
	n, err := u.dev.ReadAt(buf, begin)
	n = copy(b, buf[min(int(off-begin), n):n])
	if n == len(b) {
		err = nil
	}
	return n, err
}
