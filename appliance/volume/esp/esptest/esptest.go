// Package esptest judges power cuts: what a machine starts from a disk that only some of the writes of an update have reached.
//
// The judge is the box's own code that chooses a slot, and a digest: it needs no
// start of a machine, so that every write of a whole update can be judged. Writes
// come from a Recorder, or from a log of a machine's disk (tests/boot).
package esptest

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/google/uuid"

	"gatehouse/appliance/volume/esp"
	"gatehouse/appliance/volume/gpt"
	"gatehouse/firmware/slot"
)

// What must not come of a power cut.
var (
	// ErrUnbootable: nothing starts, or not what loader.conf names.
	ErrUnbootable = errors.New("unbootable")
	// ErrMixed: a slot that firmware would take for a program holds none of the systems.
	ErrMixed = errors.New("mixed")
	// ErrLost: the record of slots and trials is gone.
	ErrLost = errors.New("lost configuration")
)

const sectorSize = 512

// Found is what is on a disk.
type Found struct {
	Default slot.Slot
	// A and B are what the slots hold; the zero Digest: nothing that firmware would
	// take for a program.
	A, B   slot.Digest
	Record slot.Record
}

// In is what a slot holds.
func (f Found) In(s slot.Slot) slot.Digest {
	if s == slot.B {
		return f.B
	}
	return f.A
}

// Judge says what a machine starts from a disk of that many bytes. Systems are
// those that may be there: a whole one in the slot that loader.conf names, and in
// the other a whole one or none. What it returns is worth reading even with an error.
func Judge(disk io.ReaderAt, size int64, systems ...slot.Digest) (Found, error) {
	var f Found
	part, meta, err := partitions(disk, size)
	if err != nil {
		return f, fmt.Errorf("%w: %w", ErrUnbootable, err)
	}
	p, err := esp.Open(readOnly{part}, 0)
	if err != nil {
		return f, fmt.Errorf("%w: %w", ErrUnbootable, err)
	}
	if f.Default, err = p.Default(); err != nil {
		return f, fmt.Errorf("%w: %w", ErrUnbootable, err)
	}
	if f.A, err = program(p, slot.A); err == nil {
		f.B, err = program(p, slot.B)
	}
	if err != nil {
		return f, fmt.Errorf("%w: %w", ErrMixed, err)
	}
	none := slot.Digest{}
	for _, s := range []slot.Slot{slot.A, slot.B} {
		switch d := f.In(s); {
		case d == none && s == f.Default:
			return f, fmt.Errorf("%w: loader.conf names slot %s, which is empty", ErrUnbootable, s)
		case d != none && !slices.Contains(systems, d):
			return f, fmt.Errorf("%w: slot %s holds %s, loader.conf names slot %s", ErrMixed, s, d, f.Default)
		}
	}
	if f.Record, err = slot.ReadRecord(meta); err != nil {
		return f, fmt.Errorf("%w: %w", ErrLost, err)
	}
	return f, nil
}

// program is the digest of what is in a slot, if it begins as programs do (PE
// format: "MZ"). The blank slot of a new image is long, and no program.
func program(p *esp.Partition, s slot.Slot) (slot.Digest, error) {
	r, err := p.Content(s)
	if err != nil || r.Size() < 2 {
		return slot.Digest{}, err
	}
	var b [2]byte
	if _, err := r.ReadAt(b[:], 0); err != nil || string(b[:]) != "MZ" {
		return slot.Digest{}, err
	}
	d, _, err := p.Digest(s)
	return d, err
}

// Partition types of docs/architecture.md, and of UEFI.
const (
	typeESP  = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
	typeMeta = "6b1d2c4e-5f0a-4c9e-9d5b-2f6f0a7e4d11"
)

// Places of the two partitions on a disk, in bytes.
func Places(disk io.ReaderAt, size int64) (espAt, espSize, metaAt, metaSize int64, err error) {
	t, _, err := gpt.Read(disk, gpt.Geometry{SectorSize: sectorSize, Sectors: uint64(size) / sectorSize})
	if err != nil {
		return 0, 0, 0, 0, err
	}
	_, e, ok := t.Find(uuid.MustParse(typeESP))
	_, m, ours := t.Find(uuid.MustParse(typeMeta))
	if !ok || !ours {
		return 0, 0, 0, 0, errors.New("the disk has no EFI system partition and META")
	}
	length := func(p gpt.Partition) int64 { return int64(p.Last-p.First+1) * sectorSize }
	return int64(e.First) * sectorSize, length(e), int64(m.First) * sectorSize, length(m), nil
}

func partitions(disk io.ReaderAt, size int64) (part, meta *io.SectionReader, err error) {
	e, en, m, mn, err := Places(disk, size)
	return io.NewSectionReader(disk, e, en), io.NewSectionReader(disk, m, mn), err
}

type readOnly struct{ io.ReaderAt }

func (readOnly) WriteAt([]byte, int64) (int, error) {
	return 0, errors.New("a judge writes nothing")
}
func (readOnly) Sync() error { return nil }
