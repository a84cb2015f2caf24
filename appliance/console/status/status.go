// Package status is the first page of each day: how the box is, in words and four cards; and the same as JSON.
package status

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"time"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/audit"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
	"gatehouse/appliance/enroll/hub"
	"gatehouse/appliance/enroll/report"
	"gatehouse/appliance/setup"
)

//go:embed *.html
var files embed.FS

// Pages are the routes of the status.
type Pages struct {
	settings setup.Settings
	ports    Ports
	page     shell.Page
}

// Ports are where the page has what it shows from.
type Ports struct {
	Sites    func() []hub.Site // nil while the box is unclaimed or locked
	Log      audit.Reader
	Exposure Card
	Inside   Card // who is in a session
	Update   Card // the line about the two systems
	Keys     func(context.Context) (control.Keys, error)
}

// Card is a part of the page that another package makes.
type Card func(*shell.Visit) (template.HTML, error)

// New makes the pages.
func New(s setup.Settings, p Ports) *Pages {
	return &Pages{s, p, shell.Parse(files, "status.html")}
}

// Routes are this package's rows of the table.
func (p *Pages) Routes() []shell.Route {
	ready := []control.State{control.StateReady}
	return []shell.Route{
		{Method: "GET", Path: "/", States: ready, Need: shell.Full, Right: right.ReadStatus, Handle: p.show},
		{Method: "GET", Path: "/status/live", States: ready, Need: shell.Full, Right: right.ReadStatus, Quiet: true, Handle: p.live},
		{Method: "GET", Path: "/api/v1/details", States: ready, Need: shell.Full, Right: right.ReadStatus, API: true, Quiet: true, Handle: p.details},
	}
}

// Brief is GET /api/v1/status: what automation may know without signing in.
func Brief(state control.State) shell.Route {
	return shell.Route{Method: "GET", Path: "/api/v1/status", States: []control.State{control.StateUnclaimed, control.StateReady, control.StateLocked}, API: true,
		Handle: func(v *shell.Visit) error {
			return v.JSON(http.StatusOK, struct {
				Name  string        `json:"name"`
				State control.State `json:"state"`
			}{v.Box.Name, state})
		}}
}

// Details is what the page shows, and what programs are given.
type Details struct {
	control.Status
	Headline string     `json:"headline"`
	Problems []Problem  `json:"problems"`
	Site     string     `json:"site,omitempty"`
	Sessions int        `json:"sessions"` // of the person who asks
	Agents   []AgentRow `json:"agents"`

	keys    control.Keys
	keysErr error // they could not be asked for
	owner   bool  // the person may see and change them
}

// Problem is something that is not well, and what mends it.
type Problem struct {
	Text string `json:"text"`
	Path string `json:"path,omitempty"` // page that mends it
	Mend string `json:"mend,omitempty"` // what its button says
}

// AgentRow is one agent as it last reported.
type AgentRow struct {
	Name      string            `json:"name"`
	Seen      time.Time         `json:"seen"`
	Late      bool              `json:"late"`
	Inventory *report.Inventory `json:"inventory,omitempty"`
	Health    *report.Health    `json:"health,omitempty"`
}

// lateAfter is how long an agent may be silent: three of its intervals.
const lateAfter = 3 * hub.Interval

// Gather collects the details.
func (p *Pages) Gather(v *shell.Visit) (d Details, err error) {
	if d.Status, err = v.Box.Status(v.Ctx()); err != nil {
		return d, err
	}
	if d.Site, err = p.site(v.Ctx()); err != nil {
		return d, err
	}
	sessions, err := v.Box.Accounts.Sessions(v.Ctx(), v.Person())
	if err != nil {
		return d, err
	}
	d.Sessions = len(sessions)
	left, err := v.Box.Accounts.RecoveryLeft(v.Ctx(), v.Person())
	if err != nil {
		return d, err
	}
	for _, s := range p.ports.Sites() {
		row := AgentRow{Name: s.Metadata.Name, Seen: s.HealthAt, Inventory: s.Inventory, Health: s.Health}
		if row.Seen.IsZero() {
			row.Seen = s.EnrolledAt
		}
		row.Late = v.Box.Wall().Sub(row.Seen) > lateAfter
		d.Agents = append(d.Agents, row)
	}
	d.owner = right.May(v.Person().Role, right.ManageKeys)
	if d.keys, d.keysErr = p.ports.Keys(v.Ctx()); errors.Is(d.keysErr, context.Canceled) {
		return d, d.keysErr
	}
	d.Problems = problems(d, left)
	d.Headline = "All is well."
	if len(d.Problems) > 0 {
		d.Headline = d.Problems[0].Text
	}
	return d, nil
}

