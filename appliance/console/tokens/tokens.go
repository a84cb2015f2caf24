// Package tokens is the pages and the API by which tokens of programs are made, listed and revoked.
package tokens

import (
	"embed"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
	"gatehouse/appliance/token"
)

//go:embed *.html
var files embed.FS

// Pages are the routes of the tokens.
type Pages struct{ list, make, made shell.Page }

// New makes the pages.
func New() *Pages {
	return &Pages{shell.Parse(files, "tokens.html"), shell.Parse(files, "new.html"), shell.Parse(files, "made.html")}
}

// Routes are this package's rows of the table.
func (p *Pages) Routes() []shell.Route {
	row := func(method, path string, fresh bool, h func(*shell.Visit) error) shell.Route {
		return shell.Route{Method: method, Path: path, States: []control.State{control.StateReady}, Need: shell.Full, Right: right.ManageTokens, Fresh: fresh,
			API: strings.HasPrefix(path, "/api/"), Handle: h}
	}
	return []shell.Route{
		row("GET", "/system/tokens", false, p.show), row("POST", "/system/tokens/revoke", false, p.revoke),
		row("GET", "/system/tokens/new", true, p.form), row("POST", "/system/tokens/new", true, p.create),
		row("GET", "/api/v1/tokens", false, p.apiList), row("POST", "/api/v1/tokens", true, p.apiCreate), row("POST", "/api/v1/tokens/revoke", false, p.apiRevoke),
	}
}

func (p *Pages) show(v *shell.Visit) error {
	list, err := v.Box.Tokens.List(v.Ctx())
	if err != nil {
		return err
	}
	return v.Show(p.list, list)
}

type form struct {
	Name string
	Days string
}

func (p *Pages) form(v *shell.Visit) error { return v.Show(p.make, form{Days: "365"}) }

// Made is a token with its text, which is told this once.
type Made struct {
	token.Token
	Text string `json:"token"`
	Box  string `json:"-"`
}

// make is the one way to a token: judged, recorded, made.
func (p *Pages) makeOne(v *shell.Visit, name string, scope token.Scope, days int) (Made, error) {
	if err := token.Check(v.Person(), name, scope, days); err != nil {
		return Made{}, err
	}
	if err := v.Record("create token", name, map[string]string{"scope": string(scope), "days": strconv.Itoa(days)}); err != nil {
		return Made{}, err
	}
	t, text, err := v.Box.Tokens.Make(v.Ctx(), v.Person(), name, scope, days)
	return Made{t, text, v.Box.Name}, err
}

func (p *Pages) create(v *shell.Visit) error {
	f := form{strings.TrimSpace(v.R.PostFormValue("name")), v.R.PostFormValue("days")}
	days, err := strconv.Atoi(f.Days)
	if err != nil {
		return v.ShowAgain(p.make, f, shell.Refuse("Say for how many days the token is good, or 0 for until it is revoked."))
	}
	made, err := p.makeOne(v, f.Name, token.Metrics, days)
	if err != nil {
		return v.ShowAgain(p.make, f, err)
	}
	return v.Show(p.made, made)
}

// revokeOne records and revokes.
func (p *Pages) revokeOne(v *shell.Visit, id int64) error {
	t, err := v.Box.Tokens.Find(v.Ctx(), id)
	if err != nil {
		return err
	}
	if err := v.Record("revoke token", t.Name, map[string]string{"scope": string(t.Scope), "maker": t.Maker}); err != nil {
		return err
	}
	return v.Box.Tokens.Revoke(v.Ctx(), id)
}

func (p *Pages) revoke(v *shell.Visit) error {
	id, err := strconv.ParseInt(v.R.PostFormValue("id"), 10, 64)
	if err != nil {
		return shell.Refuse("There is no such token.")
	}
	if err := p.revokeOne(v, id); err != nil {
		return err
	}
	v.Redirect("/system/tokens?done=token")
	return nil
}

func (p *Pages) apiList(v *shell.Visit) error {
	list, err := v.Box.Tokens.List(v.Ctx())
	if err != nil {
		return err
	}
	return v.JSON(http.StatusOK, map[string][]token.Token{"tokens": list})
}

func (p *Pages) apiCreate(v *shell.Visit) error {
	var q struct {
		Name  string      `json:"name"`
		Scope token.Scope `json:"scope"`
		Days  int         `json:"days"`
	}
	if err := v.Decode(&q); err != nil {
		return err
	}
	made, err := p.makeOne(v, q.Name, q.Scope, q.Days)
	if err != nil {
		return err
	}
	return v.JSON(http.StatusCreated, made)
}

// apiRevoke takes a name where it is the only one: people see names.
func (p *Pages) apiRevoke(v *shell.Visit) error {
	var q struct {
		ID   int64  `json:"id,omitempty"`
		Name string `json:"name,omitempty"`
	}
	if err := v.Decode(&q); err != nil {
		return err
	}
	if q.Name != "" && q.ID == 0 {
		list, err := v.Box.Tokens.List(v.Ctx())
		if err != nil {
			return err
		}
		list = slices.DeleteFunc(list, func(t token.Token) bool { return t.Name != q.Name })
		if len(list) != 1 {
			return shell.Refuse(fmt.Sprintf("%d tokens have this name. Name one by its number.", len(list)))
		}
		q.ID = list[0].ID
	}
	if err := p.revokeOne(v, q.ID); err != nil {
		return err
	}
	return v.JSON(http.StatusOK, struct{}{})
}
