package control

import "time"

// Keys is what stands between firmware and data, and what opens the data: the
// same on the page, in the API and in the tool.
type Keys struct {
	Trust      Trust            `json:"trust"`
	Rungs      []Rung           `json:"rungs"` // top to bottom: firmware, loader, system, keys, data
	Slots      []KeySlot        `json:"slots"`
	Registers  []Register       `json:"registers,omitempty"` // of the TPM, that the key is sealed to
	SecureBoot SecureBootStatus `json:"secure_boot"`
	TPM        *TPMStatus       `json:"tpm,omitempty"`     // nil: there is none
	Recovery   string           `json:"recovery"`          // none, unconfirmed, confirmed
	Epoch      uint64           `json:"epoch"`             // of the running release; images of an older one do not open the data
	Generation uint64           `json:"generation"`        // of the header, counts its changes
	Behind     string           `json:"behind,omitempty"`  // the data are older than the TPM remembers, in words
	Offered    string           `json:"offered,omitempty"` // a TPM that was not there when the keys were made, in words
	Notes      []string         `json:"notes,omitempty"`   // what a person should know besides
}

// Rung is one step of the ladder from power-on to the data.
type Rung struct {
	Name     string `json:"name"`     // firmware, loader, system, keys, data
	State    string `json:"state"`    // checked, unchecked, unavailable, broken
	Sentence string `json:"sentence"` // what was seen, and why it counts for that
}

// The states of a Rung.
const (
	RungChecked     = "checked"
	RungUnchecked   = "unchecked"
	RungUnavailable = "unavailable"
	RungBroken      = "broken"
)

// KeySlot is one way to the data key.
type KeySlot struct {
	Kind      string    `json:"kind"` // tpm, host-id, passphrase, recovery
	Made      time.Time `json:"made"`
	InUse     bool      `json:"in_use"`         // opened the data at this start
	Confirmed bool      `json:"confirmed"`      // recovery: somebody showed that they keep it
	Note      string    `json:"note,omitempty"` // tpm: what it waits for, if it is not for the system that runs
}

// Register is one PCR of the SHA-256 bank.
type Register struct {
	Index    int    `json:"index"`
	Name     string `json:"name"`               // what is measured into it
	Value    string `json:"value"`              // now, hex
	Sealed   string `json:"sealed,omitempty"`   // when the key was sealed, hex
	Approved bool   `json:"approved,omitempty"` // the release key approves the value, whatever it was at sealing
}

// Changed says that the register holds something that neither was there when
// the key was sealed nor is approved by the release key.
func (r Register) Changed() bool {
	return r.Sealed != "" && r.Sealed != r.Value && !r.Approved
}

// SecureBootStatus is what the firmware says of Secure Boot, and what can be done about it.
type SecureBootStatus struct {
	Known     bool   `json:"known"` // false: no UEFI, or it does not say
	Enabled   bool   `json:"enabled"`
	SetupMode bool   `json:"setup_mode"` // no platform key: one can be enrolled
	Ours      bool   `json:"ours"`       // the platform key is the one of this image
	CanEnrol  bool   `json:"can_enrol"`
	Sentence  string `json:"sentence"`
}

// TPMStatus names the TPM.
type TPMStatus struct {
	Maker   string `json:"maker"`
	Version string `json:"version"`      // of its firmware
	EK      string `json:"ek,omitempty"` // SHA-256 of the endorsement key's public half, hex
	Lockout uint32 `json:"lockout"`      // failed authorisations it counted

	AK   string   `json:"ak,omitempty"`   // SHA-256 of the attestation key's public half, hex
	Keys []BoxKey `json:"keys,omitempty"` // for which it signed, in this run, that they are in this TPM and stay there
}

// BoxKey is a key of the box's own that never leaves its TPM.
type BoxKey struct {
	Name        string `json:"name"`        // checkpoint, tunnel
	Fingerprint string `json:"fingerprint"` // SHA-256 of its public half, hex
}

// By is who asks, for the audit log.
type By struct {
	Actor string `json:"actor"`
	From  string `json:"from"`
}

// RecoveryKey is shown once.
type RecoveryKey struct {
	Text string `json:"text"`
}

// RecoveryConfirm proves that the person keeps the new recovery key: its last group, typed.
type RecoveryConfirm struct {
	By
	Text string `json:"text"`
}

// KeyRotate names what is to be made anew.
type KeyRotate struct {
	By
	What string `json:"what"` // tpm, host-id, passphrase, data
}

// PassphraseSet has a passphrase asked for at each start; an empty one ends that.
type PassphraseSet struct {
	By
	Passphrase []byte `json:"passphrase"`
}

// What a role may ask of the keys.
var (
	// OpKeys reads the ladder; also in a locked box.
	OpKeys = Op[None, Keys]{"keys", []Role{Console}}
	// OpRecoveryMake makes a new recovery key. The one before stays until the new one is confirmed.
	OpRecoveryMake = Op[By, RecoveryKey]{"recovery-make", []Role{Console}}
	// OpRecoveryConfirm puts the new recovery key in the place of the one before.
	OpRecoveryConfirm = Op[RecoveryConfirm, None]{"recovery-confirm", []Role{Console}}
	// OpKeyRotate makes one slot, or the data key, anew.
	OpKeyRotate = Op[KeyRotate, None]{"key-rotate", []Role{Console}}
	// OpPassphraseSet sets or removes the passphrase of the start.
	OpPassphraseSet = Op[PassphraseSet, None]{"passphrase-set", []Role{Console}}
	// OpTPMTake seals to a TPM that was not there when the keys were made.
	OpTPMTake = Op[By, None]{"tpm-take", []Role{Console}}
	// OpSecureBootEnrol writes the image's keys into a firmware in set-up mode.
	OpSecureBootEnrol = Op[By, None]{"secure-boot-enrol", []Role{Console}}
)
