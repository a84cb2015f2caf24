// Package profile is a person's own account: password, factors, and where one is signed in.
package profile

import (
	"embed"
	"net/http"
	"strconv"
	"time"

	"gatehouse/appliance/account"
	"gatehouse/appliance/account/right"
	"gatehouse/appliance/console/claim"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
)

//go:embed *.html
var files embed.FS

// Pages are the routes of the account.
type Pages struct{ page, password shell.Page }

// New makes the pages.
func New() *Pages {
	return &Pages{shell.Parse(files, "account.html"), shell.Parse(files, "password.html")}
}

// Routes are this package's rows of the table.
func (p *Pages) Routes() []shell.Route {
	own := func(method, path string, fresh bool, h func(*shell.Visit) error) shell.Route {
		return shell.Route{Method: method, Path: path, States: []control.State{control.StateReady}, Need: shell.Full, Right: right.OwnAccount, Fresh: fresh, Handle: h}
	}
	strength := own("POST", "/api/v1/password-strength", false, claim.Strength)
	strength.API = true
	session := own("GET", "/api/v1/session", false, showSession)
	session.API = true
	return []shell.Route{
		own("GET", "/account", false, p.show),
		own("GET", "/account/password", true, p.showPassword),
		own("POST", "/account/password", true, p.setPassword),
		own("POST", "/account/end", false, p.end),
		own("POST", "/account/end-others", false, p.endOthers),
		strength, session,
	}
}

type view struct {
	Sessions []account.Session
	Mine     int64
	Codes    int
}

func (p *Pages) show(v *shell.Visit) error {
	list, err := v.Box.Accounts.Sessions(v.Ctx(), v.Person())
	if err != nil {
		return err
	}
	left, err := v.Box.Accounts.RecoveryLeft(v.Ctx(), v.Person())
	if err != nil {
		return err
	}
	return v.Show(p.page, view{list, v.Session.ID, left})
}

// Session is what a tool is told of the session it is signed in by.
type Session struct {
	Email string    `json:"email"`
	Role  string    `json:"role"`
	Until time.Time `json:"until"` // it ends then,
	Idle  int       `json:"idle"`  // or after so many seconds without use
}

// showSession counts as a use: a tool asks while its person is at work.
func showSession(v *shell.Visit) error {
	return v.JSON(http.StatusOK, Session{
		Email: v.Person().Email, Role: string(v.Person().Role),
		Until: v.Session.Created.Add(account.AbsoluteTime).UTC().Truncate(time.Second), Idle: int(account.IdleTime / time.Second),
	})
}

func (p *Pages) showPassword(v *shell.Visit) error { return v.Show(p.password, nil) }

func (p *Pages) setPassword(v *shell.Visit) error {
	pw := v.R.PostFormValue("password")
	err := v.Box.Accounts.CheckNewPassword(v.Person(), pw, v.Box.Name)
	if err == nil {
		err = v.Record("change password", v.Person().Email, nil)
	}
	if err == nil {
		err = v.Box.Accounts.SetPassword(v.Ctx(), v.Person(), pw, v.Session.ID)
	}
	if err != nil {
		return v.ShowAgain(p.password, nil, err)
	}
	// All known browsers were forgotten; this one has just proven itself, and
	// gets a new cookie with its new session.
	if err := v.SignIn(v.Person(), account.StageFull); err != nil {
		return err
	}
	v.Redirect("/account?done=password")
	return nil
}

func (p *Pages) end(v *shell.Visit) error {
	id, err := strconv.ParseInt(v.R.PostFormValue("session"), 10, 64)
	if err != nil {
		return shell.Refuse("That names no session.")
	}
	if err := v.Record("end session", strconv.FormatInt(id, 10), nil); err != nil {
		return err
	}
	if err := v.Box.Accounts.End(v.Ctx(), v.Person(), id); err != nil {
		return err
	}
	v.Redirect("/account?done=session")
	return nil
}

func (p *Pages) endOthers(v *shell.Visit) error {
	if err := v.Record("end other sessions", v.Person().Email, nil); err != nil {
		return err
	}
	if err := v.Box.Accounts.EndOthers(v.Ctx(), v.Person(), v.Session.ID, v.Origin.Device); err != nil {
		return err
	}
	v.Redirect("/account?done=sessions")
	return nil
}
