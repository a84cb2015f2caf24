package authority

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"encoding/xml"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"
)

const box = "gatehouse-7f3k"

var (
	names     = []string{box, box + ".local", "gate.example.net"}
	addresses = []netip.Addr{netip.MustParseAddr("192.168.1.40"), netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("fd00::7")}
	now       = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
)

func make1(t *testing.T) *Authority {
	t.Helper()
	a, err := New(box, names, addresses)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// forge signs what somebody with the root's key would like to have.
func forge(t *testing.T, a *Authority, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true}
	change(c)
	der, err := x509.CreateCertificate(rand.Reader, c, a.Root, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

func verify(a *Authority, leaf *x509.Certificate, host string, usage x509.ExtKeyUsage) error {
	pool := x509.NewCertPool()
	pool.AddCert(a.Root)
	_, err := leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: host, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
	return err
}

// TestNET10_TheRootVouchesForNobodyElse has whoever stole the root's key sign
// for others.
func TestNET10_TheRootVouchesForNobodyElse(t *testing.T) {
	a := make1(t)
	for _, name := range []string{"example.com", "bank.example", "gatehouse-7f3k.example.com", "xgatehouse-7f3k", "local", "other.local", "example.net", "localhost", "*.example.net"} {
		leaf := forge(t, a, func(c *x509.Certificate) { c.DNSNames = []string{name} })
		var invalid x509.CertificateInvalidError
		if err := verify(a, leaf, "", x509.ExtKeyUsageServerAuth); !errors.As(err, &invalid) || invalid.Reason != x509.CANotAuthorizedForThisName {
			t.Errorf("%s: %v, want a refusal of the name", name, err)
		}
	}
	for _, ip := range []string{"1.1.1.1", "203.0.113.8", "2001:db8::8", "172.32.0.1", "11.0.0.1", "2606:4700::1111"} {
		leaf := forge(t, a, func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.ParseIP(ip)} })
		if err := verify(a, leaf, "", x509.ExtKeyUsageServerAuth); err == nil {
			t.Errorf("%s is vouched for", ip)
		}
	}
	mail := forge(t, a, func(c *x509.Certificate) { c.DNSNames, c.EmailAddresses = []string{box}, []string{"ann@example.com"} })
	if err := verify(a, mail, "", x509.ExtKeyUsageServerAuth); err == nil {
		t.Error("a mail address is vouched for")
	}
	uri := forge(t, a, func(c *x509.Certificate) {
		c.DNSNames, c.URIs = []string{box}, []*url.URL{{Scheme: "https", Host: "bank.example"}}
	})
	if err := verify(a, uri, "", x509.ExtKeyUsageServerAuth); err == nil {
		t.Error("a URI is vouched for")
	}
	code := forge(t, a, func(c *x509.Certificate) {
		c.DNSNames, c.ExtKeyUsage = []string{box}, []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	})
	if err := verify(a, code, "", x509.ExtKeyUsageCodeSigning); err == nil {
		t.Error("programs can be signed")
	}
	// A further authority below it is one link too many, even for the box's name.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, a.Root, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	sub, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	leaf := forge(t, &Authority{sub, key}, func(c *x509.Certificate) { c.DNSNames = []string{box} })
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(a.Root)
	between.AddCert(sub)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: box, CurrentTime: now}); err == nil {
		t.Error("a further authority is taken")
	}
}

func TestFurtherNames(t *testing.T) {
	if got := strings.Join(make1(t).Further(box), " "); got != "gate.example.net 203.0.113.7 2001:db8::7" {
		t.Errorf("%s", got)
	}
}

func TestNET10_NoNameNoRoot(t *testing.T) {
	if _, err := New(box, nil, addresses); err == nil {
		t.Error("a root without a name is limited by none")
	}
}

func TestNET10_LeafOfTheOwnCA(t *testing.T) {
	a := make1(t)
	c, err := a.Issue(names, addresses, now)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{box, box + ".local", "gate.example.net", "192.168.1.40", "203.0.113.7", "2001:db8::7", "fd00::7"} {
		if err := verify(a, c.Leaf, host, x509.ExtKeyUsageServerAuth); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	if c.Leaf.IsCA || c.Leaf.NotAfter.Sub(now) > LeafLife || c.Leaf.NotBefore.After(now.Add(-Slack)) {
		t.Errorf("leaf from %s to %s", c.Leaf.NotBefore, c.Leaf.NotAfter)
	}
	again, err := a.Issue(names, addresses, now)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(again.Leaf.RawSubjectPublicKeyInfo, c.Leaf.RawSubjectPublicKeyInfo) {
		t.Error("two leaves have one key")
	}
	// What the box got after the root was made is left out, and told.
	more := append([]netip.Addr{netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("10.9.9.9")}, addresses...)
	if got := a.Uncovered(append([]string{"new.example"}, names...), more); strings.Join(got, " ") != "new.example 198.51.100.9" {
		t.Errorf("uncovered: %v", got)
	}
	c, err = a.Issue(append([]string{"new.example"}, names...), more, now)
	if err != nil {
		t.Fatal(err)
	}
	if c.Leaf.VerifyHostname("198.51.100.9") == nil || c.Leaf.VerifyHostname("new.example") == nil {
		t.Error("the leaf names what the root may not sign for: no browser takes it")
	}
	if err := verify(a, c.Leaf, "10.9.9.9", x509.ExtKeyUsageServerAuth); err != nil {
		t.Errorf("a new private address: %v", err)
	}
	if _, err := a.Issue([]string{"renamed"}, nil, now); err == nil || !strings.Contains(err.Error(), "make a new CA") {
		t.Errorf("a renamed box: %v", err)
	}
}

func TestNET10_AuthorityIsKeptWhole(t *testing.T) {
	a, other := make1(t), make1(t)
	b, err := a.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(b)
	if err != nil || got.Fingerprint() != a.Fingerprint() {
		t.Fatalf("%v", err)
	}
	if got.Fingerprint() == other.Fingerprint() {
		t.Error("two roots are one")
	}
	for i := range len(b) {
		bad := bytes.Clone(b)
		bad[i] ^= 0x40
		if d, err := Decode(bad); err == nil && !bytes.Equal(d.Root.Raw, a.Root.Raw) {
			// A flipped bit of the certificate that still parses does not verify.
			if d.Root.CheckSignatureFrom(d.Root) == nil {
				t.Fatalf("damage at byte %d gave another root", i)
			}
		}
		if _, err := Decode(b[:i]); err == nil {
			t.Fatalf("%d bytes are an authority", i)
		}
	}
	mixed := &Authority{a.Root, other.key}
	if b, err = mixed.Encode(); err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(b); err == nil {
		t.Error("another's key was taken")
	}
}

func TestNET10_DownloadsOfTheRoot(t *testing.T) {
	a := make1(t)
	block, rest := pem.Decode(a.PEM())
	if block == nil || len(rest) != 0 || !bytes.Equal(block.Bytes, a.Root.Raw) {
		t.Error("the PEM is not the root")
	}
	profile := a.MobileConfig(`<box>&"`)
	if bytes.Contains(profile, []byte("<box>")) {
		t.Error("the name is not escaped")
	}
	for d := xml.NewDecoder(bytes.NewReader(profile)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Contains(profile, []byte(base64.StdEncoding.EncodeToString(a.Root.Raw))) || !bytes.Equal(profile, a.MobileConfig(`<box>&"`)) {
		t.Error("the profile does not hold the root, or changes")
	}
	if bytes.Contains(profile, []byte("PRIVATE")) || bytes.Contains(a.PEM(), []byte("PRIVATE")) {
		t.Error("a download holds a key")
	}
}
