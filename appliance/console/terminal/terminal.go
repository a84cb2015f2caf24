// Package terminal is the page on which a browser is the technician's end of a session: a terminal of a target, encrypted between the browser and the agent.
//
// The page itself is a frame. Its script makes the browser's key, has the
// session granted and its offer answered over the API, checks the agent's
// certificate against the grant, and speaks package wire over a data channel.
package terminal

import (
	"context"
	"embed"
	"strconv"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/console/xterm"
	"gatehouse/appliance/control"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
	"gatehouse/appliance/session/wire"
)

//go:embed *.html *.js *.css
var files embed.FS

// Ports are what this package asks of the broker.
type Ports struct {
	Target func(context.Context, int64) (api.Target, error)
}

// Pages are the routes of the terminal.
type Pages struct {
	Ports
	page   shell.Page
	bundle xterm.Bundle
}

// New makes the page.
func New(p Ports) *Pages {
	return &Pages{p, shell.Parse(files, "terminal.html"), xterm.Open()}
}

// assets are the page's own files.
var assets = []string{"terminal.js", "link.js", "terminal.css"}

func asset(name string) []byte {
	b, err := files.ReadFile(name)
	if err != nil {
		panic(err) // it is part of the program
	}
	return b
}

// Routes are this package's rows of the table.
func (p *Pages) Routes() []shell.Route {
	routes := []shell.Route{{Method: "GET", Path: "/sessions/terminal", States: []control.State{control.StateReady}, Need: shell.Full, Right: right.UseSessions, Handle: p.show}}
	for _, name := range assets {
		routes = append(routes, shell.PageAsset(name, asset(name)))
	}
	return routes
}

type view struct {
	api.Target
	Do     wire.Do // "": the target has no terminal
	Record bool    // as far as it is for the technician to say
	Bundle xterm.Bundle
	Script string // addresses of the page's own files
	Link   string
	Style  string
}

// does is what a terminal of a kind of target is.
var does = map[session.Kind]wire.Do{session.SSH: wire.Terminal, session.Box: wire.Console}

func (p *Pages) show(v *shell.Visit) error {
	id, err := strconv.ParseInt(v.R.URL.Query().Get("target"), 10, 64)
	if err != nil {
		return shell.Refuse("There is no such target. The page Targets lists those that are.")
	}
	t, err := p.Target(v.Ctx(), id)
	if err != nil {
		return err
	}
	w := view{
		Target: t, Do: does[t.Kind], Bundle: p.bundle,
		Record: t.Recording == session.RecordingAllowed && v.R.URL.Query().Get("record") == "1",
		Script: shell.AssetAddress("terminal.js", asset("terminal.js")), Link: shell.AssetAddress("link.js", asset("link.js")),
		Style: shell.AssetAddress("terminal.css", asset("terminal.css")),
	}
	return v.Show(p.page, w)
}
