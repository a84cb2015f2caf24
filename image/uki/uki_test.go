package uki

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"strings"
	"testing"
)

// stub makes a PE32+ file as a linker makes it: two sections and a symbol
// table behind them, header room for three more sections.
func stub() []byte {
	le := binary.LittleEndian
	b := make([]byte, 0x400)
	copy(b, "MZ")
	le.PutUint32(b[offsetOfPE:], 0x80)
	p := b[0x80:]
	copy(p, "PE\x00\x00")
	le.PutUint16(p[4:], 0x8664)
	le.PutUint16(p[6:], 2)
	le.PutUint32(p[8:], 0x5eadbeef) // time of the build
	le.PutUint32(p[12:], 0x800)     // symbol table
	le.PutUint32(p[16:], 4)
	le.PutUint16(p[20:], 240)
	o := p[24:]
	le.PutUint16(o, magicPE32Plus)
	le.PutUint32(o[32:], 512)
	le.PutUint32(o[36:], 512)
	le.PutUint32(o[56:], 0x3000)
	le.PutUint32(o[60:], 0x250)
	le.PutUint32(o[64:], 0x1234)
	le.PutUint32(o[108:], 16)
	section := func(i int, name string, address, offset int) {
		e := b[0x80+24+240+i*sectionHeader:]
		copy(e, name)
		le.PutUint32(e[8:], 0x123)
		le.PutUint32(e[12:], uint32(address))
		le.PutUint32(e[16:], 0x200)
		le.PutUint32(e[20:], uint32(offset))
	}
	section(0, ".text", 0x1000, 0x400)
	section(1, ".data", 0x2000, 0x600)
	b = append(b, bytes.Repeat([]byte{0x90}, 0x200)...)
	b = append(b, bytes.Repeat([]byte{0x91}, 0x200)...)
	return append(b, "symbols and their strings"...)
}

func TestAssembleRefuses(t *testing.T) {
	change := func(f func(b []byte)) []byte {
		b := stub()
		f(b)
		return b
	}
	one := []Section{{".linux", []byte("k")}}
	for _, c := range []struct {
		name     string
		stub     []byte
		sections []Section
		want     string
	}{
		{"nothing", nil, one, "MS-DOS"},
		{"not a program", []byte(strings.Repeat("x", 4096)), one, "MS-DOS"},
		{"no PE header", change(func(b []byte) { b[0x80] = 'X' }), one, "PE header"},
		{"PE header beyond the end", change(func(b []byte) { b[offsetOfPE+2] = 0xff }), one, "PE header"},
		{"32 bits", change(func(b []byte) { b[0x80+24] = 0x0b; b[0x80+25] = 1 }), one, "64-bit"},
		{"signed", change(func(b []byte) { b[0x80+24+directoryEntries+8*certificateEntry] = 1 }), one, "signed"},
		{"odd alignment", change(func(b []byte) { b[0x80+24+36] = 1 }), one, "alignment"},
		{"too many sections for its headers", change(func(b []byte) { b[0x86] = 60 }), one, "runs over"},
		{"section beyond the end", change(func(b []byte) { b[0x80+24+240+21] = 0xff }), one, "beyond"},
		{"no room", stub(), []Section{{".a", one[0].Content}, {".b", one[0].Content}, {".c", one[0].Content}, {".d", one[0].Content}}, "room for"},
		{"empty section", stub(), []Section{{".linux", nil}}, "content"},
		{"nameless section", stub(), []Section{{"", []byte("k")}}, "name"},
		{"long name", stub(), []Section{{".toolongname", []byte("k")}}, "name"},
		{"twice", stub(), []Section{one[0], one[0]}, "already"},
		{"the stub's own", stub(), []Section{{".text", []byte("k")}}, "already"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := Assemble(c.stub, c.sections); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one about %q", err, c.want)
			}
		})
	}
}

func TestAssemble(t *testing.T) {
	parts := []Section{
		{".osrel", []byte("ID=gatehouse\n")},
		{".linux", bytes.Repeat([]byte("kernel"), 3000)},
	}
	out, err := Assemble(stub(), parts)
	if err != nil {
		t.Fatal(err)
	}
	f, err := pe.NewFile(bytes.NewReader(out))
	if err != nil {
		t.Fatalf("the result is not a PE file: %v", err)
	}
	for _, want := range parts {
		s := f.Section(want.Name)
		if s == nil {
			t.Fatalf("section %s is missing", want.Name)
		}
		got, err := s.Data()
		if err != nil || !bytes.HasPrefix(got, want.Content) || s.VirtualSize != uint32(len(want.Content)) {
			t.Errorf("section %s: %d bytes of %d, size said %d, err %v", want.Name, len(got), len(want.Content), s.VirtualSize, err)
		}
		if s.VirtualAddress%pageSize != 0 {
			t.Errorf("section %s at %#x is not on a page", want.Name, s.VirtualAddress)
		}
	}
	if bytes.Contains(out, []byte("symbols and their strings")) || f.PointerToSymbolTable != 0 || f.NumberOfSymbols != 0 {
		t.Error("the symbol table is still there")
	}
	if f.TimeDateStamp != 0 {
		t.Error("a build time is in the image")
	}
	optional := f.OptionalHeader.(*pe.OptionalHeader64)
	if last := f.Section(".linux"); optional.SizeOfImage < last.VirtualAddress+last.VirtualSize {
		t.Errorf("size in memory %#x ends before the last section", optional.SizeOfImage)
	}
	if optional.CheckSum != 0 {
		t.Error("the stub's checksum is still there")
	}
	checkContiguous(t, f, len(out))
}

// checkContiguous: every byte after the headers belongs to exactly one
// section, in order, or an Authenticode digest by section is not one by file.
func checkContiguous(t *testing.T, f *pe.File, size int) {
	t.Helper()
	var end, memory uint32 = 0x400, 0
	for _, s := range f.Sections {
		if s.Offset != end {
			t.Errorf("section %s begins at %#x, the one before ends at %#x", s.Name, s.Offset, end)
		}
		if s.VirtualAddress < memory {
			t.Errorf("section %s overlaps the one before in memory", s.Name)
		}
		end, memory = s.Offset+s.Size, s.VirtualAddress+s.VirtualSize
	}
	if int(end) != size {
		t.Errorf("%d bytes after the last section", size-int(end))
	}
}

func TestBOX1_AssembleSameBytes(t *testing.T) {
	parts := []Section{{".cmdline", []byte("console=ttyS0")}, {".initrd", []byte("archive")}}
	a, err := Assemble(stub(), parts)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Assemble(stub(), parts)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Error("two runs gave different bytes")
	}
}
