// Package authenticode signs EFI programs so that firmware with Secure Boot starts them.
//
// The shape follows Microsoft's "Windows Authenticode Portable Executable
// Signature Format" and "PE Format", as far as UEFI 2.10 (32.2.3) asks for it: a
// PKCS #7 SignedData with SHA-256 and RSA, in the program's certificate table.
// There is no time in it: one program and one key give one signature.
package authenticode

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"

	"gatehouse/image/pkcs7"
)

// Offsets in PE32+ programs.
const (
	offsetOfPE       = 0x3c
	optionalHeader   = 24 // from the PE signature
	magicPE32Plus    = 0x20b
	offsetOfChecksum = 64 // from the optional header
	offsetOfTable    = 112 + 8*4
	tableEntry       = 8
	certAlign        = 8
	certHead         = 8      // WIN_CERTIFICATE: length, revision, type
	certRevision     = 0x0200 // WIN_CERT_REVISION_2_0
	certPKCS         = 0x0002 // WIN_CERT_TYPE_PKCS_SIGNED_DATA
)

var (
	oidIndirectData = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 4}
	oidPEImage      = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 15}
)

// layout is where the parts are that the digest leaves out.
type layout struct{ checksum, table int }

func parse(pe []byte) (layout, error) {
	le := binary.LittleEndian
	if len(pe) < offsetOfPE+4 || string(pe[:2]) != "MZ" {
		return layout{}, errors.New("it has no MS-DOS header")
	}
	at := int64(le.Uint32(pe[offsetOfPE:]))
	if at+optionalHeader+offsetOfTable+tableEntry > int64(len(pe)) || string(pe[at:at+4]) != "PE\x00\x00" {
		return layout{}, errors.New("it has no PE header")
	}
	optional := int(at) + optionalHeader
	if le.Uint16(pe[optional:]) != magicPE32Plus {
		return layout{}, errors.New("it is not a 64-bit EFI program")
	}
	return layout{optional + offsetOfChecksum, optional + offsetOfTable}, nil
}

// Digest is the SHA-256 that a signature covers, of a program without one: all
// of it but the checksum and the place that names the signature, with zeros to
// a length that divides by eight.
func Digest(pe []byte) ([sha256.Size]byte, error) {
	l, err := parse(pe)
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("reading an EFI program: %w", err)
	}
	if binary.LittleEndian.Uint64(pe[l.table:]) != 0 {
		return [sha256.Size]byte{}, errors.New("reading an EFI program: it is signed already")
	}
	h := sha256.New()
	h.Write(pe[:l.checksum])
	h.Write(pe[l.checksum+4 : l.table])
	h.Write(pe[l.table+tableEntry:])
	h.Write(make([]byte, padding(len(pe))))
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// Unsigned is a program without its signatures; one that has none is returned as it is.
// Its Digest is what firmware compares with the sums in dbx.
func Unsigned(pe []byte) ([]byte, error) {
	l, err := parse(pe)
	if err != nil {
		return nil, fmt.Errorf("reading an EFI program: %w", err)
	}
	le := binary.LittleEndian
	at, length := int64(le.Uint32(pe[l.table:])), int64(le.Uint32(pe[l.table+4:]))
	if at == 0 && length == 0 {
		return pe, nil
	}
	if at < int64(l.table+tableEntry) || at%certAlign != 0 || at+length != int64(len(pe)) {
		return nil, errors.New("the certificate table of the EFI program does not lie at its end")
	}
	program := bytes.Clone(pe[:at])
	clear(program[l.table : l.table+tableEntry])
	return program, nil
}

func padding(n int) int { return -n & (certAlign - 1) }

