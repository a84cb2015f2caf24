package disk

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/partition/gpt"

	"gatehouse/firmware/slot"
)

// espFiles is what a box's partition holds, with small programs.
func espFiles() []File {
	return []File{
		{Path: "EFI/BOOT/BOOTX64.EFI", Content: bytes.Repeat([]byte("loader"), 20000)},
		{Path: "EFI/Linux/gatehouse-a.efi", Content: bytes.Repeat([]byte("UKI of slot A "), 90001), Reserve: SlotSize},
		{Path: "EFI/Linux/gatehouse-b.efi", Reserve: SlotSize},
		{Path: "loader/loader.conf", Content: slot.Config(slot.A)},
	}
}

func write(t *testing.T, files []File) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := Write(f, files, []byte("test")); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestWriteRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		files []File
		want  string
	}{
		{"path that climbs", []File{{Path: "../x"}}, "path"},
		{"absolute path", []File{{Path: "/x"}}, "path"},
		{"empty path", []File{{Path: ""}}, "path"},
		{"the same file twice, in other letters", []File{{Path: "EFI/a"}, {Path: "efi/A"}}, "already"},
		{"a file as a folder", []File{{Path: "EFI"}, {Path: "EFI/a"}}, "already"},
		{"more content than its reserve", []File{{Path: "a", Content: make([]byte, 4097), Reserve: 4096}}, "kept for it"},
		{"more than fits", []File{{Path: "a", Reserve: 3 * SlotSize}}, "full"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := os.Create(filepath.Join(t.TempDir(), "disk.img"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := Write(f, c.files, nil); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one about %q", err, c.want)
			}
		})
	}
	if _, err := newFAT(nil, 0, 64<<20, clusterSectors, "X", 0); err == nil {
		t.Error("made FAT32 with fewer clusters than FAT32 has")
	}
}

// partitionFile copies the EFI system partition out, for tools that know FAT.
func partitionFile(t *testing.T, disk *os.File) string {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "esp.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := io.Copy(out, io.NewSectionReader(disk, espStart, espSize)); err != nil {
		t.Fatal(err)
	}
	return out.Name()
}

// The judge is mtools, which shares no code with the writer.
func TestBOX1_FilesReadBack(t *testing.T) {
	files := espFiles()
	esp := partitionFile(t, write(t, files))
	for _, f := range files {
		out, err := exec.Command("mtype", "-i", esp, "::"+f.Path).Output()
		if err != nil {
			t.Fatalf("mtype %s (install package mtools): %v", f.Path, err)
		}
		want := f.Content
		if want == nil {
			want = make([]byte, f.Reserve)
		}
		if !bytes.Equal(out, want) {
			t.Errorf("%s came back with %d bytes, want %d", f.Path, len(out), len(want))
		}
	}
}

// fsck.fat may complain of one thing: slot A has more clusters than it is
// long, which is what it is for.
func TestBOX1_FileSystemIsSound(t *testing.T) {
	check := func(files []File) string {
		out, err := exec.Command("fsck.fat", "-n", partitionFile(t, write(t, files))).CombinedOutput()
		if len(out) == 0 {
			t.Fatalf("fsck.fat said nothing (install package dosfstools): %v", err)
		}
		return string(out)
	}
	plain := espFiles()
	plain[1].Content = nil // then length and clusters agree everywhere
	if out := check(plain); strings.Count(out, "\n") != 2 || !strings.Contains(out, "files,") {
		t.Errorf("fsck.fat complains:\n%s", out)
	}
	out := check(espFiles())
	for _, bad := range []string{"FATs differ", "boot sector", "Orphaned", "shares clusters", "bad", "Duplicate", ".."} {
		if strings.Contains(out, bad) {
			t.Errorf("fsck.fat complains of %q:\n%s", bad, out)
		}
	}
}

// chain follows a file's clusters in the first table.
func chain(t *testing.T, disk *os.File, first uint32) []uint32 {
	t.Helper()
	var out []uint32
	var b [4]byte
	for c := first; c < 0x0ffffff8; c = binary.LittleEndian.Uint32(b[:]) & 0x0fffffff {
		out = append(out, c)
		if _, err := disk.ReadAt(b[:], espStart+reservedSectors*sectorSize+4*int64(c)); err != nil {
			t.Fatal(err)
		}
		if len(out) > SlotSize/(clusterSectors*sectorSize) {
			t.Fatal("the chain is longer than the slot")
		}
	}
	return out
}

