// Package slot names the two systems of a box on its EFI system partition, and the one sector that says which of them starts.
//
// The names and the sector are a contract with systemd-boot (loader.conf(5),
// the Boot Loader Specification's type 2 entries) and with every released
// image: an update writes the slot that does not run, then this sector.
package slot

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// Slot is one of the two places of a system.
type Slot byte

// The slots. A fresh image holds its system in A.
const (
	A Slot = 'a'
	B Slot = 'b'
)

// Other is the slot that an update writes while this one runs.
func (s Slot) Other() Slot {
	if s == A {
		return B
	}
	return A
}

// Entry is the name by which the boot loader knows the slot.
func (s Slot) Entry() string { return "gatehouse-" + string(rune(s)) + ".efi" }

// Path is where the slot's UKI is on the EFI system partition.
func (s Slot) Path() string { return "EFI/Linux/" + s.Entry() }

// ConfigPath is where the boot loader looks for its configuration.
const ConfigPath = "loader/loader.conf"

// SectorSize is the size of the configuration in bytes: one sector, because a
// disk writes one sector whole or not at all. It is the commit point of an
// update.
const SectorSize = 512

// settings is all of the configuration but the default; nobody may stop at the
// boot menu, edit a command line, or be offered the firmware's set-up there.
const settings = "timeout 0\neditor no\nauto-firmware no\n"

// Config is the boot loader's configuration with that slot as default: text,
// filled up with line ends to one sector.
func Config(s Slot) []byte {
	text := "default " + s.Entry() + "\n" + settings
	return append([]byte(text), bytes.Repeat([]byte("\n"), SectorSize-len(text))...)
}

// Default reads which slot a configuration names. It takes only what Config
// writes: anything else was written by somebody else, or is broken.
func Default(config []byte) (Slot, error) {
	if len(config) != SectorSize {
		return 0, fmt.Errorf("reading loader.conf: it has %d bytes, not %d", len(config), SectorSize)
	}
	for _, s := range []Slot{A, B} {
		if bytes.Equal(config, Config(s)) {
			return s, nil
		}
	}
	first, _, _ := strings.Cut(string(config), "\n")
	if len(first) > 80 {
		first = first[:80]
	}
	return 0, errors.New("reading loader.conf: its first line is " + fmt.Sprintf("%q", first) + ", which this box does not write: start from the other slot, or write the image anew")
}
