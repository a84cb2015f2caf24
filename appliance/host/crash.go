package host

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// maxCrashRecord is more than the kernel puts into one record of pstore.
const maxCrashRecord = 256 << 10

// Panic is the line with which the kernel ended an earlier life, as it left it in
// pstore; "": it left none. The records stay where they are for CollectCrashes.
func (h *Host) Panic() string {
	const dir = "/sys/fs/pstore"
	entries, err := os.ReadDir(h.path(dir))
	if err != nil {
		return ""
	}
	found := ""
	for _, e := range entries {
		if !e.Type().IsRegular() || !strings.HasPrefix(e.Name(), "dmesg-") {
			continue
		}
		line := panicLine(h.path(filepath.Join(dir, e.Name())))
		if line != "" {
			return line
		}
		if found == "" {
			found = "the kernel left a record of a crash"
		}
	}
	return found
}

// panicMarks are what the kernel writes before the reason.
var panicMarks = []string{"Kernel panic - not syncing: ", "BUG: ", "Oops: "}

func panicLine(name string) string {
	f, err := os.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxCrashRecord))
	if err != nil {
		return ""
	}
	lines := slices.Collect(bytes.Lines(b))
	for _, mark := range panicMarks {
		for _, l := range lines {
			if i := bytes.Index(l, []byte(mark)); i >= 0 {
				return printable(strings.TrimSpace(string(l[i:])))
			}
		}
	}
	return ""
}
