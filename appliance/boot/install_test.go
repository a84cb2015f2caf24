package boot

import (
	"os"
	"path/filepath"
	"testing"

	"gatehouse/appliance/volume/disks"
	"gatehouse/image/disk"
)

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
