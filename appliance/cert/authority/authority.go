// Package authority is the box's own certificate authority: a root that can vouch for this box and for nothing else.
//
// People install the root once in their browsers, so it lives long, and what it
// may sign is written into it as name constraints (RFC 5280, 4.2.1.10): the
// box's names, private addresses, and the public addresses that the box had.
// Whoever steals its key gets no certificate for a bank by it.
package authority

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// LeafLife is how long a leaf lives; it is renewed after two thirds. Slack is
// how far before its making it begins: clocks of visitors go wrong, too.
const (
	LeafLife = 30 * 24 * time.Hour
	Slack    = 24 * time.Hour
)

// The root's validity does not depend on the clock, which may be wrong when it
// is made. 2049 is the last year of UTCTime (RFC 5280, 4.1.2.5).
var (
	rootFrom  = time.Date(2019, 1, 1, 0, 0, 0, 0, time.UTC)
	rootUntil = time.Date(2049, 12, 31, 23, 59, 59, 0, time.UTC)
)

// private are the ranges that every root may sign for: addresses that mean
// something else in each network, and change with a lease. RFC 1918, 3927,
// 6598, 4193, 4291.
var private = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("::1/128"),
}

// Authority is a root with its key.
type Authority struct {
	Root *x509.Certificate
	key  *ecdsa.PrivateKey
}

// New makes the root of a box: for its names and what is below them, for
// private addresses, and for those of addresses that are public.
func New(box string, names []string, addresses []netip.Addr) (*Authority, error) {
	if len(names) == 0 {
		// Without a single one, every name would be permitted.
		return nil, errors.New("making the box's own CA: it has no name to be constrained to")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the key of the box's own CA: %w", err)
	}
	serial, err := serial()
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: box + " own CA " + fmt.Sprintf("%X", serial.Bytes()[:3]), Organization: []string{"Gatehouse"}},
		NotBefore:    rootFrom, NotAfter: rootUntil,
		IsCA: true, MaxPathLenZero: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		// Kinds of names that are not listed are free (RFC 5280), so the two
		// others that software looks at are limited to what cannot exist (RFC 2606).
		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         names,
		PermittedEmailAddresses:     []string{noMail},
		PermittedURIDomains:         []string{noURI},
	}
	for _, p := range private {
		t.PermittedIPRanges = append(t.PermittedIPRanges, ipNet(p))
	}
	for _, a := range addresses {
		if a = a.Unmap().WithZone(""); a.IsValid() && !slices.ContainsFunc(private, func(p netip.Prefix) bool { return p.Contains(a) }) {
			t.PermittedIPRanges = append(t.PermittedIPRanges, ipNet(netip.PrefixFrom(a, a.BitLen())))
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making the box's own CA: %w", err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("making the box's own CA: %w", err)
	}
	return &Authority{root, key}, nil
}

// A permitted name that nobody has leaves none: mail and URIs are not for a box to vouch for.
const (
	noMail = "nobody@gatehouse.invalid"
	noURI  = "gatehouse.invalid"
)

// Limits refuses a root that may vouch for more than web pages of some names, private
// addresses and single ones, which New makes none of. Which names they are, the caller
// judges, and the single addresses, which further gives.
func Limits(root *x509.Certificate) (further []netip.Addr, err error) {
	switch {
	case !root.IsCA || root.CheckSignatureFrom(root) != nil:
		return nil, errors.New("it is not a root")
	case !root.MaxPathLenZero:
		return nil, errors.New("it may make further authorities")
	case root.KeyUsage != x509.KeyUsageCertSign || len(root.UnknownExtKeyUsage) > 0 || !slices.Equal(root.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}):
		return nil, errors.New("it may vouch for more than web pages, such as programs and mail")
	case !root.PermittedDNSDomainsCritical || len(root.PermittedDNSDomains) == 0 || len(root.PermittedIPRanges) == 0:
		return nil, errors.New("it is not limited to the box's names and addresses")
	case !slices.Equal(root.PermittedEmailAddresses, []string{noMail}) || !slices.Equal(root.PermittedURIDomains, []string{noURI}):
		return nil, errors.New("it may vouch for addresses of mail, or for URIs")
	}
	for _, n := range root.PermittedIPRanges {
		a, ok := netip.AddrFromSlice(n.IP)
		ones, bits := n.Mask.Size()
		if !ok || bits != a.BitLen() || netip.PrefixFrom(a, ones).Masked().Addr() != a {
			return nil, fmt.Errorf("its range of addresses %s is not one", n)
		}
		p := netip.PrefixFrom(a, ones)
		switch {
		case slices.ContainsFunc(private, func(q netip.Prefix) bool { return q.Bits() <= ones && q.Contains(a) }):
		case p.IsSingleIP():
			further = append(further, a)
		default:
			return nil, fmt.Errorf("it may vouch for the addresses %s", p)
		}
	}
	return further, nil
}

