package tpm_test

import (
	"encoding/asn1"
	"encoding/binary"
	"math/big"
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

// BenchmarkUnsealUnder is the unsealing of a start of the box: a release that
// is approved, literal registers, the counter.
func BenchmarkUnsealUnder(b *testing.B) {
	r := newRelease(b)
	approvals := []pcr.Approval{r.approved(b, r.key, ref)}
	d := r.TPM()
	for b.Loop() {
		if _, err := d.UnsealUnder(r.root, r.blob, r.policy, approvals); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkUnsealUnderRaw sends the commands of BenchmarkUnsealUnder by go-tpm
// alone: nothing is compared, no approval is checked outside the TPM, names,
// publics and signature are ready before.
func BenchmarkUnsealUnderRaw(b *testing.B) {
	r := newRelease(b)
	x := newRawRelease(b, r)
	for b.Loop() {
		if err := x.unseal(r.Transport()); err != nil {
			b.Fatal(err)
		}
	}
}

type rawRelease struct {
	*release
	public, object, key tpm2.TPMTPublic
	keyName, index      tpm2.TPM2BName
	signature           tpm2.TPMTSignature
	approval            pcr.Approval
}

func newRawRelease(b *testing.B, r *release) *rawRelease {
	b.Helper()
	fail := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	x := &rawRelease{release: r, approval: r.approved(b, r.key, ref)}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](r.root.Public)
	fail(err)
	object, err := tpm2.Unmarshal[tpm2.TPMTPublic](r.blob.Public)
	fail(err)
	x.public, x.object = *public, *object
	point, err := r.key.PublicKey.Bytes()
	fail(err)
	x.key = tpm2.TPMTPublic{
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
	}
	name, err := tpm2.ObjectName(&x.key)
	fail(err)
	x.keyName = *name
	index, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(counter.Handle)}.Execute(r.Transport())
	fail(err)
	x.index = index.NVName
	var sig struct{ R, S *big.Int }
	_, err = asn1.Unmarshal(x.approval.Signature, &sig)
	fail(err)
	x.signature = tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
		Hash:       tpm2.TPMAlgSHA256,
		SignatureR: tpm2.TPM2BECCParameter{Buffer: sig.R.FillBytes(make([]byte, 32))},
		SignatureS: tpm2.TPM2BECCParameter{Buffer: sig.S.FillBytes(make([]byte, 32))},
	})}
	return x
}

func registers(s pcr.Selection) tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: s.Bitmap()}}}
}

func (x *rawRelease) unseal(t tpm.Transport) error {
	const root = tpm2.TPMHandle(0x81000001)
	if _, err := (tpm2.ReadPublic{ObjectHandle: root}).Execute(t); err != nil {
		return err
	}
	load, err := tpm2.Load{
		ParentHandle: tpm2.AuthHandle{Handle: root, Name: tpm2.TPM2BName{Buffer: x.root.Name}, Auth: tpm2.PasswordAuth(nil)},
		InPrivate:    tpm2.TPM2BPrivate{Buffer: x.blob.Private}, InPublic: tpm2.New2B(x.object),
	}.Execute(t)
	if err != nil {
		return err
	}
	session, done, err := tpm2.PolicySession(t, tpm2.TPMAlgSHA256, 32, tpm2.Salted(root, x.public), tpm2.AESEncryption(128, tpm2.EncryptOut))
	if err != nil {
		return err
	}
	if err := x.satisfy(t, session); err != nil {
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

func (x *rawRelease) satisfy(t tpm.Transport, session tpm2.Session) error {
	const root = tpm2.TPMHandle(0x81000001)
	if _, err := (tpm2.PolicyPCR{PolicySession: session.Handle(), Pcrs: registers(system)}).Execute(t); err != nil {
		return err
	}
	if _, err := (tpm2.PolicyGetDigest{PolicySession: session.Handle()}).Execute(t); err != nil {
		return err
	}
	key, err := tpm2.LoadExternal{InPublic: tpm2.New2B(x.key), Hierarchy: tpm2.TPMRHOwner}.Execute(t)
	if err != nil {
		return err
	}
	sum := x.approval.Hash(ref)
	ticket, err := tpm2.VerifySignature{KeyHandle: key.ObjectHandle, Digest: tpm2.TPM2BDigest{Buffer: sum[:]}, Signature: x.signature}.Execute(t)
	if err != nil {
		return err
	}
	_, err = tpm2.PolicyAuthorize{
		PolicySession: session.Handle(), ApprovedPolicy: tpm2.TPM2BDigest{Buffer: x.approval.Policy[:]},
		PolicyRef: tpm2.TPM2BDigest{Buffer: []byte(ref)}, KeySign: x.keyName, CheckTicket: ticket.Validation,
	}.Execute(t)
	if err != nil {
		return err
	}
	if _, err := (tpm2.FlushContext{FlushHandle: key.ObjectHandle}).Execute(t); err != nil {
		return err
	}
	if _, err := (tpm2.PolicyPCR{PolicySession: session.Handle(), Pcrs: registers(policy)}).Execute(t); err != nil {
		return err
	}
	index := tpm2.NamedHandle{Handle: tpm2.TPMHandle(counter.Handle), Name: x.index}
	if _, err := (tpm2.NVReadPublic{NVIndex: index.Handle}).Execute(t); err != nil {
		return err
	}
	_, err = tpm2.PolicyNV{
		AuthHandle: tpm2.AuthHandle{Handle: index.Handle, Name: index.Name, Auth: tpm2.HMAC(tpm2.TPMAlgSHA256, 32, tpm2.Salted(root, x.public))},
		NVIndex:    index, PolicySession: session.Handle(),
		OperandB: tpm2.TPM2BOperand{Buffer: binary.BigEndian.AppendUint64(nil, x.policy.AtMost)}, Operation: tpm2.TPMEOUnsignedLE,
	}.Execute(t)
	return err
}
