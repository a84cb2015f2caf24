package vault

import (
	"errors"
	"fmt"

	"gatehouse/tpm"
	"gatehouse/tpm/pcr"
)

// ErrBlank is returned by Open when META was never written and no latch says otherwise.
var ErrBlank = errors.New("META is blank: there is no data key yet")

// PCRChange is a platform register that is not what it was when the key was sealed.
type PCRChange struct {
	Index    int
	Old, New string // hex
}

// Locked says why the data key stays closed, and what to do about it.
type Locked struct {
	Rung   string // meta, header, tpm, srk, pcr, latch, claim, host-id, passphrase
	Cause  string // one sentence
	Advice string // one sentence
	PCRs   []PCRChange
	Err    error // beneath, if any

	waits *waiting // for a passphrase; nil: none would help
}

func (l *Locked) Error() string {
	s := l.Cause + " " + l.Advice
	if l.Err != nil {
		s += fmt.Sprintf(" (%v)", l.Err)
	}
	return s
}

// Unwrap returns the error beneath.
func (l *Locked) Unwrap() error { return l.Err }

const (
	adviceErase = `To give up the data and begin anew, choose "Erase and start anew" at the console.`
	// adviceRecovery is for a header that has a recovery key.
	adviceRecovery = "Or use the recovery key."
	adviceTPM      = "Switch the machine off and on again; if it stays, look at the TPM in the firmware's set-up. " + adviceErase
	adviceRestart  = "Restart the machine."
)

// lockedTPM sorts what the TPM said.
func lockedTPM(cause string, err error) *Locked {
	switch {
	case errors.Is(err, tpm.ErrForeign):
		return &Locked{
			Rung:   "srk",
			Cause:  "The TPM here is not the one that the data is sealed to, or it was cleared.",
			Advice: "Put the disk back into its machine. " + adviceErase, Err: err,
		}
	case errors.Is(err, tpm.ErrAuth):
		return &Locked{
			Rung:   "tpm",
			Cause:  cause + " It refuses the authorisation: another system set a password on it.",
			Advice: "Clear the TPM in the firmware's set-up if nothing else on this machine needs it; data that is sealed to it is then lost.", Err: err,
		}
	case errors.Is(err, tpm.ErrBank):
		return &Locked{
			Rung:   "pcr",
			Cause:  "The TPM's SHA-256 registers are not in use, so there is nothing to seal to.",
			Advice: "Turn on the TPM's SHA-256 bank in the firmware's set-up, or switch the TPM off there to go on without it.", Err: err,
		}
	}
	if errors.Is(err, tpm.ErrSilent) {
		cause += " It does not answer in time."
	}
	return &Locked{Rung: "tpm", Cause: cause, Advice: adviceTPM, Err: err}
}

// lockedPCR names the registers that broke the policy.
func lockedPCR(changes []pcr.Change, err error) *Locked {
	l := &Locked{Rung: "pcr", Err: err}
	capped := false
	for _, c := range changes {
		l.PCRs = append(l.PCRs, PCRChange{c.Index, fmt.Sprintf("%x", c.Old), fmt.Sprintf("%x", c.New)})
		capped = capped || c.Index == capRegister
	}
	switch {
	case len(changes) == 0:
		l.Cause = "The TPM's policy does not hold, although its registers are as they were."
		l.Advice = adviceTPM
	case capped && len(changes) == 1:
		l.Cause = "PCR 15 is not zero: something asked for the key since the machine was started."
		l.Advice = adviceRestart
	case len(changes) == 1 && changes[0].Index == secureBootRegister:
		l.Cause = fmt.Sprintf("PCR %d changed since the data was sealed: Secure Boot was switched, or its keys were changed.", changes[0].Index)
		l.Advice = "Set Secure Boot in the firmware's set-up as it was, then restart. " + adviceErase
	case !capped && changes[len(changes)-1].Index >= 11:
		l.Cause = "The system that was started (PCR 11, 12, 13) is not one that our release key approves for this box."
		l.Advice = "Start the version that ran before, or a newer one of ours. " + adviceErase
	default:
		l.Cause = "PCR 7 changed since the data was sealed, and PCR 15 is not zero: something asked for the key since the machine was started."
		l.Advice = "Set Secure Boot in the firmware's set-up as it was, then restart. " + adviceErase
	}
	return l
}

func (h *header) adviceRecovery() string {
	if h.first(kindRecovery) == nil {
		return adviceErase
	}
	return adviceRecovery + " " + adviceErase
}

func lockedLatch(cause string, err error) *Locked {
	return &Locked{
		Rung:   "latch",
		Cause:  cause,
		Advice: "Put back the disk that belongs to this machine. " + adviceErase, Err: err,
	}
}

func lockedHeader(err error) *Locked {
	return &Locked{
		Rung:   "header",
		Cause:  "The header that holds the data key is damaged or was changed.",
		Advice: "Restore the META partition if a copy of it exists. " + adviceErase, Err: err,
	}
}

func lockedMeta(err error) *Locked {
	return &Locked{
		Rung:   "meta",
		Cause:  "The place of the header, META, cannot be read or written.",
		Advice: "Look at the disk and its cable; replace the disk if it stays.", Err: err,
	}
}
