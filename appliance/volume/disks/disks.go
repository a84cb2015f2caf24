// Package disks tells what disks a machine has, what is on them, and why one must not be written to.
//
// It reads what the kernel says (sysfs, /proc/self/mountinfo, /proc/swaps) and
// opens nothing: what it lists may be anybody's.
package disks

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A Disk is a whole one.
type Disk struct {
	Name      string // sda
	Device    string // /dev/sda
	Model     string
	Serial    string
	Size      int64
	Sector    int // bytes
	ReadOnly  bool
	Removable bool // or on USB: made to be taken out
	Parts     []Part
	InUse     []string // what for, in words; empty: nothing is known to use it
}

// A Part is a partition.
type Part struct {
	Name  string // sda1
	Label string // its name in the partition table, if it has one
	ID    string // PARTUUID
	Size  int64
}

// Machine is where the kernel's files are found.
type Machine struct {
	Root string // "/", or a folder in tests
}

func (m Machine) path(elements ...string) string {
	return filepath.Join(append([]string{m.Root}, elements...)...)
}

func (m Machine) read(elements ...string) string {
	b, err := os.ReadFile(m.path(elements...))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (m Machine) number(elements ...string) int64 {
	n, err := strconv.ParseInt(m.read(elements...), 10, 64)
	if err != nil || n < 0 || n > 1<<54 {
		return 0
	}
	return n
}

const class = "sys/class/block"

// virtual are what is made of files, memory or other disks.
var virtual = []string{"loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd", "mtdblock", "zd"}

// Virtual says by its name that a disk is none of metal.
func Virtual(name string) bool {
	return slices.ContainsFunc(virtual, func(v string) bool { return strings.HasPrefix(name, v) })
}

// List lists the disks that have a size, in the kernel's order of names.
// Virtual ones are left out; Find finds one of them by name.
func (m Machine) List() ([]Disk, error) {
	entries, err := os.ReadDir(m.path(class))
	if err != nil {
		return nil, fmt.Errorf("listing disks (is /sys mounted?): %w", err)
	}
	var all []Disk
	for _, e := range entries {
		if Virtual(e.Name()) || m.partition(e.Name()) {
			continue
		}
		d, err := m.Find(e.Name())
		if err != nil {
			return nil, err
		}
		if d.Size > 0 {
			all = append(all, d)
		}
	}
	return all, nil
}

func (m Machine) partition(name string) bool {
	_, err := os.Stat(m.path(class, name, "partition"))
	return err == nil
}

// ErrPartition says that a name is that of a part of a disk.
var ErrPartition = errors.New("it is a partition, not a whole disk")

// Find looks at one disk.
func (m Machine) Find(name string) (Disk, error) {
	d := Disk{Name: name, Device: "/dev/" + name}
	if strings.ContainsAny(name, "/") || strings.HasPrefix(name, ".") || name == "" {
		return d, fmt.Errorf("%q is not the name of a disk", name)
	}
	if _, err := os.Stat(m.path(class, name)); err != nil {
		return d, fmt.Errorf("there is no disk %s: %w", name, err)
	}
	if m.partition(name) {
		return d, fmt.Errorf("%s: %w", name, ErrPartition)
	}
	d.Model = strings.TrimSpace(m.read(class, name, "device/vendor") + " " + m.read(class, name, "device/model"))
	if vendor := m.read(class, name, "device/vendor"); strings.HasPrefix(vendor, "0x") { // a number, of virtio
		d.Model = m.read(class, name, "device/model")
	}
	d.Serial = m.read(class, name, "device/serial")
	if d.Serial == "" {
		d.Serial = m.read(class, name, "serial")
	}
	if d.Serial == "" {
		d.Serial = pageSerial(m.read(class, name, "device/vpd_pg80"))
	}
	d.Size = 512 * m.number(class, name, "size") // whatever the sectors are
	d.Sector = int(m.number(class, name, "queue/logical_block_size"))
	d.ReadOnly = m.read(class, name, "ro") == "1"
	real, err := filepath.EvalSymlinks(m.path(class, name))
	if err != nil {
		return d, fmt.Errorf("looking at %s: %w", name, err)
	}
	d.Removable = m.read(class, name, "removable") == "1" || strings.Contains(real, "/usb")
	parts, err := filepath.Glob(filepath.Join(real, "*", "partition"))
	if err != nil {
		return d, err
	}
	for _, p := range parts {
		d.Parts = append(d.Parts, m.part(filepath.Base(filepath.Dir(p))))
	}
	d.InUse, err = m.uses(d)
	return d, err
}

// pageSerial reads the serial number of a SCSI or SATA disk, which has no file of
// its own: the vital product data page "unit serial number" (SPC-4, 7.8.15), a
// head of four bytes and text.
func pageSerial(page string) string {
	const head, kind = 4, 0x80
	if len(page) < head || page[1] != kind {
		return ""
	}
	size := int(page[2])<<8 | int(page[3])
	return strings.Trim(page[head:min(head+size, len(page))], " \x00")
}

func (m Machine) part(name string) Part {
	p := Part{Name: name, Size: 512 * m.number(class, name, "size")}
	for line := range strings.Lines(m.read(class, name, "uevent")) {
		switch k, v, _ := strings.Cut(strings.TrimSpace(line), "="); k {
		case "PARTNAME":
			p.Label = v
		case "PARTUUID":
			p.ID = v
		}
	}
	return p
}

// uses says what a disk or one of its partitions is used for: mounted, swapped
// to, or a part of something (RAID, LVM, dm-crypt), which is asked in turn. What
// cannot be read is an error: a disk that might be in use must not look free.
func (m Machine) uses(d Disk) ([]string, error) {
	mounts, err := m.mounts()
	if err != nil {
		return nil, err
	}
	swaps, err := m.swaps()
	if err != nil {
		return nil, err
	}
	var out []string
	seen := make(map[string]bool)
	var look func(name, by string)
	look = func(name, by string) {
		if seen[name] {
			return
		}
		seen[name] = true
		for _, at := range mounts[m.read(class, name, "dev")] {
			words := name + by + " is mounted at " + at
			switch at {
			case "/", "/boot", "/boot/efi", "/usr", "/nix", "/efi":
				words += ": this machine's own system is on it"
			}
			out = append(out, words)
		}
		if swaps[name] {
			out = append(out, name+by+" is swapped to")
		}
		holders, _ := os.ReadDir(m.path(class, name, "holders"))
		for _, h := range holders {
			what := h.Name()
			if n := m.read(class, what, "dm/name"); n != "" {
				what += " (" + n + ")"
			}
			out = append(out, name+by+" is a part of "+what)
			look(h.Name(), ", on "+d.Name+",")
		}
	}
	look(d.Name, "")
	for _, p := range d.Parts {
		look(p.Name, "")
	}
	return out, nil
}

// mounts gives what is mounted, by the device's number ("8:1"). A file system
// that has a number of its own (btrfs) is found by its source, too.
func (m Machine) mounts() (map[string][]string, error) {
	b, err := os.ReadFile(m.path("proc/self/mountinfo"))
	if err != nil {
		return nil, fmt.Errorf("reading what is mounted: %w", err)
	}
	out := make(map[string][]string)
	add := func(dev, at string) {
		if dev != "" && !slices.Contains(out[dev], at) {
			out[dev] = append(out[dev], at)
		}
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		dash := slices.Index(f, "-")
		if len(f) < 6 || dash < 0 || len(f) < dash+3 {
			continue
		}
		at := unescape(f[4])
		add(f[2], at)
		if source := unescape(f[dash+2]); strings.HasPrefix(source, "/dev/") {
			add(m.number2(source), at)
		}
	}
	return out, nil
}

// number2 is the number of a device by its path, /dev/mapper and by-id included.
func (m Machine) number2(device string) string {
	if real, err := filepath.EvalSymlinks(m.path(device)); err == nil {
		device = real
	}
	return m.read(class, filepath.Base(device), "dev")
}

func (m Machine) swaps() (map[string]bool, error) {
	b, err := os.ReadFile(m.path("proc/swaps"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // a kernel without swap
	}
	if err != nil {
		return nil, fmt.Errorf("reading what is swapped to: %w", err)
	}
	out := make(map[string]bool)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[0], "/dev/") {
			path := unescape(f[0])
			if real, err := filepath.EvalSymlinks(m.path(path)); err == nil {
				path = real
			}
			out[filepath.Base(path)] = true
		}
	}
	return out, nil
}

