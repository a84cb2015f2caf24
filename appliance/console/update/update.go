// Package update is the pages and the API of the box's two systems: which one runs, a release on its way into the other slot, its trial, and when releases are taken.
package update

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"strings"
	"time"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
	"gatehouse/appliance/intake"
	"gatehouse/firmware"
)

//go:embed *.html
var files embed.FS

// Ports are the requests of the privileged process that these pages make, which
// writes each event to the audit log before it acts, and what the console has
// besides.
type Ports struct {
	Update func(context.Context) (control.Update, error)
	Start  func(context.Context, control.UpdateStart) error
	Cancel func(context.Context, control.By) error
	Set    func(context.Context, control.UpdateSet) error
	Intake *intake.Intake
	Mirror *intake.Mirror
	// Sessions is how many people are in one, whom a restart throws out; AtOnce ends
	// them with the reason.
	Sessions func() int
	AtOnce   func(context.Context, control.Restart)
}

// Pages are the routes of updates.
type Pages struct {
	Ports
	page, bring, receive, start, going, settings, card shell.Page
}

// New makes the pages.
func New(p Ports) *Pages {
	parse := func(name string) shell.Page { return shell.Parse(files, name, "parts.html") }
	return &Pages{Ports: p, page: parse("update.html"), bring: parse("bring.html"), receive: parse("receive.html"), start: parse("start.html"), going: parse("going.html"), settings: parse("settings.html"), card: parse("card.html")}
}

// The longest requests: a bundle with the form around it, and a manifest in JSON.
const (
	maxBundle = firmware.MaxSystem + firmware.MaxManifest + 16<<10
	maxOffer  = 2 * firmware.MaxManifest
)

// Routes are this package's rows of the table. All are the owner's. What brings
// in another system, starts it, or says whence and when one comes by itself asks
// for password and code; to stop does not, nor to look what the mirror has, and
// neither does what goes on with what was offered: its every byte is named by the
// manifest that was judged.
func (p *Pages) Routes() []shell.Route {
	row := func(method, path string, fresh bool, h func(*shell.Visit) error) shell.Route {
		r := shell.Route{Method: method, Path: path, States: []control.State{control.StateReady}, Need: shell.Full, Right: right.Update,
			Fresh: fresh, API: strings.HasPrefix(path, "/api/"), Handle: h}
		r.Quiet = method == "GET" && (r.API || strings.HasSuffix(path, "/live"))
		return r
	}
	long := func(most int64, r shell.Route) shell.Route {
		r.Body = most
		return r
	}
	return []shell.Route{
		row("GET", "/system/updates", false, p.show), row("GET", "/system/updates/live", false, p.live),
		row("GET", "/system/updates/bring", true, p.askBring), long(maxBundle, row("POST", "/system/updates/bring", true, p.doBring)),
		row("GET", "/system/updates/receive", true, p.askReceive), row("POST", "/system/updates/receive", true, p.doReceive),
		row("GET", "/system/updates/start", true, p.askStart), row("POST", "/system/updates/start", true, p.doStart),
		row("GET", "/system/updates/settings", true, p.askSettings), row("POST", "/system/updates/settings", true, p.doSettings),
		row("POST", "/system/updates/cancel", false, p.doCancel), row("POST", "/system/updates/look", false, p.doLook),
		row("GET", "/api/v1/update", false, p.api), long(maxBundle, row("POST", "/api/v1/update", true, p.apiBundle)),
		long(maxOffer, row("POST", "/api/v1/update/offer", true, p.apiOffer)), long(maxBundle, row("POST", "/api/v1/update/part", false, p.apiPart)),
		row("POST", "/api/v1/update/start", true, p.apiStart), row("POST", "/api/v1/update/cancel", false, p.apiCancel),
		row("POST", "/api/v1/update/settings", true, p.apiSettings),
		row("POST", "/api/v1/update/look", false, p.apiLook), row("POST", "/api/v1/update/receive", true, p.apiReceive),
	}
}

func by(v *shell.Visit) control.By { return control.By{Actor: v.Person().Email, From: v.From()} }

