package efivar

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"gatehouse/image/keys"
	"gatehouse/image/pkcs7"
)

func set(t *testing.T) (keys.Set, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "keys")
	s, err := keys.New(dir, "test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

func signer(k keys.Key) pkcs7.Signer { return pkcs7.Signer{Certificate: k.Certificate, Key: k.Signer} }

// sbvarsign is not ours. What it signs for the same second has to be the same:
// head, value, certificate and digest. It puts the digest into attributes, which
// UEFI forbids and firmware takes; ours signs the digest itself.
func TestBOX5_VariablesAreSignedAsOthersDo(t *testing.T) {
	s, dir := set(t)
	for _, c := range []struct {
		name string
		by   keys.Role
	}{{"PK", keys.Platform}, {"KEK", keys.Platform}, {"db", keys.Exchange}} {
		value := SignatureList(s[keys.Role(c.name)].Certificate)
		in, out := filepath.Join(t.TempDir(), "value"), filepath.Join(t.TempDir(), "signed")
		if err := os.WriteFile(in, value, 0o600); err != nil {
			t.Fatal(err)
		}
		key, cert := filepath.Join(dir, string(c.by)+".key"), filepath.Join(dir, string(c.by)+".crt")
		if text, err := exec.Command("sbvarsign", "--attr", "NON_VOLATILE,BOOTSERVICE_ACCESS,RUNTIME_ACCESS", "--key", key, "--cert", cert, "--output", out, c.name, in).CombinedOutput(); err != nil {
			t.Fatalf("sbvarsign (install package sbsigntool): %v: %s", err, text)
		}
		theirs, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		at := time.Date(int(binary.LittleEndian.Uint16(theirs)), time.Month(theirs[2]), int(theirs[3]), int(theirs[4]), int(theirs[5]), int(theirs[6]), 0, time.UTC)
		ours, err := Sign(c.name, value, at, signer(s[c.by]))
		if err != nil {
			t.Fatal(err)
		}
		again, err := Sign(c.name, value, at, signer(s[c.by]))
		if err != nil || !bytes.Equal(ours, again) {
			t.Errorf("%s: signed twice it is two changes: %v", c.name, err)
		}
		ourSignature, ourValue := parts(t, ours)
		theirSignature, theirValue := parts(t, theirs)
		if !bytes.Equal(ours[:timeSize], theirs[:timeSize]) || !bytes.Equal(ours[timeSize+4:timeSize+certHead], theirs[timeSize+4:timeSize+certHead]) {
			t.Errorf("%s: head % x, sbvarsign's % x", c.name, ours[:timeSize+certHead], theirs[:timeSize+certHead])
		}
		if !bytes.Equal(ourValue, value) || !bytes.Equal(theirValue, value) {
			t.Errorf("%s: the value is not what follows the signature", c.name)
		}
		digest := digestIn(t, theirSignature)
		public := s[c.by].Certificate.PublicKey.(*rsa.PublicKey)
		if err := rsa.VerifyPKCS1v15(public, crypto.SHA256, digest, ourSignature[len(ourSignature)-public.Size():]); err != nil {
			t.Errorf("%s: our signature is not of what sbvarsign signs: %v", c.name, err)
		}
		if !bytes.Contains(ourSignature, s[c.by].Certificate.Raw) {
			t.Errorf("%s: the certificate of who signed is not there", c.name)
		}
		// EDK II looks for SHA-256 at this place, which a ContentInfo would move.
		if sha := []byte{0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01}; !bytes.Equal(ourSignature[11:22], sha) {
			t.Errorf("%s: the SignedData begins % x", c.name, ourSignature[:24])
		}
	}
}

// digestIn is the attribute messageDigest of a SignedData.
func digestIn(t *testing.T, der []byte) []byte {
	t.Helper()
	head := []byte{0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x04, 0x31, 0x22, 0x04, 0x20}
	_, rest, ok := bytes.Cut(der, head)
	if !ok || len(rest) < sha256.Size {
		t.Fatal("sbvarsign's signature has no digest")
	}
	return rest[:sha256.Size]
}

// parts splits what SetVariable takes.
func parts(t *testing.T, signed []byte) (signature, value []byte) {
	t.Helper()
	end := timeSize + int(binary.LittleEndian.Uint32(signed[timeSize:]))
	if end > len(signed) || end < timeSize+certHead {
		t.Fatalf("a signature ends at %d of %d", end, len(signed))
	}
	return signed[timeSize+certHead : end], signed[end:]
}

func TestBOX5_VariableIsBoundToNameTimeAndValue(t *testing.T) {
	s, _ := set(t)
	at := time.Date(2026, 11, 29, 3, 4, 5, 6, time.FixedZone("", 3600))
	sign := func(name, value string, at time.Time) []byte {
		b, err := Sign(name, []byte(value), at, signer(s[keys.Platform]))
		if err != nil {
			t.Fatal(err)
		}
		signature, _ := parts(t, b)
		return signature
	}
	one := sign("KEK", "value", at)
	for name, other := range map[string][]byte{
		"name": sign("PK", "value", at), "vendor": sign("db", "value", at), "value": sign("KEK", "Value", at), "time": sign("KEK", "value", at.Add(time.Second)),
	} {
		if bytes.Equal(one, other) {
			t.Errorf("another %s, and the same signature", name)
		}
	}
	if !bytes.Equal(one, sign("KEK", "value", at.UTC())) {
		t.Error("one time in two zones gives two signatures")
	}
	if got := stampOf(at); !bytes.Equal(got, []byte{0xea, 0x07, 11, 29, 2, 4, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0}) {
		t.Errorf("EFI_TIME is % x", got)
	}
}

func TestBOX5_VariableIsNotSignedByAnotherKey(t *testing.T) {
	s, _ := set(t)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]pkcs7.Signer{
		"another's key": {Certificate: s[keys.Platform].Certificate, Key: s[keys.Exchange].Signer},
		"no RSA":        {Certificate: s[keys.Platform].Certificate, Key: ec},
		"no RSA, both":  {Certificate: &x509.Certificate{PublicKey: ec.Public()}, Key: ec},
	} {
		if _, err := Sign("PK", nil, time.Now(), bad); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
}
