package tpm

import (
	"fmt"

	"gatehouse/tpm/pcr"

	"github.com/google/go-tpm/tpm2"
)

// Random returns n ≤ 32 random bytes, over an authenticated session: a plain
// answer could come from anybody on the bus.
func (t *TPM) Random(root Root, n int) (b []byte, err error) {
	const doing = "asking the TPM for random bytes"
	err = t.under(root, doing, func(s *scope) error {
		resp, err := tpm2.GetRandom{BytesRequested: uint16(n)}.Execute(s, s.session(encrypt(out)))
		if err != nil {
			return explain(doing, err)
		}
		if len(resp.RandomBytes.Buffer) != n {
			return fmt.Errorf("%s: %d instead of %d came", doing, len(resp.RandomBytes.Buffer), n)
		}
		b = resp.RandomBytes.Buffer
		return nil
	})
	return b, err
}

// PCRs reads registers of the SHA-256 bank, authenticated. ErrBank: the bank
// is absent.
func (t *TPM) PCRs(root Root, sel pcr.Selection) (values pcr.Values, err error) {
	const doing = "reading the TPM's registers"
	err = t.under(root, doing, func(s *scope) error {
		values = make(pcr.Values)
		// A TPM answers at most eight registers at a time, fewer if it likes.
		for left := sel; left != 0; {
			resp, err := tpm2.PCRRead{PCRSelectionIn: selection(left)}.Execute(s, s.session(tpm2.Audit()))
			if err != nil {
				return explain(doing, err)
			}
			got, err := taken(resp, left)
			if err != nil {
				return fmt.Errorf("%s: %w", doing, err)
			}
			for i, v := range got {
				values[i] = v
				left &^= 1 << i
			}
		}
		return nil
	})
	return values, err
}

func taken(resp *tpm2.PCRReadResponse, asked pcr.Selection) (pcr.Values, error) {
	var got pcr.Selection
	for _, p := range resp.PCRSelectionOut.PCRSelections {
		if p.Hash != tpm2.TPMAlgSHA256 {
			continue
		}
		for i, b := range p.PCRSelect {
			if i < pcr.Count/8 {
				got |= pcr.Selection(b) << (8 * i)
			}
		}
	}
	indices := got.Indices()
	if got == 0 || got&^asked != 0 || len(indices) != len(resp.PCRValues.Digests) {
		return nil, fmt.Errorf("%w: asked for PCR %v, got %v", ErrBank, asked, got)
	}
	values := make(pcr.Values)
	for n, i := range indices {
		d := resp.PCRValues.Digests[n].Buffer
		if len(d) != pcr.Size {
			return nil, fmt.Errorf("%w: PCR %d has %d bytes", ErrBank, i, len(d))
		}
		values[i] = [pcr.Size]byte(d)
	}
	return values, nil
}

// Extend extends a register of the SHA-256 bank. The answer is authenticated,
// so that nobody on the bus can swallow the command.
func (t *TPM) Extend(root Root, index int, digest [pcr.Size]byte) error {
	const doing = "extending a TPM register"
	return t.under(root, doing, func(s *scope) error {
		_, err := tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(index), Auth: s.session()},
			Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{
				{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]},
			}},
		}.Execute(s)
		return explain(doing, err)
	})
}

// ExtendPlain is Extend without a root key, for when none can be found: a box
// whose header is gone is still to be capped.
func (t *TPM) ExtendPlain(index int, digest [pcr.Size]byte) error {
	const doing = "extending a TPM register"
	return t.locked(doing, func(s sender) error {
		_, err := tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(index), Auth: tpm2.PasswordAuth(nil)},
			Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{
				{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]},
			}},
		}.Execute(s)
		return explain(doing, err)
	})
}

// Lockout is the count of failed authorisations towards the dictionary
// lockout, which power cuts must never raise.
func (t *TPM) Lockout(root Root) (count uint32, err error) {
	const doing = "reading the TPM's lockout counter"
	err = t.under(root, doing, func(s *scope) error {
		count, err = s.property(tpm2.TPMPTLockoutCounter)
		return explain(doing, err)
	})
	return count, err
}

// Shutdown tells the TPM that the machine is about to be switched off, or to
// sleep with its state kept. Without it a TPM may count the next start as a
// failed authorisation.
func (t *TPM) Shutdown(keepState bool) error {
	const doing = "telling the TPM of the shutdown"
	kind := tpm2.TPMSUClear
	if keepState {
		kind = tpm2.TPMSUState
	}
	return t.locked(doing, func(s sender) error {
		_, err := tpm2.Shutdown{ShutdownType: kind}.Execute(s)
		return explain(doing, err)
	})
}
