package pair

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

type signed struct {
	c   *x509.Certificate
	key crypto.Signer
}

func ecKey(t testing.TB) crypto.Signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// sign makes a certificate of key by another, or by itself.
func sign(t testing.TB, name string, key crypto.Signer, by *signed, change func(*x509.Certificate)) signed {
	t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(90 * 24 * time.Hour),
		BasicConstraintsValid: true, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	change(c)
	parent, with := c, key
	if by != nil {
		parent, with = by.c, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), with)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return signed{c, key}
}

func text(list ...signed) []byte {
	var b bytes.Buffer
	for _, s := range list {
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: s.c.Raw})
	}
	return b.Bytes()
}

func keyText(t testing.TB, k crypto.Signer) []byte {
	t.Helper()
	b, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b})
}

func ca(c *x509.Certificate) {
	c.IsCA, c.KeyUsage, c.ExtKeyUsage = true, x509.KeyUsageCertSign, nil
}
func host(c *x509.Certificate) { c.DNSNames = []string{"gate.example.net"} }

func TestNET10_BroughtCertificatesAreJudged(t *testing.T) {
	root := sign(t, "root", ecKey(t), nil, ca)
	middle := sign(t, "middle", ecKey(t), &root, ca)
	leaf := sign(t, "leaf", ecKey(t), &middle, host)
	other := sign(t, "leaf", ecKey(t), &root, host)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	single := func(key crypto.Signer, change func(*x509.Certificate)) ([]byte, []byte) {
		s := sign(t, "x", key, &middle, func(c *x509.Certificate) { host(c); change(c) })
		return text(s, middle), keyText(t, key)
	}
	same := func(*x509.Certificate) {}
	type input struct{ chain, key []byte }
	of := func(chain, key []byte) input { return input{chain, key} }
	k := keyText(t, leaf.key)
	for want, in := range map[string]input{
		"no certificate in the chain":         {nil, k},
		"holds a \"PRIVATE KEY\"":             {append(text(leaf), k...), k},
		"there is no key":                     {text(leaf), nil},
		"does not belong to the first":        {text(leaf, middle), keyText(t, other.key)},
		"belongs to certificate 2":            {text(middle, leaf), k},
		"certificate 1 of the chain is not s": {text(leaf, root), k},
		"certificate 2 of the chain is not s": {text(leaf, middle, leaf), k},
		"more than 6 certificates":            {text(leaf, middle, root, root, root, root, root), k},
		"encrypted with a passphrase":         {text(leaf), []byte("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")},
		"the key cannot be read":              {text(leaf), []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")},
		"comes one that is damaged":           {append(text(leaf), "-----BEGIN CERTIFICATE-----\n!!"...), k},
		"RSA with 1024 bits":                  of(single(weak, same)),
		"Ed25519":                             of(single(ed, same)),
		"curve of 224 bits":                   of(single(k224, same)),
		"expired at":                          of(single(ecKey(t), func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) })),
		"begins at":                           of(single(ecKey(t), func(c *x509.Certificate) { c.NotBefore = now.Add(time.Hour) })),
		"names no host":                       of(single(ecKey(t), func(c *x509.Certificate) { c.DNSNames = nil })),
		"not for servers":                     of(single(ecKey(t), func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })),
		"that of an authority":                {text(middle, root), keyText(t, middle.key)},
		"bytes and the key":                   {bytes.Repeat([]byte("x"), MaxChainBytes+1), k},
	} {
		if _, err := Parse(in.chain, in.key, now); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestNET10_GoodPairsAreTaken(t *testing.T) {
	root := sign(t, "root", ecKey(t), nil, ca)
	middle := sign(t, "middle", ecKey(t), &root, ca)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"P-256": ecKey(t), "RSA": rsaKey} {
		leaf := sign(t, "leaf", key, &middle, host)
		keys := map[string][]byte{"PKCS #8": keyText(t, key)}
		switch k := key.(type) {
		case *rsa.PrivateKey:
			keys["PKCS #1"] = pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)})
		case *ecdsa.PrivateKey:
			b, err := x509.MarshalECPrivateKey(k)
			if err != nil {
				t.Fatal(err)
			}
			keys["SEC 1"] = append(pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{5, 0}}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: b})...)
		}
		for kind, k := range keys {
			c, err := Parse(text(leaf, middle, root), k, now)
			if err != nil || len(c.Certificate) != 3 || c.Leaf.VerifyHostname("gate.example.net") != nil {
				t.Errorf("%s, %s: %v", name, kind, err)
				continue
			}
			b, err := Encode(c)
			if err != nil {
				t.Fatal(err)
			}
			if d, err := Decode(b); err != nil || len(d.Certificate) != 3 || !bytes.Equal(d.Leaf.Raw, c.Leaf.Raw) {
				t.Errorf("%s: kept and read again: %v", name, err)
			}
			if _, err := Decode(b[:len(b)-1]); err == nil {
				t.Error("a cut one is read")
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"))
	root := sign(f, "root", ecKey(f), nil, ca)
	leaf := sign(f, "leaf", ecKey(f), &root, host)
	f.Add(text(leaf, root), keyText(f, leaf.key))
	f.Fuzz(func(t *testing.T, chain, key []byte) {
		c, err := Parse(chain, key, now)
		if err == nil && (c.Leaf == nil || c.PrivateKey == nil || len(c.Certificate) == 0) {
			t.Fatal("half a certificate")
		}
	})
}

// Six certificates can hold any number of bytes, and a server chooses them.
func TestNET10_AChainIsBoundedInBytes(t *testing.T) {
	key := ecKey(t)
	big := func(n int) *x509.Certificate {
		return sign(t, "gate.example.net", key, nil, func(c *x509.Certificate) {
			c.DNSNames = []string{"gate.example.net"}
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, Value: make([]byte, n)}}
		}).c
	}
	if _, err := Join([]*x509.Certificate{big(17 << 10)}, key, now); err != nil {
		t.Errorf("one that fits is refused: %v", err)
	}
	if _, err := Join([]*x509.Certificate{big(18 << 10)}, key, now); err == nil || !strings.Contains(err.Error(), "bytes together") {
		t.Errorf("%v", err)
	}
}
