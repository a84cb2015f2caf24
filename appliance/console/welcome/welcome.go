// Package welcome is the screens of the set-up that come once the box has an owner: its clock and its place.
package welcome

import (
	"context"
	"embed"
	"slices"
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
	window       func(*shell.Visit, string) error
	clock, place shell.Page
}

// New makes the pages. Window has updates go by a window; it does nothing where
// the box takes none.
func New(s setup.Settings, setClock func(context.Context, control.ClockSet) (control.Clock, error), window func(*shell.Visit, string) error) *Pages {
	return &Pages{s, setClock, window, shell.Parse(files, "clock.html"), shell.Parse(files, "place.html")}
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

// windows are those that this person may choose: of whose the updates are.
func windows(v *shell.Visit) []setup.Window {
	if !right.May(v.Person().Role, right.Update) {
		return nil
	}
	return setup.Windows
}

// setWindow has updates go by the chosen window, when the choice is another than
// before or the first: the page of updates may have a finer one meanwhile.
func (p *Pages) setWindow(v *shell.Visit, before, place setup.Place) error {
	left, err := p.settings.Undone(v.Ctx())
	if err != nil {
		return err
	}
	if before.Window == place.Window && before.Zone == place.Zone && !slices.Contains(left, setup.TodoPlace) {
		return nil
	}
	hours, err := place.Hours(v.Box.Wall())
	if err != nil {
		return err
	}
	return p.window(v, hours)
}

func (p *Pages) showPlace(v *shell.Visit) error {
	place, err := p.settings.Place(v.Ctx())
	if err != nil {
		return err
	}
	return v.Show(p.place, placeData{place, windows(v)})
}

func (p *Pages) setPlace(v *shell.Visit) error {
	before, err := p.settings.Place(v.Ctx())
	if err != nil {
		return err
	}
	place := setup.Place{Site: strings.TrimSpace(v.R.PostFormValue("site")), Zone: strings.TrimSpace(v.R.PostFormValue("zone")), Window: v.R.PostFormValue("window")}
	if windows(v) == nil {
		place.Window = before.Window
	}
	err = place.Check()
	if err == nil {
		err = v.Record("set place", place.Site, map[string]string{"zone": place.Zone, "updates": place.Window})
	}
	if err == nil && windows(v) != nil {
		err = p.setWindow(v, before, place)
	}
	if err == nil {
		err = p.settings.SetPlace(v.Ctx(), place)
	}
	if err != nil {
		return v.ShowAgain(p.place, placeData{place, windows(v)}, err)
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
