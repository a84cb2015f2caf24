package volume

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestESPRefuses(t *testing.T) {
	m := newMachine(t)
	m.bare("vda")
	m.write("dev/vda", strings.Repeat("x", 1<<20))
	if f, err := m.mustFind(asked{loaderErr: fs.ErrNotExist, parameter: "/dev/vda"}).ESP(); err == nil {
		f.Close()
		t.Error("opened a partition of a disk without a table")
	}
	if f, err := openDirect(filepath.Join(t.TempDir(), "none"), 0, 512); err == nil {
		f.Close()
		t.Error("opened what is not there")
	}
}

func TestBOX4_ESPIsFoundByItsType(t *testing.T) {
	m := newMachine(t)
	m.disk("vda", 8)
	f, err := m.mustFind(asked{loader: idESP}).ESP()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := filepath.Base(f.f.Name()); got != "vda1" {
		t.Errorf("opened %s", got)
	}
}

// The flag is the kernel's, where the file system of the test has it.
func TestDirectIsWholeSectors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "partition")
	want := bytes.Repeat([]byte("0123456789abcdef"), 32*512) // 256 KiB
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := openDirect(path, unix.O_DIRECT, 512)
	if errors.Is(err, unix.EINVAL) {
		d, err = openDirect(path, 0, 512)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	b := make([]byte, 512)
	for _, c := range []struct {
		n   int
		off int64
	}{{511, 0}, {512, 1}, {1, 512}, {512, -512}} {
		if _, err := d.ReadAt(b[:c.n], c.off); !errors.Is(err, errSectors) {
			t.Errorf("reading %d bytes at %d: %v", c.n, c.off, err)
		}
		if _, err := d.WriteAt(b[:c.n], c.off); !errors.Is(err, errSectors) {
			t.Errorf("writing %d bytes at %d: %v", c.n, c.off, err)
		}
	}
	// More than one piece, from memory that is not aligned.
	memory := make([]byte, 3*directPiece+512+1)[1:]
	copy(memory, bytes.Repeat([]byte("new system "), len(memory)/11))
	if n, err := d.WriteAt(memory, 512); n != len(memory) || err != nil {
		t.Fatalf("wrote %d: %v", n, err)
	}
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if n, err := d.ReadAt(got, 0); n != len(got) || err != nil {
		t.Fatalf("read %d: %v", n, err)
	}
	copy(want[512:], memory)
	if !bytes.Equal(got, want) {
		t.Error("what was read is not what was written")
	}
	if n, err := d.ReadAt(got[:1024], int64(len(want))-512); n != 512 || !errors.Is(err, io.EOF) {
		t.Errorf("reading over the end: %d, %v", n, err)
	}
}
