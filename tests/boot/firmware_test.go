package boot

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gatehouse/image/disk"
	"gatehouse/image/efivar"
	"gatehouse/image/qemu"

	"github.com/google/uuid"
)

// espType is that of an EFI system partition (UEFI 2.10, table 5.7).
var espType = uuid.MustParse("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")

// bootFrom writes the firmware's menu of a machine that is off: these files of
// the ESP, in this order, each with the options that its program is given.
func (s stage) bootFrom(t testing.TB, entries ...menuEntry) {
	t.Helper()
	store, err := qemu.OpenStore(s.state)
	if err != nil {
		t.Fatal(err)
	}
	esp := s.partition(t, espType)
	var order []byte
	const first = 0x4100 // above what the firmware numbers by itself
	for i, e := range entries {
		n := uint16(first + i)
		order = binary.LittleEndian.AppendUint16(order, n)
		add(t, store, fmt.Sprintf("Boot%04X", n), e.encode(esp))
	}
	add(t, store, "BootOrder", order)
	if err := store.Save(s.state); err != nil {
		t.Fatal(err)
	}
}

func add(t testing.TB, s *qemu.Store, name string, data []byte) {
	t.Helper()
	const attributes = 1 | 2 | 4 // kept without power, seen at boot and at run time
	if err := s.Add(qemu.Variable{Name: name, Vendor: efivar.Global, Attributes: attributes, Data: data}); err != nil {
		t.Fatal(err)
	}
}

// menuEntry is one of the firmware's menu.
type menuEntry struct{ name, file, options string }

// encode is EFI_LOAD_OPTION (UEFI 2.10, 3.1.3) with the short form of a device
// path: a partition of a GPT disk by its identifier, a file, the end.
func (e menuEntry) encode(esp part) []byte {
	le := binary.LittleEndian
	drive := le.AppendUint32([]byte{4, 1, 42, 0}, 1)
	drive = le.AppendUint64(drive, uint64(esp.at/sector))
	drive = le.AppendUint64(drive, uint64(esp.size/sector))
	drive = append(append(drive, guid(esp.id)...), 2, 2)
	name := wide(strings.ReplaceAll("/"+e.file, "/", `\`))
	file := append(le.AppendUint16([]byte{4, 4}, uint16(4+len(name))), name...)
	path := append(append(drive, file...), 0x7f, 0xff, 4, 0)

	b := le.AppendUint32(nil, 1) // active
	b = le.AppendUint16(b, uint16(len(path)))
	b = append(append(b, wide(e.name)...), path...)
	if e.options != "" {
		b = append(b, wide(e.options)...)
	}
	return b
}

func wide(text string) []byte { return append(efivar.Name(text), 0, 0) }

// guid is one as UEFI stores it: the first three parts little-endian.
func guid(id uuid.UUID) []byte {
	b := bytes.Clone(id[:])
	for _, part := range [][]byte{b[:4], b[4:6], b[6:8]} {
		for i, j := 0, len(part)-1; i < j; i, j = i+1, j-1 {
			part[i], part[j] = part[j], part[i]
		}
	}
	return b
}

// writeDisk makes a disk with these files on its ESP.
func writeDisk(t testing.TB, files ...disk.File) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := disk.Write(f, files, bytes.Repeat([]byte{7}, 32)); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(1 << 30); err != nil {
		t.Fatal(err)
	}
	return path
}

// onESP reads a file of the ESP of a disk, by a program that is not ours.
func (s stage) onESP(t testing.TB, file string) []byte {
	t.Helper()
	out, err := exec.Command("mtype", "-i", fmt.Sprintf("%s@@%d", s.disk, s.partition(t, espType).at), "::/"+file).Output()
	if err != nil {
		t.Fatalf("reading %s off the disk (install package mtools): %v", file, err)
	}
	return out
}

// program is a signed EFI program, taken apart as far as tests change it.
type program struct {
	*pe.File
	whole []byte
}

func readProgram(t testing.TB, whole []byte) program {
	t.Helper()
	f, err := pe.NewFile(bytes.NewReader(whole))
	if err != nil {
		t.Fatal(err)
	}
	return program{f, whole}
}

const certificateTable = 4 // in the data directory

// unsigned is the program as it was before it was signed.
func (p program) unsigned(t testing.TB) []byte {
	t.Helper()
	table := p.OptionalHeader.(*pe.OptionalHeader64).DataDirectory[certificateTable]
	if table.Size == 0 {
		t.Fatal("the program is not signed")
	}
	out := bytes.Clone(p.whole[:table.VirtualAddress])
	at := binary.LittleEndian.Uint32(out[0x3c:]) + 24 + 112 + 8*certificateTable
	clear(out[at : at+8])
	return out
}

// with is the program with other content of a section, of at most the length of
// what is there; where its signature was, it is still.
func (p program) with(t testing.TB, section string, content []byte) []byte {
	t.Helper()
	s := p.Section(section)
	if s == nil || len(content) > int(s.VirtualSize) {
		t.Fatalf("%d bytes do not fit into section %s", len(content), section)
	}
	out := bytes.Clone(p.whole)
	clear(out[s.Offset : s.Offset+s.VirtualSize])
	copy(out[s.Offset:], content)
	for i := range s.VirtualSize - uint32(len(content)) { // spaces end a command line as well as nothing
		out[s.Offset+uint32(len(content))+i] = ' '
	}
	return out
}
