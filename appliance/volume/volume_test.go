package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs"
	diskgpt "github.com/diskfs/go-diskfs/partition/gpt"

	"gatehouse/appliance/volume/gpt"
)

const (
	idESP  = "11111111-2222-4333-8444-555555555555"
	idMeta = "66666666-7777-4888-9999-aaaaaaaaaaaa"
)

// asked is a Machine that answers what the test says.
type asked struct {
	loader    string
	loaderErr error
	parameter string
}

func (a asked) LoaderPartition() (string, error) { return a.loader, a.loaderErr }
func (a asked) Parameter(name string) (string, bool) {
	return a.parameter, name == "gatehouse.disk" && a.parameter != ""
}

// machine is a tree with disks: /sys/class/block, and files as devices.
type machine struct {
	t     *testing.T
	root  string
	added []string
	deaf  bool // the kernel takes partitions but does not show them
}

func newMachine(t *testing.T) *machine {
	m := &machine{t: t, root: t.TempDir()}
	m.write("sys/class/block/.keep", "")
	m.write("dev/.keep", "")
	return m
}

func (m *machine) write(name, text string) {
	m.t.Helper()
	path := filepath.Join(m.root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		m.t.Fatal(err)
	}
}

// disk adds a disk of size MiB with our image of 8 MiB on it; the kernel
// knows ESP and META.
func (m *machine) disk(name string, size int64) {
	m.t.Helper()
	path := filepath.Join(m.root, "dev", name)
	d, err := diskfs.Create(path, 8<<20, diskfs.SectorSize512)
	if err != nil {
		m.t.Fatal(err)
	}
	err = d.Partition(&diskgpt.Table{
		LogicalSectorSize: 512, PhysicalSectorSize: 512, ProtectiveMBR: true,
		Partitions: []*diskgpt.Partition{
			{Index: 1, Start: 2048, End: 4095, Type: diskgpt.EFISystemPartition, Name: "ESP", GUID: idESP},
			{Index: 2, Start: 4096, End: 12287, Type: diskgpt.Type(strings.ToUpper(typeMeta.String())), Name: "gatehouse-meta", GUID: idMeta},
		},
	})
	if err := errors.Join(err, d.Close(), os.Truncate(path, size<<20)); err != nil {
		m.t.Fatal(err)
	}
	m.bare(name)
	m.kernelPartition(name, 1, 2048, 2048, idESP)
	m.kernelPartition(name, 2, 4096, 8192, idMeta)
}

// bare makes the kernel know a disk without partitions.
func (m *machine) bare(name string) {
	m.write("sys/devices/block/"+name+"/uevent", "DEVNAME="+name+"\nDEVTYPE=disk\n")
	m.link(name, name)
}

func (m *machine) link(name, folder string) {
	m.t.Helper()
	if err := os.Symlink("../../devices/block/"+folder, filepath.Join(m.root, "sys/class/block", name)); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) kernelPartition(disk string, number int, first, size uint64, id string) {
	name := fmt.Sprintf("%s%d", disk, number)
	dir := "sys/devices/block/" + disk + "/" + name + "/"
	m.write(dir+"uevent", "DEVTYPE=partition\nPARTN="+fmt.Sprint(number)+"\nPARTUUID="+id+"\n")
	m.write(dir+"partition", fmt.Sprintln(number))
	m.write(dir+"start", fmt.Sprintln(first))
	m.write(dir+"size", fmt.Sprintln(size))
	m.link(name, disk+"/"+name)
	m.write("dev/"+name, "partition "+name)
}

// calls answer for files and do what the kernel does with a new partition.
func (m *machine) calls() blockCalls {
	return blockCalls{
		geometry: func(f *os.File) (gpt.Geometry, error) {
			info, err := f.Stat()
			return gpt.Geometry{SectorSize: 512, Sectors: uint64(info.Size() / 512)}, err
		},
		addPartition: func(f *os.File, number int, first, size uint64) error {
			name := filepath.Base(f.Name())
			m.added = append(m.added, fmt.Sprintf("%s%d %d+%d", name, number, first, size))
			if !m.deaf {
				m.kernelPartition(name, number, first/512, size/512, "")
			}
			return nil
		},
	}
}

func (m *machine) find(a asked) (Disk, error) { return findDisk(m.root, m.calls(), a) }

