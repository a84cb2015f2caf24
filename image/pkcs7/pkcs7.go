// Package pkcs7 makes the signatures that firmware knows: SignedData of PKCS #7 (RFC 2315) with SHA-256 and RSA.
//
// There is no time in them: the same content and key give the same bytes.
package pkcs7

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
)

var (
	oidData        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidSignedData  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidContentType = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	oidDigest      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	oidSHA256      = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidRSA         = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
)

type (
	contentInfo struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue `asn1:"optional"` // explicit, tag 0
	}
	signedData struct {
		Version      int
		Digests      []pkix.AlgorithmIdentifier `asn1:"set"`
		Content      contentInfo
		Certificates asn1.RawValue
		Signers      []signerInfo `asn1:"set"`
	}
	signerInfo struct {
		Version    int
		Issuer     issuerAndSerial
		Digest     pkix.AlgorithmIdentifier
		Attributes asn1.RawValue `asn1:"optional"`
		Encryption pkix.AlgorithmIdentifier
		Signature  []byte
	}
	issuerAndSerial struct {
		Issuer asn1.RawValue
		Serial *big.Int
	}
	attribute struct {
		Type   asn1.ObjectIdentifier
		Values asn1.RawValue
	}
)

// A Signer signs with the RSA key of its certificate: what firmware has taken
// since there is Secure Boot.
type Signer struct {
	Certificate *x509.Certificate
	Key         crypto.Signer
}

// Check says whether firmware can verify what s signs.
func (s Signer) Check() error {
	if public, ok := s.Key.Public().(*rsa.PublicKey); !ok || !public.Equal(s.Certificate.PublicKey) {
		return errors.New("the key is not the RSA key of the certificate")
	}
	return nil
}

// SHA256 names the digest, as all shapes here do.
func SHA256() pkix.AlgorithmIdentifier {
	return pkix.AlgorithmIdentifier{Algorithm: oidSHA256, Parameters: asn1.NullRawValue}
}

// Content signs DER that the signature carries, of a kind named by its object
// identifier, and returns a ContentInfo. What is signed are the attributes:
// the kind, and the digest of the content without its outer tag and length.
func (s Signer) Content(kind asn1.ObjectIdentifier, content []byte) ([]byte, error) {
	attributes, err := attributesOf(kind, content)
	if err != nil {
		return nil, err
	}
	// Signed as a SET; sent with the tag [0] in its place (RFC 2315, 9.3).
	set, err := asn1.Marshal(asn1.RawValue{Tag: asn1.TagSet, IsCompound: true, Bytes: attributes})
	if err != nil {
		return nil, err
	}
	inner, err := s.sign(contentInfo{kind, tagged(content)}, set, tagged(attributes))
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(contentInfo{oidSignedData, tagged(inner)})
}

// Detached signs bytes that lie elsewhere and returns the SignedData alone,
// without attributes and without the ContentInfo around it, which UEFI makes
// optional and older firmware does not take.
func (s Signer) Detached(data []byte) ([]byte, error) {
	return s.sign(contentInfo{Type: oidData}, data, asn1.RawValue{})
}

func (s Signer) sign(content contentInfo, signed []byte, attributes asn1.RawValue) ([]byte, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(signed)
	signature, err := s.Key.Sign(rand.Reader, sum[:], crypto.SHA256) // PKCS #1 v1.5: the same each time
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	return asn1.Marshal(signedData{
		Version: 1, Digests: []pkix.AlgorithmIdentifier{SHA256()}, Content: content,
		Certificates: tagged(s.Certificate.Raw),
		Signers: []signerInfo{{
			Version: 1, Issuer: issuerAndSerial{asn1.RawValue{FullBytes: s.Certificate.RawIssuer}, s.Certificate.SerialNumber},
			Digest: SHA256(), Attributes: attributes,
			Encryption: pkix.AlgorithmIdentifier{Algorithm: oidRSA, Parameters: asn1.NullRawValue}, Signature: signature,
		}},
	})
}

// Verify says whether signed is what a Signer with this certificate makes of the
// content: anything else is refused, were it another form of the same.
func Verify(signed []byte, certificate *x509.Certificate, kind asn1.ObjectIdentifier, content []byte) error {
	public, ok := certificate.PublicKey.(*rsa.PublicKey)
	if !ok {
		return errors.New("the certificate is not of an RSA key")
	}
	var outer contentInfo
	var inner signedData
	if rest, err := asn1.Unmarshal(signed, &outer); err != nil || len(rest) > 0 {
		return errors.New("the signature is not PKCS #7")
	}
	if rest, err := asn1.Unmarshal(outer.Content.Bytes, &inner); err != nil || len(rest) > 0 || len(inner.Signers) != 1 {
		return errors.New("the signature is not SignedData of PKCS #7 by one signer")
	}
	signature := inner.Signers[0].Signature
	again, err := Signer{certificate, known{public, signature}}.Content(kind, content)
	if err != nil {
		return err
	}
	if !bytes.Equal(again, signed) {
		return fmt.Errorf("the signature is of another key than %s, or of another content", certificate.Subject.CommonName)
	}
	attributes, err := attributesOf(kind, content)
	if err != nil {
		return err
	}
	set, err := asn1.Marshal(asn1.RawValue{Tag: asn1.TagSet, IsCompound: true, Bytes: attributes})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(set)
	if rsa.VerifyPKCS1v15(public, crypto.SHA256, sum[:], signature) != nil {
		return fmt.Errorf("the signature is not by the key of %s", certificate.Subject.CommonName)
	}
	return nil
}

// known stands for a signer of whom there is the signature alone: what lies
// around a signature is made anew and compared.
type known struct {
	public    *rsa.PublicKey
	signature []byte
}

func (k known) Public() crypto.PublicKey { return k.public }

func (k known) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return k.signature, nil }

// tagged is b under [0].
func tagged(b []byte) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: b}
}

func attributesOf(kind asn1.ObjectIdentifier, content []byte) ([]byte, error) {
	var whole asn1.RawValue
	if _, err := asn1.Unmarshal(content, &whole); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(whole.Bytes)
	var out []byte
	for _, a := range []struct {
		oid   asn1.ObjectIdentifier
		value any
	}{{oidContentType, kind}, {oidDigest, sum[:]}} {
		value, err := asn1.Marshal(a.value)
		if err != nil {
			return nil, err
		}
		b, err := asn1.Marshal(attribute{a.oid, asn1.RawValue{Tag: asn1.TagSet, IsCompound: true, Bytes: value}})
		if err != nil {
			return nil, err
		}
		out = append(out, b...) // in the order of DER: the shorter one first
	}
	return out, nil
}
