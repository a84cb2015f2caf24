// Command exits is a system that is sick: its PID 1 loads what keeps crash records, and ends.
package main

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

func main() {
	// Without it the kernel's last words are lost, and nobody knows why it ended.
	found, _ := filepath.Glob("/lib/modules/*/kernel/drivers/firmware/efi/efi-pstore.ko")
	for _, name := range found {
		if f, err := os.Open(name); err == nil {
			_ = unix.FinitModule(int(f.Fd()), "", 0)
		}
	}
	os.Exit(1)
}