func TestBOX1_SlotsAreOneRunOfTheirFullSize(t *testing.T) {
	f := write(t, espFiles())
	entries := make([]byte, 16<<20)
	if _, err := f.ReadAt(entries, espStart); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"GATEHO~1EFI", "GATEHO~2EFI"} {
		at := bytes.Index(entries, []byte(name))
		if at < 0 {
			t.Fatalf("no directory entry %s", name)
		}
		if at/sectorSize != (at+entrySize-1)/sectorSize {
			t.Error("the entry straddles two sectors")
		}
		le := binary.LittleEndian
		first := uint32(le.Uint16(entries[at+20:]))<<16 | uint32(le.Uint16(entries[at+26:]))
		clusters := chain(t, f, first)
		if len(clusters) != SlotSize/(clusterSectors*sectorSize) {
			t.Errorf("%s has %d clusters, want %d", name, len(clusters), SlotSize/(clusterSectors*sectorSize))
		}
		for i, c := range clusters {
			if c != first+uint32(i) {
				t.Fatalf("%s is not in one run: cluster %d is %d", name, i, c)
			}
		}
	}
}

func TestBOX1_DiskIsSparse(t *testing.T) {
	f := write(t, espFiles())
	out, err := exec.Command("du", "--block-size=1", f.Name()).Output()
	if err != nil {
		t.Fatal(err)
	}
	used := strings.Fields(string(out))[0]
	if len(used) > len("9999999") {
		t.Errorf("an image with 1.4 MB of content uses %s bytes: zeros were written", used)
	}
}

func TestPartitionTable(t *testing.T) {
	f := write(t, espFiles())
	table, err := gpt.Read(noSync{f}, sectorSize, sectorSize)
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Verify(noSync{f}, Size); err != nil {
		t.Errorf("the two tables do not agree: %v", err)
	}
	var names []string
	for _, p := range table.Partitions {
		if p.Start == 0 {
			continue
		}
		names = append(names, p.Name)
		if p.Start*sectorSize%mebibyte != 0 {
			t.Errorf("%s begins at sector %d, not on a MiB", p.Name, p.Start)
		}
	}
	if got := strings.Join(names, " "); got != "ESP gatehouse-meta" {
		t.Errorf("partitions are %q", got)
	}
	start, err := Meta(f)
	if err != nil || start != metaStart {
		t.Errorf("META found at %d (%v), want %d", start, err, metaStart)
	}
	meta := make([]byte, MetaSize)
	if _, err := f.ReadAt(meta, start); err != nil || !bytes.Equal(meta, make([]byte, MetaSize)) {
		t.Errorf("META is not blank (%v)", err)
	}
}

func TestMetaRefusesForeignDisks(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "other.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(Size); err != nil {
		t.Fatal(err)
	}
	if start, err := Meta(f); err == nil {
		t.Errorf("found META at %d on a blank disk", start)
	}
	table := &gpt.Table{LogicalSectorSize: 512, PhysicalSectorSize: 512, ProtectiveMBR: true,
		Partitions: []*gpt.Partition{{Index: 1, Start: 2048, End: 4095, Type: gpt.LinuxFilesystem, Name: "gatehouse-meta"}}}
	if err := table.Write(noSync{f}, Size); err != nil {
		t.Fatal(err)
	}
	if start, err := Meta(f); err == nil {
		t.Errorf("took a partition that only has META's name for META, at %d", start)
	}
}

func sumOf(t *testing.T, f *os.File) [32]byte {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, Size)); err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}

func TestBOX1_DiskSameBytes(t *testing.T) {
	first, second := sumOf(t, write(t, espFiles())), sumOf(t, write(t, espFiles()))
	if first != second {
		t.Error("two disks of the same content differ")
	}
}

func TestBOX1_Qcow2HoldsTheSameDisk(t *testing.T) {
	f := write(t, espFiles())
	out, err := os.Create(filepath.Join(t.TempDir(), "disk.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := WriteQcow2(out, f, Size); err != nil {
		t.Fatal(err)
	}
	if text, err := exec.Command("qemu-img", "check", out.Name()).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img check (install package qemu-utils): %v\n%s", err, text)
	}
	if text, err := exec.Command("qemu-img", "compare", "-f", "raw", "-F", "qcow2", f.Name(), out.Name()).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img compare: %v\n%s", err, text)
	}
}
