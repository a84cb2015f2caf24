package vault

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The arena's page is swapped for one that the test sees through a second
// mapping, because its own is gone after wipe.
func TestKEY7_WipeZeroesTheKeys(t *testing.T) {
	fd, err := unix.MemfdCreate("keys", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	size := unix.Getpagesize()
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		t.Fatal(err)
	}
	page, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	seen, err := unix.Mmap(fd, 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(seen)
	copy(page, "a key that must go")
	if isBlank(seen) {
		t.Fatal("the second mapping does not show the first")
	}
	(&arena{page: page}).wipe()
	if !isBlank(seen) {
		t.Error("wipe left the key in memory")
	}
}

// protection is the kernel's line for the mapping that b is in.
func protection(t *testing.T, b []byte) string {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	at := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b))))
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err == nil && from <= at && at < to {
			return line
		}
	}
	return "not mapped"
}
