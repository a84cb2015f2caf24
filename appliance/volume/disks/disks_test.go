package disks

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// machine makes sysfs and /proc of a machine with some disks: files by path
// below /sys/devices, and links in /sys/class/block as the kernel has them.
func machine(t *testing.T, mountinfo, swaps string, files map[string]string) Machine {
	t.Helper()
	root := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text+"\n"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	write("proc/self/mountinfo", mountinfo)
	write("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n"+swaps)
	write("sys/class/block/.keep", "")
	if err := os.Remove(filepath.Join(root, "sys/class/block/.keep")); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		write(filepath.Join("sys/devices", name), text)
	}
	// A folder with a file "dev" is a block device.
	err := filepath.WalkDir(filepath.Join(root, "sys/devices"), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Name() == "dev" {
			dir := filepath.Dir(path)
			err = os.Symlink(dir, filepath.Join(root, "sys/class/block", filepath.Base(dir)))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return Machine{root}
}

const gigabyte = "1953125" // in sectors of 512

func office(t *testing.T, mountinfo, swaps string) Machine {
	return machine(t, mountinfo, swaps, map[string]string{
		"pci0/ata1/block/sda/dev": "8:0", "pci0/ata1/block/sda/size": gigabyte, "pci0/ata1/block/sda/queue/logical_block_size": "512",
		"pci0/ata1/block/sda/device/vendor": "ATA", "pci0/ata1/block/sda/device/model": "Great Disk", "pci0/ata1/block/sda/ro": "0",
		"pci0/ata1/block/sda/device/vpd_pg80": "\x00\x80\x00\x14            WD-41S1",
		"pci0/ata1/block/sda/sda1/dev":        "8:1", "pci0/ata1/block/sda/sda1/partition": "1", "pci0/ata1/block/sda/sda1/size": "1000000", "pci0/ata1/block/sda/sda1/uevent": "PARTNAME=stuff\nPARTUUID=abc",
		"pci0/ata1/block/sda/sda2/dev": "8:2", "pci0/ata1/block/sda/sda2/partition": "2", "pci0/ata1/block/sda/sda2/size": "900000", "pci0/ata1/block/sda/sda2/uevent": "",
		"pci0/ata1/block/sda/sda2/holders/dm-0": "",
		"virtual/block/dm-0/dev":                "253:0", "virtual/block/dm-0/dm/name": "vault", "virtual/block/dm-0/size": "900000",
		"pci0/usb1/block/sdb/dev": "8:16", "pci0/usb1/block/sdb/size": gigabyte, "pci0/usb1/block/sdb/queue/logical_block_size": "512", "pci0/usb1/block/sdb/removable": "1",
		"pci0/usb1/block/sdc/dev": "8:32", "pci0/usb1/block/sdc/size": "0",
		"pci0/virtio/block/vda/dev": "252:0", "pci0/virtio/block/vda/size": "100", "pci0/virtio/block/vda/serial": "S3R1AL", "pci0/virtio/block/vda/ro": "1", "pci0/virtio/block/vda/device/vendor": "0x1af4",
		"pci0/virtio/block/vda/queue/logical_block_size": "4096",
		"virtual/block/loop0/dev":                        "7:0", "virtual/block/loop0/size": "100",
	})
}

func TestBOX3_DisksInUseAreNotForWriting(t *testing.T) {
	const idle = "22 1 0:20 / /proc rw - proc proc rw"
	for _, c := range []struct{ name, mounts, swaps, disk, says string }{
		{"mounted", idle + "\n30 1 8:1 / /mnt/my\\040files rw - ext4 /dev/sda1 rw", "", "sda", "sda1 is mounted at /mnt/my files"},
		{"the system", "30 1 8:1 / / rw shared:1 - ext4 /dev/root rw", "", "sda", "own system is on it"},
		{"by its source", "30 1 0:45 /@home /home rw - btrfs /dev/sda1 rw", "", "sda", "sda1 is mounted at /home"},
		{"swap", idle, "/dev/sda1 partition 100 0 -2", "sda", "sda1 is swapped to"},
		{"held", idle, "", "sda", "sda2 is a part of dm-0 (vault)"},
		{"mounted through dm", "30 1 253:0 / /srv rw - ext4 /dev/mapper/vault rw", "", "sda", "dm-0, on sda, is mounted at /srv"},
		{"whole and mounted", "30 1 8:16 / /media rw - vfat /dev/sdb rw", "", "sdb", "sdb is mounted at /media"},
		{"read-only", idle, "", "vda", "read-only"},
		{"too small", idle, "", "sdb", "needs 2.0 GB"},
	} {
		d, err := office(t, c.mounts, c.swaps).Find(c.disk)
		if err != nil {
			t.Fatal(err)
		}
		if got := d.Refusal(2e9); !strings.Contains(got, c.says) {
			t.Errorf("%s: %q, want %q", c.name, got, c.says)
		}
	}
	m := office(t, idle, "")
	d, err := m.Find("sdb")
	if err != nil || d.Refusal(1e9) != "" {
		t.Errorf("a free disk: %q, %v", d.Refusal(1e9), err)
	}
	if d, err = m.Find("vda"); err == nil {
		d.ReadOnly = false
	}
	if got := d.Refusal(1); !strings.Contains(got, "sectors have 4096") {
		t.Errorf("large sectors: %q", got)
	}
	for name, want := range map[string]string{"sda1": ErrPartition.Error(), "sdz": "no disk sdz", "../sda": "not the name", "": "not the name", ".keep": "not the name"} {
		if _, err := m.Find(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", name, err, want)
		}
	}
}

// What is mounted is not known: then no disk looks free.
func TestBOX3_UnknownUseIsRefused(t *testing.T) {
	m := office(t, "", "")
	if err := os.Remove(filepath.Join(m.Root, "proc/self/mountinfo")); err != nil {
		t.Fatal(err)
	}
	if all, err := m.List(); err == nil {
		t.Errorf("without knowing what is mounted there are %v", all)
	}
}

func TestDisksAreListedWithWhatIsOnThem(t *testing.T) {
	all, err := office(t, "22 1 0:20 / /proc rw - proc proc rw", "").List()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range all {
		got = append(got, d.String()+" | "+d.Holds())
	}
	want := []string{
		"sda  ATA Great Disk  1.0 GB  serial WD-41S1 | sda1 512 MB stuff, sda2 461 MB",
		"sdb  no model known  1.0 GB | no partitions",
		"vda  no model known  51200 bytes  serial S3R1AL | no partitions",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("listed:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if !all[1].Removable || all[0].Removable {
		t.Errorf("removable: %v, %v", all[0].Removable, all[1].Removable)
	}
}

func TestBOX3_SerialNumberOfASATADisk(t *testing.T) {
	for page, want := range map[string]string{
		"\x00\x80\x00\x14            WD-41S1 ": "WD-41S1",
		"\x00\x80\x00\x04ABCDEFGH":             "ABCD",
		"\x00\x80\x00\xff12":                   "12", // spaces at the end were cut off
		"\x00\x83\x00\x04ABCD":                 "",   // another page
		"\x00\x80\x00":                         "",
		"":                                     "",
	} {
		if got := pageSerial(page); got != want {
			t.Errorf("%q: %q, want %q", page, got, want)
		}
	}
}
