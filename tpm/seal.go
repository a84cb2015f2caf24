package tpm

import (
	"errors"
	"fmt"

	"gatehouse/tpm/pcr"

	"github.com/google/go-tpm/tpm2"
)

// Blob is an object that only the TPM it was made in can load.
type Blob struct {
	Public  []byte // TPMT_PUBLIC
	Private []byte // wrapped by the root key
}

// maxChanged bounds how often a policy is begun anew because a register was
// extended meanwhile.
const maxChanged = 5

func selection(s pcr.Selection) tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: s.Bitmap()}}}
}

// Seal wraps a secret of at most 128 bytes so that it opens only while the
// registers hold the given values. The object has no password and no
// dictionary protection: it can be used by policy alone, so there is nothing
// to guess, and power cuts cannot count as guesses.
func (t *TPM) Seal(root Root, secret []byte, values pcr.Values) (blob Blob, err error) {
	const doing = "sealing to the TPM"
	err = t.under(root, doing, func(s *scope) error {
		blob, err = s.seal(doing, secret, pcr.Policy(values))
		return err
	})
	return blob, err
}

// seal makes the object that a policy alone opens.
func (s *scope) seal(doing string, secret []byte, policy [pcr.Size]byte) (Blob, error) {
	resp, err := tpm2.Create{
		ParentHandle: s.self(encrypt(in)),
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret}),
		}},
		InPublic: tpm2.New2B(tpm2.TPMTPublic{
			Type:             tpm2.TPMAlgKeyedHash,
			NameAlg:          tpm2.TPMAlgSHA256,
			ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: true},
			AuthPolicy:       tpm2.TPM2BDigest{Buffer: policy[:]},
			Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{}),
		}),
	}.Execute(s)
	if err != nil {
		return Blob{}, explain(doing, err)
	}
	blob, err := newBlob(resp.OutPublic, resp.OutPrivate)
	return blob, explain(doing, err)
}

func newBlob(public tpm2.TPM2BPublic, private tpm2.TPM2BPrivate) (Blob, error) {
	p, err := public.Contents()
	if err != nil {
		return Blob{}, err
	}
	return Blob{Public: tpm2.Marshal(*p), Private: private.Buffer}, nil
}

// load loads a blob and returns it under the name that we compute ourselves:
// the name is part of what a session authenticates.
func (s *scope) load(doing string, b Blob) (tpm2.NamedHandle, func(), error) {
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](b.Public)
	if err != nil {
		return tpm2.NamedHandle{}, nil, fmt.Errorf("%s: its public half cannot be read: %w", doing, err)
	}
	name, err := tpm2.ObjectName(public)
	if err != nil {
		return tpm2.NamedHandle{}, nil, fmt.Errorf("%s: %w", doing, err)
	}
	resp, err := tpm2.Load{
		ParentHandle: tpm2.AuthHandle{Handle: s.handle, Name: s.name, Auth: tpm2.PasswordAuth(nil)},
		InPrivate:    tpm2.TPM2BPrivate{Buffer: b.Private},
		InPublic:     tpm2.New2B(*public),
	}.Execute(s)
	if err != nil {
		return tpm2.NamedHandle{}, nil, explain(doing, err)
	}
	return tpm2.NamedHandle{Handle: resp.ObjectHandle, Name: *name}, func() { s.flush(resp.ObjectHandle) }, nil
}

// Unseal opens what Seal made. ErrPolicy: a register differs; ErrForeign:
// another TPM. The secret crosses the bus encrypted.
func (t *TPM) Unseal(root Root, b Blob, sel pcr.Selection) (secret []byte, err error) {
	const doing = "unsealing"
	err = t.under(root, doing, func(s *scope) error {
		object, flush, err := s.load(doing, b)
		if err != nil {
			return err
		}
		defer flush()
		for range maxChanged {
			secret, err = s.unseal(object, sel)
			if !errors.Is(err, tpm2.TPMRCPCRChanged) {
				break
			}
		}
		return explain(doing, err)
	})
	return secret, err
}

func (s *scope) unseal(object tpm2.NamedHandle, sel pcr.Selection) ([]byte, error) {
	session, done, err := s.policySession(encrypt(out))
	if err != nil {
		return nil, err
	}
	defer done()
	_, err = tpm2.PolicyPCR{PolicySession: session.Handle(), Pcrs: selection(sel)}.Execute(s)
	if err != nil {
		return nil, err
	}
	resp, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: object.Handle, Name: object.Name, Auth: session}}.Execute(s)
	if err != nil {
		return nil, err
	}
	return resp.OutData.Buffer, nil
}
