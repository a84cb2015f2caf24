package tpm_test

import (
	"testing"

	"gatehouse/tpm"
	"gatehouse/tpm/pcr"
	"gatehouse/tpm/tpmtest"

	"github.com/google/go-tpm/tpm2"
)

func BenchmarkUnseal(b *testing.B) {
	s := tpmtest.Start(b)
	d := s.TPM()
	x := seal(b, d)
	for b.Loop() {
		if _, err := x.unseal(d); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkUnsealRaw sends the same commands with the same session by go-tpm
// alone: no check of names, no own transport rules, everything prepared before.
func BenchmarkUnsealRaw(b *testing.B) {
	s := tpmtest.Start(b)
	x := seal(b, s.TPM())
	t := s.Transport()
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](x.root.Public)
	if err != nil {
		b.Fatal(err)
	}
	object, err := tpm2.Unmarshal[tpm2.TPMTPublic](x.blob.Public)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := unsealRaw(t, *public, *object, x); err != nil {
			b.Fatal(err)
		}
	}
}

func unsealRaw(t tpm.Transport, public, object tpm2.TPMTPublic, x sealed) error {
	const root = tpm2.TPMHandle(0x81000001)
	if _, err := (tpm2.ReadPublic{ObjectHandle: root}).Execute(t); err != nil {
		return err
	}
	load, err := tpm2.Load{
		ParentHandle: tpm2.AuthHandle{Handle: root, Name: tpm2.TPM2BName{Buffer: x.root.Name}, Auth: tpm2.PasswordAuth(nil)},
		InPrivate:    tpm2.TPM2BPrivate{Buffer: x.blob.Private},
		InPublic:     tpm2.New2B(object),
	}.Execute(t)
	if err != nil {
		return err
	}
	session, done, err := tpm2.PolicySession(t, tpm2.TPMAlgSHA256, 32,
		tpm2.Salted(root, public), tpm2.AESEncryption(128, tpm2.EncryptOut))
	if err != nil {
		return err
	}
	_, err = tpm2.PolicyPCR{PolicySession: session.Handle(), Pcrs: tpm2.TPMLPCRSelection{
		PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: pcr.Select(7, 15).Bitmap()}},
	}}.Execute(t)
	if err != nil {
		return err
	}
	_, err = tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: load.ObjectHandle, Name: load.Name, Auth: session}}.Execute(t)
	if err != nil {
		return err
	}
	if err := done(); err != nil {
		return err
	}
	_, err = tpm2.FlushContext{FlushHandle: load.ObjectHandle}.Execute(t)
	return err
}
