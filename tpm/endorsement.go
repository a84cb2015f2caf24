package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-tpm/tpm2"
)

// EK is the endorsement key: what a TPM is known by for its life, whoever owns
// and clears it. The first of the TCG's P-256 templates, which every TPM of a
// PC can make (EK Credential Profile, "Template L-2").
type EK struct {
	Public      []byte   // TPMT_PUBLIC
	Certificate []byte   // DER, by the maker; nil if the TPM keeps none for this key. Nobody checked who signed it.
	Fingerprint [32]byte // SHA-256 of the public half as X.509 writes it (SubjectPublicKeyInfo)
}

// ekCertificate is where the profile keeps the certificate of that key.
const ekCertificate tpm2.TPMHandle = 0x01C0000A

const (
	maxCertificate = 4096 // the largest in the field have 1.5 KiB
	readChunk      = 512  // every TPM of a PC gives that much of an NV index at a time
)

// EndorsementKey makes the key, which is the same each time, and lets go of it.
func (t *TPM) EndorsementKey(root Root) (ek EK, err error) {
	const doing = "reading the endorsement key"
	err = t.under(root, doing, func(s *scope) error {
		public, err := s.endorsement()
		if err != nil {
			return explain(doing, err)
		}
		key, err := ekKey(public)
		if err != nil {
			return fmt.Errorf("%s: %w", doing, err)
		}
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			return fmt.Errorf("%s: %w", doing, err)
		}
		ek = EK{Public: tpm2.Marshal(*public), Fingerprint: sha256.Sum256(der)}
		cert, err := s.readCertificate()
		if err != nil {
			return explain("reading the certificate of the endorsement key", err)
		}
		if certifies(cert, key) {
			ek.Certificate = cert
		}
		return nil
	})
	if err != nil {
		return EK{}, err
	}
	return ek, nil
}

// endorsement makes the key over a salted session, so that nobody on the bus
// can answer with another TPM's.
func (s *scope) endorsement() (*tpm2.TPMTPublic, error) {
	resp, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: s.session()},
		InPublic:      tpm2.New2B(tpm2.ECCEKTemplate),
	}.Execute(s)
	if err != nil {
		return nil, err
	}
	s.flush(resp.ObjectHandle)
	return resp.OutPublic.Contents()
}

func ekKey(public *tpm2.TPMTPublic) (*ecdsa.PublicKey, error) {
	p := *public
	p.Unique = tpm2.ECCEKTemplate.Unique
	if !bytes.Equal(tpm2.Marshal(p), tpm2.Marshal(tpm2.ECCEKTemplate)) {
		return nil, errors.New("the TPM made another key than was asked for")
	}
	return Blob{Public: tpm2.Marshal(*public)}.Key()
}

// readCertificate returns nothing where the TPM keeps none. What it keeps there
// is the maker's, so the index is taken as it is.
func (s *scope) readCertificate() ([]byte, error) {
	there, err := s.present(uint32(ekCertificate))
	if err != nil || !there {
		return nil, err
	}
	public, name, err := s.readPublic(uint32(ekCertificate))
	if err != nil {
		return nil, err
	}
	if !public.Attributes.AuthRead || public.DataSize > maxCertificate {
		return nil, nil
	}
	index := tpm2.NamedHandle{Handle: ekCertificate, Name: name}
	var raw []byte
	for left := int(public.DataSize); left > 0; {
		resp, err := tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: index.Handle, Name: name, Auth: s.session()}, NVIndex: index,
			Size: uint16(min(left, readChunk)), Offset: uint16(len(raw)),
		}.Execute(s)
		if err != nil {
			return nil, err
		}
		if n := len(resp.Data.Buffer); n == 0 || n > left {
			return nil, fmt.Errorf("%d bytes came of %d", n, left)
		}
		raw = append(raw, resp.Data.Buffer...)
		left -= len(resp.Data.Buffer)
	}
	// Some makers fill the index up behind it.
	var whole asn1.RawValue
	if _, err := asn1.Unmarshal(raw, &whole); err != nil {
		return nil, nil
	}
	return whole.FullBytes, nil
}

// certifies says whether the certificate is for this key.
func certifies(cert []byte, key *ecdsa.PublicKey) bool {
	c, err := x509.ParseCertificate(cert)
	return err == nil && key.Equal(c.PublicKey)
}

// Identity is who made the TPM, by the four letters of the TCG's registry, and
// the version of its firmware.
func (t *TPM) Identity(root Root) (maker, version string, err error) {
	const doing = "asking the TPM who made it"
	err = t.under(root, doing, func(s *scope) error {
		id, err := s.property(tpm2.TPMPTManufacturer)
		if err != nil {
			return explain(doing, err)
		}
		upper, err := s.property(tpm2.TPMPTFirmwareVersion1)
		if err != nil {
			return explain(doing, err)
		}
		lower, err := s.property(tpm2.TPMPTFirmwareVersion2)
		if err != nil {
			return explain(doing, err)
		}
		maker = makerName(id)
		version = fmt.Sprintf("%d.%d.%d.%d", upper>>16, upper&0xFFFF, lower>>16, lower&0xFFFF)
		return nil
	})
	return maker, version, err
}

// makerName keeps what can be printed: it is shown on a console.
func makerName(id uint32) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, string(binary.BigEndian.AppendUint32(nil, id))))
}

// property asks for one fixed or variable property, authenticated.
func (s *scope) property(p tpm2.TPMPT) (uint32, error) {
	resp, err := tpm2.GetCapability{
		Capability: tpm2.TPMCapTPMProperties, Property: uint32(p), PropertyCount: 1,
	}.Execute(s, s.session(tpm2.Audit()))
	if err != nil {
		return 0, err
	}
	list, err := resp.CapabilityData.Data.TPMProperties()
	if err != nil || len(list.TPMProperty) != 1 || list.TPMProperty[0].Property != p {
		return 0, errors.New("the TPM does not tell it")
	}
	return list.TPMProperty[0].Value, nil
}
