package tpm_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"math/big"
	"testing"
	"time"

	"gatehouse/tpm"
	"gatehouse/tpm/tpmtest"

	"github.com/google/go-tpm/tpm2"
)

// attested is a box with an attestation key and a key that it vouches for.
type attested struct {
	*tpmtest.Server
	root            tpm.Root
	ak, key         tpm.Blob
	akAuth, keyAuth []byte
}

func newAttested(t testing.TB) *attested {
	t.Helper()
	a := &attested{Server: tpmtest.Start(t), akAuth: bytes.Repeat([]byte{0xA1, 0}, 16), keyAuth: bytes.Repeat([]byte{0xB2, 0}, 16)}
	var err error
	if a.root, err = a.TPM().Root(); err != nil {
		t.Fatal(err)
	}
	if a.ak, err = a.TPM().NewAttestationKey(a.root, a.akAuth); err != nil {
		t.Fatal(err)
	}
	if a.key, err = a.TPM().NewKey(a.root, a.keyAuth); err != nil {
		t.Fatal(err)
	}
	return a
}

func TestKEY1_CertifiedKeysAreOfThisTPM(t *testing.T) {
	a := newAttested(t)
	question := bytes.Repeat([]byte{7}, tpm.MaxQualifying)
	good, err := a.TPM().Certify(a.root, a.ak, a.akAuth, a.key, a.keyAuth, question)
	if err != nil {
		t.Fatal(err)
	}
	other := newAttested(t)
	theirs, err := other.TPM().Certify(other.root, other.ak, other.akAuth, other.key, other.keyAuth, question)
	if err != nil {
		t.Fatal(err)
	}
	second, err := a.TPM().NewKey(a.root, a.keyAuth)
	if err != nil {
		t.Fatal(err)
	}
	flipped := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[at] ^= 1
		return b
	}
	for name, c := range map[string]struct {
		ak, key  []byte
		cert     tpm.Certification
		question []byte
	}{
		"another question":               {a.ak.Public, a.key.Public, good, flipped(question, 0)},
		"a part of the question":         {a.ak.Public, a.key.Public, good, question[:31]},
		"another key of this TPM":        {a.ak.Public, second.Public, good, question},
		"another TPM's key":              {a.ak.Public, other.key.Public, theirs, question},
		"another TPM's attestation key":  {other.ak.Public, a.key.Public, good, question},
		"a signing key for an AK":        {a.key.Public, a.key.Public, good, question},
		"an AK for the key":              {a.ak.Public, a.ak.Public, good, question},
		"the sealed secret's kind":       {a.ak.Public, a.root.Public, good, question},
		"nothing":                        {nil, nil, tpm.Certification{}, nil},
		"a public with a byte behind it": {a.ak.Public, append(bytes.Clone(a.key.Public), 0), good, question},
		"no signature":                   {a.ak.Public, a.key.Public, tpm.Certification{Attest: good.Attest}, question},
		"a changed signature":            {a.ak.Public, a.key.Public, tpm.Certification{Attest: good.Attest, Signature: flipped(good.Signature, 20)}, question},
	} {
		if err := tpm.CheckCertification(c.ak, c.key, c.cert, c.question); !errors.Is(err, tpm.ErrCertification) {
			t.Errorf("%s: %v, want ErrCertification", name, err)
		}
	}
	for i := range good.Attest {
		c := tpm.Certification{Attest: flipped(good.Attest, i), Signature: good.Signature}
		if tpm.CheckCertification(a.ak.Public, a.key.Public, c, question) == nil {
			t.Errorf("a changed byte %d was accepted", i)
		}
	}
	for i := range a.key.Public {
		if tpm.CheckCertification(a.ak.Public, flipped(a.key.Public, i), good, question) == nil {
			t.Errorf("a key with byte %d changed was accepted", i)
		}
	}
	if err := tpm.CheckCertification(a.ak.Public, a.key.Public, good, question); err != nil {
		t.Error(err)
	}
	if n := a.Loaded(t); n != 0 {
		t.Errorf("%d objects and sessions left loaded", n)
	}
}

