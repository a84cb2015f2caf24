package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"gatehouse/image/target"
)

// A board is what a machine of one architecture is, in QEMU's words, and the
// firmware for it in Debian's packages.
type board struct {
	program, packaged string // QEMU, and the package that it is in
	cpu               string
	screen            []string // what the firmware and the kernel draw on
	tpm               string   // the device that a TPM is
	drive             []string // the device that the CD is in
	open, safe        form     // without and with Secure Boot
	vars              string   // a store of UEFI variables
	firmware          string   // the package of the firmware
}

// A form is what depends on Secure Boot.
type form struct {
	machine, code string
	more          []string
}

// Debian's OVMF keeps the variables of a machine with Secure Boot from the guest
// by SMM. The 4M build is the current layout of the two.
//
// AAVMF is one build for both, and checks signatures once it knows keys. QEMU's
// virt has nothing that keeps the variables from a guest whose kernel writes to
// flash: it proves what firmware starts, and is no place for secrets. Of the stores in
// its package, one is zeros, which it makes a store of at its first start, and
// none is empty: so it is the one with keys, without them.
var boards = map[string]board{
	target.AMD64.Arch: {
		program: "qemu-system-x86_64", packaged: "qemu-system-x86", cpu: "max,la57=off",
		screen: []string{"-vga", "std"}, tpm: "tpm-tis", drive: []string{"-device", "ide-cd,drive=cd"},
		open: form{machine: "q35", code: "/usr/share/OVMF/OVMF_CODE_4M.fd"},
		safe: form{machine: "q35,smm=on", code: "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
			more: []string{"-global", "driver=cfi.pflash01,property=secure,value=on"}},
		vars: "/usr/share/OVMF/OVMF_VARS_4M.fd", firmware: "ovmf",
	},
	target.ARM64.Arch: {
		program: "qemu-system-aarch64", packaged: "qemu-system-arm", cpu: "cortex-a72",
		screen: []string{"-device", "ramfb"}, tpm: "tpm-tis-device",
		drive: []string{"-device", "virtio-scsi-pci,id=scsi", "-device", "scsi-cd,bus=scsi.0,drive=cd"},
		open:  form{machine: "virt", code: "/usr/share/AAVMF/AAVMF_CODE.fd"},
		safe:  form{machine: "virt", code: "/usr/share/AAVMF/AAVMF_CODE.fd"},
		vars:  "/usr/share/AAVMF/AAVMF_VARS.snakeoil.fd", firmware: "qemu-efi-aarch64",
	},
}

func (m Machine) board() board {
	if b, ok := boards[m.Target.Arch]; ok {
		return b
	}
	return boards[target.AMD64.Arch]
}

func (b board) form(secure bool) form {
	if secure {
		return b.safe
	}
	return b.open
}

// fresh are the variables of a machine that was never started.
func (b board) fresh() ([]byte, error) {
	raw, err := os.ReadFile(b.vars)
	if err != nil {
		return nil, fmt.Errorf("copying fresh UEFI variables (install package %s): %w", b.firmware, err)
	}
	s, err := readStore(raw)
	if err != nil {
		return nil, fmt.Errorf("copying fresh UEFI variables: %s: %w", b.vars, err)
	}
	s.empty()
	return s.raw, nil
}

// writeVars writes a store of variables, without the zeros at its end: those of
// arm64 are 64 MiB, of which one is used.
func writeVars(file string, content []byte) error {
	fail := func(err error) error { return fmt.Errorf("writing the machine's UEFI variables: %w", err) }
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fail(err)
	}
	_, err = io.Copy(f, bytes.NewReader(bytes.TrimRight(content, "\x00")))
	if err = errors.Join(err, f.Truncate(int64(len(content))), f.Close()); err != nil {
		return fail(err)
	}
	return nil
}
