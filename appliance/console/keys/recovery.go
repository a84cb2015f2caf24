package keys

import (
	"fmt"
	"html/template"
	"net/url"
	"slices"
	"strings"
	"time"

	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
)

// The states of control.Keys.Recovery.
const (
	none      = "none"
	confirmed = "confirmed"
)

// waits says that a recovery key was made and is not confirmed, beside one that
// is or without.
func waits(k control.Keys) bool {
	return slices.ContainsFunc(k.Slots, func(s control.KeySlot) bool { return s.Kind == "recovery" && !s.Confirmed })
}

type recoveryData struct {
	Welcome bool
	State   string
	Waits   bool   // one that was made waits to be confirmed
	Path    string // of this page
	Groups  []string
	Made    time.Time
	File    template.URL // the same as a file
}

func (p *Pages) recoveryData(v *shell.Visit) (d recoveryData, err error) {
	k, err := p.look(v.Ctx())
	d.Path = "/keys/recovery"
	if d.Welcome = strings.HasPrefix(v.Route.Path, "/welcome/"); d.Welcome {
		d.Path = "/welcome/recovery"
	}
	d.State, d.Waits = k.Recovery, waits(k)
	return d, err
}

func (p *Pages) showRecovery(v *shell.Visit) error {
	d, err := p.recoveryData(v)
	if err != nil {
		return err
	}
	if d.Welcome && d.State != none && !d.Waits { // done, or there is nothing to be done
		v.Redirect("/welcome/place")
		return nil
	}
	return v.Show(p.recovery, d)
}

// makeRecovery answers with the key itself: nothing of it is kept here, so
// that it is shown this once, and no later request can have it.
func (p *Pages) makeRecovery(v *shell.Visit) error {
	d, err := p.recoveryData(v)
	if err != nil {
		return err
	}
	key, err := p.MakeRecovery(v.Ctx(), by(v))
	p.forget()
	if err != nil {
		return v.ShowAgain(p.recovery, d, err)
	}
	d.Waits, d.Groups, d.Made = true, strings.Split(key.Text, "-"), v.Box.Wall()
	d.File = fileOf(fmt.Sprintf("Recovery key of %s\r\nmade %s\r\n\r\n%s\r\n\r\n"+
		"It opens the data of this box when its TPM, its firmware or its mainboard no longer does:\r\n"+
		"at the screen and keyboard of the box, or on a host with gatehoused recover.\r\n"+
		"Whoever has it and the disk can read everything. No page of a locked box ever asks for it.\r\n",
		v.Box.Name, d.Made.UTC().Format("2006-01-02 15:04 UTC"), key.Text))
	return v.Show(p.recovery, d)
}

// fileOf is a text as an address that needs no second request.
func fileOf(text string) template.URL {
	return template.URL("data:text/plain;charset=utf-8," + url.PathEscape(text))
}

func (p *Pages) confirmRecovery(v *shell.Visit) error {
	d, err := p.recoveryData(v)
	if err != nil {
		return err
	}
	err = p.confirm(v, v.R.PostFormValue("typed"))
	switch {
	case err != nil:
		return v.ShowAgain(p.recovery, d, err)
	case d.Welcome:
		v.Redirect("/welcome/place")
	default:
		v.Redirect("/keys?done=recovery")
	}
	return nil
}

func (p *Pages) confirm(v *shell.Visit, typed string) error {
	typed = strings.TrimSpace(typed)
	if typed == "" || len(typed) > 200 {
		return shell.Refuse("Type the last group of the recovery key.")
	}
	defer p.forget()
	return p.ConfirmRecovery(v.Ctx(), control.RecoveryConfirm{By: by(v), Text: typed})
}
