package authenticode

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// bare is the smallest that has all that a signature touches.
func bare(size int) []byte {
	le := binary.LittleEndian
	b := make([]byte, size)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x80)
	pe := b[0x80:]
	copy(pe, "PE\x00\x00")
	le.PutUint16(pe[4:], 0x8664)
	le.PutUint16(pe[6:], 1)    // sections
	le.PutUint16(pe[20:], 240) // optional header
	le.PutUint16(pe[22:], 0x22e)
	o := pe[24:]
	le.PutUint16(o, 0x20b)
	le.PutUint32(o[32:], 4096)
	le.PutUint32(o[36:], 512)
	le.PutUint32(o[56:], 8192)
	le.PutUint32(o[60:], 512)
	le.PutUint16(o[68:], 10) // an EFI application
	le.PutUint32(o[108:], 16)
	s := o[240:]
	copy(s, ".text")
	le.PutUint32(s[8:], uint32(size-512))
	le.PutUint32(s[12:], 4096)
	le.PutUint32(s[16:], uint32(size-512))
	le.PutUint32(s[20:], 512)
	for i := 512; i < size; i++ {
		b[i] = byte(i)
	}
	return b
}

func identity(t *testing.T, dir string) (*x509.Certificate, *rsa.PrivateKey, string) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, c.SerialNumber.String()+rand.Text()+".pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return c, key, file
}

// verify has sbverify, which is not ours, judge a program.
func verify(t *testing.T, pe []byte, certificate string) (string, bool) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "program.efi")
	if err := os.WriteFile(file, pe, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sbverify", "--cert", certificate, file).CombinedOutput()
	return string(out), err == nil && strings.Contains(string(out), "Signature verification OK")
}

func TestBOX5_SignatureIsOfTheWholeProgram(t *testing.T) {
	dir := t.TempDir()
	c, key, file := identity(t, dir)
	_, _, other := identity(t, dir)
	for _, size := range []int{1024, 2048, 4096 + 512} {
		pe, err := Sign(bare(size), c, key)
		if err != nil {
			t.Fatal(err)
		}
		if out, ok := verify(t, pe, file); !ok {
			t.Fatalf("%d bytes: sbverify does not accept it: %s", size, out)
		}
		if _, ok := verify(t, pe, other); ok {
			t.Errorf("%d bytes: verified by another key", size)
		}
		for _, i := range []int{2, 0x80 + 24 + 16, 512, size - 1} {
			bad := bytes.Clone(pe)
			bad[i] ^= 1
			if out, ok := verify(t, bad, file); ok {
				t.Errorf("%d bytes: byte %d changed and it is verified: %s", size, i, out)
			}
		}
		again, err := Sign(bare(size), c, key)
		if err != nil || !bytes.Equal(again, pe) {
			t.Errorf("signed twice it is two programs: %v", err)
		}
	}
}

func TestBOX5_SignRefuses(t *testing.T) {
	c, key, _ := identity(t, t.TempDir())
	_, strange, _ := identity(t, t.TempDir())
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := bare(1024)
	if _, err := Sign(good, c, strange); err == nil {
		t.Error("signed with a key that is not the certificate's")
	}
	if _, err := Sign(good, c, ec); err == nil {
		t.Error("signed with a key that firmware does not know")
	}
	signed, err := Sign(good, c, key)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"nothing": nil, "text": []byte(strings.Repeat("#!/bin/sh\n", 100)), "signed already": signed, "short": good[:100],
		"a header beyond its end": append(append(bytes.Clone(good[:0x3c]), 0xff, 0xff, 0xff, 0xff), good[0x3c+4:]...),
	} {
		if _, err := Sign(bad, c, key); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
	for n := range good {
		if n < 0x80+24+112+8*4+8 {
			if _, err := Sign(good[:n], c, key); err == nil {
				t.Errorf("%d bytes of a program: signed", n)
			}
		}
	}
}

// What Sign made is verified, and nothing else: not with a byte changed anywhere,
// not by another key, not with more behind it.
func TestBOX5_OnlyWhatWasSignedIsVerified(t *testing.T) {
	c, key, _ := identity(t, t.TempDir())
	other, _, _ := identity(t, t.TempDir())
	for _, size := range []int{1024, 1029} {
		pe, err := Sign(bare(size), c, key)
		if err != nil {
			t.Fatal(err)
		}
		if err := Verify(pe, c); err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if err := Verify(pe, other); err == nil || !strings.Contains(err.Error(), "another key") {
			t.Errorf("%d bytes: by another key: %v", size, err)
		}
		l, err := parse(pe)
		if err != nil {
			t.Fatal(err)
		}
		for i := range pe {
			if int64(i) >= l.Checksum && int64(i) < l.Checksum+4 {
				continue // firmware checks none, and no signature covers it
			}
			bad := bytes.Clone(pe)
			bad[i] ^= 1
			if Verify(bad, c) == nil {
				t.Fatalf("%d bytes: byte %d of %d changed and it is verified", size, i, len(pe))
			}
		}
		for name, bad := range map[string][]byte{
			"not signed": bare(size), "nothing": nil, "more behind it": append(bytes.Clone(pe), make([]byte, 8)...),
			"cut": pe[:len(pe)-8], "text": []byte(strings.Repeat("#!/bin/sh\n", 100)),
		} {
			if err := Verify(bad, c); err == nil {
				t.Errorf("%s: verified", name)
			}
		}
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(8), NotAfter: time.Unix(1<<32, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, ec.Public(), ec)
	if err != nil {
		t.Fatal(err)
	}
	strange, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pe, err := Sign(bare(1024), c, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := Verify(pe, strange); err == nil || !strings.Contains(err.Error(), "RSA") {
		t.Errorf("a certificate of another kind: %v", err)
	}
}

// What firmware compares with dbx is the sum of the program, whoever signed it.
func TestKEY10_DigestWithoutTheSignature(t *testing.T) {
	certificate, key, _ := identity(t, t.TempDir())
	for _, size := range []int{1024, 1027} {
		plain := bare(size)
		want, err := Digest(plain)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := Sign(plain, certificate, key)
		if err != nil {
			t.Fatal(err)
		}
		for name, b := range map[string][]byte{"plain": plain, "signed": signed} {
			b, err := Unsigned(b)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := Digest(b); err != nil || got != want {
				t.Errorf("%d bytes, %s: %x, %v, want %x", size, name, got, err, want)
			}
		}
		if _, err := Unsigned(signed[:len(signed)-8]); err == nil {
			t.Error("a signature that is cut is taken away")
		}
		if _, err := Unsigned(plain[:100]); err == nil {
			t.Error("no program")
		}
	}
}
