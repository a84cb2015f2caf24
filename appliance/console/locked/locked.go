// Package locked is what a box shows that cannot open its data: one page, with what broke and the ways on, and the door for gatehouse unlock.
package locked

import (
	"context"
	"embed"
	"slices"
	"time"

	"gatehouse/appliance/brake"
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
	Afar       bool // by gatehouse unlock, now
}

// rungs are their names within a sentence.
var rungs = map[string]string{"firmware": "firmware", "loader": "boot loader", "system": "system", "keys": "keys", "data": "data"}

// Ports are what these pages ask of the privileged process.
type Ports struct {
	Keys      func(context.Context) (control.Keys, error)
	UnlockKey func(context.Context) (control.UnlockKey, error)
	Unlock    func(context.Context, control.Unlock) error
	Steady    func() time.Time
}

type pages struct {
	Ports
	reason string
	page   shell.Page
	tries  *brake.Brake
}

// Routes are this package's rows of the table. The page has no form: a
// certificate that may be new deserves nobody's secret.
func Routes(reason string, ports Ports) []shell.Route {
	p := &pages{ports, reason, shell.Parse(files, "locked.html"), brake.New(ofOneSource, ofAll)}
	return append(p.unlockRoutes(), shell.Route{Method: "GET", Path: "/", States: []control.State{control.StateLocked}, Handle: p.show})
}

func (p *pages) show(v *shell.Visit) (err error) {
	var w view
	if w.Status, err = v.Box.Status(v.Ctx()); err != nil {
		return err
	}
	if w.Reason == "" {
		w.Reason = p.reason
	}
	if w.Keys, err = p.Keys(v.Ctx()); err != nil {
		// The page has its reason all the same, and says the less.
		v.Box.Log.Error("asking what broke", "err", err)
	}
	w.fill()
	return v.Show(p.page, w)
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
	w.Afar = len(w.Unlocking.Takes) > 0
	w.Passphrase, w.Recovery = has("passphrase"), w.Keys.Recovery == "confirmed" || has("recovery")
}
