// Package system is the page of the machine itself: its processes, logs, restart and switching off.
package system

import (
	"context"
	"embed"
	"slices"
	"strings"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
)

//go:embed *.html
var files embed.FS

const logLines = 200

// Ports are the requests of the privileged process that this page makes.
type Ports struct {
	Power func(context.Context, control.Power) error
	// Sessions is how many people are in one, whom a restart throws out; AtOnce ends
	// them with the reason.
	Sessions func() int
	AtOnce   func(context.Context, control.Restart)
	Log      func(context.Context, control.LogQuery) (control.LogLines, error)
	Erase    func(context.Context, control.Erase) error
	// Released signs that the box is given away.
	Released func(context.Context, control.ReleaseAsk) (control.Released, error)
}

// Pages are the routes of the system.
type Pages struct {
	ports                Ports
	page, confirm, going shell.Page
	eraseAsk, erased     shell.Page
}

// New makes the pages.
func New(p Ports) *Pages {
	parse := func(name string) shell.Page { return shell.Parse(files, name) }
	return &Pages{p, parse("system.html"), parse("confirm.html"), parse("going.html"), parse("erase.html"), parse("erased.html")}
}

// Routes are this package's rows of the table.
func (p *Pages) Routes() []shell.Route {
	ready := []control.State{control.StateReady}
	// The end of a box with its owner: the owner's alone, with password and code.
	last := func(method, path string, h func(*shell.Visit) error) shell.Route {
		return shell.Route{Method: method, Path: path, States: ready, Need: shell.Full, Right: right.Move, Fresh: true, API: strings.HasPrefix(path, "/api/"), Handle: h}
	}
	return []shell.Route{
		{Method: "GET", Path: "/system", States: ready, Need: shell.Full, Right: right.ReadLogs, Handle: p.show},
		{Method: "GET", Path: "/system/restart", States: ready, Need: shell.Full, Right: right.Power, Handle: p.ask},
		{Method: "POST", Path: "/system/restart", States: ready, Need: shell.Full, Right: right.Power, Handle: p.do},
		{Method: "GET", Path: "/system/off", States: ready, Need: shell.Full, Right: right.Power, Handle: p.ask},
		{Method: "POST", Path: "/system/off", States: ready, Need: shell.Full, Right: right.Power, Handle: p.do},
		last("GET", "/system/erase", p.askErase), last("POST", "/system/erase", p.doErase), last("POST", "/system/erase/statement", p.release),
		last("POST", "/api/v1/erase", p.apiErase), last("POST", "/api/v1/erase/statement", p.release),
	}
}

var sources = []control.Role{"", control.Init, control.Network, control.Gateway, control.Console, control.Agent, "kernel"}

type view struct {
	Status  control.Status
	Sources []control.Role
	Source  control.Role
	Lines   []control.LogLine
	Power   bool
	Tokens  bool // the person may manage them
	Update  bool // the person may see and change the two systems
	Move    bool // the person may export, import and erase
}

func (p *Pages) show(v *shell.Visit) error {
	st, err := v.Box.Status(v.Ctx())
	if err != nil {
		return err
	}
	w := view{Status: st, Sources: sources, Source: control.Role(v.R.FormValue("log"))}
	// A host is restarted with the host's own means.
	w.Power = !st.Hosted && right.May(v.Person().Role, right.Power)
	w.Tokens = right.May(v.Person().Role, right.ManageTokens)
	w.Update = right.May(v.Person().Role, right.Update)
	w.Move = right.May(v.Person().Role, right.Move)
	if !slices.Contains(sources, w.Source) {
		w.Source = ""
	}
	lines, err := p.ports.Log(v.Ctx(), control.LogQuery{Role: w.Source, Limit: logLines})
	if err != nil {
		return err
	}
	w.Lines = lines.Lines
	slices.Reverse(w.Lines) // newest first: what one came for
	return v.Show(p.page, w)
}

type asked struct {
	Off      bool
	Status   control.Status
	Sessions int
}

func (p *Pages) asked(v *shell.Visit) (asked, error) {
	st, err := v.Box.Status(v.Ctx())
	if err == nil && st.Hosted {
		err = shell.Refuse("This Gatehouse runs on a host of yours: restart it there, with the host's own means.")
	}
	return asked{v.Route.Path == "/system/off", st, p.ports.Sessions()}, err
}

func (p *Pages) ask(v *shell.Visit) error {
	a, err := p.asked(v)
	if err != nil {
		return err
	}
	return v.Show(p.confirm, a)
}

// do asks the privileged process, which writes the event before it acts.
func (p *Pages) do(v *shell.Visit) error {
	a, err := p.asked(v)
	if err != nil {
		return err
	}
	q := control.Power{Action: "restart", Actor: v.Person().Email, From: v.From()}
	if a.Off {
		q.Action = "off"
	}
	switch v.R.PostFormValue("when") {
	case "later":
		q.Later = true
	case "never":
		q.Action = "stay"
	}
	if err := p.ports.Power(v.Ctx(), q); err != nil {
		return err
	}
	switch {
	case q.Action == "stay":
		v.Redirect("/system?done=stays")
		return nil
	case q.Later:
		v.Redirect("/system?done=restart-later")
		return nil
	}
	p.ports.AtOnce(context.WithoutCancel(v.Ctx()), control.Restart{Off: a.Off})
	return v.Show(p.going, a)
}
