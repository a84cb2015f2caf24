package target

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
)

// program is the head of an EFI program for a machine.
func program(machine uint16) []byte {
	p := make([]byte, 0x80)
	copy(p, "MZ")
	p[0x3c] = 0x40
	copy(p[0x40:], "PE\x00\x00")
	binary.LittleEndian.PutUint16(p[0x44:], machine)
	return p
}

func TestBOX1_UnknownTargetsAreRefused(t *testing.T) {
	for _, name := range []string{"", "riscv64", "AMD64", "x86-64", "aarch64", "arm64 ", "amd64,arm64"} {
		if got, err := Parse(name); !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "arm64-cloud") {
			t.Errorf("%q: %v, %v; the error names those that there are", name, got, err)
		}
	}
	if _, err := ForArch("arm64-cloud"); !errors.Is(err, ErrUnknown) {
		t.Errorf("a manifest may name the kernel: %v", err)
	}
	beyond := program(0x8664)
	binary.LittleEndian.PutUint32(beyond[0x3c:], 0xffffffff)
	end := program(0x8664)
	binary.LittleEndian.PutUint32(end[0x3c:], uint32(len(end)-5))
	for name, bad := range map[string][]byte{
		"nothing": nil, "no EFI program": []byte(strings.Repeat("x", 200)), "a header beyond the end": beyond, "a header over the end": end,
		"no PE header": make([]byte, 0x80), "32 bits": program(0x14c), "RISC-V": program(0x5064), "cut": program(0x8664)[:0x40],
	} {
		if got, err := OfProgram(bad); err == nil {
			t.Errorf("%s is taken for a program for %s", name, got.Name)
		}
		if AMD64.Starts(bad) == nil {
			t.Errorf("%s starts", name)
		}
	}
	if err := ARM64.Starts(program(0x8664)); err == nil || !strings.Contains(err.Error(), "for amd64, not for arm64") {
		t.Errorf("arm64 starts a program for amd64: %v", err)
	}
}

// What differs, by the names that UEFI, Debian and Linux have for it.
func TestBOX1_WhatATargetDecides(t *testing.T) {
	for _, c := range []struct {
		target                                        Target
		machine                                       uint16
		loader, stub, systemd, library, linker, parts string
	}{
		{AMD64, 0x8664, "EFI/BOOT/BOOTX64.EFI", "linuxx64.efi.stub", "systemd-bootx64.efi", "lib/x86_64-linux-gnu/libc.so.6", "lib64/ld-linux-x86-64.so.2", "ttyS0 amd64"},
		{ARM64, 0xaa64, "EFI/BOOT/BOOTAA64.EFI", "linuxaa64.efi.stub", "systemd-bootaa64.efi", "lib/aarch64-linux-gnu/libc.so.6", "lib/ld-linux-aarch64.so.1", "ttyAMA0 arm64"},
		{ARM64Cloud, 0xaa64, "EFI/BOOT/BOOTAA64.EFI", "linuxaa64.efi.stub", "systemd-bootaa64.efi", "lib/aarch64-linux-gnu/libc.so.6", "lib/ld-linux-aarch64.so.1", "ttyAMA0 arm64"},
	} {
		x := c.target
		serial, _, _ := strings.Cut(x.Serial(), ",")
		linker := x.LibraryPath(c.linker[strings.LastIndexByte(c.linker, '/')+1:])
		got := []string{x.LoaderPath(), x.Stub(), x.Loader(), x.LibraryPath("libc.so.6"), linker, serial + " " + x.Arch}
		if want := []string{c.loader, c.stub, c.systemd, c.library, c.linker, c.parts}; !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", x.Name, got, want)
		}
		if err := x.Starts(program(c.machine)); err != nil {
			t.Errorf("%s: %v", x.Name, err)
		}
		if back, err := Parse(x.Name); err != nil || back != x {
			t.Errorf("%s by its name: %v, %v", x.Name, back, err)
		}
		if !slices.Contains(x.Environment(), "GOARCH="+x.Arch) || !slices.Contains(x.Environment(), "CGO_ENABLED=0") {
			t.Errorf("%s is built with %v", x.Name, x.Environment())
		}
		if x.Virtual() != (x == ARM64Cloud) {
			t.Errorf("%s is for virtual machines alone: %v", x.Name, x.Virtual())
		}
	}
	if got, err := ForArch("arm64"); err != nil || got != ARM64 {
		t.Errorf("arm64 is %v, %v", got, err)
	}
}
