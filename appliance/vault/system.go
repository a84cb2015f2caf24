package vault

import (
	"crypto/ecdsa"
	"fmt"

	"gatehouse/tpm/pcr"
)

// System is what the running image brings to be measured by: who approves
// releases, of which epoch this one is, and the approvals of its own registers,
// one for each way that firmware may start it.
type System struct {
	Key       *ecdsa.PublicKey // P-256
	Epoch     uint64
	Approvals []pcr.Approval
}

// approvedRegisters are what a release is measured into: the image, its command
// line as given, what else was loaded beside it.
func approvedRegisters() pcr.Selection { return pcr.Select(11, 12, 13) }

func reference(epoch uint64) string { return fmt.Sprintf("gatehouse/epoch-%d", epoch) }

// approved says whether the system that runs is one of those approved.
func (s *System) approved(now pcr.Values) bool {
	if s == nil || s.Key == nil {
		return false
	}
	d := pcr.Digest{}.PCR(now)
	for _, a := range s.Approvals {
		if a.Policy == d && a.Check(s.Key, reference(s.Epoch)) == nil {
			return true
		}
	}
	return false
}
