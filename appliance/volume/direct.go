package volume

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"unsafe"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"gatehouse/appliance/volume/gpt"
)

// typeESP is UEFI's (2.10, section 5.3.3).
var typeESP = uuid.MustParse("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")

// directPiece is how much goes to the disk at once, at the most; alignment is
// what memory and devices agree on: a page.
const (
	directPiece = 64 << 10
	alignment   = 4096
)

// Direct is a partition that is read and written past the page cache, in whole
// sectors: what is read comes from the disk and not from what was just written,
// and 64 MiB of a system take no memory.
type Direct struct {
	f      *os.File
	sector int64
	mu     sync.Mutex
	page   []byte // aligned
}

// ESP opens the EFI system partition of our disk, past the page cache. The caller
// closes it. Nobody has it mounted.
func (d Disk) ESP() (*Direct, error) {
	f, g, err := d.open(os.O_RDWR)
	if err != nil {
		return nil, fmt.Errorf("opening our disk: %w", err)
	}
	defer f.Close()
	t, _, err := gpt.Read(f, g)
	if err != nil {
		return nil, fmt.Errorf("reading the partition table of %s: %w", d.Device, err)
	}
	number, p, ok := t.Find(typeESP)
	if _, _, ours := t.Find(typeMeta); !ok || !ours {
		return nil, fmt.Errorf("%s has no EFI system partition beside META, or more than one: write the image to it anew", d.Device)
	}
	dev, err := d.partition(f, g, number, p)
	if err != nil {
		return nil, err
	}
	return openDirect(d.path(dev), d.block.direct, int64(g.SectorSize))
}

func openDirect(path string, flag int, sector int64) (*Direct, error) {
	f, err := os.OpenFile(path, os.O_RDWR|flag, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s past the page cache: %w", filepath.Base(path), err)
	}
	buf := make([]byte, directPiece+alignment)
	skip := -uintptr(unsafe.Pointer(&buf[0])) % alignment
	return &Direct{f: f, sector: sector, page: buf[skip:][:directPiece]}, nil
}

var errSectors = errors.New("the disk is read and written in whole sectors")

func (d *Direct) whole(n int, off int64) error {
	if off < 0 || off%d.sector != 0 || int64(n)%d.sector != 0 {
		return fmt.Errorf("%w of %d bytes: %d at byte %d", errSectors, d.sector, n, off)
	}
	return nil
}

// ReadAt reads whole sectors.
func (d *Direct) ReadAt(b []byte, off int64) (int, error) {
	if err := d.whole(len(b), off); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	done := 0
	for done < len(b) {
		n, err := d.f.ReadAt(d.page[:min(directPiece, len(b)-done)], off+int64(done))
		done += copy(b[done:], d.page[:n])
		if err != nil {
			if errors.Is(err, io.EOF) && done == len(b) {
				err = nil
			}
			return done, err
		}
	}
	return done, nil
}

// WriteAt writes whole sectors.
func (d *Direct) WriteAt(b []byte, off int64) (int, error) {
	if err := d.whole(len(b), off); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	done := 0
	for done < len(b) {
		n := copy(d.page, b[done:])
		n, err := d.f.WriteAt(d.page[:n], off+int64(done))
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// Sync has the disk keep what was written: past the page cache is not yet past
// the disk's own.
func (d *Direct) Sync() error { return unix.Fdatasync(int(d.f.Fd())) }

// Close closes the partition.
func (d *Direct) Close() error { return d.f.Close() }
