package esp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf16"

	"gatehouse/firmware/slot"
)

// ErrLayout is what a partition is refused with that is not laid out as the image
// has it. Who changed it with other tools writes the image anew.
var ErrLayout = errors.New("the EFI system partition is not laid out as the image has it")

// The one layout: FAT32 as image/disk writes it ("FAT: General Overview of On-Disk
// Format" 1.03).
const (
	sectorSize      = 512
	clusterSectors  = 4
	clusterSize     = clusterSectors * sectorSize
	reservedSectors = 32
	tables          = 2
	rootCluster     = 2
	leastClusters   = 65525
	entrySize       = 32
	attrVolume      = 0x08
	attrDirectory   = 0x10
	attrLongName    = 0x0f
	lengthAt        = 28 // in an entry
	endOfChain      = 0x0ffffff8
	clusterMask     = 0x0fffffff
	runClusters     = slot.Size / clusterSize
)

// layout is where things are, in bytes from the start of the partition.
type layout struct {
	a, b   file
	config file
}

// file is one file: its directory entry, and its first byte.
type file struct {
	name  string
	entry int64
	short [11]byte
	first uint32 // cluster
	start int64
	size  uint32 // as the entry said
}

func (l *layout) of(s slot.Slot) *file {
	if s == slot.B {
		return &l.b
	}
	return &l.a
}

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrLayout}, args...)...)
}

// volume is the file system's geometry.
type volume struct {
	r        io.ReaderAt
	data     int64 // first byte of cluster 2
	clusters uint32
}

func find(r io.ReaderAt) (*layout, error) {
	v, err := openVolume(r)
	if err != nil {
		return nil, err
	}
	var l layout
	for _, f := range []struct {
		path string
		to   *file
	}{{slot.A.Path(), &l.a}, {slot.B.Path(), &l.b}, {slot.ConfigPath, &l.config}} {
		if *f.to, err = v.lookup(f.path); err != nil {
			return nil, err
		}
	}
	for _, f := range []*file{&l.a, &l.b} {
		if err := v.run(*f); err != nil {
			return nil, err
		}
	}
	if first, second := min(l.a.first, l.b.first), max(l.a.first, l.b.first); second-first < runClusters {
		return nil, refuse("the two slots lie over one another")
	}
	if l.config.size != slot.SectorSize {
		return nil, refuse("%s is %d bytes long, and not %d", slot.ConfigPath, l.config.size, slot.SectorSize)
	}
	for _, f := range []*file{&l.a, &l.b} {
		if l.config.first >= f.first && l.config.first < f.first+runClusters {
			return nil, refuse("%s lies in a slot", slot.ConfigPath)
		}
	}
	return &l, nil
}

func openVolume(r io.ReaderAt) (*volume, error) {
	b := make([]byte, sectorSize)
	if _, err := r.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("reading the EFI system partition: %w", err)
	}
	le := binary.LittleEndian
	total, fatSize := int64(le.Uint32(b[32:])), int64(le.Uint32(b[36:]))
	for _, c := range []struct {
		what      string
		got, want int64
	}{
		{"its last two bytes", int64(le.Uint16(b[510:])), 0xaa55},
		{"bytes a sector", int64(le.Uint16(b[11:])), sectorSize},
		{"sectors a cluster", int64(b[13]), clusterSectors},
		{"reserved sectors", int64(le.Uint16(b[14:])), reservedSectors},
		{"tables", int64(b[16]), tables},
		{"entries of a root of FAT16", int64(le.Uint16(b[17:])), 0},
		{"sectors of FAT16", int64(le.Uint16(b[19:])), 0},
		{"sectors of a table of FAT16", int64(le.Uint16(b[22:])), 0},
		{"flags of its tables", int64(le.Uint16(b[40:])), 0},
		{"its version", int64(le.Uint16(b[42:])), 0},
		{"the root's cluster", int64(le.Uint32(b[44:])), rootCluster},
	} {
		if c.got != c.want {
			return nil, refuse("the boot sector says %d for %s, and not %d", c.got, c.what, c.want)
		}
	}
	data := reservedSectors + tables*fatSize
	clusters := (total - data) / clusterSectors
	if clusters < leastClusters || clusters+rootCluster > fatSize*sectorSize/4 || clusters > clusterMask {
		return nil, refuse("%d sectors with tables of %d", total, fatSize)
	}
	return &volume{r: r, data: data * sectorSize, clusters: uint32(clusters)}, nil
}

func (v *volume) has(cluster uint32) bool {
	return cluster >= rootCluster && cluster < v.clusters+rootCluster
}

func (v *volume) at(cluster uint32) int64 { return v.data + int64(cluster-rootCluster)*clusterSize }

// chain reads the entries of n clusters in the first table, which is the one
// that firmware reads.
func (v *volume) chain(first, n uint32) ([]uint32, error) {
	if !v.has(first) || !v.has(first+n-1) {
		return nil, refuse("clusters %d to %d, and there are %d", first, first+n-1, v.clusters)
	}
	from := reservedSectors*sectorSize + 4*int64(first)
	begin := from / sectorSize * sectorSize
	raw := make([]byte, align(from+4*int64(n))-begin)
	if _, err := v.r.ReadAt(raw, begin); err != nil {
		return nil, fmt.Errorf("reading the table of the EFI system partition: %w", err)
	}
	out := make([]uint32, n)
	for i := range out {
		out[i] = binary.LittleEndian.Uint32(raw[from-begin+4*int64(i):]) & clusterMask
	}
	return out, nil
}

