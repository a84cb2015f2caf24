// Package program computes what firmware with Secure Boot compares of an EFI program with what it is to refuse.
//
// The sum is Authenticode's ("Windows Authenticode Portable Executable Signature
// Format", UEFI 2.10, 32.2.3). A program is read where it lies, as it may be as large as a
// system and the machine small.
package program

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Offsets in PE32+ programs.
const (
	offsetOfPE       = 0x3c
	optionalHeader   = 24 // from the PE signature
	magicPE32Plus    = 0x20b
	offsetOfChecksum = 64 // from the optional header
	offsetOfTable    = 112 + 8*4
	certAlign        = 8
)

// TableEntry is the size of the entry that names the signatures.
const TableEntry = 8

// Layout is where the parts are that the sum leaves out.
type Layout struct {
	Checksum, Table int64 // the checksum; the entry that names the signatures
	At, Length      int64 // the signatures, as that entry says; both 0: there are none
	size            int64
}

// Read finds them in a program of so many bytes.
func Read(r io.ReaderAt, size int64) (Layout, error) {
	le := binary.LittleEndian
	head := make([]byte, offsetOfPE+4)
	if size < int64(len(head)) {
		return Layout{}, errors.New("it has no MS-DOS header")
	}
	if err := fill(r, head, 0); err != nil {
		return Layout{}, err
	}
	if string(head[:2]) != "MZ" {
		return Layout{}, errors.New("it has no MS-DOS header")
	}
	at := int64(le.Uint32(head[offsetOfPE:]))
	headers := make([]byte, optionalHeader+offsetOfTable+TableEntry)
	if at+int64(len(headers)) > size {
		return Layout{}, errors.New("it has no PE header")
	}
	if err := fill(r, headers, at); err != nil {
		return Layout{}, err
	}
	if string(headers[:4]) != "PE\x00\x00" {
		return Layout{}, errors.New("it has no PE header")
	}
	if le.Uint16(headers[optionalHeader:]) != magicPE32Plus {
		return Layout{}, errors.New("it is not a 64-bit EFI program")
	}
	table := headers[optionalHeader+offsetOfTable:]
	return Layout{
		Checksum: at + optionalHeader + offsetOfChecksum, Table: at + optionalHeader + offsetOfTable,
		At: int64(le.Uint32(table)), Length: int64(le.Uint32(table[4:])), size: size,
	}, nil
}

func fill(r io.ReaderAt, b []byte, at int64) error {
	if n, err := r.ReadAt(b, at); n != len(b) {
		return err
	}
	return nil
}

// Signed says whether it has signatures.
func (l Layout) Signed() bool { return l.At != 0 || l.Length != 0 }

// End is where the program ends and its signatures begin, if it has any. They have to lie
// at the end of the file, as every signer puts them.
func (l Layout) End() (int64, error) {
	if !l.Signed() {
		return l.size, nil
	}
	if l.At < l.Table+TableEntry || l.At%certAlign != 0 || l.At+l.Length != l.size {
		return 0, errors.New("the certificate table of the EFI program does not lie at its end")
	}
	return l.At, nil
}

// Digest is the sum of a program, signed or not: the SHA-256 of all of it but the
// checksum, the entry that names the signatures and these, with zeros to a length that
// divides by eight.
func Digest(r io.ReaderAt, size int64) (sum [sha256.Size]byte, err error) {
	l, err := Read(r, size)
	if err != nil {
		return sum, fmt.Errorf("reading an EFI program: %w", err)
	}
	end, err := l.End()
	if err != nil {
		return sum, err
	}
	h := sha256.New()
	for _, part := range [][2]int64{{0, l.Checksum}, {l.Checksum + 4, l.Table}, {l.Table + TableEntry, end}} {
		if n, err := io.Copy(h, io.NewSectionReader(r, part[0], part[1]-part[0])); err != nil || n != part[1]-part[0] {
			return sum, fmt.Errorf("reading an EFI program at byte %d: %w", part[0]+n, errors.Join(err, io.ErrUnexpectedEOF))
		}
	}
	h.Write(make([]byte, Padding(end)))
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// Padding is how many zeros make a length one that divides by eight.
func Padding(n int64) int64 { return -n & (certAlign - 1) }
