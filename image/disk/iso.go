package disk

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/diskfs/go-diskfs/partition/gpt"

	"gatehouse/appliance/volume/installer"
)

// The medium that installs: an ISO 9660 file system (ECMA-119) whose boot record
// (El Torito 1.0) leads UEFI to a FAT file system, and in the 32 KiB that
// ISO 9660 leaves free a GUID partition table, by which the same bytes start
// from a USB stick. Nothing on the box reads ISO 9660: the image is found by
// the table.
const (
	isoSector  = 2048
	isoPrimary = 16 // descriptors begin here
	isoRecord  = 17
	isoEnd     = 18
	isoCatalog = 19
	isoPathsL  = 20
	isoPathsM  = 21
	isoRoot    = 22
	isoESP     = 1 * mebibyte
	isoCluster = 1 // sectors: the least that FAT32 can be is 33 MiB then
	isoLeast   = 36 * mebibyte
)

// isoFiles are what somebody sees who looks at the CD.
type isoFile struct {
	name     string
	at, size int64
}

// WriteISO writes a medium that starts what esp holds, and carries a packed
// disk image for it to install.
func WriteISO(f *os.File, esp []File, packed io.Reader, head installer.Head, id []byte) error {
	sum := sha256.Sum256(append([]byte("gatehouse medium\x00"), id...))
	content := int64(0)
	for _, e := range esp {
		content += align(int64(len(e.Content)), mebibyte)
	}
	espSize := max(isoLeast, align(content+content/64+2*mebibyte, mebibyte))
	image := int64(isoESP) + espSize
	imageSize := align(installer.HeadSize+head.Packed, mebibyte)
	size := image + imageSize + mebibyte // room for the second table
	if err := f.Truncate(size); err != nil {
		return fmt.Errorf("sizing the medium: %w", err)
	}
	files, err := newFAT(io.NewOffsetWriter(f, isoESP), isoESP, espSize, isoCluster, "GATEINSTALL", binary.LittleEndian.Uint32(sum[:]))
	if err == nil {
		err = files.write(esp)
	}
	if err != nil {
		return fmt.Errorf("making the medium's EFI system partition: %w", err)
	}
	if _, err := f.WriteAt(head.Encode(), image); err != nil {
		return fmt.Errorf("writing the image: %w", err)
	}
	if n, err := io.Copy(io.NewOffsetWriter(f, image+installer.HeadSize), packed); err != nil || n != head.Packed {
		return fmt.Errorf("writing the image: %d bytes of %d: %w", n, head.Packed, err)
	}
	table := &gpt.Table{
		LogicalSectorSize: sectorSize, PhysicalSectorSize: sectorSize, ProtectiveMBR: true, GUID: derive(sum, "medium"),
		Partitions: []*gpt.Partition{
			partition(1, isoESP, espSize, gpt.EFISystemPartition, "ESP", derive(sum, "esp")),
			partition(2, image, imageSize, gpt.Type(installer.Type.String()), "gatehouse-install", derive(sum, "install")),
		},
	}
	if err := table.Write(noSync{f}, size); err != nil {
		return fmt.Errorf("writing the partition table: %w", err)
	}
	for sector, b := range descriptors(size, []isoFile{{"EFI.IMG", isoESP, espSize}, {"GATEHOUS.BIN", image, installer.HeadSize + head.Packed}}) {
		if _, err := f.WriteAt(b, int64(sector)*isoSector); err != nil {
			return fmt.Errorf("writing the file system of the medium: %w", err)
		}
	}
	return nil
}

// descriptors are the sectors of the ISO 9660 file system, by place.
func descriptors(size int64, files []isoFile) map[int][]byte {
	le := binary.LittleEndian
	root := directory(isoRoot*isoSector, isoSector, "\x00", true)

	p := make([]byte, isoSector)
	copy(p, "\x01CD001\x01")
	copy(p[8:], fmt.Sprintf("%-32s%-32s", "", "GATEHOUSE_INSTALL"))
	both32(p[80:], uint32(size/isoSector))
	both16(p[120:], 1)
	both16(p[124:], 1)
	both16(p[128:], isoSector)
	paths := []byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	both32(p[132:], uint32(len(paths)))
	le.PutUint32(p[140:], isoPathsL)
	binary.BigEndian.PutUint32(p[148:], isoPathsM)
	copy(p[156:], root)
	for i := 190; i < 813; i++ {
		p[i] = ' ' // names of who made it: nobody is named
	}
	for _, at := range []int{813, 830, 847, 864} { // no times, but "not said"
		copy(p[at:], "0000000000000000\x00")
	}
	p[881] = 1

	r := make([]byte, isoSector)
	copy(r, "\x00CD001\x01EL TORITO SPECIFICATION")
	le.PutUint32(r[71:], isoCatalog)

	e := make([]byte, isoSector)
	copy(e, "\xffCD001\x01")

	c := make([]byte, isoSector)
	c[0], c[1], c[30], c[31] = 1, 0xef, 0x55, 0xaa // for UEFI
	var sum uint16
	for i := 0; i < 32; i += 2 {
		sum += le.Uint16(c[i:])
	}
	le.PutUint16(c[28:], -sum)
	c[32] = 0x88 // starts, without emulation of a floppy
	// The count of sectors has 16 bits, too few: 0 says "to the end".
	le.PutUint32(c[40:], isoESP/isoSector)

	l, m := make([]byte, isoSector), make([]byte, isoSector)
	copy(l, paths)
	copy(m, paths)
	le.PutUint32(l[2:], isoRoot)
	binary.BigEndian.PutUint32(m[2:], isoRoot)
	le.PutUint16(l[6:], 1)
	binary.BigEndian.PutUint16(m[6:], 1)

	d := slices.Concat(root, directory(isoRoot*isoSector, isoSector, "\x01", true))
	for _, f := range files {
		d = append(d, directory(f.at, f.size, f.name+";1", false)...)
	}
	d = append(d, make([]byte, isoSector-len(d))...)
	return map[int][]byte{isoPrimary: p, isoRecord: r, isoEnd: e, isoCatalog: c, isoPathsL: l, isoPathsM: m, isoRoot: d}
}

// directory is one directory record.
func directory(at, size int64, name string, folder bool) []byte {
	b := make([]byte, (33+len(name)+1)/2*2)
	b[0] = byte(len(b))
	both32(b[2:], uint32(at/isoSector))
	both32(b[10:], uint32(size))
	copy(b[18:], []byte{80, 1, 1, 0, 0, 0, 0}) // 1 January 1980
	if folder {
		b[25] = 2
	}
	both16(b[28:], 1)
	b[32] = byte(len(name))
	copy(b[33:], name)
	return b
}

func both32(b []byte, v uint32) {
	binary.LittleEndian.PutUint32(b, v)
	binary.BigEndian.PutUint32(b[4:], v)
}

func both16(b []byte, v uint16) {
	binary.LittleEndian.PutUint16(b, v)
	binary.BigEndian.PutUint16(b[2:], v)
}
