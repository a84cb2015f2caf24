// Package pair reads a certificate chain with its key from PEM and judges it, so that what the box serves is what browsers take.
package pair

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// The bounds of what is read: a chain is two or three certificates.
const (
	MaxChainBytes = 24 << 10
	MaxKeyBytes   = 8 << 10
	maxChain      = 6
	maxChainDER   = MaxChainBytes / 4 * 3 // as much as fits into MaxChainBytes of PEM: two such chains fit into the sealed file
)

// Parse reads a chain, leaf first, and the key of the leaf. Everything that a
// browser or a later person would stumble over is refused, with the reason.
func Parse(chain, key []byte, now time.Time) (tls.Certificate, error) {
	if len(chain) > MaxChainBytes || len(key) > MaxKeyBytes {
		return tls.Certificate{}, fmt.Errorf("the chain has %d bytes and the key %d: at most %d and %d are taken", len(chain), len(key), MaxChainBytes, MaxKeyBytes)
	}
	certificates, err := ParseChain(chain)
	if err != nil {
		return tls.Certificate{}, err
	}
	private, err := parseKey(key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return Join(certificates, private, now)
}

// ParseChain reads certificates in PEM and nothing else.
func ParseChain(b []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for rest := b; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if len(out) == 0 {
				return nil, errors.New("there is no certificate in the chain: it is text that begins with -----BEGIN CERTIFICATE-----")
			}
			if bytes.Contains(rest, []byte("-----BEGIN")) {
				return nil, fmt.Errorf("after certificate %d of the chain comes one that is damaged", len(out))
			}
			return out, nil
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("the chain holds a %s: only certificates belong there", limit(block.Type))
		}
		if len(out) == maxChain {
			return nil, fmt.Errorf("the chain has more than %d certificates", maxChain)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("reading certificate %d of the chain: %w", len(out)+1, err)
		}
		out = append(out, c)
	}
}

func parseKey(b []byte) (crypto.Signer, error) {
	block, rest := pem.Decode(b)
	for block != nil && block.Type == "EC PARAMETERS" { // openssl ecparam writes them before the key
		block, rest = pem.Decode(rest)
	}
	if block == nil {
		return nil, errors.New("there is no key: it is text that begins with -----BEGIN PRIVATE KEY-----")
	}
	if strings.Contains(block.Type, "ENCRYPTED") || block.Headers["DEK-Info"] != "" {
		return nil, errors.New("the key is encrypted with a passphrase: take that off first (openssl pkey), the box keeps keys encrypted itself")
	}
	var key any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("%s is not a private key", limit(block.Type))
	}
	if err != nil {
		// The library's words could repeat parts of a key.
		return nil, errors.New("the key cannot be read: it is damaged, or of a kind that is not known")
	}
	s, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("the key is not one that signs")
	}
	return s, nil
}

func limit(s string) string { return fmt.Sprintf("%.40q", s) }

