package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// ErrCertification: what should prove that a key is in a TPM does not.
var ErrCertification = errors.New("the certification of the key does not hold")

// MaxQualifying is how many bytes of a verifier's own a certification may carry.
const MaxQualifying = sha256.Size

// Certification is a TPM's signed word about one of its keys.
type Certification struct {
	Attest    []byte // TPMS_ATTEST
	Signature []byte // ECDSA over SHA-256 of it, ASN.1
}

// NewAttestationKey makes a P-256 key (AK) that signs nothing but what the TPM
// itself says: restricted. Using it needs auth, at most 32 bytes.
func (t *TPM) NewAttestationKey(root Root, auth []byte) (Blob, error) {
	attributes := keyAttributes
	attributes.Restricted = true
	return t.newKey("making an attestation key in the TPM", root, auth, attributes)
}

// Certify has the TPM say, signed by the attestation key, that key is one of
// its own. The qualifying bytes, at most MaxQualifying, come from who asks, so
// that he sees that the answer is new. The result was checked.
func (t *TPM) Certify(root Root, ak Blob, akAuth []byte, key Blob, keyAuth, qualifying []byte) (c Certification, err error) {
	const doing = "certifying a key"
	if len(qualifying) > MaxQualifying {
		return c, fmt.Errorf("%s: %d qualifying bytes, at most %d fit", doing, len(qualifying), MaxQualifying)
	}
	err = t.under(root, doing, func(s *scope) error {
		signer, flushSigner, err := s.load(doing, ak)
		if err != nil {
			return err
		}
		defer flushSigner()
		object, flushObject, err := s.load(doing, key)
		if err != nil {
			return err
		}
		defer flushObject()
		resp, err := tpm2.Certify{
			ObjectHandle:   tpm2.AuthHandle{Handle: object.Handle, Name: object.Name, Auth: s.session(tpm2.Auth(password(keyAuth)))},
			SignHandle:     tpm2.AuthHandle{Handle: signer.Handle, Name: signer.Name, Auth: s.session(tpm2.Auth(password(akAuth)))},
			QualifyingData: tpm2.TPM2BData{Buffer: qualifying},
			InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		}.Execute(s)
		if err != nil {
			return explain(doing, err)
		}
		if c.Signature, err = asn1Signature(resp.Signature); err != nil {
			return explain(doing, err)
		}
		c.Attest = resp.CertifyInfo.Bytes()
		return nil
	})
	if err == nil {
		err = CheckCertification(ak.Public, key.Public, c, qualifying)
	}
	if err != nil {
		return Certification{}, err
	}
	return c, nil
}

// CheckCertification says whether c proves that the key was made in the TPM that
// the attestation key is in, never leaves it, and that the TPM said so for these
// qualifying bytes. Both publics are a Blob's. It needs no TPM, and decides
// nothing of whose TPM it is: that is what the endorsement key is for.
func CheckCertification(akPublic, keyPublic []byte, c Certification, qualifying []byte) (err error) {
	const doing = "checking the certification of a key"
	defer guard(doing, &err)
	fail := func(why string) error { return fmt.Errorf("%s: %w: %s", doing, ErrCertification, why) }
	restricted := keyAttributes
	restricted.Restricted = true
	if !isKey(akPublic, restricted) {
		return fail("the key that signed it is no attestation key")
	}
	if !isKey(keyPublic, keyAttributes) {
		return fail("the key is not one that stays in its TPM")
	}
	signer, err := Blob{Public: akPublic}.Key()
	if err != nil {
		return fail(err.Error())
	}
	if sum := sha256.Sum256(c.Attest); !ecdsa.VerifyASN1(signer, sum[:], c.Signature) {
		return fail("the signature is not by the attestation key")
	}
	// The parser refuses a structure that does not begin with TPM_GENERATED_VALUE.
	attest, err := tpm2.Unmarshal[tpm2.TPMSAttest](c.Attest)
	if err != nil {
		return fail(err.Error())
	}
	if attest.Type != tpm2.TPMSTAttestCertify {
		return fail("the TPM said something else")
	}
	if !bytes.Equal(attest.ExtraData.Buffer, qualifying) {
		return fail("it was given for another question")
	}
	about, err := attest.Attested.Certify()
	if err != nil {
		return fail(err.Error())
	}
	name, err := Blob{Public: keyPublic}.Name()
	if err != nil {
		return fail(err.Error())
	}
	if !bytes.Equal(about.Name.Buffer, name) {
		return fail("it is of another key")
	}
	return nil
}

// isKey compares everything but the point with what newKey asks for.
func isKey(raw []byte, attributes tpm2.TPMAObject) bool {
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](raw)
	if err != nil {
		return false
	}
	point, err := public.Unique.ECC()
	if err != nil {
		return false
	}
	return bytes.Equal(raw, tpm2.Marshal(tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attributes,
		Parameters: keyParameters(), Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, point),
	}))
}

// Name is what TPMs call an object by: the digest of its public half, and which
// digest. It says what the object may do as well as which it is.
func (b Blob) Name() (name []byte, err error) {
	const doing = "naming a TPM object"
	defer guard(doing, &err)
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](b.Public)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	n, err := tpm2.ObjectName(public)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	// The parser takes what ends early for empty, and leaves what is too much.
	if !bytes.Equal(tpm2.Marshal(*public), b.Public) {
		return nil, fmt.Errorf("%s: its public half is not well-formed", doing)
	}
	return n.Buffer, nil
}
