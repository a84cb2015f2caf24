package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"gatehouse/appliance/volume/disks"
	"gatehouse/image/bmap"
)

// bench is a machine of files: sdb is free, sda mounted, sdc too small.
func bench(t *testing.T) disks.Machine {
	t.Helper()
	root := t.TempDir()
	for name, text := range map[string]string{
		"proc/self/mountinfo":     "30 1 8:1 / / rw - ext4 /dev/sda1 rw\n",
		"sys/class/block/sda/dev": "8:0\n", "sys/class/block/sda/size": "16384\n", "sys/class/block/sda/queue/logical_block_size": "512\n",
		"sys/class/block/sda/sda1/partition": "1\n", "sys/class/block/sda1/dev": "8:1\n", "sys/class/block/sda1/partition": "1\n",
		"sys/class/block/sdb/dev": "8:16\n", "sys/class/block/sdb/size": "16384\n", "sys/class/block/sdb/queue/logical_block_size": "512\n",
		"sys/class/block/sdb/device/model": "Stick\n", "sys/class/block/sdb/device/serial": "S3R1AL\n",
		"sys/class/block/sdc/dev": "8:32\n", "sys/class/block/sdc/size": "8\n", "sys/class/block/sdc/queue/logical_block_size": "512\n",
		"sys/class/block/dm-0/dev": "253:0\n", "sys/class/block/dm-0/size": "16384\n",
		"dev/sda": "", "dev/sdc": "", "dev/sdb": strings.Repeat("old ", 2<<20), "etc/passwd": "",
	} {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return disks.Machine{Root: root}
}

// sparse is an image of 4 MiB with something at three places.
func sparse() []byte {
	b := make([]byte, 4<<20)
	copy(b, "the beginning")
	copy(b[1<<20+100:], "the middle")
	copy(b[len(b)-512:], "the end")
	return b
}

func put(t *testing.T, folder, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(folder, name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func gzipped(b []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	z.Write(b)
	z.Close()
	return out.Bytes()
}

func flashed(t *testing.T, m disks.Machine, yes, typed string, args ...string) (exitCode, string) {
	t.Helper()
	var out, diag bytes.Buffer
	f := flashing{machine: m, yes: yes, out: &out, diag: &diag}
	if typed != "" {
		f.ask = &asker{lines: bufio.NewReader(strings.NewReader(typed)), out: &diag, secret: func() (string, error) { return "", nil }}
	} else {
		f.ask = &asker{out: &diag}
	}
	var err error
	if len(args) == 1 {
		err = f.list(args[0])
	} else {
		err = f.run(context.Background(), args[0], args[1])
	}
	said := out.String() + diag.String()
	var e *failure
	switch {
	case err == nil:
		return exitOK, said
	case errors.As(err, &e):
		return e.code, said + err.Error()
	}
	return exitFailure, said + err.Error()
}

// Whatever is wrong, the disk is as it was.
func TestBOX3_FlashRefuses(t *testing.T) {
	folder, b := t.TempDir(), sparse()
	good := put(t, folder, "good.img", b)
	packed := put(t, folder, "good.img.gz", gzipped(b))
	cut := put(t, folder, "cut.img.gz", gzipped(b)[:200])
	odd := put(t, folder, "odd.img", b[:1000])
	vm := put(t, folder, "box.qcow2", []byte("QFI\xfb0000"))
	other := put(t, folder, "other.img", append(sparse()[:1<<20], make([]byte, 3<<20)...))
	m, err := bmap.Find(bytes.NewReader(b), int64(len(b)), nil)
	if err != nil {
		t.Fatal(err)
	}
	put(t, folder, "other.img.bmap", m.Encode())
	bad := put(t, folder, "bad.img", b)
	put(t, folder, "bad.img.bmap", bytes.Replace(m.Encode(), []byte("4194304"), []byte("4194305"), 1))
	for _, c := range []struct {
		name, image, disk, yes, typed string
		code                          exitCode
		says                          string
	}{
		{"mounted", good, "sda", "sda", "", exitConflict, "own system is on it"},
		{"too small", good, "sdc", "sdc", "", exitConflict, "needs 4 MB"},
		{"a partition", good, "sda1", "sda1", "", exitUsage, "partition"},
		{"a mapping", good, "dm-0", "dm-0", "", exitUsage, "made of other disks"},
		{"none", good, "sdz", "sdz", "", exitNotFound, "no disk sdz"},
		{"a file", good, "/etc/passwd", "x", "", exitUsage, "not a disk"},
		{"no path", good, "/dev/sdz", "x", "", exitNotFound, "no disk"},
		{"another serial", good, "sdb", "OTHER", "", exitConflict, `"S3R1AL"`},
		{"the name for the serial", good, "sdb", "sdb", "", exitConflict, `"S3R1AL"`},
		{"nobody to ask", good, "sdb", "", "", exitUsage, "--yes"},
		{"yes is no name", good, "sdb", "", "yes\n", exitConflict, "nothing was written"},
		{"no image", filepath.Join(folder, "none"), "sdb", "S3R1AL", "", exitNotFound, "no such file"},
		{"cut off", cut, "sdb", "S3R1AL", "", exitVerification, "EOF"},
		{"odd", odd, "sdb", "S3R1AL", "", exitUsage, "1000 bytes"},
		{"for machines", vm, "sdb", "S3R1AL", "", exitUsage, "virtual machines"},
		{"another's map", other, "sdb", "S3R1AL", "", exitVerification, "not of one build"},
		{"a damaged map", bad, "sdb", "S3R1AL", "", exitVerification, "damaged"},
	} {
		machine := bench(t)
		if code, said := flashed(t, machine, c.yes, c.typed, c.image, c.disk); code != c.code || !strings.Contains(said, c.says) {
			t.Errorf("%s: exit %d, %s; want %d, %q", c.name, code, said, c.code, c.says)
		}
		for disk, size := range map[string]int{"sda": 0, "sdc": 0, "sdb": 8 << 20} {
			now, err := os.ReadFile(filepath.Join(machine.Root, "dev", disk))
			if err != nil || len(now) != size || bytes.Count(now, []byte("old ")) != size/4 {
				t.Errorf("%s: %s was written to", c.name, disk)
			}
		}
	}
	machine := bench(t)
	if err := os.Remove(filepath.Join(machine.Root, "proc/self/mountinfo")); err != nil {
		t.Fatal(err)
	}
	if code, said := flashed(t, machine, "S3R1AL", "", packed, "sdb"); code == exitOK {
		t.Errorf("without knowing what is mounted: %s", said)
	}
}

func TestBOX3_FlashWritesEachForm(t *testing.T) {
	folder, b := t.TempDir(), sparse()
	var z bytes.Buffer
	w, err := zstd.NewWriter(&z)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(b)
	w.Close()
	keep := []bmap.Range{{At: 2 << 20, Size: 4096}} // zeros that mean something
	m, err := bmap.Find(bytes.NewReader(b), int64(len(b)), keep)
	if err != nil {
		t.Fatal(err)
	}
	mapped := t.TempDir()
	put(t, mapped, "box.img.bmap", m.Encode())
	for name, c := range map[string]struct {
		image  string
		mapped bool
		typed  string
	}{
		"raw":            {put(t, folder, "box.img", b), false, ""},
		"gzip":           {put(t, folder, "box.img.gz", gzipped(b)), false, "sdb\n"},
		"zstd":           {put(t, folder, "box.img.zst", z.Bytes()), false, ""},
		"zstd with map":  {put(t, mapped, "box.img.zst", z.Bytes()), true, ""},
		"raw with a map": {put(t, mapped, "box.img", b), true, "sdb\n"},
	} {
		machine := bench(t)
		yes := "S3R1AL"
		if c.typed != "" {
			yes = ""
		}
		code, said := flashed(t, machine, yes, c.typed, c.image, "/dev/sdb")
		if code != exitOK || !strings.Contains(said, "read back") {
			t.Fatalf("%s: exit %d, %s", name, code, said)
		}
		now, err := os.ReadFile(filepath.Join(machine.Root, "dev/sdb"))
		if err != nil {
			t.Fatal(err)
		}
		if !c.mapped {
			if !bytes.Equal(now[:len(b)], b) {
				t.Errorf("%s: the disk differs from the image", name)
			}
			continue
		}
		for _, r := range m.Ranges {
			if !bytes.Equal(now[r.At:][:r.Size], b[r.At:][:r.Size]) {
				t.Errorf("%s: the disk differs from the image at %d", name, r.At)
			}
		}
		if !bytes.HasPrefix(now[3<<20:], []byte("old ")) {
			t.Errorf("%s: what the map leaves out was written", name)
		}
	}
}

// Without a disk nothing is guessed, even where there is one only that would do.
func TestBOX3_FlashListsAndNeverChooses(t *testing.T) {
	code, said := flashed(t, bench(t), "", "", put(t, t.TempDir(), "box.img", sparse()))
	if code != exitOK || !strings.Contains(said, "Nothing was written") {
		t.Errorf("exit %d: %s", code, said)
	}
	for _, line := range []string{"sdb   Stick  S3R1AL  8 MB", "refused: it is in use: sda1 is mounted at /", "refused: it has 4096 bytes"} {
		if !strings.Contains(said, line) {
			t.Errorf("the list does not say %q:\n%s", line, said)
		}
	}
}
