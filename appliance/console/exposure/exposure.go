// Package exposure is the page, the card and the API of who knocks: what was let in and refused over an hour and a day, and the newest refusals with their reason.
package exposure

import (
	"context"
	"embed"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"strings"
	"time"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
)

//go:embed *.html
var files embed.FS

// Ask is the request for the figures.
type Ask func(context.Context) (control.Exposure, error)

// Pages are the routes of the exposure.
type Pages struct {
	ask        Ask
	page, card shell.Page
}

// New makes the pages.
func New(ask Ask) *Pages {
	return &Pages{ask, shell.Parse(files, "exposure.html", "parts.html"), shell.Parse(files, "card.html", "parts.html")}
}

// Routes are this package's rows of the table.
func (p *Pages) Routes() []shell.Route {
	row := func(path string, h func(*shell.Visit) error) shell.Route {
		return shell.Route{Method: "GET", Path: path, States: []control.State{control.StateReady}, Need: shell.Full, Right: right.ReadStatus, Handle: h}
	}
	live := row("/exposure/live", p.live)
	live.Quiet = true
	api := row("/api/v1/exposure", p.api)
	api.API, api.Quiet = true, true
	return []shell.Route{row("/exposure", p.show), live, api}
}

const (
	hour       = 60 // minutes in the picture
	mostOnCard = 10
)

type view struct {
	control.Exposure
	Chart      Chart
	MayAdd     bool // to a list
	More       int  // drops that are not shown
	Exceptions []control.Meant
	Others     []control.Meant // counters of packets that were dropped elsewhere
	Sampled    uint64
}

func (p *Pages) view(v *shell.Visit) (w view, err error) {
	if w.Exposure, err = p.ask(v.Ctx()); err != nil {
		return w, err
	}
	w.Chart = NewChart(w.Exposure, hour)
	w.MayAdd = right.May(v.Person().Role, right.Configure)
	for _, c := range w.Counters {
		switch c.Class {
		case "exception":
			w.Exceptions = append(w.Exceptions, c)
		case "dropped", "refused":
			w.Others = append(w.Others, c)
		}
	}
	for _, r := range w.Reasons {
		w.Sampled += r.Samples
	}
	return w, nil
}

// Card is the exposure's part of the status page.
func (p *Pages) Card(v *shell.Visit) (template.HTML, error) {
	w, err := p.view(v)
	if err != nil {
		return "", err
	}
	w.More = max(0, len(w.Drops)-mostOnCard)
	w.Drops = w.Drops[:min(len(w.Drops), mostOnCard)]
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

func (p *Pages) api(v *shell.Visit) error {
	e, err := p.ask(v.Ctx())
	if err != nil {
		return err
	}
	return v.JSON(http.StatusOK, e)
}

// The picture's size in its own units: what was let in grows up from the
// middle, what was refused down.
const (
	step   = 10
	half   = 50
	middle = half
)

// Chart is the newest minutes as a picture, and in words for those who do not
// see it. Each half has a scale of its own, which is written beside it.
type Chart struct {
	Admitted, Refused       string // paths
	MostAdmitted            uint32 // in one minute
	MostRefused             uint32
	SumAdmitted, SumRefused uint64
	Minutes                 []Minute // newest first
}

// Minute is one column.
type Minute struct {
	At                time.Time
	Admitted, Refused uint32
}

// NewChart draws the last minutes of e.
func NewChart(e control.Exposure, minutes int) (c Chart) {
	n := min(len(e.Admitted), len(e.Refused))
	from := max(0, n-minutes)
	admitted, refused := e.Admitted[from:n], e.Refused[from:n]
	if len(admitted) > 0 {
		c.MostAdmitted, c.MostRefused = slices.Max(admitted), slices.Max(refused)
	}
	var up, down strings.Builder
	for i := range admitted {
		x := step * (minutes - len(admitted) + i) // the newest stands at the right
		bar(&up, x, -height(admitted[i], c.MostAdmitted))
		bar(&down, x, height(refused[i], c.MostRefused))
		c.SumAdmitted += uint64(admitted[i])
		c.SumRefused += uint64(refused[i])
		c.Minutes = append(c.Minutes, Minute{e.Start.Add(time.Duration(from+i) * time.Minute), admitted[i], refused[i]})
	}
	slices.Reverse(c.Minutes)
	c.Admitted, c.Refused = up.String(), down.String()
	return c
}

// height of a bar: what is more than nothing can be seen.
func height(n, most uint32) int {
	if n == 0 {
		return 0
	}
	return max(2, int(uint64(n)*(half-2)/uint64(most)))
}

func bar(b *strings.Builder, x, height int) {
	if height != 0 {
		fmt.Fprintf(b, "M%d %dv%dh%dv%dz", x+1, middle, height, step-2, -height)
	}
}
