// Package volume finds the box's own disk, makes, opens, checks and mounts its data volume.
//
// Only the disk that the boot loader was read from is ours; no other is
// written. Its GPT holds ESP, META and, from the first start on, the data
// partition; package gpt reads and grows that table.
package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"gatehouse/appliance/volume/gpt"
)

// Partition types of our own.
var (
	typeMeta = uuid.MustParse("6b1d2c4e-5f0a-4c9e-9d5b-2f6f0a7e4d11")
	typeData = uuid.MustParse("0e7a7f3c-9a4b-4f5e-8a55-7d1c3b2e9f20")
)

const (
	leastMeta = 256 << 10 // two slot headers, a verifier, network settings
	leastData = 64 << 20
)

// Machine is what FindDisk asks of the machine; *host.Host is one.
type Machine interface {
	Parameter(name string) (string, bool)
	LoaderPartition() (string, error)
}

// A Disk is the box's own disk.
type Disk struct {
	Name   string // sda, nvme0n1, vda
	Device string // /dev/sda
	root   string // "/" but for tests
	block  blockCalls
}

// FindDisk finds the disk that the boot loader was read from: by the
// partition id that the loader left in a firmware variable, or, for kernels
// started without a loader, by the kernel parameter gatehouse.disk, which is a
// partition id (PARTUUID=… or bare) or the path of a whole disk. The error is
// fs.ErrNotExist while no such disk is there: it may still be appearing.
func FindDisk(m Machine) (Disk, error) { return findDisk("/", kernelBlock(), m) }

func findDisk(root string, block blockCalls, m Machine) (Disk, error) {
	d := Disk{root: root, block: block}
	id, err := m.LoaderPartition()
	if errors.Is(err, fs.ErrNotExist) {
		value, ok := m.Parameter("gatehouse.disk")
		switch {
		case !ok || value == "":
			return d, errors.New("finding our disk: the boot loader left no partition id, and the kernel has no parameter gatehouse.disk=PARTUUID or /dev/…")
		case strings.HasPrefix(value, "/dev/"):
			return d.wholeDisk(value)
		}
		id, err = strings.TrimPrefix(value, "PARTUUID="), nil
	}
	if err != nil {
		return d, fmt.Errorf("finding our disk: %w", err)
	}
	want, err := uuid.Parse(id)
	if err != nil {
		return d, fmt.Errorf("finding our disk: %q is not a partition id: %w", id, err)
	}
	found, err := d.disksWith(want)
	if err != nil {
		return d, err
	}
	switch len(found) {
	case 0:
		return d, fmt.Errorf("finding our disk: no disk has the partition %s: %w", want, fs.ErrNotExist)
	case 1:
		return d.named(found[0]), nil
	}
	return d, fmt.Errorf("finding our disk: %s all have the partition %s: one is a copy of another; take the copies out",
		strings.Join(found, ", "), want)
}

func (d Disk) named(name string) Disk {
	d.Name, d.Device = name, filepath.Join("/dev", name)
	return d
}

func (d Disk) path(elements ...string) string {
	return filepath.Join(append([]string{d.root}, elements...)...)
}

// Named is a disk that is not this box's: one that was just written to.
func Named(name string) Disk { return Disk{root: "/", block: kernelBlock()}.named(name) }

func (d Disk) wholeDisk(device string) (Disk, error) {
	name := strings.TrimPrefix(device, "/dev/")
	if strings.ContainsAny(name, "/.") || name == "" {
		return d, fmt.Errorf("finding our disk: %q is not the path of a disk", device)
	}
	if _, err := os.Stat(d.path("sys/class/block", name)); err != nil {
		return d, fmt.Errorf("finding our disk: there is no %s: %w", device, err)
	}
	if _, err := os.Stat(d.path("sys/class/block", name, "partition")); err == nil {
		return d, fmt.Errorf("finding our disk: %s is a partition, not a whole disk", device)
	}
	return d.named(name), nil
}

// disksWith lists the disks that have a partition of this id. The kernel is
// asked first. A disk whose first table is broken has no partitions for the
// kernel (it looks at the backup only when told "gpt"), so the tables are read
// as well when the kernel knows none.
func (d Disk) disksWith(id uuid.UUID) ([]string, error) {
	class := d.path("sys/class/block")
	entries, err := os.ReadDir(class)
	if err != nil {
		return nil, fmt.Errorf("listing disks (is /sys mounted?): %w", err)
	}
	var found, whole []string
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(class, e.Name(), "uevent"))
		if err != nil {
			continue // it went while we looked
		}
		switch {
		case ueventValue(string(text), "DEVTYPE") == "disk":
			whole = append(whole, e.Name())
		case strings.EqualFold(ueventValue(string(text), "PARTUUID"), id.String()):
			// /sys/class/block/vda1 leads to …/block/vda/vda1.
			real, err := filepath.EvalSymlinks(filepath.Join(class, e.Name()))
			if err != nil {
				continue
			}
			found = append(found, filepath.Base(filepath.Dir(real)))
		}
	}
	if len(found) > 0 {
		return found, nil
	}
	for _, name := range whole {
		if d.hasPartition(name, id) {
			found = append(found, name)
		}
	}
	return found, nil
}

// hasPartition reads a disk's own table. Virtual disks are left out: what is
// inside a file or a mapping is never what the firmware started from.
func (d Disk) hasPartition(name string, id uuid.UUID) bool {
	for _, prefix := range []string{"loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd"} {
		if strings.HasPrefix(name, prefix) {
			return false
		}
	}
	f, g, err := d.named(name).open(os.O_RDONLY)
	if err != nil {
		return false
	}
	defer f.Close()
	t, _, err := gpt.Read(f, g)
	return err == nil && slices.ContainsFunc(t.Entries[:], func(p gpt.Partition) bool { return p.ID == id })
}

