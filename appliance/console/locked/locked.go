// Package locked is the one page of a box that cannot open its data: what broke, and the ways on.
package locked

import (
	"context"
	"embed"
	"slices"

	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
)

//go:embed *.html
var files embed.FS

type view struct {
	control.Status
	Keys       control.Keys
	Broken     string // the rung, in words
	Changed    []control.Register
	Passphrase bool // a passphrase opens it
	Recovery   bool // a recovery key does
}

// rungs are their names within a sentence.
var rungs = map[string]string{"firmware": "firmware", "loader": "boot loader", "system": "system", "keys": "keys", "data": "data"}

// Routes are this package's rows of the table: a page without any form. A
// certificate that may be new deserves nobody's secret.
func Routes(reason string, keys func(context.Context) (control.Keys, error)) []shell.Route {
	page := shell.Parse(files, "locked.html")
	return []shell.Route{{
		Method: "GET", Path: "/", States: []control.State{control.StateLocked},
		Handle: func(v *shell.Visit) (err error) {
			var w view
			if w.Status, err = v.Box.Status(v.Ctx()); err != nil {
				return err
			}
			if w.Reason == "" {
				w.Reason = reason
			}
			if w.Keys, err = keys(v.Ctx()); err != nil {
				// The page has its reason all the same, and says the less.
				v.Box.Log.Error("asking what broke", "err", err)
			}
			w.fill()
			return v.Show(page, w)
		},
	}}
}

// fill draws from the keys what a stranger may know: what broke and which ways
// there are, neither who the TPM is nor when anything was made.
func (w *view) fill() {
	for _, r := range w.Keys.Rungs {
		if r.State == control.RungBroken && w.Broken == "" {
			w.Broken = rungs[r.Name]
		}
	}
	for _, r := range w.Keys.Registers {
		if r.Changed() {
			w.Changed = append(w.Changed, r)
		}
	}
	has := func(kind string) bool {
		return slices.ContainsFunc(w.Keys.Slots, func(s control.KeySlot) bool { return s.Kind == kind })
	}
	w.Passphrase, w.Recovery = has("passphrase"), w.Keys.Recovery == "confirmed" || has("recovery")
}
