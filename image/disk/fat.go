package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"unicode/utf16"
)

// FAT32 as in Microsoft's "FAT: General Overview of On-Disk Format" 1.03.
//
// It is our own because a slot needs what general writers do not give:
// clusters of a file in one run, more of them than the file is long, nothing
// written where there is nothing, and no time or random number in the bytes.
const (
	sectorSize       = 512
	clusterSectors   = 4 // of the box's disk, 2 KiB: FAT32 (more than 65,524 clusters) at 160 MiB
	reservedSectors  = 32
	fatCount         = 2
	rootCluster      = 2
	entrySize        = 32
	endOfChain       = 0x0fffffff
	mediaDescriptor  = 0xf8
	minFAT32Clusters = 65525
	attrDirectory    = 0x10
	attrArchive      = 0x20
	attrLongName     = 0x0f
	date1980         = 0x0021 // 1 January 1980, the format's first day
)

// A fat is one file system under construction.
type fat struct {
	out      io.WriterAt // from the partition's start
	before   int64       // sectors before it
	cluster  int64       // sectors of one
	sectors  int64
	fatSize  int64 // sectors of one table
	clusters int64
	table    []uint32
	next     uint32 // first cluster not given out
	label    string
	serial   uint32
}

// node is a folder or file while the tree is built.
type node struct {
	name     string
	file     *File
	children []*node
	parent   *node
	cluster  uint32
}

func newFAT(out io.WriterAt, start, size, cluster int64, label string, serial uint32) (*fat, error) {
	f := &fat{out: out, before: start / sectorSize, cluster: cluster, sectors: size / sectorSize, label: label, serial: serial, next: rootCluster}
	// Each table holds 4 bytes a cluster; its size decides how many clusters
	// remain. Rounded up to 4 KiB so that the data area is aligned like the
	// partition: a cluster never straddles a flash page it need not.
	f.fatSize = align(f.sectors/f.cluster*4/sectorSize+1, 8)
	f.clusters = (f.sectors - reservedSectors - fatCount*f.fatSize) / f.cluster
	if f.clusters < minFAT32Clusters {
		return nil, fmt.Errorf("a file system of %d bytes has %d clusters, FAT32 needs %d", size, f.clusters, minFAT32Clusters)
	}
	f.table = make([]uint32, f.clusters+2)
	f.table[0], f.table[1] = 0x0fffff00|mediaDescriptor, endOfChain
	return f, nil
}

// write lays down the whole file system.
func (f *fat) write(files []File) error {
	root, err := tree(files)
	if err != nil {
		return err
	}
	if err := f.place(root); err != nil {
		return err
	}
	if err := f.writeNode(root); err != nil {
		return err
	}
	return f.writeTables()
}

// tree sorts the files into folders, in the order given.
func tree(files []File) (*node, error) {
	root := &node{}
	for i := range files {
		at := root
		parts := strings.Split(files[i].Path, "/")
		for j, name := range parts {
			child := at.find(name)
			last := j == len(parts)-1
			switch {
			case name == "" || name == "." || name == "..":
				return nil, fmt.Errorf("%q is not a path inside the file system", files[i].Path)
			case child == nil:
				child = &node{name: name, parent: at}
				at.children = append(at.children, child)
			case last || child.file != nil:
				return nil, fmt.Errorf("%s is there already", path.Join(parts[:j+1]...))
			}
			if last {
				child.file = &files[i]
			}
			at = child
		}
	}
	return root, nil
}

// find compares without case: FAT names that differ only in case are one name.
func (n *node) find(name string) *node {
	for _, c := range n.children {
		if strings.EqualFold(c.name, name) {
			return c
		}
	}
	return nil
}

