// Package bootentry reads and writes entries of the firmware's boot menu, and says which of ours are missing, pure.
//
// The shapes are those of UEFI 2.10: EFI_LOAD_OPTION (3.1.3), and of device
// paths (chapter 10) the short form that firmware completes by itself: a
// partition of a GPT disk, a file on it, the end.
package bootentry

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode/utf16"

	"github.com/google/uuid"
)

// Partition is the one that a file is on.
type Partition struct {
	Number  uint32
	First   uint64 // sector
	Sectors uint64
	ID      uuid.UUID
}

// Option is an entry that starts a file of a partition.
type Option struct {
	Active      bool
	Description string
	Partition   Partition
	File        string // with backslashes, from the root
}

// ErrForeign: the bytes are not an entry of this shape. It may well be a sound
// entry of somebody else's.
var ErrForeign = errors.New("not an entry that starts a file of a GPT partition")

const (
	active = 1 // LOAD_OPTION_ACTIVE

	mediaType     = 4
	hardDrive     = 1
	hardDriveSize = 42
	filePath      = 4
	nodeHeader    = 4
	formatGPT     = 2
	signatureGUID = 2

	maxText = 256 // UTF-16 units of a description or path: more than ours need
)

// end ends a device path: type 0x7f, subtype 0xff, 4 bytes.
var end = []byte{0x7f, 0xff, 4, 0}

// Encode is the entry as the firmware keeps it.
func (o Option) Encode() []byte {
	le := binary.LittleEndian
	drive := []byte{mediaType, hardDrive, hardDriveSize, 0}
	drive = le.AppendUint32(drive, o.Partition.Number)
	drive = le.AppendUint64(drive, o.Partition.First)
	drive = le.AppendUint64(drive, o.Partition.Sectors)
	drive = append(drive, swapped(o.Partition.ID)...)
	drive = append(drive, formatGPT, signatureGUID)
	name := wide(o.File)
	file := append(le.AppendUint16([]byte{mediaType, filePath}, uint16(nodeHeader+len(name))), name...)
	path := bytes.Join([][]byte{drive, file, end}, nil)

	var attributes uint32
	if o.Active {
		attributes = active
	}
	out := le.AppendUint32(nil, attributes)
	out = le.AppendUint16(out, uint16(len(path)))
	out = append(out, wide(o.Description)...)
	return append(out, path...)
}

// Decode reads an entry. It takes only what Encode writes.
func Decode(b []byte) (Option, error) {
	le := binary.LittleEndian
	if len(b) < 6 {
		return Option{}, ErrForeign
	}
	var o Option
	o.Active = le.Uint32(b)&active != 0
	size := int(le.Uint16(b[4:]))
	rest := b[6:]
	var ok bool
	if o.Description, rest, ok = text(rest); !ok || len(rest) != size || size < hardDriveSize+nodeHeader+len(end) {
		return Option{}, ErrForeign
	}
	drive, file := rest[:hardDriveSize], rest[hardDriveSize:]
	o.Partition = Partition{Number: le.Uint32(drive[4:]), First: le.Uint64(drive[8:]), Sectors: le.Uint64(drive[16:]), ID: uuid.UUID(swapped(uuid.UUID(drive[24:40])))}
	if o.File, rest, ok = text(file[nodeHeader:]); !ok || !bytes.Equal(rest, end) {
		return Option{}, ErrForeign
	}
	if !bytes.Equal(o.Encode(), b) {
		return Option{}, ErrForeign
	}
	return o, nil
}

// text reads UTF-16 up to its NUL.
func text(b []byte) (s string, rest []byte, ok bool) {
	var units []uint16
	for i := 0; i+1 < len(b) && i < 2*maxText; i += 2 {
		u := binary.LittleEndian.Uint16(b[i:])
		if u == 0 {
			return string(utf16.Decode(units)), b[i+2:], true
		}
		units = append(units, u)
	}
	return "", nil, false
}

// wide is UTF-16 with its NUL.
func wide(s string) []byte {
	var out []byte
	for _, u := range append(utf16.Encode([]rune(s)), 0) {
		out = binary.LittleEndian.AppendUint16(out, u)
	}
	return out
}

// swapped turns a GUID between the order of its text and the one that UEFI
// stores, whose first three fields are little-endian.
func swapped(id uuid.UUID) []byte {
	return []byte{id[3], id[2], id[1], id[0], id[5], id[4], id[7], id[6], id[8], id[9], id[10], id[11], id[12], id[13], id[14], id[15]}
}

// Order reads BootOrder: numbers of entries.
func Order(b []byte) ([]uint16, error) {
	if len(b)%2 != 0 || len(b) > 2*1024 {
		return nil, fmt.Errorf("the firmware's BootOrder has %d bytes: not a list of entries", len(b))
	}
	var out []uint16
	for i := 0; i < len(b); i += 2 {
		out = append(out, binary.LittleEndian.Uint16(b[i:]))
	}
	return out, nil
}

// EncodeOrder is BootOrder as the firmware keeps it.
func EncodeOrder(order []uint16) []byte {
	var out []byte
	for _, n := range order {
		out = binary.LittleEndian.AppendUint16(out, n)
	}
	return out
}

// Name is the variable of an entry.
func Name(number uint16) string { return fmt.Sprintf("Boot%04X", number) }

// Number is the entry that a variable holds, if its name is that of one.
func Number(name string) (n uint16, ok bool) {
	digits, found := strings.CutPrefix(name, "Boot")
	if !found || len(digits) != 4 {
		return 0, false
	}
	for _, c := range []byte(digits) {
		switch {
		case c >= '0' && c <= '9':
			n = n<<4 | uint16(c-'0')
		case c >= 'A' && c <= 'F':
			n = n<<4 | uint16(c-'A'+10)
		default:
			return 0, false // OsIndications and the like; and the spec writes capitals
		}
	}
	return n, true
}
