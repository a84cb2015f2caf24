package vault

import "gatehouse/appliance/control"

// trustOf says what a mode is worth, in the same words on every face. Grade A
// needs our own release in the measured part of the policy: Secure Boot alone
// would also start any other signed system on this machine, and PCR 7 would
// hold the same value.
func trustOf(m mode, secureBoot, measured bool) control.Trust {
	t := control.Trust{Mechanism: m.String(), SecureBoot: secureBoot}
	switch m {
	case modeTPM, modeTPMPassphrase:
		t.Grade = "B"
		t.Sentence = "Sealed to this machine's TPM; the boot chain is not enforced. Protects against theft of the disk, not against somebody who can start another system on this machine."
		switch {
		case secureBoot && measured:
			t.Grade = "A"
			t.Sentence = "Sealed to this machine's TPM for releases that we approved; the firmware starts nothing that is not signed. Neither the disk elsewhere nor another system on this machine opens the data."
		case measured:
			t.Raise = "Secure Boot is off: switched on with this box's own keys, it would raise this to A."
		case secureBoot:
			t.Raise = "The key is sealed without our release in its policy: make the TPM's slot anew to raise this to A."
		default:
			t.Raise = "Secure Boot is off, and no release that was measured is in the policy: both would raise this to A."
		}
		if m == modeTPMPassphrase {
			t.Sentence += " A passphrase is asked for besides at each start."
		}
	case modeHostID:
		t.Grade = "C"
		t.Sentence = "Bound to an identifier of this machine: not hardware-protected. Obfuscation only: whoever has a copy of the data and knows the identifier can read it."
		t.Raise = "A TPM 2.0 would raise this: switch it on in the firmware's set-up, then erase and start anew."
	case modePassphrase:
		t.Grade = "P"
		t.Sentence = "Protected by a passphrase given at each start. As strong as the passphrase, and as the place where it is kept."
		t.Raise = "A machine with a TPM 2.0 would open its data without a passphrase that can be copied."
	default:
		t.Sentence = "Nothing is protected yet: there is no data key."
	}
	return t
}