// place gives every folder and file its clusters, in one run each: folders
// first, so that files of a fixed size keep their place when another grows.
func (f *fat) place(n *node) error {
	folder := func(n *node) error {
		var err error
		n.cluster, err = f.allocate(int64(len(n.entries())) * entrySize)
		return err
	}
	if err := folder(n); err != nil {
		return err
	}
	for _, c := range n.children {
		if c.file == nil {
			if err := f.place(c); err != nil {
				return err
			}
		}
	}
	for _, c := range n.children {
		if c.file == nil {
			continue
		}
		size := max(int64(len(c.file.Content)), c.file.Reserve)
		if c.file.Reserve > 0 && c.file.Reserve < int64(len(c.file.Content)) {
			return fmt.Errorf("%s is %d bytes long, more than the %d kept for it", c.file.Path, len(c.file.Content), c.file.Reserve)
		}
		if size == 0 {
			continue // an empty file has no cluster
		}
		var err error
		if c.cluster, err = f.allocate(size); err != nil {
			return fmt.Errorf("placing %s: %w", c.file.Path, err)
		}
	}
	return nil
}

var errFull = errors.New("the file system is full")

func (f *fat) allocate(size int64) (uint32, error) {
	count := (size + f.cluster*sectorSize - 1) / (f.cluster * sectorSize)
	if int64(f.next)+count > int64(len(f.table)) {
		return 0, errFull
	}
	first := f.next
	for i := range uint32(count) {
		f.table[first+i] = first + i + 1
	}
	f.next += uint32(count)
	f.table[f.next-1] = endOfChain
	return first, nil
}

func (f *fat) writeNode(n *node) error {
	if n.file != nil {
		if len(n.file.Content) == 0 {
			return nil // zeros, and the disk is made of zeros
		}
		return f.writeCluster(n.cluster, n.file.Content)
	}
	entries := n.entries()
	if n.parent == nil {
		entries[0] = shortEntry(pad11(f.label), 0x08, 0, 0)
	}
	var content []byte
	for _, e := range entries {
		content = append(content, e[:]...)
	}
	if err := f.writeCluster(n.cluster, content); err != nil {
		return err
	}
	for _, c := range n.children {
		if err := f.writeNode(c); err != nil {
			return err
		}
	}
	return nil
}

func (f *fat) writeCluster(cluster uint32, content []byte) error {
	start := (reservedSectors + fatCount*f.fatSize) * sectorSize
	_, err := f.out.WriteAt(content, start+int64(cluster-2)*f.cluster*sectorSize)
	return err
}

type entry [entrySize]byte

// entries are the directory entries of a folder. The first of the root is the
// volume label; other folders begin with themselves and their parent, which
// is cluster 0 when it is the root.
func (n *node) entries() []entry {
	var out []entry
	if n.parent == nil {
		out = append(out, entry{})
	} else {
		parent := n.parent.cluster
		if n.parent.parent == nil {
			parent = 0
		}
		out = append(out, shortEntry(pad11("."), attrDirectory, n.cluster, 0), shortEntry(pad11(".."), attrDirectory, parent, 0))
	}
	for i, c := range n.children {
		short, exact := shortName(c.name, i+1)
		if !exact {
			out = append(out, longEntries(c.name, short)...)
		}
		if c.file == nil {
			out = append(out, shortEntry(short, attrDirectory, c.cluster, 0))
			continue
		}
		length := int64(len(c.file.Content))
		if length == 0 {
			length = c.file.Reserve
		}
		out = append(out, shortEntry(short, attrArchive, c.cluster, uint32(length)))
	}
	return out
}

func shortEntry(name [11]byte, attributes byte, cluster, length uint32) entry {
	var e entry
	copy(e[:], name[:])
	e[11] = attributes
	le := binary.LittleEndian
	le.PutUint16(e[16:], date1980) // made
	le.PutUint16(e[18:], date1980) // read
	le.PutUint16(e[24:], date1980) // written
	le.PutUint16(e[20:], uint16(cluster>>16))
	le.PutUint16(e[26:], uint16(cluster))
	le.PutUint32(e[28:], length)
	return e
}