// run checks that a slot has its clusters in one run of the full size, so that
// overwriting it changes nothing of the tables.
func (v *volume) run(f file) error {
	if err := v.inOneRun(f, runClusters); err != nil {
		return err
	}
	// The device has to be as long as its file system says.
	b := make([]byte, sectorSize)
	if _, err := v.r.ReadAt(b, f.start+slot.Size-sectorSize); err != nil {
		return fmt.Errorf("reading the end of %s: %w", f.name, err)
	}
	return nil
}

// inOneRun says whether a file has so many clusters, one after another.
func (v *volume) inOneRun(f file, clusters uint32) error {
	next, err := v.chain(f.first, clusters)
	if err != nil {
		return fmt.Errorf("%s: %w", f.name, err)
	}
	for i, n := range next {
		last := i == len(next)-1
		if !last && n != f.first+uint32(i)+1 || last && n < endOfChain {
			return refuse("the clusters of %s are not in one run of %d KiB", f.name, int64(clusters)*clusterSize>>10)
		}
	}
	return nil
}

// lookup walks from the root; each folder is one cluster, as the image has them.
func (v *volume) lookup(path string) (file, error) {
	cluster := uint32(rootCluster)
	parts := strings.Split(path, "/")
	for i, name := range parts {
		next, err := v.chain(cluster, 1)
		if err != nil {
			return file{}, err
		}
		if next[0] < endOfChain {
			return file{}, refuse("the folder of %s has more than one cluster", strings.Join(parts[:i+1], "/"))
		}
		folder := make([]byte, clusterSize)
		if _, err := v.r.ReadAt(folder, v.at(cluster)); err != nil {
			return file{}, fmt.Errorf("reading a folder of the EFI system partition: %w", err)
		}
		at, err := entryOf(folder, name)
		if err != nil {
			return file{}, fmt.Errorf("looking for %s: %w", path, err)
		}
		e := folder[at : at+entrySize]
		le := binary.LittleEndian
		f := file{name: path, entry: v.at(cluster) + int64(at), short: [11]byte(e[:11]), size: le.Uint32(e[lengthAt:]),
			first: uint32(le.Uint16(e[20:]))<<16 | uint32(le.Uint16(e[26:]))}
		if dir := e[11]&attrDirectory != 0; dir != (i < len(parts)-1) {
			return file{}, refuse("%s is a folder in the place of a file, or the other way round", strings.Join(parts[:i+1], "/"))
		}
		if !v.has(f.first) {
			return file{}, refuse("%s begins at cluster %d, and there are %d", strings.Join(parts[:i+1], "/"), f.first, v.clusters)
		}
		if i == len(parts)-1 {
			f.start = v.at(f.first)
			return f, nil
		}
		cluster = f.first
	}
	return file{}, refuse("%q is not a path", path)
}

// entryOf finds the one entry of that name in a folder. A long name stands in
// entries before it, the last part first, each with a checksum of the short name.
func entryOf(folder []byte, name string) (int, error) {
	found := -1
	var long []uint16
	var sum, due byte // checksum, and number of the part that comes next
	for at := 0; at < len(folder) && folder[at] != 0; at += entrySize {
		e := folder[at : at+entrySize]
		switch {
		case e[0] == 0xe5: // erased
			long, due = nil, 0
			continue
		case e[11] == attrLongName:
			if e[0]&0x40 != 0 {
				long, due, sum = nil, e[0]&0x3f, e[13]
			}
			if due == 0 || e[0]&0x3f != due || e[13] != sum {
				return 0, refuse("a long name with a part missing")
			}
			long, due = append(longPart(e), long...), due-1
			if due == 0 && len(long) == 0 {
				return 0, refuse("an empty long name")
			}
			continue
		case due != 0 || long != nil && checksum(e[:11]) != sum:
			return 0, refuse("a long name that belongs to no file")
		}
		is := shortText(e[:11])
		if long != nil {
			is = string(utf16.Decode(long))
		}
		long = nil
		if e[11]&attrVolume != 0 || !strings.EqualFold(is, name) {
			continue
		}
		if found >= 0 {
			return 0, refuse("%s is there twice", name)
		}
		found = at
	}
	if found < 0 {
		return 0, refuse("there is no %s", name)
	}
	return found, nil
}

func longPart(e []byte) []uint16 {
	var out []uint16
	for _, at := range [...]int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30} {
		u := binary.LittleEndian.Uint16(e[at:])
		if u == 0 {
			break
		}
		out = append(out, u)
	}
	return out
}

func checksum(short []byte) (sum byte) {
	for _, c := range short {
		sum = sum>>1 | sum<<7
		sum += c
	}
	return sum
}

func shortText(short []byte) string {
	stem, ext := strings.TrimRight(string(short[:8]), " "), strings.TrimRight(string(short[8:]), " ")
	if ext == "" {
		return stem
	}
	return stem + "." + ext
}

func align(n int64) int64 { return (n + sectorSize - 1) / sectorSize * sectorSize }