// Join judges a chain and its key together.
func Join(chain []*x509.Certificate, key crypto.Signer, now time.Time) (tls.Certificate, error) {
	var none tls.Certificate
	if len(chain) == 0 || len(chain) > maxChain {
		return none, fmt.Errorf("the chain has %d certificates: one to %d are taken", len(chain), maxChain)
	}
	size := 0
	for _, c := range chain {
		size += len(c.Raw)
	}
	if size > maxChainDER {
		return none, fmt.Errorf("the certificates of the chain have %d bytes together: at most %d are taken", size, maxChainDER)
	}
	leaf := chain[0]
	public, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(key.Public()) {
		for i, c := range chain[1:] {
			if p, ok := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); ok && p.Equal(key.Public()) {
				return none, fmt.Errorf("the key belongs to certificate %d of the chain: the box's own certificate comes first, then the one that signed it", i+2)
			}
		}
		return none, errors.New("the key does not belong to the first certificate of the chain")
	}
	if err := strong(key.Public()); err != nil {
		return none, err
	}
	if weak := leaf.SignatureAlgorithm; slices.Contains([]x509.SignatureAlgorithm{x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.MD5WithRSA, x509.DSAWithSHA1}, weak) {
		return none, fmt.Errorf("the certificate is signed with %s, which browsers refuse", weak)
	}
	for i := range chain[1:] {
		if !bytes.Equal(chain[i].RawIssuer, chain[i+1].RawSubject) || chain[i].CheckSignatureFrom(chain[i+1]) != nil {
			return none, fmt.Errorf("certificate %d of the chain is not signed by certificate %d: each is followed by the one that signed it", i+1, i+2)
		}
	}
	switch {
	case leaf.IsCA:
		return none, errors.New("the certificate is that of an authority, not of a server")
	case len(leaf.DNSNames) == 0 && len(leaf.IPAddresses) == 0:
		return none, errors.New("the certificate names no host (subjectAltName): browsers refuse it")
	case len(leaf.ExtKeyUsage) > 0 && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny):
		return none, errors.New("the certificate is not for servers (extendedKeyUsage)")
	}
	for i, c := range chain {
		if now.After(c.NotAfter) {
			return none, fmt.Errorf("certificate %d of the chain expired at %s, and it is %s here", i+1, stamp(c.NotAfter), stamp(now))
		}
	}
	if now.Before(leaf.NotBefore) {
		return none, fmt.Errorf("the certificate begins at %s, and it is %s here: wait, or set the clock", stamp(leaf.NotBefore), stamp(now))
	}
	out := tls.Certificate{PrivateKey: key, Leaf: leaf}
	for _, c := range chain {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	return out, nil
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

func strong(key crypto.PublicKey) error {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 {
			return fmt.Errorf("the key is RSA with %d bits: 2048 is the least", k.N.BitLen())
		}
		if k.N.BitLen() > 8192 {
			return fmt.Errorf("the key is RSA with %d bits: more than 8192 make every visit slow", k.N.BitLen())
		}
	case *ecdsa.PublicKey:
		if n := k.Curve.Params().BitSize; n < 256 {
			return fmt.Errorf("the key is on a curve of %d bits: 256 is the least", n)
		}
	case ed25519.PublicKey:
		return errors.New("the key is Ed25519, which browsers do not take: use ECDSA P-256 or RSA")
	default:
		return errors.New("the key is of a kind that browsers do not take: use ECDSA P-256 or RSA")
	}
	return nil
}

// stored is a certificate with its key in a sealed file.
type stored struct {
	Chain [][]byte
	Key   []byte // PKCS #8
}

// Encode writes a certificate with its key, for a sealed file alone.
func Encode(c tls.Certificate) ([]byte, error) {
	k, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("keeping a certificate: %w", err)
	}
	return asn1.Marshal(stored{c.Certificate, k})
}

// Decode reads what Encode wrote. It does not judge: what was good when it was
// kept may have expired since.
func Decode(b []byte) (tls.Certificate, error) {
	var s stored
	if rest, err := asn1.Unmarshal(b, &s); err != nil || len(rest) != 0 || len(s.Chain) == 0 {
		return tls.Certificate{}, errors.Join(errors.New("reading a kept certificate: its content is malformed"), err)
	}
	leaf, err := x509.ParseCertificate(s.Chain[0])
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("reading a kept certificate: %w", err)
	}
	k, err := x509.ParsePKCS8PrivateKey(s.Key)
	if err != nil {
		return tls.Certificate{}, errors.New("reading a kept certificate: its key is malformed")
	}
	key, ok := k.(crypto.Signer)
	public, pok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pok || !public.Equal(key.Public()) {
		return tls.Certificate{}, errors.New("reading a kept certificate: its key does not belong to it")
	}
	return tls.Certificate{Certificate: s.Chain, PrivateKey: key, Leaf: leaf}, nil
}

// Names are the names and addresses of the certificate, without wildcards.
func Names(c *x509.Certificate) []string {
	var out []string
	for _, n := range c.DNSNames {
		if !strings.HasPrefix(n, "*.") {
			out = append(out, strings.ToLower(n))
		}
	}
	for _, a := range c.IPAddresses {
		out = append(out, a.String())
	}
	return out
}