// shortName is the 8.3 name; exact says that it is the whole name. Others get
// the name's first letters, ~ and their number in the folder.
func shortName(name string, number int) (short [11]byte, exact bool) {
	stem, ext, _ := strings.Cut(name, ".")
	if name == strings.ToUpper(name) && len(stem) <= 8 && len(ext) <= 3 && !strings.Contains(ext, ".") {
		return pad83(stem, ext), true
	}
	letters := func(s string, n int) string {
		s = strings.Map(func(r rune) rune {
			if r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
				return r
			}
			return -1
		}, strings.ToUpper(s))
		return s[:min(n, len(s))]
	}
	dot := strings.LastIndex(name, ".")
	if dot < 0 {
		dot = len(name)
	}
	tail := fmt.Sprintf("~%d", number)
	return pad83(letters(name[:dot], 8-len(tail))+tail, letters(name[dot:], 3)), false
}

func pad83(stem, ext string) [11]byte { return pad11(fmt.Sprintf("%-8s%s", stem, ext)) }

func pad11(s string) (out [11]byte) {
	copy(out[:], "           ")
	copy(out[:], s)
	return out
}

// longEntries spell a long name: 13 UTF-16 units an entry, the last part
// first, each with a checksum of the short name it belongs to.
func longEntries(name string, short [11]byte) []entry {
	var sum byte
	for _, c := range short {
		sum = sum>>1 | sum<<7
		sum += c
	}
	const perEntry = 13
	units := utf16.Encode([]rune(name))
	count := (len(units) + perEntry - 1) / perEntry
	if len(units)%perEntry != 0 {
		units = append(units, 0)
	}
	for len(units) < count*perEntry {
		units = append(units, 0xffff)
	}
	places := [perEntry]int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30}
	var out []entry
	for i := count; i >= 1; i-- {
		var e entry
		e[0] = byte(i)
		if i == count {
			e[0] |= 0x40
		}
		e[11], e[13] = attrLongName, sum
		for j, at := range places {
			binary.LittleEndian.PutUint16(e[at:], units[(i-1)*perEntry+j])
		}
		out = append(out, e)
	}
	return out
}

// writeTables writes the boot sector, its copy, the free count and both tables.
func (f *fat) writeTables() error {
	boot := f.bootSector()
	info := make([]byte, sectorSize)
	le := binary.LittleEndian
	le.PutUint32(info, 0x41615252)
	le.PutUint32(info[484:], 0x61417272)
	le.PutUint32(info[488:], uint32(int64(len(f.table))-int64(f.next)))
	le.PutUint32(info[492:], f.next)
	le.PutUint32(info[508:], 0xaa550000)
	used := make([]byte, 0, int64(f.next)*4)
	for _, entry := range f.table[:f.next] {
		used = le.AppendUint32(used, entry)
	}
	for _, w := range []struct {
		sector  int64
		content []byte
	}{
		{0, boot}, {1, info}, {6, boot}, {7, info},
		{reservedSectors, used}, {reservedSectors + f.fatSize, used},
	} {
		if _, err := f.out.WriteAt(w.content, w.sector*sectorSize); err != nil {
			return err
		}
	}
	return nil
}

func (f *fat) bootSector() []byte {
	b := make([]byte, sectorSize)
	copy(b, []byte{0xeb, 0x58, 0x90})
	copy(b[3:], "GATEHSE ")
	le := binary.LittleEndian
	le.PutUint16(b[11:], sectorSize)
	b[13] = byte(f.cluster)
	le.PutUint16(b[14:], reservedSectors)
	b[16] = fatCount
	b[21] = mediaDescriptor
	le.PutUint16(b[24:], 63) // sectors a track and heads: unused since LBA,
	le.PutUint16(b[26:], 255)
	le.PutUint32(b[28:], uint32(f.before)) // sectors before the partition
	le.PutUint32(b[32:], uint32(f.sectors))
	le.PutUint32(b[36:], uint32(f.fatSize))
	le.PutUint32(b[44:], rootCluster)
	le.PutUint16(b[48:], 1) // sector of the free count
	le.PutUint16(b[50:], 6) // sector of the boot sector's copy
	b[64], b[66] = 0x80, 0x29
	le.PutUint32(b[67:], f.serial)
	label := pad11(f.label)
	copy(b[71:], label[:])
	copy(b[82:], "FAT32   ")
	b[510], b[511] = 0x55, 0xaa
	return b
}

func align(n, to int64) int64 { return (n + to - 1) / to * to }
