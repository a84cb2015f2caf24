// Package signin is the pages by which people get in, prove again that it is them, and get out.
package signin

import (
	"embed"
	"errors"
	"net/url"
	"strconv"
	"sync"
	"time"

	"gatehouse/appliance/account"
	"gatehouse/appliance/account/right"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
)

//go:embed *.html
var files embed.FS

// Pages are the routes of signing in and out.
type Pages struct {
	password, code, confirm shell.Page
	wrong                   wrong
}

// New makes the pages.
func New() *Pages {
	return &Pages{password: shell.Parse(files, "password.html"), code: shell.Parse(files, "code.html"), confirm: shell.Parse(files, "confirm.html")}
}

// Routes are this package's rows of the table.
func (p *Pages) Routes() []shell.Route {
	ready := []control.State{control.StateReady}
	return []shell.Route{
		{Method: "GET", Path: "/sign-in", States: ready, Handle: p.showPassword},
		{Method: "POST", Path: "/sign-in", States: ready, Handle: p.checkPassword},
		{Method: "GET", Path: "/sign-in/code", States: ready, Need: shell.Code, Handle: p.showCode},
		{Method: "POST", Path: "/sign-in/code", States: ready, Need: shell.Code, Handle: p.checkCode},
		{Method: "POST", Path: "/sign-out", States: ready, Need: shell.Enrol, Handle: signOut},
		{Method: "GET", Path: "/account/confirm", States: ready, Need: shell.Full, Right: right.OwnAccount, Handle: p.showConfirm},
		{Method: "POST", Path: "/account/confirm", States: ready, Need: shell.Full, Right: right.OwnAccount, Handle: p.checkConfirm},
	}
}

type form struct{ Email, Next string }

func (p *Pages) showPassword(v *shell.Visit) error {
	return v.Show(p.password, form{Next: v.Next("")})
}

func (p *Pages) checkPassword(v *shell.Visit) error {
	f := form{v.R.PostFormValue("email"), v.Next("")}
	person, err := v.Box.Accounts.CheckPassword(v.Ctx(), f.Email, v.R.PostFormValue("password"), v.R.PostFormValue("recovery"), v.Origin)
	if err != nil {
		return v.ShowAgain(p.password, f, p.refused(v, actor(f.Email), err))
	}
	stage, next := account.StageCode, "/sign-in/code"
	if !person.Factor {
		// The password alone opens the set-up of a second factor and nothing else.
		if err := v.RecordAs(person.Email, "sign-in", "", "ok", map[string]string{"second factor": "none yet"}); err != nil {
			return err
		}
		stage, next = account.StageEnrol, "/welcome/clock"
	}
	if err := v.SignIn(person, stage); err != nil {
		return err
	}
	if f.Next != "" && stage == account.StageCode {
		next += "?next=" + url.QueryEscape(f.Next)
	}
	v.Redirect(next)
	return nil
}

// How many wrong sign-ins are recorded one by one: so many at once, then one
// each half minute, 1 MB a day.
const (
	wrongBurst = 200
	wrongEach  = 30 * time.Second
)

// wrong counts the wrong sign-ins that are recorded, and those that are not.
type wrong struct {
	mu     sync.Mutex
	used   int
	last   time.Time
	missed int
}

func (w *wrong) take(now time.Time) (missed int, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if back := int(now.Sub(w.last) / wrongEach); back > 0 {
		w.used, w.last = max(0, w.used-back), now
	}
	if w.used >= wrongBurst {
		w.missed++
		return 0, false
	}
	w.used++
	missed, w.missed = w.missed, 0
	return missed, true
}

// refused records a wrong secret. Tries that were only held back are not
// recorded, and in a flood the wrong ones are only counted: strangers who try
// one address after the other would fill the disk.
func (p *Pages) refused(v *shell.Visit, who string, err error) error {
	var r *account.Refusal
	if !errors.As(err, &r) || !r.Wrong {
		return err
	}
	missed, ok := p.wrong.take(v.Box.Wall())
	if !ok {
		return err
	}
	var detail map[string]string
	if missed > 0 {
		detail = map[string]string{"others since the entry before": strconv.Itoa(missed)}
	}
	if failed := v.RecordAs(who, "sign-in", "", "refused", detail); failed != nil {
		return failed
	}
	return err
}

// actor keeps what was typed out of the log unless it looks like an address:
// people type their password into the wrong field.
func actor(email string) string {
	if account.CheckEmail(email) != nil {
		return "unknown"
	}
	return email
}

func (p *Pages) showCode(v *shell.Visit) error { return v.Show(p.code, form{Next: v.Next("")}) }

func (p *Pages) checkCode(v *shell.Visit) error {
	proof, err := v.Box.Accounts.CheckCode(v.Ctx(), v.Person(), v.R.PostFormValue("code"), v.Origin)
	if err != nil {
		err = p.refused(v, v.Person().Email, err)
		left, countErr := v.Box.Accounts.CountTry(v.Ctx(), v.Session)
		if countErr != nil {
			return countErr
		}
		if left <= 0 {
			return v.ShowAgain(p.password, form{Email: v.Person().Email, Next: v.Next("")}, err)
		}
		return v.ShowAgain(p.code, form{Next: v.Next("")}, err)
	}
	detail := map[string]string{"second factor": "code of the app"}
	if proof.Recovery {
		detail["second factor"] = "recovery code"
	}
	if err := v.Record("sign-in", "", detail); err != nil {
		return err
	}
	if err := v.SignIn(v.Person(), account.StageFull); err != nil {
		return err
	}
	v.Redirect(v.Next("/"))
	return nil
}

func (p *Pages) showConfirm(v *shell.Visit) error {
	return v.Show(p.confirm, form{v.Person().Email, v.Next("/account")})
}

// checkConfirm asks for both secrets again before factors are changed (ASVS 7.5.1).
func (p *Pages) checkConfirm(v *shell.Visit) error {
	f := form{v.Person().Email, v.Next("/account")}
	person, err := v.Box.Accounts.CheckPassword(v.Ctx(), f.Email, v.R.PostFormValue("password"), "", v.Origin)
	if err == nil && person.Factor {
		_, err = v.Box.Accounts.CheckCode(v.Ctx(), v.Person(), v.R.PostFormValue("code"), v.Origin)
	}
	if err != nil {
		return v.ShowAgain(p.confirm, f, p.refused(v, f.Email, err))
	}
	if err := v.Record("reauthenticate", "", nil); err != nil {
		return err
	}
	if err := v.Box.Accounts.Confirm(v.Ctx(), v.Session); err != nil {
		return err
	}
	v.Redirect(f.Next)
	return nil
}

func signOut(v *shell.Visit) error {
	if err := v.Record("sign-out", "", nil); err != nil {
		return err
	}
	if err := v.SignOut(); err != nil {
		return err
	}
	v.Redirect("/sign-in?done=out")
	return nil
}
