package released_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"testing"
	"time"

	"gatehouse/appliance/released"
)

func TestBOX13_StatementIsAsItWasSigned(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var seen [32]byte
	sign := func(_ context.Context, d [32]byte) ([]byte, error) {
		seen = d
		return ecdsa.SignASN1(rand.Reader, key, d[:])
	}
	made := released.Statement{Box: "gatehouse-7f3k", Serial: "A1", Released: time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC), By: "Ada Lovelace", Erases: []string{"keys"}}
	file, err := released.Sign(t.Context(), made, &key.PublicKey, sign)
	if err != nil {
		t.Fatal(err)
	}
	for i := range file {
		bad := bytes.Clone(file)
		bad[i] ^= 0x01
		if s, err := released.Open(bad); err == nil && (s.By != made.By || s.Box != made.Box) {
			t.Fatalf("byte %d changed: %+v", i, s)
		}
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	stolen, err := released.Sign(t.Context(), made, &key.PublicKey, func(_ context.Context, d [32]byte) ([]byte, error) { return ecdsa.SignASN1(rand.Reader, other, d[:]) })
	if err != nil {
		t.Fatal(err)
	}
	for what, bad := range map[string][]byte{"nothing": nil, "text": []byte("I sold it"), "cut": file[:len(file)-5], "more": append(bytes.Clone(file), '1'), "another's signature": stolen, "huge": make([]byte, released.MaxSize+1)} {
		if _, err := released.Open(bad); !errors.Is(err, released.ErrNot) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := released.Sign(t.Context(), made, &key.PublicKey, func(context.Context, [32]byte) ([]byte, error) { return nil, errors.New("the TPM is away") }); err == nil {
		t.Error("a statement without a signature")
	}
	s, err := released.Open(file)
	if err != nil || s.By != made.By || len(s.Fingerprint()) != 64 || seen == [32]byte{} {
		t.Errorf("%+v, %v", s, err)
	}
}
