package approval

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"gatehouse/tpm/pcr"
)

var update = flag.Bool("update", false, "write the golden file anew")

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// fixed is a key made of a constant, for the golden file.
func fixed(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func expected() []Expected {
	return []Expected{
		{"direct", pcr.Values{11: {1}, 12: {}, 13: {}}},
		{"loader", pcr.Values{11: {1}, 12: {2}, 13: {}}},
		{"loader-secure", pcr.Values{11: {1}, 12: {3}, 13: {}}},
	}
}

func made(t testing.TB, key *ecdsa.PrivateKey, epoch uint64) (signatures, public []byte) {
	t.Helper()
	b, err := Make(key, epoch, expected())
	if err != nil {
		t.Fatal(err)
	}
	public, err = EncodeKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return b, public
}

func TestKEY10_ForgedApprovalsAreRefused(t *testing.T) {
	key := newKey(t)
	good, public := made(t, key, 3)
	other, stranger := made(t, newKey(t), 3)
	swap := func(old, new string) []byte {
		if !bytes.Contains(good, []byte(old)) {
			t.Fatalf("the document has no %q", old)
		}
		return []byte(strings.Replace(string(good), old, new, 1))
	}
	block := func(kind string, k any) []byte {
		der, err := x509.MarshalPKIXPublicKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ signatures, key []byte }{
		"nothing":               {nil, public},
		"no key":                {good, nil},
		"another's key":         {good, stranger},
		"another's approvals":   {other, public},
		"a P-384 key":           {good, block("PUBLIC KEY", &p384.PublicKey)},
		"an RSA key":            {good, block("PUBLIC KEY", &rsaKey.PublicKey)},
		"a key of another kind": {good, block("EC PUBLIC KEY", &key.PublicKey)},
		"two keys":              {good, append(bytes.Clone(public), stranger...)},
		"key with a note":       {good, append([]byte("hello\n"), public...)},
		"key that is too long":  {good, bytes.Repeat(public, 200)},
		"approvals too long":    {bytes.Repeat([]byte(" "), MaxSize+1), public},
		"something behind":      {append(bytes.Clone(good), "{}"...), public},
		"spaces behind":         {append(bytes.Clone(good), ' '), public},
		"cut":                   {good[:len(good)-2], public},
		"an older epoch":        {swap(`"epoch": 3`, `"epoch": 2`), public},
		"a newer epoch":         {swap(`"epoch": 3`, `"epoch": 4`), public},
		"no epoch":              {swap(`"epoch": 3`, `"epoch": 0`), public},
		"epoch below zero":      {swap(`"epoch": 3`, `"epoch": -3`), public},
		"epoch without end":     {swap(`"epoch": 3`, `"epoch": 18446744073709551615`), public},
		"epoch twice":           {swap(`"epoch": 3`, `"epoch": 2, "epoch": 3`), public},
		"another form":          {swap("approvals 1", "approvals 2"), public},
		"a field more":          {swap(`"epoch"`, `"x": 1, "epoch"`), public},
		"in capitals":           {swap(`"epoch"`, `"Epoch"`), public},
		"a way twice":           {swap(`"path": "loader",`, `"path": "direct",`), public},
		"a way without a name":  {swap(`"path": "loader",`, `"path": "",`), public},
		"a way of two lines":    {swap(`"path": "loader",`, `"path": "a\nb",`), public},
		"another policy":        {swap(`"policy": "`, `"policy": "00`), public},
		"a policy in capitals":  {[]byte(strings.Replace(string(good), `"policy": "`+policy(t, good), `"policy": "`+strings.ToUpper(policy(t, good)), 1)), public},
		"no ways":               {[]byte("{\n \"format\": \"gatehouse approvals 1\",\n \"epoch\": 3,\n \"starts\": null\n}\n"), public},
	} {
		if s, err := Open(c.signatures, c.key); !errors.Is(err, ErrMalformed) || s.Key != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		s, err := Open(bad, public)
		// The name of a way is for people; it is not signed.
		if err == nil && (s.Epoch != 3 || !bytes.Contains(good[max(0, i-30):i], []byte(`"path"`))) {
			t.Errorf("byte %d was changed:\n%s", i, bad)
		}
	}
}

func policy(t testing.TB, b []byte) string {
	t.Helper()
	_, rest, ok := strings.Cut(string(b), `"policy": "`)
	if !ok {
		t.Fatal("no policy")
	}
	return rest[:64]
}

func TestMakeRefuses(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	for name, c := range map[string]struct {
		key    *ecdsa.PrivateKey
		epoch  uint64
		starts []Expected
	}{
		"a P-384 key":    {p384, 1, expected()},
		"no epoch":       {key, 0, expected()},
		"no ways":        {key, 1, nil},
		"a way twice":    {key, 1, append(expected(), expected()...)},
		"no registers":   {key, 1, []Expected{{"direct", nil}}},
		"an untold name": {key, 1, []Expected{{"Direct", expected()[0].Registers}}},
	} {
		if b, err := Make(c.key, c.epoch, c.starts); err == nil {
			t.Errorf("%s: %s", name, b)
		}
	}
}

// The golden file pins the form, and that a build repeats: ECDSA without chance.
func TestKEY10_ApprovalsAreTheSameBytes(t *testing.T) {
	got, public := made(t, fixed(t), 3)
	const golden = "testdata/approvals.json"
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	s, err := Open(got, public)
	if err != nil || s.Epoch != 3 || !s.Key.Equal(&fixed(t).PublicKey) || len(s.Approvals()) != 3 {
		t.Fatalf("%+v, %v", s, err)
	}
	for _, e := range expected() {
		if path, ok := s.Started(e.Registers); !ok || path != e.Path {
			t.Errorf("the registers of %s are taken for %q, %v", e.Path, path, ok)
		}
		e.Registers[13] = [pcr.Size]byte{1}
		if path, ok := s.Started(e.Registers); ok {
			t.Errorf("%s with an extension is taken for %s", e.Path, path)
		}
		delete(e.Registers, 13)
		if path, ok := s.Started(e.Registers); ok {
			t.Errorf("%s without PCR 13 is taken for %s", e.Path, path)
		}
	}
	for _, a := range s.Approvals() {
		if err := a.Check(s.Key, "gatehouse/epoch-3"); err != nil {
			t.Error(err)
		}
		if a.Check(s.Key, "gatehouse/epoch-2") == nil {
			t.Error("an approval of epoch 3 counts for epoch 2")
		}
	}
}

func FuzzOpen(f *testing.F) {
	b, public := made(f, fixed(f), 3)
	f.Add(b, public)
	f.Add([]byte(fmt.Sprintf(`{"format":%q}`, format)), public)
	f.Fuzz(func(t *testing.T, b, key []byte) {
		s, err := Open(b, key)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("%v", err)
			}
			return
		}
		if len(s.Starts) == 0 || s.Epoch == 0 || s.Key == nil {
			t.Errorf("%+v", s)
		}
	})
}
