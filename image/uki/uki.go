// Package uki joins a kernel, its initramfs and its command line into one EFI program.
//
// The shape is the Unified Kernel Image of systemd-stub(7): the stub is a small
// PE program that finds the other parts as sections of its own file. What is
// done to the PE headers follows Microsoft's "PE Format" specification.
package uki

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A Section is one part of the image, by the name that the stub looks for.
type Section struct {
	Name    string // ".linux" and so on, at most 8 bytes
	Content []byte
}

// Offsets and sizes of PE32+ headers.
const (
	offsetOfPE       = 0x3c // in the MS-DOS header
	fileHeader       = 4    // after the signature "PE\0\0"
	optionalHeader   = fileHeader + 20
	sectionHeader    = 40
	magicPE32Plus    = 0x20b
	initializedData  = 0x40
	readable         = 0x40000000
	pageSize         = 4096
	directoryEntries = 112 // from the start of the optional header
	certificateEntry = 4   // index of the certificate table
)

// Assemble adds the sections to the stub. The result depends on the arguments
// alone: no time, no checksum of the machine.
//
// The stub's COFF symbol table lies at its end, where the new sections go. It
// is cut off: left in the middle of the file it would be outside of every
// section, and a digest taken section by section (Authenticode) would differ
// from one taken over the file.
func Assemble(stub []byte, sections []Section) ([]byte, error) {
	h, err := parse(stub)
	if err != nil {
		return nil, fmt.Errorf("reading the UKI stub: %w", err)
	}
	if h.signed {
		return nil, errors.New("reading the UKI stub: it is signed; sections can only be added before signing")
	}
	if room := (h.sizeOfHeaders - h.tableEnd()) / sectionHeader; len(sections) > room {
		return nil, fmt.Errorf("the UKI stub has room for %d more sections, not for %d", room, len(sections))
	}
	out := append([]byte(nil), stub[:h.fileEnd]...)
	out = pad(out, h.fileAlignment)
	address := align(h.memoryEnd, pageSize)
	var added int
	for i, s := range sections {
		if s.Name == "" || len(s.Name) > 8 || len(s.Content) == 0 {
			return nil, fmt.Errorf("section %q of %d bytes: a section has a name of at most 8 bytes and content", s.Name, len(s.Content))
		}
		if h.names[s.Name] {
			return nil, fmt.Errorf("section %s is there already", s.Name)
		}
		h.names[s.Name] = true
		offset := len(out)
		out = pad(append(out, s.Content...), h.fileAlignment)
		entry := out[h.tableEnd()+i*sectionHeader:]
		clear(entry[:sectionHeader])
		copy(entry, s.Name)
		le := binary.LittleEndian
		le.PutUint32(entry[8:], uint32(len(s.Content)))
		le.PutUint32(entry[12:], uint32(address))
		le.PutUint32(entry[16:], uint32(len(out)-offset))
		le.PutUint32(entry[20:], uint32(offset))
		le.PutUint32(entry[36:], initializedData|readable)
		address = align(address+len(s.Content), pageSize)
		added += len(out) - offset
	}
	if len(out) > 1<<31 || address > 1<<31 {
		return nil, fmt.Errorf("a UKI of %d bytes is more than firmware loads", len(out))
	}
	h.finish(out, len(sections), address, added)
	return out, nil
}

// header is what Assemble needs to know of a PE file.
type header struct {
	pe, table, count             int // offsets; number of sections
	sizeOfHeaders, fileAlignment int
	fileEnd, memoryEnd           int // of the last section
	signed                       bool
	names                        map[string]bool
	sections                     []placed
}

// placed is where a section lies in the file.
type placed struct {
	name              string
	offset, raw, size int // size is in memory: what is beyond it in the file is filling
}

func (h header) tableEnd() int { return h.table + h.count*sectionHeader }

func parse(pe []byte) (header, error) {
	le := binary.LittleEndian
	if len(pe) < offsetOfPE+4 || string(pe[:2]) != "MZ" {
		return header{}, errors.New("it has no MS-DOS header")
	}
	h := header{pe: int(le.Uint32(pe[offsetOfPE:])), names: make(map[string]bool)}
	if h.pe < 0 || h.pe > len(pe)-optionalHeader-directoryEntries-8*(certificateEntry+1) || string(pe[h.pe:h.pe+4]) != "PE\x00\x00" {
		return header{}, errors.New("it has no PE header")
	}
	h.count = int(le.Uint16(pe[h.pe+fileHeader+2:]))
	optional := h.pe + optionalHeader
	h.table = optional + int(le.Uint16(pe[h.pe+fileHeader+16:]))
	if le.Uint16(pe[optional:]) != magicPE32Plus {
		return header{}, errors.New("it is not a 64-bit EFI program")
	}
	h.signed = le.Uint64(pe[optional+directoryEntries+8*certificateEntry:]) != 0
	h.fileAlignment = int(le.Uint32(pe[optional+36:]))
	h.sizeOfHeaders = int(le.Uint32(pe[optional+60:]))
	if h.fileAlignment < 512 || h.fileAlignment > 65536 || h.fileAlignment&(h.fileAlignment-1) != 0 {
		return header{}, fmt.Errorf("file alignment %d is not a power of two from 512 to 65536", h.fileAlignment)
	}
	if h.tableEnd() > h.sizeOfHeaders || h.sizeOfHeaders > len(pe) {
		return header{}, errors.New("its section table runs over its headers")
	}
	for i := range h.count {
		entry := pe[h.table+i*sectionHeader:]
		size, address := int(le.Uint32(entry[8:])), int(le.Uint32(entry[12:]))
		raw, offset := int(le.Uint32(entry[16:])), int(le.Uint32(entry[20:]))
		if offset+raw > len(pe) {
			return header{}, fmt.Errorf("section %d lies beyond the file's end", i+1)
		}
		h.fileEnd = max(h.fileEnd, offset+raw)
		h.memoryEnd = max(h.memoryEnd, address+size)
		name := sectionName(entry[:8])
		h.names[name] = true
		h.sections = append(h.sections, placed{name, offset, raw, size})
	}
	if h.fileEnd < h.sizeOfHeaders {
		return header{}, errors.New("its sections lie inside its headers")
	}
	return h, nil
}

func sectionName(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// finish writes what follows from the new sections into the headers: their
// number, no symbol table, no build time, the sizes, no checksum (firmware
// checks none, and the spec asks for it only of drivers and system DLLs).
func (h header) finish(pe []byte, sections, memory, data int) {
	le := binary.LittleEndian
	le.PutUint16(pe[h.pe+fileHeader+2:], uint16(h.count+sections))
	clear(pe[h.pe+fileHeader+4 : h.pe+fileHeader+16])
	optional := pe[h.pe+optionalHeader:]
	le.PutUint32(optional[8:], le.Uint32(optional[8:])+uint32(data))
	le.PutUint32(optional[56:], uint32(memory))
	le.PutUint32(optional[64:], 0)
}

func align(n, to int) int { return (n + to - 1) &^ (to - 1) }

func pad(b []byte, to int) []byte { return append(b, make([]byte, align(len(b), to)-len(b))...) }