func serial() (*big.Int, error) {
	b := make([]byte, 16) // RFC 5280, 4.1.2.2: positive, at most 20 bytes
	if _, err := rand.Read(b); err != nil {
		return nil, fmt.Errorf("making a serial number: %w", err)
	}
	b[0] = b[0]&0x7F | 0x40
	return new(big.Int).SetBytes(b), nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// stored is an authority in a sealed file.
type stored struct {
	Root []byte // DER
	Key  []byte // PKCS #8
}

// Encode writes the authority with its key, for a sealed file alone.
func (a *Authority) Encode() ([]byte, error) {
	k, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return nil, fmt.Errorf("keeping the box's own CA: %w", err)
	}
	return asn1.Marshal(stored{a.Root.Raw, k})
}

// Decode reads what Encode wrote.
func Decode(b []byte) (*Authority, error) {
	var s stored
	if rest, err := asn1.Unmarshal(b, &s); err != nil || len(rest) != 0 {
		return nil, errors.Join(errors.New("reading the box's own CA: its content is malformed"), err)
	}
	root, err := x509.ParseCertificate(s.Root)
	if err != nil {
		return nil, fmt.Errorf("reading the box's own CA: %w", err)
	}
	k, err := x509.ParsePKCS8PrivateKey(s.Key)
	if err != nil {
		return nil, fmt.Errorf("reading the key of the box's own CA: %w", err)
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(root.PublicKey) {
		return nil, errors.New("reading the box's own CA: the key does not belong to it")
	}
	return &Authority{root, key}, nil
}

// Uncovered are the names and public addresses that the root may not sign for:
// those that the box got after the root was made.
func (a *Authority) Uncovered(names []string, addresses []netip.Addr) []string {
	var out []string
	for _, n := range names {
		if !a.permitsName(n) {
			out = append(out, n)
		}
	}
	for _, x := range addresses {
		if !a.permitsAddress(x) {
			out = append(out, x.String())
		}
	}
	return out
}

func (a *Authority) permitsName(n string) bool {
	return slices.ContainsFunc(a.Root.PermittedDNSDomains, func(d string) bool { return n == d || strings.HasSuffix(n, "."+d) })
}

func (a *Authority) permitsAddress(x netip.Addr) bool {
	ip := net.IP(x.Unmap().WithZone("").AsSlice())
	return slices.ContainsFunc(a.Root.PermittedIPRanges, func(n *net.IPNet) bool { return n.Contains(ip) })
}

// Issue makes a leaf with a new key for those names and addresses that the root
// may sign for.
func (a *Authority) Issue(names []string, addresses []netip.Addr, now time.Time) (tls.Certificate, error) {
	t := &x509.Certificate{
		NotBefore: now.Add(-Slack).Truncate(time.Second), NotAfter: now.Add(LeafLife).Truncate(time.Second),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, n := range names {
		if a.permitsName(n) {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	for _, x := range addresses {
		if a.permitsAddress(x) {
			t.IPAddresses = append(t.IPAddresses, x.Unmap().WithZone("").AsSlice())
		}
	}
	if len(t.DNSNames) == 0 {
		return tls.Certificate{}, fmt.Errorf("the box's own CA was made for %s, and the box is called %s now: make a new CA", strings.Join(a.Root.PermittedDNSDomains, ", "), strings.Join(names, ", "))
	}
	t.Subject.CommonName = t.DNSNames[0]
	var err error
	if t.SerialNumber, err = serial(); err != nil {
		return tls.Certificate{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("making a certificate key: %w", err)
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.Root, key.Public(), a.key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("signing a certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("signing a certificate: %w", err)
	}
	// The root goes along for those who look at the chain; nobody trusts it by that.
	return tls.Certificate{Certificate: [][]byte{der, a.Root.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// PEM is the root for people and tools.
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Root.Raw})
}

// Fingerprint is the root's SHA-256 as certificate viewers show it.
func (a *Authority) Fingerprint() string {
	sum := sha256.Sum256(a.Root.Raw)
	return strings.ReplaceAll(fmt.Sprintf("% X", sum[:]), " ", ":")
}

// Further are the names and addresses besides the box's own name and private
// addresses: who installs the root says that he knows them.
func (a *Authority) Further(box string) []string {
	var out []string
	for _, d := range a.Root.PermittedDNSDomains {
		if d != box && d != box+".local" {
			out = append(out, d)
		}
	}
	for _, n := range a.Root.PermittedIPRanges[len(private):] {
		out = append(out, n.IP.String())
	}
	return out
}

// Limits are what the root may sign for, in words.
func (a *Authority) Limits() []string {
	out := slices.Clone(a.Root.PermittedDNSDomains)
	for _, n := range a.Root.PermittedIPRanges {
		out = append(out, n.String())
	}
	return out
}
