package eventlog

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
	"unicode"

	"gatehouse/appliance/control"
	"gatehouse/tpm/pcr"
)

// Start is all that is known of a start, for Explain.
type Start struct {
	Log        *Log       // of the firmware; nil: there is none, or it cannot be read
	Problem    error      // why there is no log, if that is known
	Registers  pcr.Values // of the TPM; nil: there is none, or it does not answer
	SecureBoot SecureBoot
	Release    Release
	Trust      control.Trust // of the keys, as on every face
	Locked     string        // why the keys are closed, in words; "" while they are open
	Data       string        // what is wrong with the data volume, in words; "" if nothing is
	Behind     string        // the data are older than the TPM remembers, in words
}

// SecureBoot is what the firmware's variables say.
type SecureBoot struct {
	Known, Enabled, SetupMode bool
}

// Release is what the running image says of itself, compared with the registers.
type Release struct {
	Brought bool   // the image has approvals
	Epoch   uint64 // that they are of
	Path    string // the approved way in which it was started; "" if none fits
	Sealed  bool   // the key opens for approved releases alone
}

// Explain is the ladder from power-on to the data: for each rung what was seen,
// and what that is worth. It never says more than somebody enforced: what is
// measured and not compared by anybody is unchecked.
func Explain(s Start) []control.Rung {
	return []control.Rung{s.firmware(), s.loader(), s.system(), s.keys(), s.data()}
}

func rung(name, state, format string, args ...any) control.Rung {
	return control.Rung{Name: name, State: state, Sentence: fmt.Sprintf(format, args...)}
}

// unread says why the log explains nothing; "" if it does.
func (s Start) unread() string {
	switch {
	case s.Registers == nil:
		return "There is no TPM that could have kept what was started."
	case s.Log == nil && s.Problem != nil:
		return fmt.Sprintf("The TPM holds what was started, but the firmware's log, which would explain it, cannot be read: %v.", s.Problem)
	case s.Log == nil:
		return "The TPM holds what was started, but the firmware keeps no log that would explain it."
	}
	return ""
}

// disagree says that the log does not lead to registers; "" if it does.
func (s Start) disagree(indices ...int) string {
	var names []string
	for _, c := range s.Log.Differ(s.Registers, indices...) {
		names = append(names, fmt.Sprint(c.Index))
	}
	if names == nil {
		return ""
	}
	return fmt.Sprintf("The firmware's log does not lead to PCR %s as the TPM holds it: the log is incomplete, or somebody changed it, or measured something and did not write it down.", strings.Join(names, ", "))
}

// firmware: what runs before anything of ours.
func (s Start) firmware() control.Rung {
	const name = "firmware"
	if why := s.unread(); why != "" {
		return rung(name, control.RungUnavailable, "%s", why)
	}
	if why := s.disagree(0, 1, 2, 3); why != "" {
		return rung(name, control.RungBroken, "%s", why)
	}
	steps := 0
	for _, e := range s.Log.Events {
		if e.PCR <= 3 && e.Type != NoAction && e.Type != Separator {
			steps++
		}
	}
	return rung(name, control.RungUnchecked, "The firmware measured itself, its settings and the cards' drivers in %d steps (PCR 0 to 3), and its log leads to what the TPM holds. This is recorded, not judged: the key is not bound to it, so that an update of the firmware does not lock the box.", steps)
}

// loader: who decides what is started. Secure Boot is what checks here; PCR 4
// and 7 tell of it.
func (s Start) loader() control.Rung {
	const name = "loader"
	switch {
	case !s.SecureBoot.Known:
		return rung(name, control.RungUnchecked, "This machine was started without UEFI, or its firmware does not say whether Secure Boot is on: nobody checked what was started.")
	case !s.SecureBoot.Enabled && s.SecureBoot.SetupMode:
		return rung(name, control.RungUnchecked, "Secure Boot is off, since the firmware has no keys yet: it starts any program.%s", s.programs())
	case !s.SecureBoot.Enabled:
		return rung(name, control.RungUnchecked, "Secure Boot is off: the firmware starts any program.%s", s.programs())
	}
	if s.unread() != "" {
		return rung(name, control.RungChecked, "Secure Boot is on: the firmware says that it starts only what is signed with a key it knows. Nothing else tells of it here.")
	}
	if why := s.disagree(4, 7); why != "" {
		return rung(name, control.RungBroken, "%s", why)
	}
	p, err := s.Log.policy()
	if err != nil {
		return rung(name, control.RungChecked, "Secure Boot is on: the firmware starts only what is signed with a key it knows.%s", s.programs())
	}
	if on, err := p.enabled(); err == nil && !on {
		return rung(name, control.RungBroken, "The firmware says that Secure Boot is on, and measured that it was off when this system was started.")
	}
	return rung(name, control.RungChecked, "Secure Boot is on: the firmware starts only what is signed with a key it knows. %s vouched for this start.%s", p.vouchers(), s.programs())
}

