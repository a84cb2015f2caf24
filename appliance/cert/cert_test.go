package cert

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/cert/sealed"
)

var subkey = bytes.Repeat([]byte{3}, 32)

func TestDamagedCertificateIsKeptAndRefused(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"empty":     func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"truncated": func(p string) error { return os.Truncate(p, 100) },
		"wrong content": func(p string) error {
			return sealed.Write(p, subkey, purpose, []byte("something else"))
		},
		"another's key": func(p string) error {
			a, err := create("a")
			if err != nil {
				return err
			}
			b, err := create("b")
			if err != nil {
				return err
			}
			a.Key = b.Key
			raw, err := asn1.Marshal(a)
			if err != nil {
				return err
			}
			return sealed.Write(p, subkey, purpose, raw)
		},
	} {
		dir := t.TempDir()
		if _, err := LoadOrCreate(dir, subkey, "box"); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, file)
		if err := damage(path); err != nil {
			t.Fatal(err)
		}
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := LoadOrCreate(dir, subkey, "box"); err == nil || !strings.Contains(err.Error(), "erase the box, or put the file back") {
			t.Errorf("%s: %v, want an error that says what to do", name, err)
		}
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
			t.Errorf("%s: the damaged file was replaced", name)
		}
	}
}

func TestAnotherSubkeyIsRefused(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadOrCreate(dir, subkey, "box"); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreate(dir, bytes.Repeat([]byte{4}, 32), "box"); !errors.Is(err, sealed.ErrDamaged) {
		t.Errorf("opened by another subkey: %v", err)
	}
}

func TestNamesThatAreNoHostName(t *testing.T) {
	for _, name := range []string{"", "localhost", "a b", "a.b", "-a", "a-", "ä", "A", strings.Repeat("a", 64)} {
		if _, err := Ephemeral(name); err == nil {
			t.Errorf("a certificate for %q was made", name)
		}
	}
}

func TestSameCertificateAfterRestarts(t *testing.T) {
	dir := t.TempDir()
	first, err := LoadOrCreate(dir, subkey, "gatehouse-7f3k")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"gatehouse-7f3k", "renamed"} {
		again, err := LoadOrCreate(dir, subkey, name)
		if err != nil {
			t.Fatal(err)
		}
		if Fingerprint(again) != Fingerprint(first) || SPKI(again) != SPKI(first) {
			t.Error("another certificate after a restart")
		}
	}
	leaf := first.Leaf
	if got := strings.Join(leaf.DNSNames, " "); got != "gatehouse-7f3k gatehouse-7f3k.local" || len(leaf.IPAddresses) != 0 {
		t.Errorf("names %s %v", got, leaf.IPAddresses)
	}
	if leaf.IsCA {
		t.Error("it could sign others")
	}
	for _, clock := range []time.Time{time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2045, 1, 1, 0, 0, 0, 0, time.UTC)} {
		pool := x509.NewCertPool()
		pool.AddCert(leaf)
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: "gatehouse-7f3k.local", CurrentTime: clock}); err != nil {
			t.Errorf("a browser that trusts it and whose clock says %s: %v", clock, err)
		}
	}
	other, err := Ephemeral("gatehouse-7f3k")
	if err != nil {
		t.Fatal(err)
	}
	if SPKI(other) == SPKI(first) || other.Leaf.SerialNumber.Cmp(leaf.SerialNumber) == 0 {
		t.Error("an ephemeral certificate repeats the kept one")
	}
}

func TestFingerprintAndSPKI(t *testing.T) {
	c, err := Ephemeral("box")
	if err != nil {
		t.Fatal(err)
	}
	f := Fingerprint(c)
	sum := sha256.Sum256(c.Certificate[0])
	if !regexp.MustCompile(`^([0-9A-F]{2}:){31}[0-9A-F]{2}$`).MatchString(f) ||
		strings.ToLower(strings.ReplaceAll(f, ":", "")) != hex.EncodeToString(sum[:]) {
		t.Errorf("Fingerprint = %s", f)
	}
	if SPKI(c) != sha256.Sum256(c.Leaf.RawSubjectPublicKeyInfo) {
		t.Error("SPKI is not the hash of the public key")
	}
	if Fingerprint(tls.Certificate{}) != "" || SPKI(tls.Certificate{}) != [32]byte{} {
		t.Error("an empty certificate has a fingerprint")
	}
}

// TestServerConfig shows bar 23: TLS 1.3 alone, and no resumption.
func TestServerConfig(t *testing.T) {
	c, err := Ephemeral("box")
	if err != nil {
		t.Fatal(err)
	}
	dial := func(max uint16, cache tls.ClientSessionCache) (tls.ConnectionState, error) {
		a, b := net.Pipe()
		defer a.Close()
		defer b.Close()
		go func() {
			s := tls.Server(b, ServerConfig(c, "http/1.1"))
			if s.Handshake() == nil {
				s.Write([]byte("x"))
			}
		}()
		k := tls.Client(a, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12, MaxVersion: max,
			ServerName: "box", ClientSessionCache: cache, NextProtos: []string{"http/1.1"}})
		if err := k.Handshake(); err != nil {
			return tls.ConnectionState{}, err
		}
		k.Read(make([]byte, 1)) // tickets come with the first data
		return k.ConnectionState(), nil
	}
	if _, err := dial(tls.VersionTLS12, nil); err == nil {
		t.Error("TLS 1.2 is taken")
	}
	cache := tls.NewLRUClientSessionCache(4)
	for range 2 {
		cs, err := dial(tls.VersionTLS13, cache)
		if err != nil || cs.Version != tls.VersionTLS13 || cs.NegotiatedProtocol != "http/1.1" || cs.DidResume {
			t.Errorf("connection %+v, %v", cs, err)
		}
	}
}
