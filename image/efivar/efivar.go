// Package efivar makes the firmware variables that say what a machine with Secure Boot starts, and signs changes of them.
//
// UEFI 2.10: 8.2.2 (EFI_VARIABLE_AUTHENTICATION_2) and 32.4.1 (EFI_SIGNATURE_LIST).
package efivar

import (
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"time"
	"unicode/utf16"

	"gatehouse/image/pkcs7"
)

// A GUID is written as UEFI stores it: the first three parts little-endian.
type GUID [16]byte

// GUIDs of vendors and kinds (UEFI 2.10, 3.3, 8.2.2, 32.4.1 and 32.6.1).
var (
	Global        = GUID{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}
	ImageSecurity = GUID{0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f}

	certX509   = GUID{0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72}
	certSHA256 = GUID{0x26, 0x16, 0xc4, 0xc1, 0x4c, 0x50, 0x92, 0x40, 0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28}
	certPKCS7  = GUID{0x9d, 0xd2, 0xaf, 0x4a, 0xdf, 0x68, 0xee, 0x49, 0x8a, 0xa9, 0x34, 0x7d, 0x37, 0x56, 0x65, 0xa7}
)

// Attributes of a variable that only who signs may change: kept without power,
// seen at boot and at run time, signed with a time.
const Attributes uint32 = 0x01 | 0x02 | 0x04 | 0x20

const (
	timeSize     = 16
	certHead     = 8 + 16 // WIN_CERTIFICATE_UEFI_GUID up to its data
	certRevision = 0x0200 // WIN_CERTIFICATE: version 2
	certGUID     = 0x0ef1 // WIN_CERT_TYPE_EFI_GUID
)

// Vendor is whose variable a name is: the four databases have two owners.
func Vendor(name string) GUID {
	if name == "PK" || name == "KEK" {
		return Global
	}
	return ImageSecurity
}

// Name is a variable's name as firmware has it, without the zero at its end.
func Name(name string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(name)) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

// SignatureList is EFI_SIGNATURE_LIST with one certificate, owned by nobody in
// particular.
func SignatureList(c *x509.Certificate) []byte {
	le := binary.LittleEndian
	size := len(Global) + len(c.Raw)
	b := append([]byte(nil), certX509[:]...)
	b = le.AppendUint32(b, uint32(28+size))
	b = le.AppendUint32(b, 0)
	b = le.AppendUint32(b, uint32(size))
	b = append(b, Global[:]...)
	return append(b, c.Raw...)
}

// HashList is EFI_SIGNATURE_LIST with the SHA-256 of programs, as Authenticode computes them.
func HashList(sums [][32]byte) []byte {
	le := binary.LittleEndian
	const size = len(Global) + 32
	b := append([]byte(nil), certSHA256[:]...)
	b = le.AppendUint32(b, uint32(28+size*len(sums)))
	b = le.AppendUint32(b, 0)
	b = le.AppendUint32(b, uint32(size))
	for _, s := range sums {
		b = append(b, Global[:]...)
		b = append(b, s[:]...)
	}
	return b
}

// Sign returns what SetVariable takes to give the variable a value: time,
// signature and value. Firmware takes it once: a later change has to have a
// later time.
func Sign(name string, value []byte, at time.Time, signer pkcs7.Signer) ([]byte, error) {
	stamp, vendor := stampOf(at), Vendor(name)
	le := binary.LittleEndian
	covered := append(Name(name), vendor[:]...)
	covered = le.AppendUint32(covered, Attributes)
	covered = append(covered, stamp...)
	covered = append(covered, value...)
	signature, err := signer.Detached(covered)
	if err != nil {
		return nil, fmt.Errorf("signing the firmware variable %s: %w", name, err)
	}
	b := le.AppendUint32(stamp, uint32(certHead+len(signature)))
	b = le.AppendUint16(b, certRevision)
	b = le.AppendUint16(b, certGUID)
	b = append(b, certPKCS7[:]...)
	b = append(b, signature...)
	return append(b, value...), nil
}

// stampOf is EFI_TIME in UTC to the second; all that is finer has to be zero.
func stampOf(at time.Time) []byte {
	at = at.UTC()
	b := make([]byte, timeSize)
	binary.LittleEndian.PutUint16(b, uint16(at.Year()))
	b[2], b[3] = byte(at.Month()), byte(at.Day())
	b[4], b[5], b[6] = byte(at.Hour()), byte(at.Minute()), byte(at.Second())
	return b
}
