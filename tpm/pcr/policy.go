package pcr

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// Digest is a policy, as far as it goes (TPM 2.0 Library, Part 1, "Enhanced
// Authorization"): each assertion makes another one of the one before.
type Digest [Size]byte

// The command codes of assertions, and the comparison that a counter is judged by.
const (
	commandNV        = 0x00000149 // TPM_CC_PolicyNV
	commandAuthorize = 0x0000016A // TPM_CC_PolicyAuthorize
	commandCommand   = 0x0000016C // TPM_CC_PolicyCommandCode
	atMost           = 0x0009     // TPM_EO_UNSIGNED_LE
)

// PCR adds that registers hold these values (TPM2_PolicyPCR).
func (d Digest) PCR(v Values) Digest {
	composite := sha256.New()
	s := v.Selection()
	for _, i := range s.Indices() {
		x := v[i]
		composite.Write(x[:])
	}
	b := binary.BigEndian.AppendUint32(d[:], commandPolicy)
	b = binary.BigEndian.AppendUint32(b, 1) // one bank
	b = binary.BigEndian.AppendUint16(b, algSHA256)
	b = append(append(b, Count/8), s.Bitmap()...)
	return sha256.Sum256(composite.Sum(b))
}

// Authorize is the policy of a key's name and a reference: whatever that key
// approves under that reference (TPM2_PolicyAuthorize). What came before is
// what has to be approved, so it is no part of it.
func Authorize(keyName []byte, ref string) Digest {
	b := binary.BigEndian.AppendUint32(make([]byte, Size), commandAuthorize)
	first := sha256.Sum256(append(b, keyName...))
	return sha256.Sum256(append(first[:], ref...))
}

// Counter adds that the NV counter of this name is at most n (TPM2_PolicyNV).
func (d Digest) Counter(nvName []byte, n uint64) Digest {
	args := binary.BigEndian.AppendUint64(nil, n)
	args = binary.BigEndian.AppendUint16(args, 0) // offset
	args = binary.BigEndian.AppendUint16(args, atMost)
	sum := sha256.Sum256(args)
	b := binary.BigEndian.AppendUint32(d[:], commandNV)
	return sha256.Sum256(append(append(b, sum[:]...), nvName...))
}

// Command adds that the object is used by the command of this code alone
// (TPM2_PolicyCommandCode).
func (d Digest) Command(code uint32) Digest {
	b := binary.BigEndian.AppendUint32(d[:], commandCommand)
	return sha256.Sum256(binary.BigEndian.AppendUint32(b, code))
}

// Approval is a key's word that registers may hold certain values: the policy
// that says so, signed together with a reference.
type Approval struct {
	Policy    Digest `json:"policy"`
	Signature []byte `json:"signature"` // ECDSA, ASN.1, of SHA-256(Policy ‖ reference)
}

// Approve signs the values of registers under a reference. It needs no TPM: a
// release does it when it is built, once for each way in which it may be started.
// Without a source of randomness the signature follows RFC 6979: the same key
// and values give the same bytes, as all of a build does.
func Approve(key *ecdsa.PrivateKey, ref string, v Values) (Approval, error) {
	if key.Curve != elliptic.P256() {
		return Approval{}, errors.New("approving a system: the key is not P-256, which every TPM 2.0 can verify")
	}
	if !v.Selection().Valid() {
		return Approval{}, errors.New("approving a system: no register is named, and a policy about nothing holds everywhere")
	}
	p := Digest{}.PCR(v)
	sum := Approval{Policy: p}.Hash(ref)
	sig, err := key.Sign(nil, sum[:], crypto.SHA256)
	if err != nil {
		return Approval{}, fmt.Errorf("approving a system: %w", err)
	}
	return Approval{p, sig}, nil
}

// Check says whether the approval is by this key and under this reference. A
// TPM checks it again.
func (a Approval) Check(key *ecdsa.PublicKey, ref string) error {
	if sum := a.Hash(ref); !ecdsa.VerifyASN1(key, sum[:], a.Signature) {
		return fmt.Errorf("the approval of a system is not by this key under %q", ref)
	}
	return nil
}

// Hash is what is signed: aHash of TPM2_PolicyAuthorize.
func (a Approval) Hash(ref string) [Size]byte { return sha256.Sum256(append(a.Policy[:], ref...)) }
