package tpm

import (
	"crypto/ecdsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"gatehouse/tpm/pcr"

	"github.com/google/go-tpm/tpm2"
)

// Policy is what has to hold for a secret to open, all of it. Without Key it is
// Literal alone; a Policy that asks for nothing seals nothing.
type Policy struct {
	// Key approves the values of the registers in Approved, under Ref: systems
	// that are not built yet can open the secret, if the release key says so.
	Key      *ecdsa.PublicKey // P-256
	Ref      string           // gatehouse/epoch-N: approvals of an older epoch carry another one
	Approved pcr.Selection
	// Literal are values that registers have to hold, whoever approves.
	Literal pcr.Values
	// Counter has to be at most AtMost. Handle 0: none.
	Counter Counter
	AtMost  uint64
}

// ErrNotApproved: the registers hold values that nobody approved. It is also an ErrPolicy.
var ErrNotApproved = fmt.Errorf("%w: no approval is for the system that was started", ErrPolicy)

// keyPublic is the release key as a TPM loads it: a key that verifies, and does
// nothing else. Its name is part of the policy, so not a bit of this may change.
func keyPublic(k *ecdsa.PublicKey) (tpm2.TPMTPublic, error) {
	point, err := k.Bytes()
	if err != nil || len(point) != 65 {
		return tpm2.TPMTPublic{}, errors.New("the key that approves is not P-256")
	}
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{SignEncrypt: true, UserWithAuth: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			CurveID: tpm2.TPMECCNistP256,
			Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(
				tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
		}),
	}, nil
}

// digest is the policy as an object carries it.
func (p Policy) digest(s *scope) (pcr.Digest, error) {
	var d pcr.Digest
	if p.Key != nil {
		if !p.Approved.Valid() || p.Ref == "" {
			return d, errors.New("a policy with a key names the registers and the reference that it approves under")
		}
		public, err := keyPublic(p.Key)
		if err != nil {
			return d, err
		}
		name, err := tpm2.ObjectName(&public)
		if err != nil {
			return d, err
		}
		d = pcr.Authorize(name.Buffer, p.Ref)
	}
	if len(p.Literal) > 0 {
		d = d.PCR(p.Literal)
	}
	if p.Counter != (Counter{}) {
		name, err := s.counterName(p.Counter)
		if err != nil {
			return d, err
		}
		d = d.Counter(name.Buffer, p.AtMost)
	}
	if d == (pcr.Digest{}) {
		return d, errors.New("the policy asks for nothing")
	}
	return d, nil
}

// SealUnder wraps a secret of at most 128 bytes so that it opens only under p.
func (t *TPM) SealUnder(root Root, secret []byte, p Policy) (blob Blob, err error) {
	const doing = "sealing to the TPM"
	err = t.under(root, doing, func(s *scope) error {
		d, err := p.digest(s)
		if err != nil {
			return explain(doing, err)
		}
		blob, err = s.seal(doing, secret, d)
		return err
	})
	return blob, err
}

// UnsealUnder opens what SealUnder made, with the approvals of the system that
// was started and of others. ErrNotApproved: none fits. ErrPolicy: a literal
// register differs, the counter is over, or an approval is not what it says.
func (t *TPM) UnsealUnder(root Root, b Blob, p Policy, approvals []pcr.Approval) (secret []byte, err error) {
	const doing = "unsealing"
	err = t.under(root, doing, func(s *scope) error {
		object, flush, err := s.load(doing, b)
		if err != nil {
			return err
		}
		defer flush()
		for range maxChanged {
			secret, err = s.unsealUnder(object, p, approvals)
			if !errors.Is(err, tpm2.TPMRCPCRChanged) {
				break
			}
		}
		return explain(doing, err)
	})
	return secret, err
}

func (s *scope) unsealUnder(object tpm2.NamedHandle, p Policy, approvals []pcr.Approval) ([]byte, error) {
	session, done, err := s.policySession(encrypt(out))
	if err != nil {
		return nil, err
	}
	defer done()
	if p.Key != nil {
		if err := s.authorize(session, p, approvals); err != nil {
			return nil, err
		}
	}
	if len(p.Literal) > 0 {
		_, err := tpm2.PolicyPCR{PolicySession: session.Handle(), Pcrs: selection(p.Literal.Selection())}.Execute(s)
		if err != nil {
			return nil, err
		}
	}
	if p.Counter != (Counter{}) {
		if err := s.counterAtMost(session, p.Counter, p.AtMost); err != nil {
			return nil, err
		}
	}
	resp, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: object.Handle, Name: object.Name, Auth: session}}.Execute(s)
	if err != nil {
		return nil, err
	}
	return resp.OutData.Buffer, nil
}

// authorize has the TPM compare the registers with an approval, and the
// approval with the key. The TPM's word for which system this is decides
// nothing by itself: with another approval the policy does not hold.
func (s *scope) authorize(session tpm2.Session, p Policy, approvals []pcr.Approval) error {
	_, err := tpm2.PolicyPCR{PolicySession: session.Handle(), Pcrs: selection(p.Approved)}.Execute(s)
	if err != nil {
		return err
	}
	now, err := tpm2.PolicyGetDigest{PolicySession: session.Handle()}.Execute(s)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(approvals, func(a pcr.Approval) bool { return string(a.Policy[:]) == string(now.PolicyDigest.Buffer) })
	if i < 0 {
		return ErrNotApproved
	}
	if err := approvals[i].Check(p.Key, p.Ref); err != nil {
		return fmt.Errorf("%w: %w", ErrPolicy, err)
	}
	return s.approve(session, p, approvals[i])
}

func (s *scope) approve(session tpm2.Session, p Policy, a pcr.Approval) error {
	public, err := keyPublic(p.Key)
	if err != nil {
		return err
	}
	// In the owner's hierarchy, since a ticket of the null hierarchy proves nothing.
	key, err := tpm2.LoadExternal{InPublic: tpm2.New2B(public), Hierarchy: tpm2.TPMRHOwner}.Execute(s)
	if err != nil {
		return err
	}
	defer s.flush(key.ObjectHandle)
	var sig struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(a.Signature, &sig); err != nil || len(rest) > 0 {
		return fmt.Errorf("%w: the approval's signature cannot be read", ErrPolicy)
	}
	sum := a.Hash(p.Ref)
	ticket, err := tpm2.VerifySignature{
		KeyHandle: key.ObjectHandle, Digest: tpm2.TPM2BDigest{Buffer: sum[:]},
		Signature: tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
			Hash:       tpm2.TPMAlgSHA256,
			SignatureR: tpm2.TPM2BECCParameter{Buffer: sig.R.FillBytes(make([]byte, 32))},
			SignatureS: tpm2.TPM2BECCParameter{Buffer: sig.S.FillBytes(make([]byte, 32))},
		})},
	}.Execute(s)
	if err != nil {
		return err
	}
	name, err := tpm2.ObjectName(&public)
	if err != nil {
		return err
	}
	_, err = tpm2.PolicyAuthorize{
		PolicySession: session.Handle(), ApprovedPolicy: tpm2.TPM2BDigest{Buffer: a.Policy[:]},
		PolicyRef: tpm2.TPM2BDigest{Buffer: []byte(p.Ref)}, KeySign: *name, CheckTicket: ticket.Validation,
	}.Execute(s)
	return err
}
