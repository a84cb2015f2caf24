package vault

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"unsafe"
)

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
