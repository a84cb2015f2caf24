package qemu

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"errors"

	"gatehouse/image/efivar"
)

// variableStore marks a store of variables that are signed with a time (EDK II,
// MdeModulePkg/Include/Guid/VariableFormat.h, from where the rest is, too).
var variableStore = efivar.GUID{0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92}

const (
	offsetOfStore  = 0x48 // after the header of the firmware volume
	storeHeader    = 28
	variableHeader = 60
	variableAdded  = 0x3f
)

// SecureBoot is who may say what such a machine starts. Without Platform nobody
// does yet: the machine is in set-up mode, and whoever runs on it may enrol keys.
type SecureBoot struct {
	Platform, Exchange, Programs *x509.Certificate
}

// enrol writes the certificates into the variables of a machine that was never
// started: what a person does in the set-up screen. The machine then has
// Secure Boot on.
func (s SecureBoot) enrol(vars []byte) ([]byte, error) {
	if s.Platform == nil {
		return vars, nil
	}
	if len(vars) < offsetOfStore+storeHeader || !bytes.Equal(vars[offsetOfStore:offsetOfStore+16], variableStore[:]) {
		return nil, errors.New("enrolling keys: this is no store of UEFI variables of OVMF")
	}
	out := bytes.Clone(vars)
	end := offsetOfStore + int(binary.LittleEndian.Uint32(vars[offsetOfStore+16:]))
	at := offsetOfStore + storeHeader
	if end > len(out) || binary.LittleEndian.Uint16(out[at:]) != 0xffff {
		return nil, errors.New("enrolling keys: this machine was started before")
	}
	for _, v := range []struct {
		name string
		cert *x509.Certificate
	}{{"PK", s.Platform}, {"KEK", s.Exchange}, {"db", s.Programs}} {
		b := variable(v.name, efivar.SignatureList(v.cert))
		if at+len(b) > end {
			return nil, errors.New("enrolling keys: the store of UEFI variables is too small")
		}
		at += copy(out[at:], b)
	}
	return out, nil
}

// variable is one entry of the store, to a length that divides by four.
func variable(name string, data []byte) []byte {
	le, of := binary.LittleEndian, efivar.Vendor(name)
	units := append(efivar.Name(name), 0, 0)
	b := make([]byte, variableHeader)
	le.PutUint16(b, 0x55aa)
	b[2] = variableAdded
	le.PutUint32(b[4:], efivar.Attributes)
	le.PutUint16(b[16:], 2026) // EFI_TIME; a later write has to be younger
	b[18], b[19] = 1, 1
	le.PutUint32(b[36:], uint32(len(units)))
	le.PutUint32(b[40:], uint32(len(data)))
	copy(b[44:], of[:])
	b = append(b, units...)
	b = append(b, data...)
	for len(b)%4 != 0 {
		b = append(b, 0xff)
	}
	return b
}
