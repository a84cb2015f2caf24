package tpm

import (
	"crypto/ecdsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"
)

// NewKey makes a P-256 signing key that never leaves the TPM. Using it needs
// auth, at most 32 bytes: another system started on the same machine, which
// has the same TPM, cannot sign with it.
func (t *TPM) NewKey(root Root, auth []byte) (blob Blob, err error) {
	return t.newKey("making a signing key in the TPM", root, auth, keyAttributes)
}

// keyAttributes are those of every signing key: made here, here for good, and
// no power cut counts as a guess.
var keyAttributes = tpm2.TPMAObject{
	FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
	UserWithAuth: true, NoDA: true, SignEncrypt: true,
}

// keyParameters are P-256 and ECDSA with SHA-256, which every TPM 2.0 of a PC has.
func keyParameters() tpm2.TPMUPublicParms {
	return tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		CurveID: tpm2.TPMECCNistP256,
		Scheme: tpm2.TPMTECCScheme{
			Scheme:  tpm2.TPMAlgECDSA,
			Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
		},
	})
}

func (t *TPM) newKey(doing string, root Root, auth []byte, attributes tpm2.TPMAObject) (blob Blob, err error) {
	err = t.under(root, doing, func(s *scope) error {
		resp, err := tpm2.Create{
			ParentHandle: s.self(encrypt(in)),
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
				UserAuth: tpm2.TPM2BAuth{Buffer: password(auth)},
			}},
			InPublic: tpm2.New2B(tpm2.TPMTPublic{
				Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
				ObjectAttributes: attributes, Parameters: keyParameters(),
			}),
		}.Execute(s)
		if err != nil {
			return explain(doing, err)
		}
		blob, err = newBlob(resp.OutPublic, resp.OutPrivate)
		return explain(doing, err)
	})
	if err != nil {
		return Blob{}, err
	}
	_, err = blob.Key()
	return blob, err
}

// Key is the public half of a key that NewKey made.
func (b Blob) Key() (key *ecdsa.PublicKey, err error) {
	const doing = "reading a TPM key's public half"
	defer guard(doing, &err)
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](b.Public)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	k, err := tpm2.Pub(*public)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	key, ok := k.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%s: it is a %T", doing, k)
	}
	// Refuses a point that is not on the curve.
	if _, err := key.ECDH(); err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	return key, nil
}

// Sign signs a SHA-256 digest; the signature is ASN.1 and was checked.
func (t *TPM) Sign(root Root, key Blob, auth []byte, digest [32]byte) (signature []byte, err error) {
	const doing = "signing in the TPM"
	public, err := key.Key()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	err = t.under(root, doing, func(s *scope) error {
		object, flush, err := s.load(doing, key)
		if err != nil {
			return err
		}
		defer flush()
		resp, err := tpm2.Sign{
			KeyHandle:  tpm2.AuthHandle{Handle: object.Handle, Name: object.Name, Auth: s.session(tpm2.Auth(password(auth)))},
			Digest:     tpm2.TPM2BDigest{Buffer: digest[:]},
			InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
			Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
		}.Execute(s)
		if err != nil {
			return explain(doing, err)
		}
		signature, err = asn1Signature(resp.Signature)
		return explain(doing, err)
	})
	if err != nil {
		return nil, err
	}
	if !ecdsa.VerifyASN1(public, digest[:], signature) {
		return nil, errors.New("signing in the TPM: the signature does not verify")
	}
	return signature, nil
}

// asn1Signature is an ECDSA signature as everybody but a TPM writes it.
func asn1Signature(signature tpm2.TPMTSignature) ([]byte, error) {
	sig, err := signature.Signature.ECDSA()
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(struct{ R, S *big.Int }{
		new(big.Int).SetBytes(sig.SignatureR.Buffer), new(big.Int).SetBytes(sig.SignatureS.Buffer),
	})
}
