package system

import (
	"net/http"

	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
)

func by(v *shell.Visit) control.By { return control.By{Actor: v.Person().Email, From: v.From()} }

type eraseView struct{ Status control.Status }

func (p *Pages) eraseView(v *shell.Visit) (w eraseView, err error) {
	w.Status, err = v.Box.Status(v.Ctx())
	return w, err
}

func (p *Pages) askErase(v *shell.Visit) error {
	w, err := p.eraseView(v)
	if err != nil {
		return err
	}
	return v.Show(p.eraseAsk, w)
}

// doErase asks the privileged process, which compares the name, and writes the
// event before it acts.
func (p *Pages) doErase(v *shell.Visit) error {
	if err := p.ports.Erase(v.Ctx(), control.Erase{By: by(v), Name: v.R.PostFormValue("name")}); err != nil {
		w, viewErr := p.eraseView(v)
		if viewErr != nil {
			return viewErr
		}
		return v.ShowAgain(p.eraseAsk, w, err)
	}
	return v.Show(p.erased, nil)
}

func (p *Pages) apiErase(v *shell.Visit) error {
	var q struct {
		Name string `json:"name"`
	}
	if err := v.Decode(&q); err != nil {
		return err
	}
	if err := p.ports.Erase(v.Ctx(), control.Erase{By: by(v), Name: q.Name}); err != nil {
		return err
	}
	return v.JSON(http.StatusOK, struct{}{})
}

// release answers with the statement as a file.
func (p *Pages) release(v *shell.Visit) error {
	s, err := p.ports.Released(v.Ctx(), control.ReleaseAsk{By: by(v), Name: v.Person().Name})
	if err != nil {
		if v.Route.API {
			return err
		}
		w, viewErr := p.eraseView(v)
		if viewErr != nil {
			return viewErr
		}
		return v.ShowAgain(p.eraseAsk, w, err)
	}
	v.W.Header().Set("Content-Type", "application/json")
	v.W.Header().Set("Content-Disposition", `attachment; filename="`+v.Box.Name+`-released.json"`)
	_, err = v.W.Write(s.File)
	return err
}