// programs lists the digests of what the firmware started, if the log leads to them.
func (s Start) programs() string {
	if s.unread() != "" || s.disagree(4) != "" {
		return ""
	}
	const most = 4
	var digests []string
	n := 0
	for _, e := range s.Log.Events {
		if e.PCR == 4 && e.Type == BootApplication {
			if n++; n <= most {
				digests = append(digests, hex.EncodeToString(e.Digest[:4])+"…")
			}
		}
	}
	switch {
	case n == 0:
		return ""
	case n > most:
		digests = append(digests, fmt.Sprintf("%d more", n-most))
	}
	return fmt.Sprintf(" It started %d (Authenticode SHA-256 %s).", n, strings.Join(digests, ", "))
}

// vouchers names the authorities by the subjects of their certificates.
func (p *policy) vouchers() string {
	const most = 3
	var names []string
	for i, v := range p.authorities {
		if i == most {
			names = append(names, fmt.Sprintf("%d more", len(p.authorities)-most))
			break
		}
		names = append(names, v.voucher())
	}
	if names == nil {
		return "No certificate"
	}
	return strings.Join(names, ", ")
}

// voucher is the name in an entry of db: a certificate's subject, or that it is
// something else. It comes from whoever enrolled it, so it is shown as data.
func (v variable) voucher() string {
	const owner = 16
	if len(v.data) > owner {
		if c, err := x509.ParseCertificate(v.data[owner:]); err == nil && c.Subject.CommonName != "" {
			return fmt.Sprintf("“%s”", printable(c.Subject.CommonName))
		}
	}
	return fmt.Sprintf("an entry of %s without a name", printable(v.name))
}

// printable keeps a name of somebody's from being more than a name.
func printable(s string) string {
	const most = 64
	out := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar || r == '“' || r == '”' {
			return '?'
		}
		return r
	}, s)
	if r := []rune(out); len(r) > most {
		out = string(r[:most]) + "…"
	}
	return out
}

// system: the kernel, its initramfs and command line, and what came beside them.
func (s Start) system() control.Rung {
	const name = "system"
	if s.Registers == nil {
		return rung(name, control.RungUnavailable, "%s", s.unread())
	}
	if !s.Release.Brought {
		return rung(name, control.RungUnchecked, "This system was started without approvals of a release, as a kernel is that is started by itself: whether it is one of ours cannot be said.")
	}
	if s.Release.Path == "" {
		return rung(name, control.RungBroken, "PCR 11, 12 and 13 hold what no approval of this release fits: %s.", s.astray())
	}
	seen := fmt.Sprintf("PCR 11, 12 and 13 hold what the release key approves for epoch %d, started as %s", s.Release.Epoch, s.Release.Path)
	switch {
	case !s.SecureBoot.Enabled:
		return rung(name, control.RungUnchecked, "%s. But nobody had to tell the truth: with Secure Boot off any program could have measured the same.", seen)
	case s.Locked != "":
		return rung(name, control.RungUnchecked, "%s, under Secure Boot. But the TPM did not give the key, so that nobody compared them but this system itself.", seen)
	case !s.Release.Sealed:
		return rung(name, control.RungUnchecked, "%s, under Secure Boot. But the key does not ask for it: make the slot of the TPM anew.", seen)
	}
	return rung(name, control.RungChecked, "%s, under Secure Boot, and the TPM gives the key for nothing else.", seen)
}

// astray says which of the three registers is one that no way of starting a
// system of ours leads to.
func (s Start) astray() string {
	var zero [pcr.Size]byte
	switch {
	case s.Registers[13] != zero:
		return "an extension of the system was loaded beside it (PCR 13)"
	case s.Log != nil && s.added():
		return "another command line or credentials were given at the start (PCR 12)"
	}
	return "the kernel, its initramfs or its command line are others than those that were approved (PCR 11 or 12)"
}

// added says whether something other than one command line went into PCR 12.
func (s Start) added() bool {
	var first *Event
	for i := range s.Log.Events {
		e := &s.Log.Events[i]
		if e.PCR != 12 || e.Type == NoAction {
			continue
		}
		if first != nil && !bytes.Equal(first.Digest[:], e.Digest[:]) {
			return true
		}
		first = e
	}
	return false
}

// keys: what the data key is behind.
func (s Start) keys() control.Rung {
	const name = "keys"
	if s.Locked != "" {
		return rung(name, control.RungBroken, "%s", s.Locked)
	}
	switch s.Trust.Grade {
	case "A":
		return rung(name, control.RungChecked, "%s (grade A)", s.Trust.Sentence)
	case "B", "C", "P":
		return rung(name, control.RungUnchecked, "%s (grade %s)", s.Trust.Sentence, s.Trust.Grade)
	}
	return rung(name, control.RungUnavailable, "There are no keys yet.")
}

func (s Start) data() control.Rung {
	const name = "data"
	switch {
	case s.Locked != "":
		return rung(name, control.RungUnavailable, "The data are not open, and nothing was changed in them.")
	case s.Trust.Grade == "" || s.Trust.Grade == "-":
		return rung(name, control.RungUnavailable, "There are no keys that could open any data.")
	case s.Data != "":
		return rung(name, control.RungBroken, "%s", s.Data)
	case s.Behind != "":
		return rung(name, control.RungBroken, "%s", s.Behind)
	}
	return rung(name, control.RungChecked, "The data opened under these keys. Single sectors of an earlier day that somebody put back would not be noticed.")
}