func ueventValue(text, key string) string {
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok && k == key {
			return v
		}
	}
	return ""
}

func (d Disk) open(flag int) (*os.File, gpt.Geometry, error) {
	f, err := os.OpenFile(d.path(d.Device), flag, 0)
	if err != nil {
		return nil, gpt.Geometry{}, err
	}
	g, err := d.block.geometry(f)
	if err != nil {
		f.Close()
		return nil, g, fmt.Errorf("asking for the size of %s: %w", d.Device, err)
	}
	return f, g, nil
}

// Meta opens the META partition for reading and writing. The caller closes
// it. A broken copy of the partition table is mended on the way.
func (d Disk) Meta() (*os.File, error) {
	f, g, err := d.open(os.O_RDWR)
	if err != nil {
		return nil, fmt.Errorf("opening our disk: %w", err)
	}
	defer f.Close()
	t, health, err := gpt.Read(f, g)
	if err != nil {
		return nil, fmt.Errorf("reading the partition table of %s: %w", d.Device, err)
	}
	if health.Primary != nil {
		if _, err := gpt.Heal(f, g); err != nil {
			return nil, fmt.Errorf("mending the partition table of %s: %w", d.Device, err)
		}
	}
	number, p, ok := t.Find(typeMeta)
	if !ok {
		return nil, fmt.Errorf("%s has no META partition, or more than one: write the image to it anew", d.Device)
	}
	if size := (p.Last - p.First + 1) * uint64(g.SectorSize); size < leastMeta {
		return nil, fmt.Errorf("the META partition of %s has %d bytes, and %d are needed: write the image to it anew", d.Device, size, leastMeta)
	}
	dev, err := d.partition(f, g, number, p)
	if err != nil {
		return nil, err
	}
	meta, err := os.OpenFile(d.path(dev), os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the META partition: %w", err)
	}
	return meta, nil
}

// EnsureData returns the device of the data partition. At the first start it
// makes it, to the end of the disk (gpt.Commit has the power cuts); later it
// only looks, and mends a broken copy of the partition table.
func (d Disk) EnsureData() (string, error) {
	f, g, err := d.open(os.O_RDWR)
	if err != nil {
		return "", fmt.Errorf("opening our disk: %w", err)
	}
	defer f.Close()
	t, _, err := gpt.Read(f, g)
	if err != nil {
		return "", fmt.Errorf("reading the partition table of %s: %w", d.Device, err)
	}
	if _, _, ok := t.Find(typeMeta); !ok {
		return "", fmt.Errorf("%s has no META partition, or more than one: it is not one of our disks, and nothing is written to it", d.Device)
	}
	number, p, ok := t.Find(typeData)
	if ok {
		if _, err := gpt.Heal(f, g); err != nil {
			return "", fmt.Errorf("mending the partition table of %s: %w", d.Device, err)
		}
		return d.partition(f, g, number, p)
	}
	if slices.ContainsFunc(t.Entries[:], func(p gpt.Partition) bool { return p.Type == typeData }) {
		return "", fmt.Errorf("%s has more than one data partition; which one counts cannot be told", d.Device)
	}
	id, err := uuid.NewRandom()
	if err != nil {
		return "", fmt.Errorf("choosing an id for the data partition: %w", err)
	}
	if number, err = t.Append(g, typeData, id, "gatehouse-data", leastData); err != nil {
		return "", fmt.Errorf("making the data partition on %s: %w", d.Device, err)
	}
	if err := gpt.Commit(f, g, t); err != nil {
		return "", fmt.Errorf("making the data partition on %s: %w", d.Device, err)
	}
	return d.partition(f, g, number, t.Entries[number-1])
}

// partition gives the device of a partition and tells the kernel of it if it
// does not know it: one added while others are in use cannot be had by
// reading the whole table again.
func (d Disk) partition(f *os.File, g gpt.Geometry, number int, p gpt.Partition) (string, error) {
	first := p.First * uint64(g.SectorSize)
	size := (p.Last - p.First + 1) * uint64(g.SectorSize)
	for range 2 {
		name, known, err := d.kernelPartition(number)
		if err != nil {
			return "", err
		}
		if known != nil {
			// The kernel counts in 512 bytes whatever the disk's sectors are.
			if known.first*512 != first || known.size*512 != size {
				return "", fmt.Errorf("the kernel has partition %d of %s at another place than the table: restart the box", number, d.Device)
			}
			return filepath.Join("/dev", name), nil
		}
		if err := d.block.addPartition(f, number, first, size); err != nil {
			return "", fmt.Errorf("telling the kernel of partition %d of %s: %w", number, d.Device, err)
		}
	}
	return "", fmt.Errorf("the kernel took partition %d of %s but does not list it", number, d.Device)
}

type kernelPart struct{ first, size uint64 }

func (d Disk) kernelPartition(number int) (string, *kernelPart, error) {
	files, err := filepath.Glob(d.path("sys/class/block", d.Name, "*", "partition"))
	if err != nil {
		return "", nil, err
	}
	read := func(name string) (uint64, error) {
		text, err := os.ReadFile(name)
		if err != nil {
			return 0, fmt.Errorf("asking the kernel for its partitions: %w", err)
		}
		return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 54)
	}
	for _, f := range files {
		n, err := read(f)
		if err != nil || n != uint64(number) {
			continue
		}
		dir := filepath.Dir(f)
		first, err1 := read(filepath.Join(dir, "start"))
		size, err2 := read(filepath.Join(dir, "size"))
		return filepath.Base(dir), &kernelPart{first, size}, errors.Join(err1, err2)
	}
	return "", nil, nil
}
