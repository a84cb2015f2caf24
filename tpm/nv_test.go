package tpm_test

import (
	"bytes"
	"errors"
	"testing"

	"gatehouse/tpm"
	"gatehouse/tpm/tpmtest"
)

func TestPublicIndexIsWrittenByItsAuthAlone(t *testing.T) {
	s := tpmtest.Start(t)
	d := s.TPM()
	root, err := d.Root()
	if err != nil {
		t.Fatal(err)
	}
	const handle, size = 0x01814704, 72
	index := tpm.Index{Handle: handle, Size: size, Public: true, Auth: bytes.Repeat([]byte{7, 0}, 16)}
	anybody, wrong, owner := index, index, index
	anybody.Auth, wrong.Auth = nil, bytes.Repeat([]byte{8}, 32)
	owner.Auth, owner.Public = nil, false
	data := bytes.Repeat([]byte{0xC3}, size)

	if err := d.DefineNV(root, anybody); !errors.Is(err, tpm.ErrAuth) {
		t.Errorf("defined without an authorisation: %v", err)
	}
	if _, _, err := d.ReadNV(root, anybody); !errors.Is(err, tpm.ErrNoIndex) {
		t.Errorf("read before it was there: %v", err)
	}
	if err := d.DefineNV(root, index); err != nil {
		t.Fatal(err)
	}
	for _, x := range []tpm.Index{anybody, index} {
		if _, _, err := d.ReadNV(root, x); !errors.Is(err, tpm.ErrUnwritten) {
			t.Errorf("read before it was written: %v", err)
		}
	}
	if err := d.WriteNV(root, index, data); err != nil {
		t.Fatal(err)
	}
	junk := make([]byte, size)
	for name, x := range map[string]tpm.Index{"nobody": anybody, "a wrong authorisation": wrong, "the owner": owner} {
		if err := d.WriteNV(root, x, junk); err == nil {
			t.Errorf("written by %s", name)
		}
	}
	if _, _, err := d.ReadNV(root, wrong); !errors.Is(err, tpm.ErrAuth) {
		t.Errorf("read with a wrong authorisation: %v, want ErrAuth", err)
	}
	if _, _, err := d.ReadNV(root, owner); !errors.Is(err, tpm.ErrForeign) {
		t.Errorf("read as an index of another kind: %v, want ErrForeign", err)
	}
	// It is written again and again, also after restarts and with an owner password.
	s.SetOwnerPassword(t, "somebody else's")
	for i := range byte(3) {
		data[0] = i
		if err := d.WriteNV(root, index, data); err != nil {
			t.Fatal(err)
		}
		s.PowerCut(t)
		for _, x := range []tpm.Index{anybody, index} {
			got, locked, err := d.ReadNV(root, x)
			if err != nil || !bytes.Equal(got, data) || locked {
				t.Errorf("ReadNV = %x, locked %v, %v", got, locked, err)
			}
		}
	}
	if n, err := d.Lockout(root); err != nil || n != 0 {
		t.Errorf("lockout counter %d, %v: wrong guesses must not count", n, err)
	}
	if n := s.Loaded(t); n != 0 {
		t.Errorf("%d objects and sessions left loaded", n)
	}
}

// Whoever owns the TPM can put another index in its place; who has the
// authorisation sees that, and who has not cannot.
func TestPublicIndexOfSomebodyElse(t *testing.T) {
	s := tpmtest.Start(t)
	d := s.TPM()
	root, err := d.Root()
	if err != nil {
		t.Fatal(err)
	}
	theirs := tpm.Index{Handle: 0x01814704, Size: 4, Public: true, Auth: bytes.Repeat([]byte{6}, 32)}
	if err := d.DefineNV(root, theirs); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteNV(root, theirs, []byte("lies")); err != nil {
		t.Fatal(err)
	}
	ours := theirs
	ours.Auth = bytes.Repeat([]byte{7}, 32)
	if _, _, err := d.ReadNV(root, ours); !errors.Is(err, tpm.ErrAuth) {
		t.Errorf("ReadNV = %v, want ErrAuth", err)
	}
	ours.Auth = nil
	if got, _, err := d.ReadNV(root, ours); err != nil || string(got) != "lies" {
		t.Errorf("ReadNV = %q, %v", got, err)
	}
}
