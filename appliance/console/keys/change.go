package keys

import (
	"strings"

	"gatehouse/appliance/account/password"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
)

type choice struct {
	What, Name, Words string
	Chosen            bool
}

// choices are what can be made anew on this box without anything being typed.
func choices(k control.Keys, chosen string) (list []choice) {
	for _, c := range []choice{
		{What: "tpm", Name: "The key in the TPM", Words: "A new key is sealed to the TPM for the system that runs, and the old one becomes worthless."},
		{What: "host-id", Name: "The key of the machine’s identifier", Words: "It is derived again, with new random bytes."},
		{What: "data", Name: "The data key", Words: "All ways to it are made anew around a new key. The data themselves are not written again. Do it when somebody may have seen the key."},
	} {
		if c.What == "data" && len(k.Slots) > 0 || has(k, c.What) {
			c.Chosen = c.What == chosen
			list = append(list, c)
		}
	}
	return list
}

func (p *Pages) askRotate(v *shell.Visit) error {
	k, err := p.look(v.Ctx())
	if err != nil {
		return err
	}
	return v.Show(p.rotate, choices(k, v.R.FormValue("what")))
}

func (p *Pages) doRotate(v *shell.Visit) error {
	what := v.R.PostFormValue("what")
	if err := p.rotateOne(v, what); err != nil {
		k, lookErr := p.look(v.Ctx())
		if lookErr != nil {
			return lookErr
		}
		return v.ShowAgain(p.rotate, choices(k, what), err)
	}
	v.Redirect("/keys?done=rotated")
	return nil
}

func (p *Pages) rotateOne(v *shell.Visit, what string) error {
	switch what {
	case "tpm", "host-id", "passphrase", "data":
	default:
		return shell.Refuse("Say what is to be made anew: tpm, host-id, passphrase or data.")
	}
	defer p.forget()
	return p.Rotate(v.Ctx(), control.KeyRotate{By: by(v), What: what})
}

type passphraseData struct {
	Asks     bool // one is asked for now
	TPM      bool // besides a TPM, which would remain
	Hosted   bool // where a variable can give it
	Recovery string
}

func (p *Pages) passphraseData(v *shell.Visit) (passphraseData, error) {
	k, err := p.look(v.Ctx())
	if err != nil {
		return passphraseData{}, err
	}
	st, err := v.Box.Status(v.Ctx())
	return passphraseData{has(k, "passphrase"), has(k, "tpm"), st.Hosted, k.Recovery}, err
}

func (p *Pages) askPassphrase(v *shell.Visit) error {
	d, err := p.passphraseData(v)
	if err != nil {
		return err
	}
	return v.Show(p.passphrase, d)
}

func (p *Pages) doPassphrase(v *shell.Visit) error {
	done := "passphrase"
	var err error
	if v.R.PostFormValue("action") == "remove" {
		done, err = "passphrase-gone", p.setPassphrase(v, "")
	} else if text := v.R.PostFormValue("password"); text == "" {
		err = shell.Refuse("Type the new passphrase.")
	} else if text != v.R.PostFormValue("again") {
		err = shell.Refuse("The two passphrases are not the same. Type both again.")
	} else {
		err = p.setPassphrase(v, text)
	}
	if err != nil {
		d, dataErr := p.passphraseData(v)
		if dataErr != nil {
			return dataErr
		}
		return v.ShowAgain(p.passphrase, d, err)
	}
	v.Redirect("/keys?done=" + done)
	return nil
}

// leastPassphrase is how many characters one has: it guards a disk that can be
// taken away and tried at leisure.
const leastPassphrase = 12

// mostPassphrase is what fits a line of the box's own console.
const mostPassphrase = 100

// setPassphrase judges, and asks. Empty ends the asking.
func (p *Pages) setPassphrase(v *shell.Visit, text string) error {
	if text != "" {
		// Typed at the box, where the keyboard is the kernel's own.
		if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
			return shell.Refuse("Use letters without accents, digits, spaces and signs of a US keyboard: others cannot be typed at the box itself.")
		}
		if len(text) < leastPassphrase || len(text) > mostPassphrase {
			return shell.Refuse("A passphrase has 12 to 100 characters.")
		}
		if strings.TrimSpace(text) != text {
			return shell.Refuse("The passphrase begins or ends with a space, which nobody sees: leave it out.")
		}
		if problem := password.Problem(text, v.Person().Name, v.Person().Email, v.Box.Name); problem != "" {
			return shell.Refuse(problem)
		}
		k, err := p.look(v.Ctx())
		if err != nil {
			return err
		}
		if k.Recovery != confirmed {
			return shell.Refuse("Make the recovery key first, and confirm it: without it, a forgotten passphrase is the end of all data.")
		}
	}
	defer p.forget()
	return p.SetPassphrase(v.Ctx(), control.PassphraseSet{By: by(v), Passphrase: []byte(text)})
}

// ask shows a page about the keys as they are.
func (p *Pages) ask(v *shell.Visit, page shell.Page) error {
	k, err := p.look(v.Ctx())
	if err != nil {
		return err
	}
	return v.Show(page, viewOf(k))
}

// again shows it with what went wrong.
func (p *Pages) again(v *shell.Visit, page shell.Page, err error) error {
	k, lookErr := p.look(v.Ctx())
	if lookErr != nil {
		return lookErr
	}
	return v.ShowAgain(page, viewOf(k), err)
}

func (p *Pages) askTPM(v *shell.Visit) error { return p.ask(v, p.tpm) }

func (p *Pages) doTPM(v *shell.Visit) error {
	if err := p.takeTPM(v); err != nil {
		return p.again(v, p.tpm, err)
	}
	v.Redirect("/keys?done=tpm")
	return nil
}

func (p *Pages) takeTPM(v *shell.Visit) error {
	defer p.forget()
	return p.TakeTPM(v.Ctx(), by(v))
}

func (p *Pages) askBoot(v *shell.Visit) error { return p.ask(v, p.boot) }

// doBoot leads to the restart, since what was enrolled counts from then on.
func (p *Pages) doBoot(v *shell.Visit) error {
	if err := p.enrol(v); err != nil {
		return p.again(v, p.boot, err)
	}
	v.Redirect("/system/restart?done=enrolled")
	return nil
}

func (p *Pages) enrol(v *shell.Visit) error {
	defer p.forget()
	return p.Enrol(v.Ctx(), by(v))
}
