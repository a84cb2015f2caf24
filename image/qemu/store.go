package qemu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unicode/utf16"

	"gatehouse/image/efivar"
)

// variableStore marks a store of variables that are signed with a time (EDK II,
// MdeModulePkg/Include/Guid/VariableFormat.h, from where the rest is, too).
var variableStore = efivar.GUID{0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92}

const (
	offsetOfStore  = 0x48 // after the header of the firmware volume
	storeHeader    = 28
	variableHeader = 60
	variableID     = 0x55aa
)

// States of a variable: bits that go from one to zero, as flash does. The header
// is written first, then name and data, then that they are valid.
const (
	variableHalf    = 0x7f
	variableAdded   = 0x3f
	variableDeleted = 0xfd
)

// A Store is the UEFI variables of a machine that is off: a log, to which the
// firmware appends each change. It never overwrites what is there, except for
// the state of a variable that a later one replaces.
type Store struct {
	raw  []byte
	log  int // where the log begins
	end  int // where the next variable goes
	room int // where the store ends
}

// A Variable is one change in the log.
type Variable struct {
	Name       string
	Vendor     efivar.GUID
	Attributes uint32
	Data       []byte
}

// OpenStore reads the variables of the machine whose state is in a folder.
func OpenStore(state string) (*Store, error) {
	raw, err := os.ReadFile(filepath.Join(state, varsFile))
	if err != nil {
		return nil, fmt.Errorf("reading the machine's UEFI variables: %w", err)
	}
	return readStore(raw)
}

func readStore(raw []byte) (*Store, error) {
	if len(raw) < offsetOfStore+storeHeader || !bytes.Equal(raw[offsetOfStore:offsetOfStore+16], variableStore[:]) {
		return nil, errors.New("this is no store of UEFI variables of OVMF or AAVMF")
	}
	s := &Store{raw: bytes.Clone(raw), log: offsetOfStore + storeHeader}
	s.room = offsetOfStore + int(binary.LittleEndian.Uint32(raw[offsetOfStore+16:]))
	if s.room > len(raw) || s.room < s.log {
		return nil, fmt.Errorf("the store of UEFI variables says that it ends at %d, and has %d bytes", s.room, len(raw))
	}
	for s.end = s.log; ; {
		next, err := s.after(s.end)
		if err != nil {
			return nil, err
		}
		if next == s.end {
			return s, nil
		}
		s.end = next
	}
}

// after is where the variable ends that begins at a place; there, if there is none.
func (s *Store) after(at int) (int, error) {
	if at+variableHeader > s.room || binary.LittleEndian.Uint16(s.raw[at:]) != variableID {
		return at, nil
	}
	size := int64(variableHeader) + int64(binary.LittleEndian.Uint32(s.raw[at+36:])) + int64(binary.LittleEndian.Uint32(s.raw[at+40:]))
	if size > int64(s.room-at) {
		return 0, fmt.Errorf("the store of UEFI variables is damaged at %d", at)
	}
	return at + int(size+3)&^3, nil
}

// empty takes all variables out.
func (s *Store) empty() {
	for i := s.log; i < s.room; i++ {
		s.raw[i] = 0xff // as erased flash is
	}
	s.end = s.log
}

// Save writes the variables as those of the machine whose state is in a folder.
func (s *Store) Save(state string) error {
	return writeVars(filepath.Join(state, varsFile), s.raw)
}

// Add appends variables, valid and believed by the firmware: nothing asks here
// who signed. Those of the same name are replaced.
func (s *Store) Add(all ...Variable) error {
	for _, v := range all {
		b := v.bytes()
		if s.end+len(b) > s.room {
			return errors.New("the store of UEFI variables is too small")
		}
		s.replace(v.Name, s.end)
		s.end += copy(s.raw[s.end:], b)
	}
	return nil
}

// replace marks the variables of a name as deleted, up to a place.
func (s *Store) replace(name string, before int) {
	for at := s.log; at < before; {
		if s.name(at) == name && s.raw[at+2] == variableAdded {
			s.raw[at+2] &= variableDeleted
		}
		at, _ = s.after(at) // was read before
	}
}

// bytes is one entry of the log, to a length that divides by four.
func (v Variable) bytes() []byte {
	le := binary.LittleEndian
	name := append(efivar.Name(v.Name), 0, 0)
	b := make([]byte, variableHeader)
	le.PutUint16(b, variableID)
	b[2] = variableAdded
	le.PutUint32(b[4:], v.Attributes)
	if v.Attributes == efivar.Attributes {
		le.PutUint16(b[16:], 2026) // EFI_TIME; a later write has to be younger
		b[18], b[19] = 1, 1
	}
	le.PutUint32(b[36:], uint32(len(name)))
	le.PutUint32(b[40:], uint32(len(v.Data)))
	copy(b[44:], v.Vendor[:])
	b = append(b, name...)
	b = append(b, v.Data...)
	for len(b)%4 != 0 {
		b = append(b, 0xff)
	}
	return b
}

// Since lists the names of the variables that were written after an earlier
// state of the same store, in the order of the writes.
func (s *Store) Since(earlier *Store) (names []string, err error) {
	for at := earlier.end; at < s.end; {
		names = append(names, s.name(at))
		if at, err = s.after(at); err != nil {
			return nil, err
		}
	}
	return names, nil
}

// Valid lists the variables that count, in the order of the log.
func (s *Store) Valid() (all []Variable, err error) {
	for at := s.log; at < s.end; {
		next, err := s.after(at)
		if err != nil {
			return nil, err
		}
		if s.raw[at+2] == variableAdded {
			le := binary.LittleEndian
			data := s.raw[at+variableHeader+int(le.Uint32(s.raw[at+36:])):][:le.Uint32(s.raw[at+40:])]
			all = append(all, Variable{s.name(at), efivar.GUID(s.raw[at+44:]), le.Uint32(s.raw[at+4:]), bytes.Clone(data)})
		}
		at = next
	}
	return all, nil
}

func (s *Store) name(at int) string {
	b := s.raw[at+variableHeader:][:binary.LittleEndian.Uint32(s.raw[at+36:])]
	var units []uint16
	for i := 0; i+1 < len(b); i += 2 {
		if u := binary.LittleEndian.Uint16(b[i:]); u != 0 {
			units = append(units, u)
		}
	}
	return string(utf16.Decode(units))
}

// Cut is the store as a power cut leaves it that comes after the first n writes
// since the earlier state; torn, in the middle of the next one, of which its
// header and half of the rest are there.
func (s *Store) Cut(earlier *Store, n int, torn bool) (*Store, error) {
	at := earlier.end
	var err error
	for range n {
		if at, err = s.after(at); err != nil {
			return nil, err
		}
	}
	out := &Store{raw: bytes.Clone(earlier.raw), log: s.log, end: at, room: s.room}
	for to := earlier.end; to < at; {
		next, err := s.after(to)
		if err != nil {
			return nil, err
		}
		copy(out.raw[to:next], s.raw[to:next])
		out.raw[to+2] = variableAdded
		out.replace(out.name(to), to)
		to = next
	}
	if torn {
		next, err := s.after(at)
		if err != nil {
			return nil, err
		}
		if next == at {
			return nil, errors.New("cutting a write of a UEFI variable: there is none after these")
		}
		copy(out.raw[at:], s.raw[at:at+variableHeader+(next-at-variableHeader)/2])
		out.raw[at+2] = variableHalf
		out.end = next
	}
	return out, nil
}
