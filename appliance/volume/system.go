package volume

import (
	"fmt"
	"os"

	"gatehouse/appliance/volume/gpt"
	"gatehouse/firmware/bootentry"
)

// ESPPlace is where the EFI system partition of our disk is, for who names it to the firmware.
func (d Disk) ESPPlace() (bootentry.Partition, error) {
	f, g, err := d.open(os.O_RDONLY)
	if err != nil {
		return bootentry.Partition{}, fmt.Errorf("opening our disk: %w", err)
	}
	defer f.Close()
	t, _, err := gpt.Read(f, g)
	if err != nil {
		return bootentry.Partition{}, fmt.Errorf("reading the partition table of %s: %w", d.Device, err)
	}
	number, p, ok := t.Find(typeESP)
	if !ok {
		return bootentry.Partition{}, fmt.Errorf("%s has no EFI system partition, or more than one", d.Device)
	}
	return bootentry.Partition{Number: uint32(number), First: p.First, Sectors: p.Last - p.First + 1, ID: p.ID}, nil
}
