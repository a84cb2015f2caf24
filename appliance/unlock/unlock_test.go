package unlock

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"gatehouse/appliance/setup/proof"
)

func newKey(t testing.TB) *Key {
	t.Helper()
	k, err := NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

var (
	here  = bytes.Repeat([]byte{7}, 32)
	typed = Secret{Recovery, []byte("0000000-1111111")}
)

// Another key, another connection, any changed byte, a key that was forgotten:
// nothing of it opens.
func TestKEY8_WhatIsSealedOpensForItsKeyAndConnectionAlone(t *testing.T) {
	k := newKey(t)
	sealed, err := Seal(k.Public(), here, typed)
	if err != nil {
		t.Fatal(err)
	}
	there := bytes.Clone(here)
	there[31] ^= 1
	for name, open := range map[string]func() (Secret, error){
		"another key":        func() (Secret, error) { return newKey(t).Open(here, sealed) },
		"another connection": func() (Secret, error) { return k.Open(there, sealed) },
		"no connection":      func() (Secret, error) { return k.Open(nil, sealed) },
		"nothing":            func() (Secret, error) { return k.Open(here, nil) },
		"cut short":          func() (Secret, error) { return k.Open(here, sealed[:len(sealed)-1]) },
		"longer":             func() (Secret, error) { return k.Open(here, append(bytes.Clone(sealed), 0)) },
	} {
		if s, err := open(); err == nil || s.Text != nil {
			t.Errorf("%s: %v, %q", name, err, s.Text)
		}
	}
	for i := 0; i < len(sealed); i += 13 {
		bad := bytes.Clone(sealed)
		bad[i] ^= 0x40
		if _, err := k.Open(here, bad); !errors.Is(err, ErrNotForUs) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
	}
	got, err := k.Open(here, sealed)
	if err != nil || got.Kind != Recovery || !bytes.Equal(got.Text, typed.Text) {
		t.Fatalf("%v, %+v", err, got)
	}
	k.Close()
	if _, err := k.Open(here, sealed); !errors.Is(err, ErrNotForUs) || k.seed != [32]byte{} {
		t.Errorf("a key that was forgotten opens: %v", err)
	}
}

func TestSealRefuses(t *testing.T) {
	public := newKey(t).Public()
	for name, err := range map[string]error{
		"no binding":       second(Seal(public, nil, typed)),
		"short binding":    second(Seal(public, here[:31], typed)),
		"empty":            second(Seal(public, here, Secret{Recovery, nil})),
		"too long":         second(Seal(public, here, Secret{Recovery, make([]byte, MaxText+1)})),
		"no key":           second(Seal(nil, here, typed)),
		"a key cut short":  second(Seal(public[:len(public)-1], here, typed)),
		"a key too long":   second(Seal(append(public, 0), here, typed)),
		"no random bytes":  second(NewKey(iotest.ErrReader(errors.New("no entropy")))),
		"few random bytes": second(NewKey(bytes.NewReader(make([]byte, 31)))),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestMessageIsReadStrictly(t *testing.T) {
	good := make([]byte, plainSize)
	copy(good, []byte{2, 0, 3, 'a', 'b', 'c'})
	if s, err := read(good); err != nil || s.Kind != Passphrase || string(s.Text) != "abc" {
		t.Fatalf("%v, %+v", err, s)
	}
	for name, change := range map[string]func(b []byte) []byte{
		"unknown kind":   func(b []byte) []byte { b[0] = 3; return b },
		"no text":        func(b []byte) []byte { b[2] = 0; return b },
		"a longer text":  func(b []byte) []byte { b[1] = 0xFF; return b },
		"more behind it": func(b []byte) []byte { b[plainSize-1] = 1; return b },
		"cut short":      func(b []byte) []byte { return b[:plainSize-1] },
		"empty":          func([]byte) []byte { return nil },
	} {
		if s, err := read(change(slices.Clone(good))); err == nil {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

// The words name certificate and key: with either exchanged they are others,
// and they are never the words that a box without an owner shows.
func TestKEY8_WordsNameCertificateAndKey(t *testing.T) {
	spki, k := sha256.Sum256([]byte("certificate")), newKey(t)
	words := Words(spki, k.Public())
	if len(strings.Fields(words)) != 6 || words != Words(spki, k.Public()) {
		t.Fatalf("words %q", words)
	}
	for name, other := range map[string]string{
		"another certificate": Words(sha256.Sum256([]byte("another")), k.Public()),
		"another key":         Words(spki, newKey(t).Public()),
		"no key":              Words(spki, nil),
		"words of a claim":    proof.Words(spki),
	} {
		if other == words {
			t.Errorf("%s: the same words", name)
		}
	}
}

// Every message has one length: neither the kind of secret nor its length shows.
func TestMessagesHaveOneLength(t *testing.T) {
	public := newKey(t).Public()
	a, errA := Seal(public, here, typed)
	b, errB := Seal(public, here, Secret{Passphrase, bytes.Repeat([]byte{'x'}, MaxText)})
	if err := errors.Join(errA, errB); err != nil || len(a) != len(b) {
		t.Errorf("%d and %d bytes, %v", len(a), len(b), err)
	}
}
