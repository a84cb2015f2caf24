// Package welcome is the screens of the set-up that come once the box has an owner: its clock and its place.
package welcome

import (
	"context"
	"embed"
	"strings"
	"time"

	"gatehouse/appliance/account"
	"gatehouse/appliance/account/right"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
	"gatehouse/appliance/setup"
)

//go:embed *.html
var files embed.FS

// Pages are the routes of these screens.
type Pages struct {
	settings     setup.Settings
	setClock     func(context.Context, control.ClockSet) (control.Clock, error)
	clock, place shell.Page
}

// New makes the pages.
func New(s setup.Settings, setClock func(context.Context, control.ClockSet) (control.Clock, error)) *Pages {
	return &Pages{s, setClock, shell.Parse(files, "clock.html"), shell.Parse(files, "place.html")}
}

// Routes are this package's rows of the table.
func (p *Pages) Routes() []shell.Route {
	ready := []control.State{control.StateReady}
	return []shell.Route{
		{Method: "GET", Path: "/welcome/clock", States: ready, Need: shell.Enrol, Handle: p.showClock},
		{Method: "POST", Path: "/welcome/clock", States: ready, Need: shell.Enrol, Handle: p.useClock},
		{Method: "GET", Path: "/welcome/place", States: ready, Need: shell.Full, Right: right.Configure, Handle: p.showPlace},
		{Method: "POST", Path: "/welcome/place", States: ready, Need: shell.Full, Right: right.Configure, Handle: p.setPlace},
		{Method: "POST", Path: "/welcome/dismiss", States: ready, Need: shell.Full, Right: right.Configure, Handle: p.dismiss},
	}
}

type clockData struct {
	Clock  control.Clock
	Hosted bool
	Now    time.Time
	Next   string
}

func (p *Pages) clockData(v *shell.Visit) (clockData, error) {
	st, err := v.Box.Status(v.Ctx())
	next := "/welcome/factor"
	if v.Session.Stage == account.StageFull {
		next = "/welcome/codes"
	}
	return clockData{st.Clock, st.Hosted, v.Box.Wall(), next}, err
}

func (p *Pages) showClock(v *shell.Visit) error {
	d, err := p.clockData(v)
	if err != nil {
		return err
	}
	return v.Show(p.clock, d)
}

// useClock sets the clock to what the browser or the person says. It goes by
// the owner's word, who has just proven to hold the claim code or the password;
// the privileged process never sets it below its floor, and writes the event.
func (p *Pages) useClock(v *shell.Visit) error {
	d, err := p.clockData(v)
	if err != nil {
		return err
	}
	action := v.R.PostFormValue("action")
	// "It is right" makes a clock trusted that no time server confirmed: the
	// person has looked. A trusted one, or a host's, is left alone.
	confirm := action == "keep" && !d.Clock.Trusted && !d.Hosted && right.May(v.Person().Role, right.Configure)
	if action == "set" || confirm {
		t, err := d.Now, error(nil)
		if !confirm {
			t, err = shell.ParseTime(v.R.PostFormValue("time"))
		}
		if err == nil && !right.May(v.Person().Role, right.Configure) {
			err = shell.Refuse("Your role has no right to set the clock.")
		}
		if err == nil {
			_, err = p.setClock(v.Ctx(), control.ClockSet{Time: t, Source: "browser", Actor: v.Person().Email, From: v.From()})
		}
		if err != nil {
			return v.ShowAgain(p.clock, d, err)
		}
	}
	v.Redirect(d.Next)
	return nil
}

type placeData struct {
	setup.Place
	Windows []setup.Window
}

func (p *Pages) showPlace(v *shell.Visit) error {
	place, err := p.settings.Place(v.Ctx())
	if err != nil {
		return err
	}
	return v.Show(p.place, placeData{place, setup.Windows})
}

func (p *Pages) setPlace(v *shell.Visit) error {
	place := setup.Place{Site: strings.TrimSpace(v.R.PostFormValue("site")), Zone: strings.TrimSpace(v.R.PostFormValue("zone")), Window: v.R.PostFormValue("window")}
	err := place.Check()
	if err == nil {
		err = v.Record("set place", place.Site, map[string]string{"zone": place.Zone, "updates": place.Window})
	}
	if err == nil {
		err = p.settings.SetPlace(v.Ctx(), place)
	}
	if err != nil {
		return v.ShowAgain(p.place, placeData{place, setup.Windows}, err)
	}
	v.Redirect("/?done=place")
	return nil
}

func (p *Pages) dismiss(v *shell.Visit) error {
	todo := setup.Todo(v.R.PostFormValue("todo"))
	if todo != setup.TodoCodes && todo != setup.TodoPlace {
		return shell.Refuse("There is no such thing left to do.")
	}
	if err := v.Record("dismiss", string(todo), nil); err != nil {
		return err
	}
	if err := p.settings.Done(v.Ctx(), todo); err != nil {
		return err
	}
	v.Redirect("/")
	return nil
}
