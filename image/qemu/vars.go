package qemu

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"unicode/utf16"
)

// A guid is written as UEFI stores it: the first three parts little-endian.
type guid [16]byte

// Names of what is written (UEFI 2.10, 3.3, 32.4.1 and 32.6.1; EDK II's
// variable store, MdeModulePkg/Include/Guid/VariableFormat.h).
var (
	globalVariable = guid{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}
	imageSecurity  = guid{0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f}
	certX509       = guid{0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72}
	variableStore  = guid{0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92}
)

const (
	offsetOfStore  = 0x48 // after the header of the firmware volume
	storeHeader    = 28
	variableHeader = 60
	variableAdded  = 0x3f
	// non-volatile, at boot and at run time, changed only by who signs
	authenticated = 0x01 | 0x02 | 0x04 | 0x20
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
		of   guid
		cert *x509.Certificate
	}{{"PK", globalVariable, s.Platform}, {"KEK", globalVariable, s.Exchange}, {"db", imageSecurity, s.Programs}} {
		b := variable(v.name, v.of, signatureList(v.cert))
		if at+len(b) > end {
			return nil, errors.New("enrolling keys: the store of UEFI variables is too small")
		}
		at += copy(out[at:], b)
	}
	return out, nil
}

// signatureList is EFI_SIGNATURE_LIST with one certificate, owned by itself.
func signatureList(c *x509.Certificate) []byte {
	le := binary.LittleEndian
	size := 16 + len(c.Raw)
	b := append([]byte(nil), certX509[:]...)
	b = le.AppendUint32(b, uint32(28+size))
	b = le.AppendUint32(b, 0)
	b = le.AppendUint32(b, uint32(size))
	b = append(b, globalVariable[:]...)
	return append(b, c.Raw...)
}

// variable is one entry of the store, to a length that divides by four.
func variable(name string, of guid, data []byte) []byte {
	le := binary.LittleEndian
	units := append(utf16.Encode([]rune(name)), 0)
	b := make([]byte, variableHeader)
	le.PutUint16(b, 0x55aa)
	b[2] = variableAdded
	le.PutUint32(b[4:], authenticated)
	le.PutUint16(b[16:], 2026) // EFI_TIME; a later write has to be younger
	b[18], b[19] = 1, 1
	le.PutUint32(b[36:], uint32(2*len(units)))
	le.PutUint32(b[40:], uint32(len(data)))
	copy(b[44:], of[:])
	for _, u := range units {
		b = le.AppendUint16(b, u)
	}
	b = append(b, data...)
	for len(b)%4 != 0 {
		b = append(b, 0xff)
	}
	return b
}