func (m *machine) mustFind(a asked) Disk {
	m.t.Helper()
	d, err := m.find(a)
	if err != nil {
		m.t.Fatal(err)
	}
	return d
}

func TestBOX6_FindDiskRefuses(t *testing.T) {
	m := newMachine(t)
	m.disk("vda", 8)
	none := fs.ErrNotExist
	for name, c := range map[string]struct {
		a    asked
		want string
		wait bool // fs.ErrNotExist: it may come
	}{
		"nothing says which":   {asked{loaderErr: none}, "gatehouse.disk", false},
		"broken variable":      {asked{loaderErr: errors.New("broken")}, "broken", false},
		"not an id":            {asked{loader: "vda1"}, "not a partition id", false},
		"not there":            {asked{loader: "99999999-2222-4333-8444-555555555555"}, "no disk has", true},
		"parameter, not there": {asked{loaderErr: none, parameter: "PARTUUID=99999999-2222-4333-8444-555555555555"}, "no disk has", true},
		"path, not there":      {asked{loaderErr: none, parameter: "/dev/vdb"}, "no /dev/vdb", true},
		"a partition":          {asked{loaderErr: none, parameter: "/dev/vda1"}, "not a whole disk", false},
		"a path upwards":       {asked{loaderErr: none, parameter: "/dev/../vda"}, "not the path", false},
		"only /dev/":           {asked{loaderErr: none, parameter: "/dev/"}, "not the path", false},
	} {
		_, err := m.find(c.a)
		if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, fs.ErrNotExist) != c.wait {
			t.Errorf("%s: %v, want something with %q", name, err, c.want)
		}
	}
}

// A copy of the disk beside it: which is ours cannot be told, so neither is.
func TestBOX6_FindDiskRefusesCopies(t *testing.T) {
	m := newMachine(t)
	m.disk("vda", 8)
	m.disk("sdb", 8)
	if _, err := m.find(asked{loader: idESP}); err == nil || !strings.Contains(err.Error(), "copy") || !strings.Contains(err.Error(), "sdb") {
		t.Errorf("two disks with the partition: %v", err)
	}
}

func TestFindDisk(t *testing.T) {
	m := newMachine(t)
	m.disk("vda", 8)
	m.bare("sdb")
	m.write("dev/sdb", "somebody else's")
	for name, a := range map[string]asked{
		"loader":               {loader: idESP},
		"loader in upper case": {loader: strings.ToUpper(idESP)},
		"parameter":            {loaderErr: fs.ErrNotExist, parameter: "PARTUUID=" + idESP},
		"bare parameter":       {loaderErr: fs.ErrNotExist, parameter: idESP},
		"path":                 {loaderErr: fs.ErrNotExist, parameter: "/dev/vda"},
		"loader before path":   {loader: idESP, parameter: "/dev/sdb"},
	} {
		if d, err := m.find(a); err != nil || d.Name != "vda" || d.Device != "/dev/vda" {
			t.Errorf("%s: %+v, %v", name, d, err)
		}
	}
}

