// Package fat finds one file in the root folder of a FAT file system where it lies, and makes the smallest one that holds a file; pure.
//
// It is our own because the medium is anybody's and PID 1 reads it: a mount
// would hand it to the kernel's parser. It knows FAT12, FAT16 and FAT32
// (Microsoft, "FAT: General Overview of On-Disk Format" 1.03), reads at most
// some hundred sectors whatever they say, and follows no folders.
package fat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"unicode/utf16"
)

const (
	entrySize   = 32
	mostEntries = 4096 // of the root folder
	attrLabel   = 0x08
	attrFolder  = 0x10
	attrLong    = 0x0f
)

// ErrNone says that there is no FAT file system.
var ErrNone = errors.New("no FAT file system")

// A Run is some bytes of a file, in one piece on the medium.
type Run struct{ At, Size int64 }

// A Volume is a FAT file system that was looked at.
type Volume struct {
	Label string // trimmed; of the root folder, or of the first sector

	r           io.ReaderAt
	bits        int   // of an entry of the table: 12, 16, 32
	table, data int64 // where they begin
	cluster     int64 // size in bytes
	clusters    uint32
	root        []Run
}

// Open looks at what may be a file system.
func Open(r io.ReaderAt) (*Volume, error) {
	var b [512]byte
	if _, err := r.ReadAt(b[:], 0); err != nil {
		return nil, fmt.Errorf("reading the first sector: %w", err)
	}
	le := binary.LittleEndian
	sector, perCluster, reserved := int64(le.Uint16(b[11:])), int64(b[13]), int64(le.Uint16(b[14:]))
	tables, rootEntries := int64(b[16]), int64(le.Uint16(b[17:]))
	sectors, tableSize := int64(le.Uint16(b[19:])), int64(le.Uint16(b[22:]))
	if sectors == 0 {
		sectors = int64(le.Uint32(b[32:]))
	}
	wide := tableSize == 0 // FAT32 has its sizes further on
	if wide {
		tableSize = int64(le.Uint32(b[36:]))
	}
	if b[510] != 0x55 || b[511] != 0xaa || (sector != 512 && sector != 1024 && sector != 2048 && sector != 4096) ||
		perCluster == 0 || perCluster&(perCluster-1) != 0 || reserved == 0 || tables == 0 || tables > 2 || tableSize == 0 {
		return nil, ErrNone
	}
	v := &Volume{r: r, table: reserved * sector, cluster: perCluster * sector}
	rootAt := reserved + tables*tableSize
	rootSectors := (rootEntries*entrySize + sector - 1) / sector
	first := rootAt + rootSectors
	if sectors <= first {
		return nil, ErrNone
	}
	v.data = first * sector
	n := (sectors - first) / perCluster
	switch {
	case n < 4085:
		v.bits = 12
	case n < 65525:
		v.bits = 16
	default:
		v.bits = 32
	}
	if n == 0 || n > 0x0ffffff5 || wide != (v.bits == 32) || (n+2)*int64(v.bits) > tableSize*sector*8 {
		return nil, ErrNone
	}
	v.clusters = uint32(n)
	label := b[43:54]
	if wide {
		label = b[71:82]
		var err error
		if v.root, err = v.chain(le.Uint32(b[44:]), mostEntries*entrySize); err != nil {
			return nil, fmt.Errorf("its root folder: %w", err)
		}
	} else {
		v.root = []Run{{rootAt * sector, min(rootEntries, mostEntries) * entrySize}}
	}
	v.Label = strings.TrimRight(string(label), " \x00")
	err := v.entries(func(e []byte, _ string) bool {
		if e[11]&^0x20 == attrLabel {
			v.Label = strings.TrimRight(string(e[:11]), " ")
			return false
		}
		return true
	})
	return v, err
}

// chain lists the clusters of a file from its first one on, joined, as far as
// size. A chain that ends before is cut off; one that goes in a circle ends
// with size.
func (v *Volume) chain(first uint32, size int64) ([]Run, error) {
	var runs []Run
	for c := first; size > 0; {
		if c < 2 || c >= v.clusters+2 {
			return nil, fmt.Errorf("its clusters lead out of the file system (%d)", c)
		}
		at, n := v.data+int64(c-2)*v.cluster, min(v.cluster, size)
		if last := len(runs) - 1; last >= 0 && runs[last].At+runs[last].Size == at {
			runs[last].Size += n
		} else {
			runs = append(runs, Run{at, n})
		}
		size -= n
		next, end, err := v.next(c)
		if err != nil {
			return nil, err
		}
		if end {
			return runs, nil
		}
		c = next
	}
	return runs, nil
}

