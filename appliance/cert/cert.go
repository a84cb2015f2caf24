// Package cert makes and keeps the box's identity: the certificate that it signed itself.
//
// It is made once, at first boot, and stays: people compare its fingerprint
// with the screen of the box, and what they trusted must not change under
// them. So it is long-lived and holds no address. Other certificates may answer
// browsers (package keeper); the identity answers whoever pinned it, under
// IdentityName, and whenever there is no other that is good.
package cert

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"path/filepath"
	"strings"
	"time"

	"gatehouse/appliance/cert/sealed"
)

// file holds the whole certificate: one file, so one commit point; a key
// without its certificate cannot exist.
const (
	file    = "web-certificate.sealed"
	purpose = "gatehouse/cert/web/1"
)

// IdentityName is the server name (SNI) by which tools ask for the identity,
// whatever certificate browsers are shown. RFC 2606 keeps it from being anyone's.
const IdentityName = "identity.gatehouse.invalid"

// The validity does not depend on the clock of the box, which may be wrong by
// decades at first boot, or on the browser's. Before July 2019 also keeps
// Apple's limit of 825 days away (support.apple.com/103769: it counts for
// certificates issued on or after 2019-07-01); 2049 is the last year of
// UTCTime (RFC 5280, 4.1.2.5).
var (
	notBefore = time.Date(2019, 1, 1, 0, 0, 0, 0, time.UTC)
	notAfter  = time.Date(2049, 12, 31, 23, 59, 59, 0, time.UTC)
)

// stored is the plain content of the file.
type stored struct {
	Certificate []byte // DER
	Key         []byte // PKCS #8
}

// LoadOrCreate returns the certificate kept in dir, or makes one for name and
// keeps it, encrypted under the 32-byte subkey. A file that is there and does
// not open is an error, and stays: to replace it silently would show people a
// new fingerprint and teach them to accept that.
func LoadOrCreate(dir string, subkey []byte, name string) (tls.Certificate, error) {
	path := filepath.Join(dir, file)
	b, err := sealed.Read(path, subkey, purpose)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return tls.Certificate{}, fmt.Errorf("opening the web certificate: %w: erase the box, or put the file back", err)
	default:
		c, err := parse(b)
		if err != nil {
			return tls.Certificate{}, fmt.Errorf("opening the web certificate %s: %w: erase the box, or put the file back", path, err)
		}
		return c, nil
	}
	s, err := create(name)
	if err != nil {
		return tls.Certificate{}, err
	}
	if b, err = asn1.Marshal(s); err != nil {
		return tls.Certificate{}, fmt.Errorf("writing the web certificate: %w", err)
	}
	if err := sealed.Write(path, subkey, purpose, b); err != nil {
		return tls.Certificate{}, fmt.Errorf("keeping the web certificate: %w", err)
	}
	return parse(b)
}

// Ephemeral makes a certificate that is kept nowhere, for the locked state.
func Ephemeral(name string) (tls.Certificate, error) {
	s, err := create(name)
	if err != nil {
		return tls.Certificate{}, err
	}
	return s.certificate()
}

func create(name string) (stored, error) {
	if !validName(name) {
		return stored{}, fmt.Errorf("making a certificate: %q is not a host name of one label", name)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return stored{}, fmt.Errorf("making a certificate key: %w", err)
	}
	serial := make([]byte, 16) // RFC 5280, 4.1.2.2: positive, at most 20 bytes
	if _, err := rand.Read(serial); err != nil {
		return stored{}, fmt.Errorf("making a certificate: %w", err)
	}
	serial[0] = serial[0]&0x7F | 0x40
	t := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    notBefore,
		NotAfter:     notAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		// The name as a router's DNS would give it, and as mDNS would. No
		// localhost: a trusted copy of this certificate must not speak for
		// the visitor's own machine. No addresses: they change, this does not.
		DNSNames:              []string{name, name + ".local"},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return stored{}, fmt.Errorf("making a certificate: %w", err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return stored{}, fmt.Errorf("making a certificate: %w", err)
	}
	return stored{der, pk}, nil
}

func validName(s string) bool {
	return s != "" && len(s) <= 63 && s != "localhost" && s[0] != '-' && s[len(s)-1] != '-' &&
		strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

func parse(b []byte) (tls.Certificate, error) {
	var s stored
	if rest, err := asn1.Unmarshal(b, &s); err != nil || len(rest) != 0 {
		return tls.Certificate{}, errors.Join(errors.New("its content is malformed"), err)
	}
	return s.certificate()
}

func (s stored) certificate() (tls.Certificate, error) {
	leaf, err := x509.ParseCertificate(s.Certificate)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("reading the certificate: %w", err)
	}
	k, err := x509.ParsePKCS8PrivateKey(s.Key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("reading the certificate's key: %w", err)
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(leaf.PublicKey) {
		return tls.Certificate{}, errors.New("the certificate's key does not belong to it")
	}
	return tls.Certificate{Certificate: [][]byte{s.Certificate}, PrivateKey: key, Leaf: leaf}, nil
}

// ServerConfig is how every TLS listener of the box is set up: TLS 1.3 only,
// and no session tickets. A resumed connection would outlive a change of the
// certificate without showing it, ticket keys would be one more secret, and a
// page uses one HTTP/2 connection, so there is little to win.
func ServerConfig(c tls.Certificate, protocols ...string) *tls.Config {
	return &tls.Config{
		Certificates:           []tls.Certificate{c},
		MinVersion:             tls.VersionTLS13,
		NextProtos:             protocols,
		SessionTicketsDisabled: true,
	}
}

// Fingerprint is the SHA-256 of the certificate as browsers show it: 9A:41:….
func Fingerprint(c tls.Certificate) string {
	if len(c.Certificate) == 0 {
		return ""
	}
	h := sha256.Sum256(c.Certificate[0])
	return strings.ReplaceAll(fmt.Sprintf("% X", h[:]), " ", ":")
}

// SPKI is the SHA-256 of the certificate's public key, DER, by which it is
// pinned and spoken in words.
func SPKI(c tls.Certificate) [32]byte {
	if c.Leaf == nil {
		return [32]byte{}
	}
	return sha256.Sum256(c.Leaf.RawSubjectPublicKeyInfo)
}