// A software key that says of itself what a TPM would is signed for by nobody:
// the attestation key signs what begins like a TPM's word only if it is one.
func TestKEY1_AttestationKeySignsNothingElse(t *testing.T) {
	a := newAttested(t)
	forged := sha256.Sum256([]byte("\xffTCG and so on"))
	if _, err := a.TPM().Sign(a.root, a.ak, a.akAuth, forged); err == nil {
		t.Error("it signed a digest that came from outside")
	}
	wrong := bytes.Repeat([]byte{9}, 32)
	if _, err := a.TPM().Certify(a.root, a.ak, wrong, a.key, a.keyAuth, nil); !errors.Is(err, tpm.ErrAuth) {
		t.Errorf("with a wrong authorisation of the attestation key: %v, want ErrAuth", err)
	}
	if _, err := a.TPM().Certify(a.root, a.ak, a.akAuth, a.key, wrong, nil); !errors.Is(err, tpm.ErrAuth) {
		t.Errorf("with a wrong authorisation of the key: %v, want ErrAuth", err)
	}
	if _, err := a.TPM().Certify(a.root, a.key, a.keyAuth, a.key, a.keyAuth, nil); !errors.Is(err, tpm.ErrCertification) {
		t.Errorf("by a key that signs anything: %v, want ErrCertification", err)
	}
	if _, err := a.TPM().Certify(a.root, a.ak, a.akAuth, a.key, a.keyAuth, make([]byte, tpm.MaxQualifying+1)); err == nil {
		t.Error("a question that is too long was taken")
	}
	if n, err := a.TPM().Lockout(a.root); err != nil || n != 0 {
		t.Errorf("lockout counter %d, %v: wrong guesses of these keys must not count", n, err)
	}
	if n := a.Loaded(t); n != 0 {
		t.Errorf("%d objects and sessions left loaded", n)
	}
}

func TestName(t *testing.T) {
	a := newAttested(t)
	if name, err := (tpm.Blob{Public: a.root.Public}).Name(); err != nil || !bytes.Equal(name, a.root.Name) {
		t.Errorf("Name = %x, %v; the TPM says %x", name, err, a.root.Name)
	}
	one, err := a.ak.Name()
	if err != nil {
		t.Fatal(err)
	}
	if two, err := a.key.Name(); err != nil || bytes.Equal(one, two) {
		t.Errorf("two keys of one name, %v", err)
	}
	for n := range len(a.ak.Public) {
		if _, err := (tpm.Blob{Public: a.ak.Public[:n]}).Name(); err == nil {
			t.Errorf("the first %d bytes of a public half have a name", n)
		}
	}
}

func TestEndorsementKey(t *testing.T) {
	s := tpmtest.Start(t)
	root, err := s.TPM().Root()
	if err != nil {
		t.Fatal(err)
	}
	ek, err := s.TPM().EndorsementKey(root)
	if err != nil {
		t.Fatal(err)
	}
	if ek.Certificate != nil {
		t.Errorf("a certificate where there is none: %x", ek.Certificate)
	}
	key, err := tpm.Blob{Public: ek.Public}.Key()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if ek.Fingerprint != sha256.Sum256(der) {
		t.Error("the fingerprint is of something else")
	}
	// Of another key, of noise, padded, with more than one read, and as it should be.
	mine := certificate(t, key, 900)
	for _, c := range []struct {
		name     string
		in, want []byte
	}{
		{"for another key", certificate(t, &releaseKey(t).PublicKey, 0), nil},
		{"noise", bytes.Repeat([]byte{0xFF}, 100), nil},
		{"cut short", mine[:len(mine)-1], nil},
		{"filled up", append(bytes.Clone(mine), make([]byte, 200)...), mine},
		{"exact", mine, mine},
	} {
		keepCertificate(t, s, c.in)
		got, err := s.TPM().EndorsementKey(root)
		if err != nil || !bytes.Equal(got.Certificate, c.want) || got.Fingerprint != ek.Fingerprint {
			t.Errorf("%s: certificate of %d bytes, want %d; %v", c.name, len(got.Certificate), len(c.want), err)
		}
	}
	// The owner's clear changes the root key and not this one; another TPM has another.
	s.Clear(t)
	cleared, err := s.TPM().Root()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.TPM().EndorsementKey(cleared); err != nil || got.Fingerprint != ek.Fingerprint {
		t.Errorf("after a clear: %x, %v", got.Fingerprint, err)
	}
	if _, err := s.TPM().EndorsementKey(root); !errors.Is(err, tpm.ErrForeign) {
		t.Errorf("under a root key that is gone: %v, want ErrForeign", err)
	}
	if n := s.Loaded(t); n != 0 {
		t.Errorf("%d objects and sessions left loaded", n)
	}
	other := tpmtest.Start(t)
	if root, err = other.TPM().Root(); err != nil {
		t.Fatal(err)
	}
	if got, err := other.TPM().EndorsementKey(root); err != nil || got.Fingerprint == ek.Fingerprint {
		t.Errorf("two TPMs of one endorsement key, %v", err)
	}
}