// Sign returns the program with a signature by the key of a certificate, which
// has to be RSA: what firmware has had in db since there is Secure Boot.
func Sign(pe []byte, certificate *x509.Certificate, key crypto.Signer) ([]byte, error) {
	signer := pkcs7.Signer{Certificate: certificate, Key: key}
	if err := signer.Check(); err != nil {
		return nil, fmt.Errorf("signing an EFI program: %w", err)
	}
	digest, err := Digest(pe)
	if err != nil {
		return nil, err
	}
	content, err := indirectData(digest)
	if err != nil {
		return nil, fmt.Errorf("signing an EFI program: %w", err)
	}
	signed, err := signer.Content(oidIndirectData, content)
	if err != nil {
		return nil, fmt.Errorf("signing an EFI program: %w", err)
	}
	l, err := parse(pe)
	if err != nil {
		return nil, err
	}
	out := append(bytes.Clone(pe), make([]byte, padding(len(pe)))...)
	le := binary.LittleEndian
	length := certHead + len(signed) + padding(len(signed))
	le.PutUint32(out[l.table:], uint32(len(out)))
	le.PutUint32(out[l.table+4:], uint32(length))
	out = le.AppendUint32(out, uint32(length))
	out = le.AppendUint16(out, certRevision)
	out = le.AppendUint16(out, certPKCS)
	out = append(out, signed...)
	return append(out, make([]byte, padding(len(signed)))...), nil
}

// Verify says whether a program has one signature, by the key of this
// certificate, in the form that Sign gives it.
func Verify(pe []byte, certificate *x509.Certificate) error {
	l, err := parse(pe)
	if err != nil {
		return fmt.Errorf("reading an EFI program: %w", err)
	}
	le := binary.LittleEndian
	at, length := int64(le.Uint32(pe[l.table:])), int64(le.Uint32(pe[l.table+4:]))
	if at == 0 && length == 0 {
		return errors.New("the EFI program is not signed")
	}
	if at < int64(l.table+tableEntry) || at%certAlign != 0 || length < certHead || at+length != int64(len(pe)) {
		return errors.New("the certificate table of the EFI program does not lie at its end")
	}
	table := pe[at:]
	if int64(le.Uint32(table)) != length || le.Uint16(table[4:]) != certRevision || le.Uint16(table[6:]) != certPKCS {
		return errors.New("the certificate table of the EFI program has other than one signature of PKCS #7")
	}
	program, err := Unsigned(pe)
	if err != nil {
		return err
	}
	digest, err := Digest(program)
	if err != nil {
		return err
	}
	content, err := indirectData(digest)
	if err != nil {
		return fmt.Errorf("verifying an EFI program: %w", err)
	}
	signed, filling, err := der(table[certHead:])
	if err != nil || len(filling) != padding(len(signed)) || len(bytes.Trim(filling, "\x00")) != 0 {
		return errors.New("the certificate table of the EFI program has other than one signature of PKCS #7")
	}
	if err := pkcs7.Verify(signed, certificate, oidIndirectData, content); err != nil {
		return fmt.Errorf("verifying an EFI program: %w", err)
	}
	return nil
}

// der splits off the first value.
func der(b []byte) (value, rest []byte, err error) {
	var v asn1.RawValue
	rest, err = asn1.Unmarshal(b, &v)
	return v.FullBytes, rest, err
}

// indirectData is SpcIndirectDataContent: this digest is of an EFI program.
func indirectData(digest [sha256.Size]byte) ([]byte, error) {
	type peImage struct {
		Flags asn1.BitString
		File  asn1.RawValue
	}
	type data struct {
		Type  asn1.ObjectIdentifier
		Value peImage
	}
	type digestInfo struct {
		Algorithm pkix.AlgorithmIdentifier
		Digest    []byte
	}
	type content struct {
		Data   data
		Digest digestInfo
	}
	return asn1.Marshal(content{
		// SpcLink, file, an empty SpcString: [0] [2] [0], as every signer writes it.
		data{oidPEImage, peImage{asn1.BitString{}, asn1.RawValue{FullBytes: []byte{0xa0, 4, 0xa2, 2, 0x80, 0}}}},
		digestInfo{pkcs7.SHA256(), digest[:]},
	})
}