// unescape undoes the kernel's way to write spaces: \040.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Refusal says why an image of size bytes must not be written to a disk; "": it may.
func (d Disk) Refusal(size int64) string {
	switch {
	case len(d.InUse) > 0:
		return "it is in use: " + strings.Join(d.InUse, "; ")
	case d.ReadOnly:
		return "it is read-only (a switch on it, or the adapter)"
	case d.Size < size:
		return fmt.Sprintf("it has %s, and the image needs %s", Bytes(d.Size), Bytes(size))
	case d.Sector != 512:
		return fmt.Sprintf("its sectors have %d bytes, and the image is made for 512", d.Sector)
	}
	return ""
}

// String is one line for a person: name, model, size.
func (d Disk) String() string {
	model := d.Model
	if model == "" {
		model = "no model known"
	}
	s := fmt.Sprintf("%s  %s  %s", d.Name, model, Bytes(d.Size))
	if d.Serial != "" {
		s += "  serial " + d.Serial
	}
	return s
}

// Holds says what is on a disk, as far as its partition table tells.
func (d Disk) Holds() string {
	if len(d.Parts) == 0 {
		return "no partitions"
	}
	var out []string
	for _, p := range d.Parts {
		s := p.Name + " " + Bytes(p.Size)
		if p.Label != "" {
			s += " " + p.Label
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}

// Bytes is a size for people, in the units that disks are sold by.
func Bytes(n int64) string {
	switch {
	case n >= 1e12:
		return fmt.Sprintf("%.1f TB", float64(n)/1e12)
	case n >= 1e9:
		return fmt.Sprintf("%.1f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.0f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%d bytes", n)
}
