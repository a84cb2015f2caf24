// Package clock is the page and the API of the box's clock: what it is worth, why, and the owner's way past its floor.
package clock

import (
	"context"
	"embed"
	"fmt"
	"net/http"
	"time"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
)

//go:embed *.html
var files embed.FS

// Ports are the requests of the privileged process that this package makes.
type Ports struct {
	Set        func(context.Context, control.ClockSet) (control.Clock, error)
	ResetFloor func(context.Context, control.ClockFloor) (control.Clock, error)
	Network    func(context.Context) (control.NetworkState, error)
}

// Pages are the routes of the clock.
type Pages struct {
	Ports
	page, floor shell.Page
}

// New makes the pages.
func New(p Ports) *Pages {
	return &Pages{p, shell.Parse(files, "clock.html"), shell.Parse(files, "floor.html")}
}

// Routes are this package's rows of the table. The floor is the owner's: below
// it lie certificates and codes that were good once.
func (p *Pages) Routes() []shell.Route {
	row := func(method, path string, r right.Right, h func(*shell.Visit) error) shell.Route {
		return shell.Route{Method: method, Path: path, States: []control.State{control.StateReady}, Need: shell.Full, Right: r, Handle: h,
			Fresh: r == right.ResetClock, API: len(path) > 5 && path[:5] == "/api/"}
	}
	return []shell.Route{
		row("GET", "/clock", right.ReadStatus, p.show), row("POST", "/clock", right.Configure, p.set),
		row("GET", "/clock/floor", right.ResetClock, p.ask), row("POST", "/clock/floor", right.ResetClock, p.reset),
		row("GET", "/api/v1/clock", right.ReadStatus, p.api), row("POST", "/api/v1/clock/reset-floor", right.ResetClock, p.apiReset),
	}
}

// Details is what the page shows, and what programs are given.
type Details struct {
	control.Clock
	Why       string   `json:"why"`              // what it is worth, in words
	Asked     []string `json:"asked,omitempty"`  // time servers that were set; none: learnt ones and the usual
	Hosted    bool     `json:"hosted,omitempty"` // the clock is the host's
	Configure bool     `json:"-"`
	Owner     bool     `json:"-"`
}

func (p *Pages) details(v *shell.Visit) (d Details, err error) {
	st, err := v.Box.Status(v.Ctx())
	if err != nil {
		return d, err
	}
	d = Details{Clock: st.Clock, Why: Why(st.Clock), Hosted: st.Hosted}
	d.Time = v.Box.Wall()
	d.Configure, d.Owner = right.May(v.Person().Role, right.Configure), right.May(v.Person().Role, right.ResetClock)
	if !st.Hosted {
		n, err := p.Network(v.Ctx())
		if err != nil {
			return d, err
		}
		d.Asked = n.Settings.Time
	}
	return d, nil
}

// Why says in words where the time comes from and what it is worth.
func Why(c control.Clock) string {
	switch {
	case c.Source == "host":
		return "It is the clock of the system that Gatehouse runs on."
	case c.Source == "browser":
		return "A person set it; no time servers have agreed since."
	case c.Source == "ntp" && c.Trusted:
		return fmt.Sprintf("%d time servers agree.", c.Servers)
	case c.Source == "ntp" && c.Servers == 1:
		return "Only one time server has answered. Three have to agree, because one alone could lie."
	case c.Source == "ntp":
		return fmt.Sprintf("Only %d time servers agree. Three have to, because fewer could lie.", c.Servers)
	case c.Source == "floor":
		return "The clock chip said a time before the floor, and no time server has answered yet. It is the floor, and runs from there."
	case c.Source == "rtc":
		return "It is what the clock chip said when the box started. No time server has answered yet, and nobody has confirmed it."
	}
	return "Nobody knows where it comes from."
}

func (p *Pages) show(v *shell.Visit) error {
	d, err := p.details(v)
	if err != nil {
		return err
	}
	return v.Show(p.page, d)
}

// set takes a person's word for the time, or for that it is right as it is.
func (p *Pages) set(v *shell.Visit) error {
	d, err := p.details(v)
	if err != nil {
		return err
	}
	t := time.Time{}
	switch action := v.R.PostFormValue("action"); {
	case d.Hosted:
		err = shell.Refuse("The clock is the host's: set it there.")
	case action == "keep":
		t = v.Box.Wall()
	default:
		t, err = shell.ParseTime(v.R.PostFormValue("time"))
	}
	if err == nil {
		_, err = p.Set(v.Ctx(), control.ClockSet{Time: t, Source: "browser", Actor: v.Person().Email, From: v.From()})
	}
	if err != nil {
		return v.ShowAgain(p.page, d, err)
	}
	v.Redirect("/clock?done=clock")
	return nil
}

func (p *Pages) ask(v *shell.Visit) error {
	d, err := p.details(v)
	if err == nil && d.Hosted {
		err = shell.Refuse("The clock is the host's, and has no floor of ours.")
	}
	if err != nil {
		return err
	}
	return v.Show(p.floor, d)
}

// reset asks the privileged process, which writes the event before it acts.
func (p *Pages) reset(v *shell.Visit) error {
	if _, err := p.ResetFloor(v.Ctx(), control.ClockFloor{Actor: v.Person().Email, From: v.From()}); err != nil {
		return err
	}
	v.Redirect("/clock?done=floor")
	return nil
}

func (p *Pages) api(v *shell.Visit) error {
	d, err := p.details(v)
	if err != nil {
		return err
	}
	return v.JSON(http.StatusOK, d)
}

func (p *Pages) apiReset(v *shell.Visit) error {
	var q struct{}
	if err := v.Decode(&q); err != nil {
		return err
	}
	if _, err := p.ResetFloor(v.Ctx(), control.ClockFloor{Actor: v.Person().Email, From: v.From()}); err != nil {
		return err
	}
	return p.api(v)
}
