package boot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatehouse/appliance/volume/disks"
	"gatehouse/image/disk"
)

// A seed has nothing written unless it names one disk, and that one alone: not the
// medium itself, not one of two, not a box.
func TestBOX3_SeedThatNamesNoOneDiskWritesNothing(t *testing.T) {
	folder := t.TempDir()
	device := func(name string) disks.Disk {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		return disks.Disk{Name: name, Device: path, Serial: "S-" + name, Sector: 512, Size: 1 << 20}
	}
	i := &install{name: "sdb"}
	vda, vdb, medium := device("vda"), device("vdb"), device("sdb")
	twin := vdb
	twin.Serial = vda.Serial
	mute := vdb
	mute.Serial = ""
	for name, c := range map[string]struct {
		all          []disks.Disk
		serial, says string
	}{
		"no disk":          {[]disks.Disk{medium}, "S-vda", "there is none besides the medium"},
		"another disk":     {[]disks.Disk{vdb, medium}, "S-vda", "no disk has the serial number S-vda; there is vdb"},
		"the medium":       {[]disks.Disk{vda, medium}, "S-sdb", "no disk has the serial number S-sdb"},
		"two":              {[]disks.Disk{vda, twin}, "S-vda", "2 disks have the serial number S-vda"},
		"the beginning":    {[]disks.Disk{vda}, "S-vd", "no disk has"},
		"without a number": {[]disks.Disk{mute}, "S-vda", "no disk has"},
	} {
		if d, err := i.choose(c.all, c.serial); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %s, %v; want %q", name, d.Name, err, c.says)
		}
	}
	if d, err := i.choose([]disks.Disk{vda, vdb, medium}, "S-vdb"); err != nil || d.Name != "vdb" {
		t.Errorf("one: %s, %v", d.Name, err)
	}
}

// A medium that stays in the machine must not write over a box, nor over what may be one.
func TestBOX3_SeedInstallsOverNoBox(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d := disks.Disk{Name: "vda", Device: path, Sector: 512, Size: disk.Size}
	if err := f.Truncate(disk.Size); err != nil {
		t.Fatal(err)
	}
	if holds, err := holdsGatehouse(d); holds || err != nil {
		t.Errorf("a disk of zeros: %v, %v", holds, err)
	}
	if err := disk.Write(f, nil, []byte("a box")); err != nil {
		t.Fatal(err)
	}
	if holds, err := holdsGatehouse(d); !holds || err != nil {
		t.Errorf("a box: %v, %v", holds, err)
	}
	noise := make([]byte, 512)
	noise[0] = 7
	for _, header := range []int64{512, disk.Size - 512} {
		if _, err := f.WriteAt(noise, header); err != nil {
			t.Fatal(err)
		}
	}
	if holds, err := holdsGatehouse(d); holds || err == nil {
		t.Errorf("a box whose two tables are broken: %v, %v", holds, err)
	}
}
