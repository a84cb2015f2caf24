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

	"gatehouse/firmware/program"
	"gatehouse/image/pkcs7"
)

const (
	certHead     = 8      // WIN_CERTIFICATE: length, revision, type
	certRevision = 0x0200 // WIN_CERT_REVISION_2_0
	certPKCS     = 0x0002 // WIN_CERT_TYPE_PKCS_SIGNED_DATA
)

var (
	oidIndirectData = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 4}
	oidPEImage      = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 15}
)

// Digest is the SHA-256 that a signature covers, of a program without one.
func Digest(pe []byte) ([sha256.Size]byte, error) {
	l, err := parse(pe)
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	if l.Signed() {
		return [sha256.Size]byte{}, errors.New("reading an EFI program: it is signed already")
	}
	return program.Digest(bytes.NewReader(pe), int64(len(pe)))
}

func parse(pe []byte) (program.Layout, error) {
	l, err := program.Read(bytes.NewReader(pe), int64(len(pe)))
	if err != nil {
		return l, fmt.Errorf("reading an EFI program: %w", err)
	}
	return l, nil
}

// Unsigned is a program without its signatures; one that has none is returned as it is.
// Its Digest is what firmware compares with the sums in dbx.
func Unsigned(pe []byte) ([]byte, error) {
	l, err := parse(pe)
	if err != nil {
		return nil, err
	}
	if !l.Signed() {
		return pe, nil
	}
	end, err := l.End()
	if err != nil {
		return nil, err
	}
	bare := bytes.Clone(pe[:end])
	clear(bare[l.Table : l.Table+program.TableEntry])
	return bare, nil
}

func padding(n int) int { return int(program.Padding(int64(n))) }

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
	le.PutUint32(out[l.Table:], uint32(len(out)))
	le.PutUint32(out[l.Table+4:], uint32(length))
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
		return err
	}
	if !l.Signed() {
		return errors.New("the EFI program is not signed")
	}
	at, err := l.End()
	if err != nil {
		return err
	}
	if l.Length < certHead {
		return errors.New("the certificate table of the EFI program does not lie at its end")
	}
	le := binary.LittleEndian
	table := pe[at:]
	if int64(le.Uint32(table)) != l.Length || le.Uint16(table[4:]) != certRevision || le.Uint16(table[6:]) != certPKCS {
		return errors.New("the certificate table of the EFI program has other than one signature of PKCS #7")
	}
	bare, err := Unsigned(pe)
	if err != nil {
		return err
	}
	digest, err := Digest(bare)
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
