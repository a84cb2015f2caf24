package boot

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"gatehouse/image"
	"gatehouse/image/bmap"
	"gatehouse/image/disk"
	"gatehouse/image/qemu"
)

// begins says whether a disk begins with the built image.
func begins(t testing.TB, path string) bool {
	t.Helper()
	a, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := os.Open(built(t, image.Disk))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for {
		n, err := io.ReadFull(b, y)
		if n == 0 {
			return err == io.EOF
		}
		if _, err := io.ReadFull(a, x[:n]); err != nil || !bytes.Equal(x[:n], y[:n]) {
			return false
		}
	}
}

// From a CD, through firmware, to a disk that starts: what is no name of a disk,
// and a name typed once only, write nothing.
func TestBOX3_MediumInstalls(t *testing.T) {
	t.Parallel()
	target := filepath.Join(t.TempDir(), "disk.img")
	noise := bytes.Repeat([]byte("old "), 2<<20)
	if err := os.WriteFile(target, noise, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(target, 1<<30); err != nil {
		t.Fatal(err)
	}
	m := qemu.Machine{Disk: target, CD: built(t, image.DiskISO), State: t.TempDir(), Memory: 256}
	guest := start(t, m)
	state(t, guest, "locked")
	block(t, guest, "this is the medium that installs")
	for _, answers := range [][2]string{{"sr0", "there is no disk of that name"}, {"", "there is no disk of that name"}} {
		choose(t, guest, "10")
		say(t, guest, "Name of the disk")
		choose(t, guest, answers[0])
		block(t, guest, answers[1])
	}
	choose(t, guest, "10")
	say(t, guest, "Name of the disk")
	choose(t, guest, "vda")
	say(t, guest, "Type its")
	choose(t, guest, "yes")
	block(t, guest, "Nothing was done.")
	if now, err := os.ReadFile(target); err != nil || !bytes.Equal(now[:len(noise)], noise) {
		t.Fatalf("the disk was written to before anybody said so twice (%v)", err)
	}
	choose(t, guest, "10")
	say(t, guest, "Name of the disk")
	choose(t, guest, "vda")
	say(t, guest, "Type its")
	choose(t, guest, "vda")
	say(t, guest, "Installed to vda, and compared")
	if err := guest.Kill(); err != nil {
		t.Fatal(err)
	}
	if !begins(t, target) {
		t.Fatal("the disk does not hold the image")
	}

	m.CD = ""
	guest = start(t, m)
	state(t, guest, "unclaimed", "url", "code")
	off(t, guest)
}

// What bmaptool writes to a disk that held something else starts as a new box:
// nothing that the map leaves out is taken for anything.
func TestBOX3_BmaptoolWritesTheMappedImage(t *testing.T) {
	t.Parallel()
	target := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(target, bytes.Repeat([]byte{0xa5}, disk.Size), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "bmaptool", "copy", "--bmap", built(t, image.DiskMap), built(t, image.DiskZstd), target).CombinedOutput(); err != nil {
		t.Fatalf("bmaptool: %v\n%s", err, out)
	}
	text, err := os.ReadFile(built(t, image.DiskMap))
	if err != nil {
		t.Fatal(err)
	}
	blocks, err := bmap.Decode(text)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(built(t, image.Disk))
	if err != nil {
		t.Fatal(err)
	}
	now, err := os.ReadFile(target)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range blocks.Ranges {
		if !bytes.Equal(now[r.At:][:r.Size], whole[r.At:][:r.Size]) {
			t.Errorf("bytes %d to %d differ from the image", r.At, r.At+r.Size)
		}
	}
	if n := blocks.Bytes(); n > 2*disk.Size/3 {
		t.Errorf("%d bytes of %d are written: the map saves nothing", n, int64(disk.Size))
	}
	if out, err := exec.CommandContext(t.Context(), "bmaptool", "copy", "--bmap", built(t, image.DiskMap), built(t, image.DiskGzip), target).CombinedOutput(); err != nil {
		t.Errorf("bmaptool with .img.gz: %v\n%s", err, out)
	}
	if err := os.Truncate(target, 1<<30); err != nil {
		t.Fatal(err)
	}
	guest := start(t, stage{disk: target, state: t.TempDir()}.machine(t))
	state(t, guest, "unclaimed", "url", "code")
	off(t, guest)
}

// Each further form starts through firmware: the disk for virtual machines, and
// what the packed forms unpack to, by programs that are not ours, on an NVMe disk.
func TestBOX3_EachFormStarts(t *testing.T) {
	if !soak() {
		return // the disk of TestACC1_ImageIsClaimedAndComesBack is the raw form
	}
	t.Parallel()
	raw := filepath.Join(t.TempDir(), "disk.img")
	for _, form := range []struct{ name, unpack string }{{image.DiskGzip, "gzip"}, {image.DiskZstd, "zstd"}} {
		if out, err := exec.CommandContext(t.Context(), "sh", "-c", form.unpack+` -dc <"$1" >"$2"`, "sh", built(t, form.name), raw).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", form.name, err, out)
		}
		if !begins(t, raw) {
			t.Errorf("%s is not the disk image", form.name)
		}
	}
	if err := os.Truncate(raw, 1<<30); err != nil {
		t.Fatal(err)
	}
	qcow := filepath.Join(t.TempDir(), "disk.qcow2")
	copyDisk(t, built(t, image.DiskQcow2), qcow)
	for _, m := range []qemu.Machine{{Disk: raw, NVMe: true}, {Disk: qcow, Format: "qcow2"}} {
		m.State, m.Memory = t.TempDir(), 256
		t.Log(m.Disk)
		guest := start(t, m)
		state(t, guest, "unclaimed", "url", "code")
		off(t, guest)
	}
}
