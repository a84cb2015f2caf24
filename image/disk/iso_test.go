package disk

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatehouse/appliance/seed"
	"gatehouse/appliance/volume/gpt"
	"gatehouse/appliance/volume/installer"
)

func medium(t *testing.T, content []byte) (*os.File, installer.Head) {
	t.Helper()
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(content); err != nil {
		t.Fatal(err)
	}
	z.Close()
	head := installer.Head{Size: int64(len(content)), Packed: int64(packed.Len()), Sum: sha256.Sum256(content)}
	f, err := os.Create(filepath.Join(t.TempDir(), "medium.iso"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	esp := []File{{Path: "EFI/BOOT/BOOTX64.EFI", Content: []byte("loader")}, {Path: "EFI/Linux/a.efi", Content: bytes.Repeat([]byte("system"), 100_000)}}
	if err := WriteISO(f, esp, &packed, head, []byte("id")); err != nil {
		t.Fatal(err)
	}
	return f, head
}

func size(t *testing.T, f *os.File) int64 {
	t.Helper()
	n, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// The medium is found by its partition, and gives back the image.
func TestBOX3_MediumCarriesTheImage(t *testing.T) {
	content := bytes.Repeat([]byte("image "), 200_000)
	f, head := medium(t, content)
	m, err := installer.Open(f, size(t, f))
	if err != nil || m.Head != head {
		t.Fatalf("%+v, %v", m, err)
	}
	in, err := m.Image()
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(in)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes of %d, %v", len(got), len(content), err)
	}
	// The boot record leads to the catalog, and that to the FAT file system.
	b := make([]byte, 64)
	if _, err := f.ReadAt(b, isoCatalog*isoSector); err != nil {
		t.Fatal(err)
	}
	sum := uint16(0)
	for i := 0; i < 32; i += 2 {
		sum += uint16(b[i]) | uint16(b[i+1])<<8
	}
	at := int64(b[40]) | int64(b[41])<<8
	boot := make([]byte, 512)
	if _, err := f.ReadAt(boot, at*isoSector); err != nil {
		t.Fatal(err)
	}
	if sum != 0 || b[1] != 0xef || b[32] != 0x88 || string(boot[82:87]) != "FAT32" {
		t.Errorf("the catalog is % x and leads to %q", b, boot[82:90])
	}
}

func TestBOX3_DamagedMediaAreRefused(t *testing.T) {
	content := bytes.Repeat([]byte("image "), 200_000)
	whole, head := medium(t, content)
	at := size(t, whole) - mebibyte - align(installer.HeadSize+head.Packed, mebibyte)
	for says, c := range map[string]struct {
		at   int64
		what string
	}{
		"no medium":     {512, "nothing"},
		"is damaged":    {at + 9, "x"},
		"its sum":       {at + 24, ""},
		"unexpected":    {at + installer.HeadSize + head.Packed - 6, ""},
		"cannot be":     {at + 8, ""},
		"write the med": {at, "GHINST02"},
	} {
		f, head := medium(t, content)
		switch says {
		case "its sum":
			head.Sum[0]++
			f.WriteAt(head.Encode(), at)
		case "unexpected":
			head.Packed -= 20
			f.WriteAt(head.Encode(), at)
		case "cannot be":
			head.Size = 1 << 62
			f.WriteAt(head.Encode(), at)
		default:
			f.WriteAt([]byte(c.what), c.at)
		}
		if says == "no medium" { // both tables
			f.WriteAt([]byte(c.what), size(t, f)-512)
		}
		m, err := installer.Open(f, size(t, f))
		if err == nil {
			var in io.Reader
			if in, err = m.Image(); err == nil {
				_, err = io.Copy(io.Discard, in)
			}
		}
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
		if says == "no medium" && !errors.Is(err, installer.ErrNone) {
			t.Errorf("%v is not ErrNone", err)
		}
	}
	plain, err := os.Create(filepath.Join(t.TempDir(), "disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if err := Write(plain, []File{{Path: "a", Content: []byte("a")}}, []byte("id")); err != nil {
		t.Fatal(err)
	}
	if _, err := installer.Open(plain, Size); !errors.Is(err, installer.ErrNone) {
		t.Errorf("the disk of a box is taken for a medium that installs: %v", err)
	}
}

// A seed changes nothing but the table and its own partition, and a second one
// takes the place of the first.
func TestBOX11_SeedLeavesWhatWasSigned(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Write(f, []File{{Path: "EFI/a", Content: bytes.Repeat([]byte("signed"), 1000), Reserve: 1 << 20}}, []byte("id")); err != nil {
		t.Fatal(err)
	}
	hash := func() [32]byte {
		b := make([]byte, espSize+MetaSize)
		if _, err := f.ReadAt(b, espStart); err != nil {
			t.Fatal(err)
		}
		return sha256.Sum256(b)
	}
	before := hash()
	for _, name := range []string{"attic", "cellar"} {
		if err := SetSeed(f, seed.Seed{HostName: name}); err != nil {
			t.Fatal(err)
		}
	}
	if hash() != before {
		t.Error("ESP or META changed")
	}
	n := size(t, f)
	table, health, err := gpt.Read(f, gpt.Geometry{SectorSize: 512, Sectors: uint64(n / 512)})
	if err != nil || !health.Whole() {
		t.Fatalf("%+v, %v", health, err)
	}
	_, p, ok := table.Find(SeedType)
	b := make([]byte, seedSize)
	if _, err := f.ReadAt(b, int64(p.First)*512); !ok || err != nil || !bytes.Contains(b, []byte("cellar")) || bytes.Contains(b, []byte("attic")) {
		t.Errorf("the seed is not the second one (%v, %v)", ok, err)
	}
	if n != Size+seedSize {
		t.Errorf("the image has %d bytes, want %d", n, Size+seedSize)
	}
	if err := SetSeed(f, seed.Seed{}); err == nil {
		t.Error("an empty seed was written")
	}
}
