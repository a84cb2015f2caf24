package vault

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// Where things are in META (docs/architecture.md).
const (
	copySize     = 64 << 10
	verifierAt   = 2 * copySize
	headerEnd    = 2 * copySize
	networkStart = 3 * copySize // behind it the network settings (network.go), then lists and spool of the locked state
	erasedEnd    = 4 * copySize
	blockSize    = 4096 // writes are whole blocks, so that a torn one never spoils a neighbour
	copyFirst    = 0    // the copy that a first write goes to
	copies       = 2
)

// pages is what META holds: the newest valid header, and what each copy is.
type pages struct {
	newest  *stored
	raw     []byte // of the newest
	at      int    // the copy it was read from
	blank   [copies]bool
	current [copies]bool // holds the newest, byte for byte
	problem error        // why a copy is not valid
	strange bool         // a copy is sound and of a version that this program does not know
}

// unwritten says that META never held a header. A first write that the power
// was cut in leaves the first copy torn and the second untouched: nothing was
// ever kept under such a header, so it counts as unwritten too. Our own writes
// never leave it the other way round.
func (p *pages) unwritten() bool {
	return p.newest == nil && p.blank[1-copyFirst] && !p.strange
}

func readPages(dev Device) (*pages, error) {
	p := &pages{}
	var raws [copies][]byte
	for i := range copies {
		buf := make([]byte, headerFixed+maxHeader+64)
		if n, err := dev.ReadAt(buf, int64(i)*copySize); err != nil && (!errors.Is(err, io.EOF) || n != len(buf)) {
			return nil, fmt.Errorf("reading copy %d of the header in META: %w", i, err)
		}
		if p.blank[i] = isBlank(buf); p.blank[i] {
			continue
		}
		s, err := parseHeader(buf)
		if err != nil {
			p.problem = fmt.Errorf("copy %d: %w", i, err)
			p.strange = p.strange || !errors.Is(err, errHeader)
			continue
		}
		raws[i] = buf[:len(s.covered)+64]
		if p.newest == nil || s.generation > p.newest.generation {
			p.newest, p.raw, p.at = s, raws[i], i
		}
	}
	for i := range copies {
		p.current[i] = p.newest != nil && bytes.Equal(raws[i], p.raw)
	}
	p.raw = bytes.Clone(p.raw) // and let go of the whole place of a copy
	return p, nil
}

// isBlank knows zeroes and erased flash.
func isBlank(b []byte) bool {
	return len(b) == 0 || (b[0] == 0 || b[0] == 0xFF) && bytes.Count(b, b[:1]) == len(b)
}

func writeCopy(dev Device, i int, raw []byte) error {
	return writeBlocks(dev, int64(i)*copySize, raw)
}

func writeBlocks(dev Device, at int64, raw []byte) error {
	buf := make([]byte, (len(raw)+blockSize-1)/blockSize*blockSize)
	copy(buf, raw)
	if _, err := dev.WriteAt(buf, at); err != nil {
		return err
	}
	return dev.Sync()
}

// writeHeader replaces the header. The commit point is the first of the two
// writes: a power cut before its end leaves the old generation in the other
// copy, one after it the new generation here. The second write makes both
// copies the same, so that nobody gets the old one back by spoiling a copy. An
// error with committed set says that only this second write failed, which the
// next Open mends; at is the copy that is sure to be good.
func writeHeader(dev Device, p *pages, raw []byte) (at int, committed bool, err error) {
	first := copyFirst
	if p.newest != nil {
		first = 1 - p.at
	}
	if err := writeCopy(dev, first, raw); err != nil {
		return 0, false, fmt.Errorf("writing the header to META: %w", err)
	}
	if err := writeCopy(dev, 1-first, raw); err != nil {
		return first, true, fmt.Errorf("writing the second copy of the header to META: %w", err)
	}
	return first, true, nil
}

// mirror mends a copy that a power cut left torn or behind.
func (p *pages) mirror(dev Device) error {
	for i := range copies {
		if p.current[i] {
			continue
		}
		if err := writeCopy(dev, i, p.raw); err != nil {
			return fmt.Errorf("mending copy %d of the header in META: %w", i, err)
		}
	}
	return nil
}