// Nobody on the bus can have another TPM's key shown as this one's: whatever
// is changed in the answers, it is an error or the same key.
func TestKEY1_ForgedEndorsementKeyIsRefused(t *testing.T) {
	s := tpmtest.Start(t)
	root, err := s.TPM().Root()
	if err != nil {
		t.Fatal(err)
	}
	ek, err := s.TPM().EndorsementKey(root)
	if err != nil {
		t.Fatal(err)
	}
	asked, refused, size := 0, 0, 0
	for at := 10; at == 10 || at < size; at += sample(7) {
		asked++
		d := tpm.New(&tpmtest.Fault{To: s.Transport(), After: func(_ int, cmd, resp []byte) ([]byte, error) {
			if binary.BigEndian.Uint32(cmd[6:]) == 0x131 { // CreatePrimary
				size = len(resp)
				resp = bytes.Clone(resp)
				resp[at] ^= 1
			}
			return resp, nil
		}})
		got, err := d.EndorsementKey(root)
		switch {
		case err != nil:
			refused++
		case !bytes.Equal(got.Public, ek.Public) || got.Fingerprint != ek.Fingerprint:
			t.Errorf("byte %d changed: another key was accepted", at)
		}
		s.PowerCut(t) // what was left loaded
	}
	// Only the handle, by which the key is let go, is not authenticated.
	if asked < 20 || refused < asked-4 {
		t.Errorf("%d of %d changed answers refused", refused, asked)
	}
}

// certificate is an endorsement certificate of a maker that nobody knows,
// longer by n bytes.
func certificate(t *testing.T, key *ecdsa.PublicKey, n int) []byte {
	t.Helper()
	maker, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Unix(1<<33, 0),
		DNSNames: []string{string(bytes.Repeat([]byte{'a'}, n))},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key, maker)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// keepCertificate does what a maker does: the index is the platform's.
func keepCertificate(t *testing.T, s *tpmtest.Server, cert []byte) {
	t.Helper()
	const index = tpm2.TPMHandle(0x01C0000A)
	platform := tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}
	named := func() tpm2.NamedHandle {
		public, err := tpm2.NVReadPublic{NVIndex: index}.Execute(s.Transport())
		if err != nil {
			return tpm2.NamedHandle{}
		}
		return tpm2.NamedHandle{Handle: index, Name: public.NVName}
	}
	if there := named(); there.Handle != 0 {
		if _, err := (tpm2.NVUndefineSpace{AuthHandle: platform, NVIndex: there}).Execute(s.Transport()); err != nil {
			t.Fatal(err)
		}
	}
	_, err := tpm2.NVDefineSpace{AuthHandle: platform, PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
		NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(cert)),
		Attributes: tpm2.TPMANV{PPWrite: true, PPRead: true, OwnerRead: true, AuthRead: true, NoDA: true, PlatformCreate: true},
	})}.Execute(s.Transport())
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(cert); at += 512 {
		part := cert[at:min(at+512, len(cert))]
		_, err := tpm2.NVWrite{AuthHandle: platform, NVIndex: named(), Data: tpm2.TPM2BMaxNVBuffer{Buffer: part}, Offset: uint16(at)}.Execute(s.Transport())
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestIdentity(t *testing.T) {
	s := tpmtest.Start(t)
	root, err := s.TPM().Root()
	if err != nil {
		t.Fatal(err)
	}
	maker, version, err := s.TPM().Identity(root)
	if err != nil || maker != "IBM" || version == "0.0.0.0" {
		t.Errorf("Identity = %q, %q, %v", maker, version, err)
	}
	t.Logf("%s %s", maker, version)
}
