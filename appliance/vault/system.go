package vault

import "gatehouse/tpm/pcr"

// approvedRegisters are what a release is measured into: the image, its command
// line as given, what else was loaded beside it.
func approvedRegisters() pcr.Selection { return pcr.Select(11, 12, 13) }

// approved says whether the system that runs is one that the image's release
// key approves. The image says so itself; it decides only what is sealed to.
func (c *Config) approved(now pcr.Values) bool {
	if c.System == nil {
		return false
	}
	_, ok := c.System.Started(registers(now, approvedRegisters()))
	return ok
}

func (c *Config) approvals() []pcr.Approval {
	if c.System == nil {
		return nil
	}
	return c.System.Approvals()
}
