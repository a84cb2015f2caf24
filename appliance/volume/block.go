package volume

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/volume/gpt"
)

// blockCalls are the things that only a block device answers; tests give a
// file.
type blockCalls struct {
	geometry     func(*os.File) (gpt.Geometry, error)
	addPartition func(disk *os.File, number int, first, size uint64) error
	erase        func(part *os.File, m means, from, length uint64) error
	direct       int // flag to open past the page cache; not every file system has it
}

func kernelBlock() blockCalls { return blockCalls{geometry, addPartition, blockErase, unix.O_DIRECT} }

func geometry(f *os.File) (gpt.Geometry, error) {
	sector, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET)
	if err != nil {
		return gpt.Geometry{}, err
	}
	size, err := f.Seek(0, 2)
	if err != nil {
		return gpt.Geometry{}, err
	}
	return gpt.Geometry{SectorSize: sector, Sectors: uint64(size) / uint64(sector)}, nil
}

// blkpgPartition and blkpgArgument are those of include/uapi/linux/blkpg.h.
type blkpgPartition struct {
	start, length int64 // bytes
	number        int32
	_             [128]byte // names that the kernel ignores
	_             [4]byte
}

type blkpgArgument struct {
	op, flags, length int32
	_                 int32
	data              unsafe.Pointer
}

const blkpgAdd = 1

func addPartition(disk *os.File, number int, first, size uint64) error {
	p := blkpgPartition{start: int64(first), length: int64(size), number: int32(number)}
	a := blkpgArgument{op: blkpgAdd, length: int32(unsafe.Sizeof(p)), data: unsafe.Pointer(&p)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, disk.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&a)))
	if errno != 0 {
		return errno
	}
	return nil
}
