package volume

import (
	"fmt"
	"os"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"gatehouse/appliance/volume/gpt"
)

// typeSystem is the EFI system partition's (UEFI 2.10, 5.3.3).
var typeSystem = uuid.MustParse("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")

// SystemPartition is the raw EFI system partition, which is never mounted, and
// where it is for who names it to the firmware.
type SystemPartition struct {
	*os.File
	Number         uint32
	First, Sectors uint64
	ID             uuid.UUID
}

// Sync has what was written on the medium, and forgets what is in memory of it:
// what is read next comes from there.
func (s *SystemPartition) Sync() error {
	if err := s.File.Sync(); err != nil {
		return err
	}
	// A hint, which the kernel follows for pages that are not dirty.
	return unix.Fadvise(int(s.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// System opens the EFI system partition for reading and writing. The caller closes it.
func (d Disk) System() (*SystemPartition, error) {
	f, g, err := d.open(os.O_RDWR)
	if err != nil {
		return nil, fmt.Errorf("opening our disk: %w", err)
	}
	defer f.Close()
	t, _, err := gpt.Read(f, g)
	if err != nil {
		return nil, fmt.Errorf("reading the partition table of %s: %w", d.Device, err)
	}
	number, p, ok := t.Find(typeSystem)
	if !ok {
		return nil, fmt.Errorf("%s has no EFI system partition, or more than one: it was not written from an image", d.Device)
	}
	name, err := d.partition(f, g, number, p)
	if err != nil {
		return nil, err
	}
	part, err := os.OpenFile(d.path(name), os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the EFI system partition: %w", err)
	}
	return &SystemPartition{File: part, Number: uint32(number), First: p.First, Sectors: p.Last - p.First + 1, ID: p.ID}, nil
}
