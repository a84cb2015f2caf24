// Package trial is what the pages of all changes share that wait to be kept: keeping, taking back, and the same by the API.
package trial

import (
	"context"
	"net/http"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
)

// Trial is one kind of change. Its page shows the candidate with the template
// "waiting" of the layout, which posts here.
type Trial struct {
	Path   string // of the page, such as /allowlists; the API's is below /api/v1
	Keep   func(context.Context, control.Keep) error
	Revert func(context.Context, control.Revert) error
	// Again shows the page with why it was refused.
	Again func(v *shell.Visit, err error) error
}

// Row is a route of the page or of the API, for those who may configure the box.
func Row(method, path string, h func(*shell.Visit) error) shell.Route {
	return shell.Route{Method: method, Path: path, States: []control.State{control.StateReady}, Need: shell.Full, Right: right.Configure, Handle: h,
		API: len(path) > 5 && path[:5] == "/api/"}
}

// Routes are the rows of the table.
func (t Trial) Routes() []shell.Route {
	api := "/api/v1" + t.Path
	return []shell.Route{
		Row("POST", t.Path+"/keep", t.keep), Row("POST", t.Path+"/revert", t.revert),
		Row("POST", api+"/keep", t.apiKeep), Row("POST", api+"/revert", t.apiRevert),
	}
}

// Applied leads back to the page over a new connection, the only kind that can
// keep the change.
func (t Trial) Applied(v *shell.Visit) error {
	v.CloseAfter()
	v.Redirect(t.Path + "?done=tried")
	return nil
}

// Confirm keeps a candidate over the connection of this visit. One that proves
// nothing ends with the answer, so that the next try comes over a new one.
func (t Trial) Confirm(v *shell.Visit, id, actor string) error {
	err := t.Keep(v.Ctx(), control.Keep{ID: id, Accepted: v.Accepted(), Actor: actor, From: v.Address().String()})
	if err != nil {
		v.CloseAfter()
	}
	return err
}

func (t Trial) undo(v *shell.Visit, id string) error {
	return t.Revert(v.Ctx(), control.Revert{ID: id, Actor: v.Person().Email, From: v.Address().String()})
}

func (t Trial) keep(v *shell.Visit) error {
	if err := t.Confirm(v, v.R.FormValue("id"), v.Person().Email); err != nil {
		return t.Again(v, err)
	}
	v.Redirect(t.Path + "?done=kept")
	return nil
}

func (t Trial) revert(v *shell.Visit) error {
	if err := t.undo(v, v.R.FormValue("id")); err != nil {
		return t.Again(v, err)
	}
	v.CloseAfter()
	v.Redirect(t.Path + "?done=reverted")
	return nil
}

type apiID struct {
	ID string `json:"id"`
}

func (t Trial) apiKeep(v *shell.Visit) error {
	var q apiID
	if err := v.Decode(&q); err != nil {
		return err
	}
	if err := t.Confirm(v, q.ID, v.Person().Email); err != nil {
		return err
	}
	return v.JSON(http.StatusOK, struct{}{})
}

func (t Trial) apiRevert(v *shell.Visit) error {
	var q apiID
	if err := v.Decode(&q); err != nil {
		return err
	}
	if err := t.undo(v, q.ID); err != nil {
		return err
	}
	return v.JSON(http.StatusOK, struct{}{})
}
