package disks

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Span is some bytes of an image that have to be written.
type Span struct{ At, Size int64 }

const (
	piece    = 1 << 20
	sectorOf = 4096 // what O_DIRECT asks of places and addresses
)

// A Written is what Write left on a disk, piece by piece.
type Written struct {
	Bytes  int64
	pieces []written
}

type written struct {
	at, size int64
	sum      [sha256.Size]byte
}

// Write copies an image of size bytes to a disk: the whole, or only spans of it,
// in order and without overlaps. It returns when the disk says that all is on
// it. progress is told how many bytes of the image are passed; it may be nil.
//
// The beginning, where the partition table is, is emptied first and written
// last: a disk whose writing was cut off starts nothing.
func Write(ctx context.Context, disk *os.File, image io.Reader, size int64, spans []Span, progress func(int64)) (Written, error) {
	var w Written
	put := func(part []byte, at int64) error {
		for _, s := range within(spans, at, int64(len(part))) {
			b := part[s.At-at:][:s.Size]
			if _, err := disk.WriteAt(b, s.At); err != nil {
				return fmt.Errorf("writing to the disk at %d: %w", s.At, err)
			}
			w.pieces = append(w.pieces, written{s.At, s.Size, sha256.Sum256(b)})
			w.Bytes += s.Size
		}
		return nil
	}
	beginning, buffer := make([]byte, min(piece, size)), make([]byte, piece)
	if _, err := disk.WriteAt(beginning, 0); err != nil {
		return w, fmt.Errorf("emptying the beginning of the disk: %w", err)
	}
	if err := disk.Sync(); err != nil {
		return w, fmt.Errorf("emptying the beginning of the disk: %w", err)
	}
	for at := int64(0); at < size; at += piece {
		if err := ctx.Err(); err != nil {
			return w, err
		}
		part := buffer[:min(piece, size-at)]
		if at == 0 {
			part = beginning
		}
		if _, err := io.ReadFull(image, part); err != nil {
			return w, fmt.Errorf("reading the image at %d: %w", at, err)
		}
		if at > 0 {
			if err := put(part, at); err != nil {
				return w, err
			}
		}
		if progress != nil {
			progress(at + int64(len(part)))
		}
	}
	if _, err := io.ReadFull(image, buffer[:1]); !errors.Is(err, io.EOF) {
		return w, fmt.Errorf("the image goes on behind its %d bytes (%v)", size, err)
	}
	if err := disk.Sync(); err != nil {
		return w, fmt.Errorf("having the disk keep what was written: %w", err)
	}
	if err := put(beginning, 0); err != nil {
		return w, err
	}
	if err := disk.Sync(); err != nil {
		return w, fmt.Errorf("having the disk keep what was written: %w", err)
	}
	return w, nil
}

// within are the parts of spans in one piece; all of it if there are none.
func within(spans []Span, at, size int64) []Span {
	if spans == nil {
		return []Span{{at, size}}
	}
	var out []Span
	for _, s := range spans {
		if first, end := max(s.At, at), min(s.At+s.Size, at+size); first < end {
			out = append(out, Span{first, end - first})
		}
	}
	return out
}

// Compare reads back what was written, past the kernel's memory of it: what a
// disk that lies has in store would otherwise never be seen. It says whether
// the disk itself was asked (O_DIRECT), which a file may not be able to.
func (w Written) Compare(ctx context.Context, path string, progress func(int64)) (direct bool, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	direct = err == nil
	if errors.Is(err, unix.EINVAL) {
		f, err = os.Open(path)
	}
	if err != nil {
		return false, fmt.Errorf("reading back: %w", err)
	}
	defer f.Close()
	if !direct {
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return false, fmt.Errorf("reading back: having the kernel forget what was written: %w", err)
		}
	}
	buffer := aligned(piece + 2*sectorOf)
	done := int64(0)
	for _, p := range w.pieces {
		if err := ctx.Err(); err != nil {
			return direct, err
		}
		first := p.at / sectorOf * sectorOf
		need := (p.at + p.size - first + sectorOf - 1) / sectorOf * sectorOf
		n, err := f.ReadAt(buffer[:need], first)
		if err != nil && !(errors.Is(err, io.EOF) && int64(n) >= p.at+p.size-first) {
			return direct, fmt.Errorf("reading back at %d: %w", p.at, err)
		}
		if sum := sha256.Sum256(buffer[p.at-first:][:p.size]); !bytes.Equal(sum[:], p.sum[:]) {
			return direct, fmt.Errorf("%w at %d to %d: the disk is broken, or counterfeit", ErrDiffers, p.at, p.at+p.size)
		}
		if done += p.size; progress != nil {
			progress(done)
		}
	}
	return direct, nil
}

// ErrDiffers says that a disk does not hold what was written to it.
var ErrDiffers = errors.New("what is read back differs from what was written")

// aligned is memory at an address that O_DIRECT takes.
func aligned(n int) []byte {
	b := make([]byte, n+sectorOf)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (sectorOf - 1)
	return b[skip:][:n]
}
