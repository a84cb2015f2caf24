// Package target is what images are made for: processors, and what differs with them in Debian, in firmware and in QEMU.
package target

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path"
	"strings"
)

// A Target is a kind of machine that an image is for. Targets are compared with ==.
type Target struct {
	Name   string // on the command line and in the names of results
	Arch   string // as Go, Debian and the manifest of a release call the processor
	Kernel string // Debian's package that depends on the kernel of the day

	efi       string // the processor in the names of EFI programs
	machine   uint16 // and in their headers ("PE Format", Machine Types)
	libraries string // folder of shared libraries (Debian's multiarch)
	linker    string // folder of the dynamic linker: a part of every program's header
	serial    string // the serial port that firmware speaks on, with its speed
}

// The targets. Debian's kernel for arm64 boards has no driver for a TPM in
// memory (CONFIG_TCG_TIS), which is how QEMU's machines have theirs; the one for
// virtual machines has it, and in turn no drivers for the disks, the network
// cards and the USB of boards (docs/decisions/0051).
var (
	AMD64 = Target{
		Name: "amd64", Arch: "amd64", Kernel: "linux-image-amd64",
		efi: "x64", machine: 0x8664, libraries: "lib/x86_64-linux-gnu", linker: "lib64", serial: "ttyS0,115200",
	}
	ARM64 = Target{
		Name: "arm64", Arch: "arm64", Kernel: "linux-image-arm64",
		efi: "aa64", machine: 0xaa64, libraries: "lib/aarch64-linux-gnu", linker: "lib", serial: "ttyAMA0,115200",
	}
	ARM64Cloud = ARM64.with("arm64-cloud", "linux-image-cloud-arm64")
)

// with is the same processor with another kernel.
func (t Target) with(name, kernel string) Target {
	t.Name, t.Kernel = name, kernel
	return t
}

// All are the targets, the usual one first.
func All() []Target { return []Target{AMD64, ARM64, ARM64Cloud} }

// Names are theirs, for people.
func Names() string {
	var names []string
	for _, t := range All() {
		names = append(names, t.Name)
	}
	return strings.Join(names, ", ")
}

// ErrUnknown: there is no such target.
var ErrUnknown = errors.New("there is no image for this")

// Parse finds a target by its name.
func Parse(name string) (Target, error) {
	return find(name, func(t Target) bool { return t.Name == name })
}

// ForArch is the first target of a processor, by the name that manifests use:
// what it says of firmware is true for all of that processor.
func ForArch(arch string) (Target, error) {
	return find(arch, func(t Target) bool { return t.Arch == arch })
}

func find(name string, is func(Target) bool) (Target, error) {
	for _, t := range All() {
		if is(t) {
			return t, nil
		}
	}
	return Target{}, fmt.Errorf("%w: %.40q, only for %s", ErrUnknown, name, Names())
}

// OfProgram is the first target whose firmware starts an EFI program, by the
// machine in its header.
func OfProgram(program []byte) (Target, error) {
	const offsetOfPE = 0x3c
	if len(program) < offsetOfPE+4 || string(program[:2]) != "MZ" {
		return Target{}, errors.New("it is no EFI program")
	}
	at := uint64(binary.LittleEndian.Uint32(program[offsetOfPE:]))
	if at+6 > uint64(len(program)) || string(program[at:at+4]) != "PE\x00\x00" {
		return Target{}, errors.New("it is no EFI program")
	}
	machine := binary.LittleEndian.Uint16(program[at+4:])
	for _, t := range All() {
		if t.machine == machine {
			return t, nil
		}
	}
	return Target{}, fmt.Errorf("it is an EFI program for a machine %#04x, which no image is for", machine)
}

// Starts says whether this target's firmware starts an EFI program.
func (t Target) Starts(program []byte) error {
	is, err := OfProgram(program)
	if err != nil {
		return err
	}
	if is.Arch != t.Arch {
		return fmt.Errorf("it is an EFI program for %s, not for %s", is.Arch, t.Arch)
	}
	return nil
}

// LoaderPath is where firmware looks for a loader without being told (UEFI 2.10, 3.5.1.1).
func (t Target) LoaderPath() string { return "EFI/BOOT/BOOT" + strings.ToUpper(t.efi) + ".EFI" }

// Stub and Loader are files of Debian's package systemd-boot-efi.
func (t Target) Stub() string   { return "linux" + t.efi + ".efi.stub" }
func (t Target) Loader() string { return "systemd-boot" + t.efi + ".efi" }

// LibraryPath is where a program of Debian's looks for a shared library.
func (t Target) LibraryPath(name string) string {
	if strings.HasPrefix(name, "ld-linux") {
		return path.Join(t.linker, name)
	}
	return path.Join(t.libraries, name)
}

// LibraryFolders are where Debian's packages have shared libraries.
func (t Target) LibraryFolders() []string {
	return []string{t.libraries, path.Join("usr", t.libraries), t.linker}
}

// Serial is the console on the serial port, as the kernel's parameter has it.
func (t Target) Serial() string { return t.serial }

// Virtual says that the kernel is one for virtual machines alone.
func (t Target) Virtual() bool { return Virtual(t.Kernel) }

// Virtual says the same of a kernel of Debian's by its name.
func Virtual(kernel string) bool { return strings.Contains(kernel, "-cloud-") }

// Environment makes the go command build for the target.
func (t Target) Environment() []string {
	return []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + t.Arch}
}
