// Package slot names the two systems of a box on its EFI system partition, and the one sector that says which of them starts.
//
// The names and the sector are a contract with systemd-boot (loader.conf(5),
// the Boot Loader Specification's type 2 entries) and with every released
// image: an update writes the slot that does not run, then this sector.
//
// What was tried and what came of it is a Record in META, and Judge decides by it
// at each start. The record is not secret and not authenticated: a locked box, a
// sick system and whoever holds the disk can write it. So it only ever says what
// is *not* to be started again, and what the page tells; that a system may be
// taken says the manifest, against what the vault keeps (firmware.Trust), and that
// it may start says the firmware. docs/decisions/0046 has the choice.
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

// Named tells the slot from how firmware or boot loader name its file, as in
// "gatehouse-a.efi" (LoaderEntrySelected) or "\EFI\Linux\gatehouse-a.efi" (the
// path of a boot option). FAT knows no case.
func Named(file string) (Slot, bool) {
	name := file[strings.LastIndexAny(file, `/\`)+1:]
	for _, s := range []Slot{A, B} {
		if strings.EqualFold(name, s.Entry()) {
			return s, true
		}
	}
	return 0, false
}

// String is the letter; an unknown slot is "?".
func (s Slot) String() string {
	if s != A && s != B {
		return "?"
	}
	return string(rune(s))
}

// MarshalText and UnmarshalText let a slot be a letter in JSON.
func (s Slot) MarshalText() ([]byte, error) {
	if s != A && s != B {
		return nil, fmt.Errorf("there is no slot %d", byte(s))
	}
	return []byte{byte(s)}, nil
}

// UnmarshalText is the other direction.
func (s *Slot) UnmarshalText(b []byte) error {
	if len(b) != 1 || Slot(b[0]) != A && Slot(b[0]) != B {
		return fmt.Errorf("there is no slot %.20q", b)
	}
	*s = Slot(b[0])
	return nil
}

// Entry is the name by which the boot loader knows the slot.
func (s Slot) Entry() string { return "gatehouse-" + string(rune(s)) + ".efi" }

// Path is where the slot's UKI is on the EFI system partition.
func (s Slot) Path() string { return "EFI/Linux/" + s.Entry() }

// Size is what a system may grow to, in bytes: the file of each slot has that much
// of the disk in one run, however long it is.
const Size = 64 << 20

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
