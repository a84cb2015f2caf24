// Package sessions is the page of who is in and who was, and the button that ends a session.
package sessions

import (
	"context"
	"embed"
	"html/template"
	"slices"
	"time"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/broker"
	"gatehouse/appliance/console/remote"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
)

//go:embed *.html
var files embed.FS

// Ports are what this package asks of the broker. It shows everybody's sessions
// to whom may manage them, else one's own, and writes the audit log before it
// ends one.
type Ports struct {
	Sessions func(context.Context, broker.Who) ([]api.Session, error)
	End      func(context.Context, broker.Who, session.ID) error
	Notice   func() *api.Notice // when all sessions end; nil: they do not
}

// Pages are the routes of the sessions.
type Pages struct {
	Ports
	page, card shell.Page
}

// New makes the pages.
func New(p Ports) *Pages {
	return &Pages{p, shell.Parse(files, "sessions.html", "parts.html"), shell.Parse(files, "card.html", "parts.html")}
}

// Routes are this package's rows of the table.
func (p *Pages) Routes() []shell.Route {
	row := func(method, path string, h func(*shell.Visit) error) shell.Route {
		return shell.Route{Method: method, Path: path, States: []control.State{control.StateReady}, Need: shell.Full, Right: right.UseSessions, Handle: h}
	}
	live := row("GET", "/sessions/live", p.live)
	live.Quiet = true
	return []shell.Route{row("GET", "/sessions", p.show), live, row("POST", "/sessions/end", p.end)}
}

const (
	mostOver   = 100 // sessions that are over, on the page
	mostOnCard = 5
)

type view struct {
	Now        time.Time
	Notice     *api.Notice
	In         []api.Session // not over, newest first
	Over       []api.Session
	More       int  // sessions that the card has no room for
	All        bool // everybody's sessions are shown
	Recordings bool // the person may play them
	Audit      bool // the person may read the audit log
}

func (p *Pages) view(v *shell.Visit) (view, error) {
	role := v.Person().Role
	w := view{Now: v.Box.Wall(), Notice: p.Notice(), All: right.May(role, right.ManageSessions), Recordings: right.May(role, right.ReadRecordings), Audit: right.May(role, right.ReadAudit)}
	list, err := p.Sessions(v.Ctx(), remote.Who(v))
	if err != nil {
		return w, err
	}
	for _, s := range list {
		if s.State == api.Over {
			w.Over = append(w.Over, s)
		} else {
			w.In = append(w.In, s)
		}
	}
	slices.SortStableFunc(w.Over, func(a, b api.Session) int { return b.Ended.Compare(a.Ended) })
	w.Over = w.Over[:min(len(w.Over), mostOver)]
	return w, nil
}

// Card is what the status page says of who is in; nothing to whom may open no
// session.
func (p *Pages) Card(v *shell.Visit) (template.HTML, error) {
	if !right.May(v.Person().Role, right.UseSessions) {
		return "", nil
	}
	w, err := p.view(v)
	if err != nil {
		return "", err
	}
	w.More = max(0, len(w.In)-mostOnCard)
	w.In = w.In[:min(len(w.In), mostOnCard)]
	return v.Part(p.card, "card", w)
}

func (p *Pages) show(v *shell.Visit) error {
	w, err := p.view(v)
	if err != nil {
		return err
	}
	return v.Show(p.page, w)
}

func (p *Pages) live(v *shell.Visit) error {
	w, err := p.view(v)
	if err != nil {
		return err
	}
	return v.ShowPart(p.page, "live", w)
}

func (p *Pages) end(v *shell.Visit) error {
	var id session.ID
	if err := id.UnmarshalText([]byte(v.R.PostFormValue("session"))); err != nil {
		return shell.Refuse("There is no such session.")
	}
	if err := p.End(v.Ctx(), remote.Who(v), id); err != nil {
		return err
	}
	v.Redirect("/sessions?done=session-ended")
	return nil
}