// none is why this form of Gatehouse has no systems of its own, as far as err says so.
func none(err error) (why string, ok bool) {
	var c *control.Error
	if errors.As(err, &c) && c.Code == control.CodeState {
		return shell.Sentence(c.Text), true
	}
	return "", false
}

func (p *Pages) document(ctx context.Context) (d control.UpdateView, err error) {
	d.Update, err = p.Update(ctx)
	d.Mirror, d.Sessions = p.Mirror.State(), p.Sessions()
	return d, err
}

// silence is after how long a transfer counts as left.
const silence = 20 * time.Second

type view struct {
	control.UpdateView
	None     string // there are no systems of its own: why
	Now      time.Time
	Percent  int
	Rate     string // of a transfer, in words
	Left     string // the same; "" if it cannot be told
	Silent   bool   // nothing comes any more
	GoneBack bool   // the last trial did, and nothing was done since
	Retry    bool   // what went back is still there, to be tried again
	Typed    bool   // somebody has to type a passphrase at each start
	OtherIs  string // slot
}

func (p *Pages) view(v *shell.Visit) (w view, err error) {
	w.Now = v.Box.Wall()
	w.UpdateView, err = p.document(v.Ctx())
	if err != nil {
		var ok bool
		if w.None, ok = none(err); ok {
			err = nil
		}
		return w, err
	}
	if t := w.Transfer; t != nil && t.Size > 0 {
		w.Percent = int(100 * t.Received / t.Size)
		w.Silent = w.Stage == control.UpdateReceiving && w.Now.Sub(t.Changed) > silence
		w.Rate, w.Left = shell.Size(uint64(max(t.Rate, 0))), left(*t)
	}
	if l := w.Last; l != nil && !l.Kept {
		w.Retry = w.Stage == control.UpdateReceived && !l.Explained && w.Transfer != nil && w.Transfer.Version == l.Version
		w.GoneBack = w.Retry || w.Stage == control.UpdateIdle
	}
	w.OtherIs = map[string]string{"a": "B", "b": "A"}[w.Running.Slot]
	return w, nil
}

// left is how long the rest takes at the rate of late.
func left(t control.Transfer) string {
	if t.Rate < 1 || t.Received >= t.Size {
		return ""
	}
	d := time.Duration(float64(t.Size-t.Received) / t.Rate * float64(time.Second))
	if d > 48*time.Hour {
		return ""
	}
	return shell.Ago(max(d, time.Second))
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
	if v.R.FormValue("part") == "bar" {
		return v.ShowPart(p.bring, "bar", w)
	}
	return v.ShowPart(p.page, "live", w)
}

// again shows a page with what went wrong.
func (p *Pages) again(v *shell.Visit, page shell.Page, err error) error {
	w, viewErr := p.view(v)
	if viewErr != nil {
		return viewErr
	}
	return v.ShowAgain(page, w, err)
}

// Line is the one line of the status page, "" where there are no systems.
func (p *Pages) Line(v *shell.Visit) (template.HTML, error) {
	w, err := p.view(v)
	if err != nil || w.None != "" {
		return "", err
	}
	return v.Part(p.card, "card", struct {
		view
		Mine bool
	}{w, right.May(v.Person().Role, right.Update)})
}

func (p *Pages) askStart(v *shell.Visit) error {
	w, err := p.view(v)
	if err != nil {
		return err
	}
	if w.Stage != control.UpdateReceived && w.Stage != control.UpdateWaiting {
		v.Redirect("/system/updates")
		return nil
	}
	st, err := v.Box.Status(v.Ctx())
	if err != nil {
		return err
	}
	w.Typed = strings.HasSuffix(st.Trust.Mechanism, "passphrase")
	return v.Show(p.start, w)
}

func (p *Pages) doStart(v *shell.Visit) error {
	when := v.R.PostFormValue("when")
	q := control.UpdateStart{Wait: when == "window", Later: when == "later"}
	version, err := p.begin(v, q)
	if err != nil {
		return p.again(v, p.start, err)
	}
	if q.Wait || q.Later {
		v.Redirect("/system/updates?done=waiting")
		return nil
	}
	return v.Show(p.going, version)
}