func (v *Volume) next(c uint32) (next uint32, end bool, err error) {
	var b [4]byte
	width := int64(v.bits+7) / 8
	at := v.table + int64(c)*int64(v.bits)/8
	if _, err := v.r.ReadAt(b[:width], at); err != nil {
		return 0, false, fmt.Errorf("reading the table: %w", err)
	}
	next = binary.LittleEndian.Uint32(b[:])
	mask := uint32(1)<<min(v.bits, 28) - 1
	if v.bits == 12 && c%2 == 1 {
		next >>= 4
	}
	next &= mask
	return next, next >= mask-7, nil
}

// entries calls f with each entry of the root folder and its long name, until
// f has seen enough.
func (v *Volume) entries(f func(e []byte, long string) bool) error {
	var units []uint16
	for _, run := range v.root {
		b := make([]byte, run.Size)
		if _, err := v.r.ReadAt(b, run.At); err != nil {
			return fmt.Errorf("reading the root folder: %w", err)
		}
		for ; len(b) >= entrySize; b = b[entrySize:] {
			e := b[:entrySize]
			switch {
			case e[0] == 0:
				return nil
			case e[0] == 0xe5:
				units = nil
			case e[11] == attrLong:
				if e[0]&0x40 != 0 {
					units = nil
				}
				if len(units) < 260 {
					units = append(longPart(e), units...) // they come last part first
				}
			default:
				if !f(e, string(utf16.Decode(units))) {
					return nil
				}
				units = nil
			}
		}
	}
	return nil
}

func longPart(e []byte) []uint16 {
	var out []uint16
	for _, at := range longPlaces {
		u := binary.LittleEndian.Uint16(e[at:])
		if u == 0 || u == 0xffff {
			break
		}
		out = append(out, u)
	}
	return out
}

var longPlaces = [13]int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30}

// A File is where a file lies: its bytes, and those up to the end of its last cluster.
type File struct {
	Size int64
	Runs []Run // whole clusters
}

// Find finds a file of the root folder; names that differ in case alone are
// one. fs.ErrNotExist: there is none. It refuses a file of more than most bytes.
func (v *Volume) Find(name string, most int64) (File, error) {
	var f File
	var found error = fs.ErrNotExist
	err := v.entries(func(e []byte, long string) bool {
		if e[11]&(attrLabel|attrFolder) != 0 || (!strings.EqualFold(long, name) && !strings.EqualFold(shortName(e), name)) {
			return true
		}
		le := binary.LittleEndian
		f.Size = int64(le.Uint32(e[28:]))
		first := uint32(le.Uint16(e[26:]))
		if v.bits == 32 {
			first |= uint32(le.Uint16(e[20:])) << 16
		}
		switch {
		case f.Size == 0:
			found = errors.New("it is empty")
		case f.Size > most:
			found = fmt.Errorf("it has %d bytes, and %d are the most", f.Size, most)
		default:
			f.Runs, found = v.chain(first, (f.Size+v.cluster-1)/v.cluster*v.cluster)
		}
		return false
	})
	if err == nil {
		err = found
	}
	if err != nil {
		return File{}, err
	}
	if n := f.room(); n < f.Size {
		return File{}, fmt.Errorf("it should have %d bytes, and %d are there", f.Size, n)
	}
	return f, nil
}

func (f File) room() (n int64) {
	for _, r := range f.Runs {
		n += r.Size
	}
	return n
}

func shortName(e []byte) string {
	name, ext := strings.TrimRight(string(e[:8]), " "), strings.TrimRight(string(e[8:11]), " ")
	if ext == "" {
		return name
	}
	return name + "." + ext
}

// Read reads a file that Find found.
func (f File) Read(r io.ReaderAt) ([]byte, error) {
	out := make([]byte, 0, f.room())
	for _, run := range f.Runs {
		b := make([]byte, run.Size)
		if _, err := r.ReadAt(b, run.At); err != nil {
			return nil, err
		}
		out = append(out, b...)
	}
	return out[:f.Size], nil
}

// Overwrite puts content in the place of the file's, and zeros behind it to the
// end of its last cluster. The file keeps its length.
func (f File) Overwrite(w io.WriterAt, content []byte) error {
	if int64(len(content)) > f.room() {
		content = content[:f.room()]
	}
	for _, run := range f.Runs {
		b := make([]byte, run.Size)
		content = content[copy(b, content):]
		if _, err := w.WriteAt(b, run.At); err != nil {
			return err
		}
	}
	return nil
}
