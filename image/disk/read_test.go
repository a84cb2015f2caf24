package disk

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestBOX3_FilesOfADiskAreRead(t *testing.T) {
	want := append(espFiles(), File{Path: "EFI/odd", Content: bytes.Repeat([]byte("odd"), 1001)})
	f := write(t, want)
	var paths []string
	for _, w := range want {
		paths = append(paths, w.Path)
	}
	got, err := Files(f, paths...)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range want {
		if w.Content == nil {
			w.Content = make([]byte, w.Reserve)
		}
		if !bytes.Equal(got[w.Path], w.Content) {
			t.Errorf("%s: %d bytes, want %d", w.Path, len(got[w.Path]), len(w.Content))
		}
	}
	if blank, err := Blank(f); err != nil || !blank {
		t.Errorf("a fresh disk is not blank: %v", err)
	}
	if _, err := f.WriteAt([]byte{1}, metaStart+MetaSize-1); err != nil {
		t.Fatal(err)
	}
	if blank, err := Blank(f); err != nil || blank {
		t.Errorf("a disk on which something was set is blank: %v", err)
	}
	if _, err := Files(f, "EFI/Linux/gatehouse-c.efi"); err == nil {
		t.Error("a file that is not there was read")
	}
	other, err := os.Create(filepath.Join(t.TempDir(), "other.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Truncate(Size); err != nil {
		t.Fatal(err)
	}
	if _, err := Files(other, "x"); err == nil {
		t.Error("a disk of zeros was read")
	}
	if _, err := Blank(other); err == nil {
		t.Error("a disk of zeros is one of ours")
	}
}