// begin has what was received started, and ends the sessions that this cuts at once.
func (p *Pages) begin(v *shell.Visit, q control.UpdateStart) (version string, err error) {
	if q.Wait && q.Later {
		return "", shell.Refuse("Start it at the window, in five minutes, or now: one of these.")
	}
	u, err := p.Update(v.Ctx())
	if err != nil {
		return "", err
	}
	if u.Transfer != nil {
		version = u.Transfer.Version
	}
	if q.Wait && u.Policy.Window == "" {
		return "", shell.Refuse("There is no window to wait for: set one in the settings, or start it now.")
	}
	q.By = by(v)
	if err := p.Start(v.Ctx(), q); err != nil {
		return "", err
	}
	if !q.Wait && !q.Later {
		p.AtOnce(context.WithoutCancel(v.Ctx()), control.Restart{Version: version})
	}
	return version, nil
}

func (p *Pages) doCancel(v *shell.Visit) error {
	if err := p.Cancel(v.Ctx(), by(v)); err != nil {
		return p.again(v, p.page, err)
	}
	v.Redirect("/system/updates?done=cancelled")
	return nil
}

func (p *Pages) doLook(v *shell.Visit) error {
	if err := p.look(v, false, false); err != nil {
		return p.again(v, p.page, err)
	}
	v.Redirect("/system/updates?done=looking")
	return nil
}

func (p *Pages) askReceive(v *shell.Visit) error {
	w, err := p.view(v)
	if err != nil {
		return err
	}
	if w.Policy.Mirror == "" {
		v.Redirect("/system/updates")
		return nil
	}
	return v.Show(p.receive, w)
}

func (p *Pages) doReceive(v *shell.Visit) error {
	if err := p.look(v, true, v.R.PostFormValue("again") == "yes"); err != nil {
		return p.again(v, p.receive, err)
	}
	v.Redirect("/system/updates?done=looking")
	return nil
}

// look has the mirror asked, and with receive what it has brought in.
func (p *Pages) look(v *shell.Visit, receive, again bool) error {
	u, err := p.Update(v.Ctx())
	switch {
	case err != nil:
		return err
	case u.Policy.Mirror == "":
		return shell.Refuse("No mirror is set. Say in the settings where releases are, or bring one as a file.")
	}
	return p.Mirror.Look(by(v), receive, again)
}

func (p *Pages) askSettings(v *shell.Visit) error {
	w, err := p.view(v)
	if err != nil {
		return err
	}
	return v.Show(p.settings, w)
}

func (p *Pages) doSettings(v *shell.Visit) error {
	s := control.UpdateSettings{Mirror: strings.TrimSpace(v.R.PostFormValue("mirror")), Roots: strings.TrimSpace(v.R.PostFormValue("roots")), Window: strings.TrimSpace(v.R.PostFormValue("window")), Automatic: v.R.PostFormValue("automatic") == "yes"}
	if err := p.set(v, s); err != nil {
		w, viewErr := p.view(v)
		if viewErr != nil {
			return viewErr
		}
		w.Policy = s
		return v.ShowAgain(p.settings, w, err)
	}
	v.Redirect("/system/updates?done=updates")
	return nil
}

// set judges the settings; the privileged process judges them again.
func (p *Pages) set(v *shell.Visit, s control.UpdateSettings) error {
	w, err := judge(s)
	if err != nil {
		return err
	}
	s.Window = w.String()
	return p.Set(v.Ctx(), control.UpdateSet{By: by(v), Settings: s})
}

// Window changes the window alone, for the set-up of a box. It does nothing where
// there are no systems to update.
func (p *Pages) Window(v *shell.Visit, hours string) error {
	u, err := p.Update(v.Ctx())
	if _, ok := none(err); ok {
		return nil
	}
	if err != nil || u.Policy.Window == hours {
		return err
	}
	u.Policy.Window = hours
	return p.set(v, u.Policy)
}

func notUnderstood(err error) error { return shell.Refuse(shell.Sentence(fmt.Sprint(err))) }