// A disk whose first table is broken has no partitions for the kernel; it is
// found by its backup, mended, and its partitions are told to the kernel.
func TestFindDiskWithBrokenTable(t *testing.T) {
	m := newMachine(t)
	m.disk("vda", 8)
	for _, p := range []string{"vda1", "vda2"} {
		if err := errors.Join(os.Remove(filepath.Join(m.root, "sys/class/block", p)),
			os.RemoveAll(filepath.Join(m.root, "sys/devices/block/vda", p))); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(filepath.Join(m.root, "dev/vda"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("XXXX"), 512); err != nil {
		t.Fatal(err)
	}
	d := m.mustFind(asked{loader: idESP})
	meta, err := d.Meta()
	if err != nil {
		t.Fatal(err)
	}
	defer meta.Close()
	g, _ := d.block.geometry(f)
	if _, health, err := gpt.Read(f, g); err != nil || !health.Whole() {
		t.Errorf("after Meta: %+v, %v", health, err)
	}
	if len(m.added) != 1 || m.added[0] != "vda2 2097152+4194304" {
		t.Errorf("told the kernel %q", m.added)
	}
}

func TestMeta(t *testing.T) {
	m := newMachine(t)
	m.disk("vda", 8)
	f, err := m.mustFind(asked{loader: idESP}).Meta()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if filepath.Base(f.Name()) != "vda2" {
		t.Errorf("META is %s", f.Name())
	}
}

func TestEnsureDataRefuses(t *testing.T) {
	m := newMachine(t)
	m.disk("vda", 40)
	d := m.mustFind(asked{loader: idESP})
	before := m.content("vda")
	if _, err := d.EnsureData(); err == nil || !strings.Contains(err.Error(), "larger disk") {
		t.Errorf("a disk that is too small: %v", err)
	}
	if m.content("vda") != before {
		t.Error("a refused EnsureData wrote to the disk")
	}
}

// A disk without META is not ours, however it was named: nothing is written.
func TestBOX6_OtherDisksAreNeverWritten(t *testing.T) {
	m := newMachine(t)
	path := filepath.Join(m.root, "dev/sdb")
	other, err := diskfs.Create(path, 64<<20, diskfs.SectorSize512)
	if err != nil {
		t.Fatal(err)
	}
	err = other.Partition(&diskgpt.Table{LogicalSectorSize: 512, PhysicalSectorSize: 512, ProtectiveMBR: true, Partitions: []*diskgpt.Partition{
		{Index: 1, Start: 2048, End: 4095, Type: diskgpt.LinuxFilesystem, Name: "photos"},
	}})
	if err := errors.Join(err, other.Close()); err != nil {
		t.Fatal(err)
	}
	m.bare("sdb")
	before := m.content("sdb")
	d := m.mustFind(asked{loaderErr: fs.ErrNotExist, parameter: "/dev/sdb"})
	if _, err := d.EnsureData(); err == nil || !strings.Contains(err.Error(), "not one of our disks") {
		t.Errorf("EnsureData: %v", err)
	}
	if _, err := d.Meta(); err == nil || !strings.Contains(err.Error(), "no META") {
		t.Errorf("Meta: %v", err)
	}
	if m.content("sdb") != before || len(m.added) != 0 {
		t.Error("the other disk was written")
	}
}

func (m *machine) content(disk string) string {
	m.t.Helper()
	data, err := os.ReadFile(filepath.Join(m.root, "dev", disk))
	if err != nil {
		m.t.Fatal(err)
	}
	return string(data)
}

func TestEnsureData(t *testing.T) {
	m := newMachine(t)
	m.disk("vda", 100)
	d := m.mustFind(asked{loader: idESP})
	for range 2 { // the second start only looks
		dev, err := d.EnsureData()
		if err != nil || dev != "/dev/vda3" {
			t.Fatalf("EnsureData = %q, %v", dev, err)
		}
	}
	// From sector 12288 to the last whole MiB before the backup table.
	if want := fmt.Sprintf("vda3 %d+%d", 12288*512, 93<<20); len(m.added) != 1 || m.added[0] != want {
		t.Errorf("told the kernel %q, want %q once", m.added, want)
	}
	// Disks that grew later keep their partition; the backup moves to the end.
	if err := os.Truncate(filepath.Join(m.root, "dev/vda"), 120<<20); err != nil {
		t.Fatal(err)
	}
	if dev, err := d.EnsureData(); err != nil || dev != "/dev/vda3" {
		t.Fatalf("after the disk grew: %q, %v", dev, err)
	}
	f, g, err := d.open(os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, health, err := gpt.Read(f, g); err != nil || !health.Whole() {
		t.Errorf("after the disk grew: %+v, %v", health, err)
	}
}

func TestEnsureDataDoubtsTheKernel(t *testing.T) {
	m := newMachine(t)
	m.disk("vda", 100)
	m.deaf = true
	d := m.mustFind(asked{loader: idESP})
	if _, err := d.EnsureData(); err == nil || !strings.Contains(err.Error(), "does not list it") {
		t.Errorf("a kernel that does not show the partition: %v", err)
	}
	m.kernelPartition("vda", 3, 12288, 99, "")
	if _, err := d.EnsureData(); err == nil || !strings.Contains(err.Error(), "another place") {
		t.Errorf("a kernel with another size: %v", err)
	}
}

func TestBOX4_SystemPartitionIsNamed(t *testing.T) {
	m := newMachine(t)
	m.disk("vda", 16)
	p, err := m.mustFind(asked{loader: idESP}).ESPPlace()
	if err != nil || p.Number != 1 || p.First != 2048 || p.Sectors != 2048 || p.ID.String() != idESP {
		t.Errorf("%+v, %v", p, err)
	}
}