func (p *Pages) site(ctx context.Context) (string, error) {
	place, err := p.settings.Place(ctx)
	return place.Site, err
}

// problems judges, most pressing first.
func problems(d Details, codes int) (list []Problem) {
	add := func(bad bool, text, path, mend string) {
		if bad {
			list = append(list, Problem{text, path, mend})
		}
	}
	add(d.Volume.Problem != "", "The data volume: "+d.Volume.Problem, "/system", "See the system")
	for _, r := range d.Roles {
		add(r.State == "frozen" || r.State == "waiting", fmt.Sprintf("The %s process is not running (%s).", r.Name, r.State), "/system", "See its log")
	}
	path, mend := "", ""
	if d.owner {
		path, mend = "/keys", "Look at the keys"
	}
	add(d.keysErr != nil, "What guards the data cannot be told. The log of the system may say why.", path, mend)
	add(d.keys.Behind != "", shell.Sentence(d.keys.Behind), path, mend)
	add(d.Volume.Size > 0 && d.Volume.Free < d.Volume.Size/20, "The data volume is nearly full.", "/system", "See the system")
	add(!d.Firewall.InKernel && !d.Hosted, "The firewall is not in the kernel.", "/system", "See the system")
	add(!d.Clock.Trusted, "The clock is not confirmed by anyone yet.", "/clock", "Look at the clock")
	late := slices.ContainsFunc(d.Agents, func(a AgentRow) bool { return a.Late })
	add(late, "The agent has been silent for more than 30 seconds.", "/system", "See its log")
	add(codes <= 2, fmt.Sprintf("Only %d recovery codes are left.", codes), "/account/codes", "Make new ones")
	return list
}

type view struct {
	Details
	Todo   []todo
	Owner  bool
	Recent []audit.Entry
	Card   template.HTML // the exposure
	Inside template.HTML // who is in a session
	Update template.HTML // the line about the two systems
}

type todo struct {
	Key              setup.Todo // "": it stays until it is done
	Text, Path, Mend string
}

func (p *Pages) gatherView(v *shell.Visit) (w view, err error) {
	if w.Details, err = p.Gather(v); err != nil {
		return w, err
	}
	w.Owner, w.Todo = w.owner, keysLeft(w.Details)
	left, err := p.settings.Undone(v.Ctx())
	if err != nil {
		return w, err
	}
	for _, t := range left {
		switch t {
		case setup.TodoCodes:
			w.Todo = append(w.Todo, todo{t, "Save recovery codes, for the day the phone is lost", "/welcome/codes", "Recovery codes"})
		case setup.TodoPlace:
			w.Todo = append(w.Todo, todo{t, "Say where the box stands and when it may restart", "/welcome/place", "Place"})
		}
	}
	if w.Card, err = p.ports.Exposure(v); err != nil {
		return w, err
	}
	if w.Inside, err = p.ports.Inside(v); err != nil {
		return w, err
	}
	if w.Update, err = p.ports.Update(v); err != nil {
		return w, err
	}
	if right.May(v.Person().Role, right.ReadAudit) {
		page, err := p.ports.Log.Read(audit.Query{Limit: 6})
		if err != nil {
			return w, err
		}
		w.Recent = page.Entries
	}
	return w, nil
}

// keysLeft is what the owner of the keys still has to do. It cannot be
// dismissed: what it prevents is for good.
func keysLeft(d Details) (list []todo) {
	add := func(left bool, text, path, mend string) {
		if left && d.owner {
			list = append(list, todo{"", text, path, mend})
		}
	}
	add(d.keys.Recovery == "none", "Make the recovery key of the box, for the day its TPM or mainboard breaks", "/keys/recovery", "Recovery key")
	add(d.keys.Recovery == "unconfirmed", "Show that you keep the new recovery key, so that you can rely on it", "/keys/recovery", "Recovery key")
	add(d.keys.Offered != "", "A TPM is there now, and nothing is sealed to it", "/keys/tpm", "Use the TPM")
	return list
}

func (p *Pages) show(v *shell.Visit) error {
	w, err := p.gatherView(v)
	if err != nil {
		return err
	}
	return v.Show(p.page, w)
}

func (p *Pages) live(v *shell.Visit) error {
	w, err := p.gatherView(v)
	if err != nil {
		return err
	}
	return v.ShowPart(p.page, "live", w)
}

func (p *Pages) details(v *shell.Visit) error {
	d, err := p.Gather(v)
	if err != nil {
		return err
	}
	return v.JSON(http.StatusOK, d)
}
