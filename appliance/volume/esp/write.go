package esp

import (
	"encoding/binary"
	"errors"
	"fmt"

	"gatehouse/firmware/slot"
)

// mayWrite refuses with an *InUse what has to stay: the slot that runs, and the
// one that starts when the power is cut now.
func (p *Partition) mayWrite(s slot.Slot) error {
	switch {
	case s != slot.A && s != slot.B:
		return &InUse{s, "there is no such slot"}
	case p.running != slot.A && p.running != slot.B:
		return &InUse{s, "which slot runs cannot be told"}
	case s == p.running:
		return &InUse{s, "the box runs from it"}
	}
	switch at, err := p.Default(); {
	case err != nil:
		return &InUse{s, "which slot starts next cannot be told: " + err.Error()}
	case at == s:
		return &InUse{s, "it is the one that starts next"}
	}
	return nil
}

// Clear makes a slot no program any more: its length becomes 0, in one sector.
// What was in it is gone then, for good once Write begins.
func (p *Partition) Clear(s slot.Slot) error {
	if err := p.mayWrite(s); err != nil {
		return err
	}
	if err := p.setLength(s, 0); err != nil {
		return fmt.Errorf("emptying slot %s: %w", s, err)
	}
	return nil
}

// errWhole is the refusal to write into a program.
var errWhole = errors.New("it holds a program: it has to be cleared first")

// Write writes a piece of a system into a slot that was cleared. Pieces may come in
// any order and of any length; one of whole sectors costs no reading. Nothing is
// durable before Sync or Complete.
func (p *Partition) Write(s slot.Slot, b []byte, off int64) error {
	if err := p.mayWrite(s); err != nil {
		return err
	}
	if off < 0 || off > slot.Size || int64(len(b)) > slot.Size-off {
		return fmt.Errorf("writing slot %s: bytes %d to %d, and it has %d", s, off, off+int64(len(b)), slot.Size)
	}
	if n, err := p.Length(s); err != nil || n != 0 {
		if err == nil {
			err = errWhole
		}
		return fmt.Errorf("writing slot %s: %w", s, err)
	}
	for len(b) > 0 {
		n := min(int64(len(b)), piece-off%sectorSize)
		if err := p.write(p.layout.of(s).start+off, b[:n]); err != nil {
			return fmt.Errorf("writing slot %s at byte %d: %w", s, off, err)
		}
		b, off = b[n:], off+n
	}
	return nil
}

// write writes whole sectors, those at both ends with what was in them.
func (p *Partition) write(at int64, b []byte) error {
	begin, end := at/sectorSize*sectorSize, align(at+int64(len(b)))
	if begin == at && end == at+int64(len(b)) {
		_, err := p.dev.WriteAt(b, at)
		return err
	}
	buf := make([]byte, end-begin)
	for _, edge := range []int64{0, end - begin - sectorSize} {
		if _, err := p.dev.ReadAt(buf[edge:edge+sectorSize], begin+edge); err != nil {
			return err
		}
	}
	copy(buf[at-begin:], b)
	_, err := p.dev.WriteAt(buf, begin)
	return err
}

// Sync has what was written reach the disk: where a transfer may go on after a
// power cut.
func (p *Partition) Sync() error { return p.dev.Sync() }

// Complete makes what was written a program: it is synced, read back from the
// disk, compared with what it should be, and only then its file gets its length,
// in one sector. The length is exact, since firmware hashes every byte of the file
// (bytes behind the signature would break it). ErrContent leaves the slot empty. A
// slot that is complete already is left as it is.
func (p *Partition) Complete(s slot.Slot, want slot.System) error {
	if err := p.mayWrite(s); err != nil {
		return err
	}
	if want.Size <= 0 || want.Size > slot.Size {
		return fmt.Errorf("completing slot %s: a system of %d bytes, and it has %d", s, want.Size, slot.Size)
	}
	if n, err := p.Length(s); err != nil || n != 0 {
		if err == nil {
			err = p.Check(s, want)
		}
		return err
	}
	if err := p.dev.Sync(); err != nil {
		return fmt.Errorf("completing slot %s: %w", s, err)
	}
	sum, err := p.digest(s, want.Size)
	if err != nil {
		return fmt.Errorf("completing slot %s: %w", s, err)
	}
	if sum != want.SHA256 {
		return fmt.Errorf("completing slot %s: %w: its SHA-256 is %s, and not %s", s, ErrContent, sum, want.SHA256)
	}
	if err := p.setLength(s, want.Size); err != nil {
		return fmt.Errorf("completing slot %s: %w", s, err)
	}
	return nil
}

// setLength changes four bytes of one sector, and nothing besides.
func (p *Partition) setLength(s slot.Slot, n int64) error {
	sector, entry, err := p.entry(s)
	if err != nil {
		return err
	}
	if int64(binary.LittleEndian.Uint32(entry[lengthAt:])) == n {
		return nil
	}
	binary.LittleEndian.PutUint32(entry[lengthAt:], uint32(n))
	if _, err := p.dev.WriteAt(sector, p.layout.of(s).entry/sectorSize*sectorSize); err != nil {
		return err
	}
	if err := p.dev.Sync(); err != nil {
		return err
	}
	got, err := p.Length(s)
	if err == nil && got != n {
		err = errForgets
	}
	return err
}

// Copy mends a damaged slot: it fills it with the system of the other, which is
// checked before a byte is written. Two slots start again then, with one version
// in both. The slot that loader.conf names is refused, also a damaged one: Commit
// first has it name the one that runs.
func (p *Partition) Copy(from, to slot.Slot, want slot.System) error {
	if err := p.mayWrite(to); err != nil {
		return err
	}
	if from == to {
		return &InUse{to, "it cannot be copied into itself"}
	}
	if err := p.Check(from, want); err != nil {
		return fmt.Errorf("copying a system: %w", err)
	}
	if err := p.Clear(to); err != nil {
		return err
	}
	buf := make([]byte, piece)
	for at := int64(0); at < want.Size; at += piece {
		part := buf[:align(min(piece, want.Size-at))]
		if _, err := p.dev.ReadAt(part, p.layout.of(from).start+at); err != nil {
			return fmt.Errorf("copying a system: %w", err)
		}
		if err := p.Write(to, part, at); err != nil {
			return fmt.Errorf("copying a system: %w", err)
		}
	}
	return p.Complete(to, want)
}
