package fat

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf16"
)

// Sizes of what Format makes: FAT12 with clusters of a flash page, so that
// overwriting the file touches nothing else of it.
const (
	sectorSize  = 512
	perCluster  = 8
	rootEntries = 16
	tableSize   = 2 // sectors of each of two
	dataAt      = (1 + 2*tableSize + rootEntries*entrySize/sectorSize) * sectorSize
	leastVolume = dataAt + 2*perCluster*sectorSize
	mostVolume  = 2 << 20 // a table of two sectors knows little more
)

// Format makes a file system of size bytes that holds one file, the same bytes
// each time.
func Format(size int64, label, name string, content []byte) ([]byte, error) {
	if size < leastVolume || size > mostVolume || size%sectorSize != 0 {
		return nil, fmt.Errorf("a file system of %d bytes: %d to %d in sectors of %d can be made", size, leastVolume, mostVolume, sectorSize)
	}
	clusters := (len(content) + perCluster*sectorSize - 1) / (perCluster * sectorSize)
	if clusters == 0 || int64(dataAt+clusters*perCluster*sectorSize) > size {
		return nil, fmt.Errorf("a file of %d bytes does not fit a file system of %d, or is empty", len(content), size)
	}
	base, ext, _ := strings.Cut(name, ".")
	units := utf16.Encode([]rune(name))
	if len(base) < 1 || len(ext) < 1 || len(units) > len(longPlaces) || len(label) > 11 {
		return nil, fmt.Errorf("%q is too long a name here, or %q a label", name, label)
	}
	le := binary.LittleEndian
	b := make([]byte, size)
	copy(b, []byte{0xeb, 0x3c, 0x90})
	copy(b[3:], "GATEHSE ")
	le.PutUint16(b[11:], sectorSize)
	b[13], b[16], b[21] = perCluster, 2, 0xf8
	le.PutUint16(b[14:], 1)
	le.PutUint16(b[17:], rootEntries)
	le.PutUint16(b[19:], uint16(size/sectorSize))
	le.PutUint16(b[22:], tableSize)
	b[36], b[38] = 0x80, 0x29
	copy(b[43:], fmt.Sprintf("%-11s%-8s", label, "FAT12"))
	b[510], b[511] = 0x55, 0xaa

	table := b[sectorSize:]
	put := func(c int, v uint16) {
		at := c * 3 / 2
		if c%2 == 1 {
			v <<= 4
		}
		le.PutUint16(table[at:], le.Uint16(table[at:])|v)
	}
	put(0, 0xff8)
	put(1, 0xfff)
	for i := range clusters {
		next := uint16(i + 3)
		if i == clusters-1 {
			next = 0xfff
		}
		put(i+2, next)
	}

	copy(b[(1+tableSize)*sectorSize:], table[:tableSize*sectorSize])

	root := b[(1+2*tableSize)*sectorSize:]
	copy(root, fmt.Sprintf("%-11s", label))
	root[11] = attrLabel
	short := fmt.Sprintf("%-8s%-3s", strings.ToUpper(base[:min(8, len(base))]), strings.ToUpper(ext[:min(3, len(ext))]))
	long, file := root[entrySize:], root[2*entrySize:]
	copy(file, short)
	file[11] = 0x20
	le.PutUint16(file[24:], 0x0021) // 1 January 1980
	le.PutUint16(file[18:], 0x0021)
	le.PutUint16(file[16:], 0x0021)
	le.PutUint16(file[26:], 2)
	le.PutUint32(file[28:], uint32(len(content)))
	long[0], long[11], long[13] = 0x41, attrLong, checksum(short)
	for i, at := range longPlaces {
		u := uint16(0xffff)
		switch {
		case i < len(units):
			u = units[i]
		case i == len(units):
			u = 0
		}
		le.PutUint16(long[at:], u)
	}
	copy(b[dataAt:], content)
	return b, nil
}

// checksum ties a long name to its short one.
func checksum(short string) (sum byte) {
	for i := range len(short) {
		sum = sum>>1 | sum<<7
		sum += short[i]
	}
	return sum
}
