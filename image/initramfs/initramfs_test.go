package initramfs

import (
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/mkuimage/cpio"
)

func archive(t *testing.T, files ...File) Archive {
	t.Helper()
	program, err := filepath.Abs("testdata/init")
	if err != nil {
		t.Fatal(err)
	}
	return Archive{
		Arch:    "amd64",
		Program: program,
		Set:     map[string]string{"line": "set-at-build-time"},
		Temp:    t.TempDir(),
		Files:   append(files, File{Path: "lib/modules/6.1/kernel/a.ko", Content: []byte("module"), Mode: 0o644}, File{Path: "sbin/mke2fs", Content: []byte("tool"), Mode: 0o755}),
	}
}

func TestWriteRefuses(t *testing.T) {
	twice := archive(t, File{Path: "sbin/mke2fs"})
	if err := twice.Write(io.Discard); err == nil || !strings.Contains(err.Error(), "sbin/mke2fs") {
		t.Errorf("the same file twice: got %v", err)
	}
	none := archive(t)
	none.Program = filepath.Join(none.Temp, "nothing")
	if err := none.Write(io.Discard); err == nil {
		t.Error("an archive without a program was made")
	}
}

// unpack reads an archive back in the order of the file.
func unpack(t *testing.T, packed []byte) (order []string, records map[string]cpio.Record) {
	t.Helper()
	z, err := zstd.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	plain, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	records = make(map[string]cpio.Record)
	in := cpio.Newc.Reader(bytes.NewReader(plain))
	for {
		r, err := in.ReadRecord()
		if errors.Is(err, io.EOF) {
			return order, records
		}
		if err != nil {
			t.Fatal(err)
		}
		order = append(order, r.Name)
		records[r.Name] = r
	}
}

// Built twice with another umask: the same bytes, and what the kernel needs.
func TestBOX1_ArchiveSameBytes(t *testing.T) {
	var first, second bytes.Buffer
	if err := archive(t).Write(&first); err != nil {
		t.Fatal(err)
	}
	before := syscall.Umask(0o077)
	err := archive(t).Write(&second)
	syscall.Umask(before)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("two builds of the same inputs differ")
	}
	order, records := unpack(t, first.Bytes())
	for i, name := range order {
		parent := filepath.Dir(name)
		if parent != "." && !slices.Contains(order[:i], parent) {
			t.Errorf("%s comes before its folder: the kernel would drop it", name)
		}
		if r := records[name]; r.UID != 0 || r.GID != 0 || r.MTime != 0 {
			t.Errorf("%s has owner %d:%d and time %d", name, r.UID, r.GID, r.MTime)
		}
	}
	for name, mode := range map[string]uint64{
		"bin/init": cpio.S_IFREG | 0o755, "sbin/mke2fs": cpio.S_IFREG | 0o755, "dev/console": cpio.S_IFCHR | 0o600,
		"lib/modules/6.1/kernel/a.ko": cpio.S_IFREG | 0o644, "proc": cpio.S_IFDIR | 0o755,
	} {
		if got := records[name].Mode; got != mode {
			t.Errorf("%s has mode %o, want %o", name, got, mode)
		}
	}
	if records["init"].Mode&cpio.S_IFMT != cpio.S_IFLNK {
		t.Errorf("/init is no link to the program: mode %o", records["init"].Mode)
	}
	program := records["bin/init"]
	text := make([]byte, program.FileSize)
	if _, err := program.ReadAt(text, 0); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if !bytes.Contains(text, []byte("set-at-build-time")) {
		t.Error("the variable of package main was not set")
	}
	if here, err := filepath.Abs("."); err != nil || bytes.Contains(text, []byte(here)) {
		t.Errorf("the program holds this machine's path %s (%v)", here, err)
	}
}

func TestBOX4_ArchiveIsReadBack(t *testing.T) {
	var b bytes.Buffer
	if err := archive(t, File{Path: "etc/gatehouse/release-keys", Content: []byte("threshold 1\n"), Mode: 0o644}).Write(&b); err != nil {
		t.Fatal(err)
	}
	files, err := Read(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if string(files["etc/gatehouse/release-keys"]) != "threshold 1\n" || string(files["sbin/mke2fs"]) != "tool" {
		t.Errorf("read %q", files["etc/gatehouse/release-keys"])
	}
	if len(files["init"]) == 0 || !bytes.Equal(files["init"], files["bin/init"]) {
		t.Errorf("/init leads to %d bytes, the program has %d", len(files["init"]), len(files["bin/init"]))
	}
	for name, bad := range map[string][]byte{"nothing": nil, "cut": b.Bytes()[:b.Len()/2], "text": []byte("text")} {
		if _, err := Read(bad); err == nil {
			t.Errorf("%s: read", name)
		}
	}
}
