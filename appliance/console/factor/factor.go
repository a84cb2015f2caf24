// Package factor is the pages of the second factor and of recovery codes, in the set-up and in the account.
package factor

import (
	"embed"
	"fmt"
	"strings"
	"sync"
	"time"

	"gatehouse/appliance/account"
	"gatehouse/appliance/account/onetime"
	"gatehouse/appliance/account/right"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
	"gatehouse/appliance/setup"
)

//go:embed *.html
var files embed.FS

// shownTime is how long fresh recovery codes can be looked at again. Only
// their hashes are stored, so this is in memory alone.
const shownTime = 15 * time.Minute

type shown struct {
	codes []string
	until time.Time
	saved bool // downloaded, or one was typed back
}

// Pages are the routes of second factors.
type Pages struct {
	settings    setup.Settings
	steady      func() time.Time
	app, backup shell.Page

	mu    sync.Mutex
	shown map[int64]*shown // by session
}

// New makes the pages.
func New(s setup.Settings, steady func() time.Time) *Pages {
	return &Pages{settings: s, steady: steady, app: shell.Parse(files, "app.html"), backup: shell.Parse(files, "codes.html"), shown: make(map[int64]*shown)}
}

// Routes are this package's rows of the table.
func (p *Pages) Routes() []shell.Route {
	ready := []control.State{control.StateReady}
	return []shell.Route{
		{Method: "GET", Path: "/welcome/factor", States: ready, Need: shell.Enrol, Handle: p.showApp},
		{Method: "POST", Path: "/welcome/factor", States: ready, Need: shell.Enrol, Handle: p.welcomeVerify},
		{Method: "GET", Path: "/welcome/codes", States: ready, Need: shell.Full, Right: right.OwnAccount, Handle: p.showCodes},
		{Method: "POST", Path: "/welcome/codes", States: ready, Need: shell.Full, Right: right.OwnAccount, Fresh: true, Handle: p.codes},
		{Method: "GET", Path: "/account/factor", States: ready, Need: shell.Full, Right: right.OwnAccount, Fresh: true, Handle: p.showApp},
		{Method: "POST", Path: "/account/factor", States: ready, Need: shell.Full, Right: right.OwnAccount, Fresh: true, Handle: p.replace},
		{Method: "GET", Path: "/account/codes", States: ready, Need: shell.Full, Right: right.OwnAccount, Handle: p.showCodes},
		{Method: "POST", Path: "/account/codes", States: ready, Need: shell.Full, Right: right.OwnAccount, Fresh: true, Handle: p.codes},
		{Method: "GET", Path: "/account/codes.txt", States: ready, Need: shell.Full, Right: right.OwnAccount, Handle: p.download},
	}
}

type appData struct {
	Welcome bool
	Image   string
	Manual  string
	URI     string
	Box     time.Time
}

func (p *Pages) appData(v *shell.Visit, anew bool) (appData, error) {
	f, err := v.Box.Accounts.BeginFactor(v.Ctx(), v.Person(), v.Box.Name, anew)
	if err != nil {
		return appData{}, err
	}
	image, err := onetime.Image(f.URI)
	return appData{welcome(v), image, f.Manual, f.URI, v.Box.Wall()}, err
}

func welcome(v *shell.Visit) bool { return strings.HasPrefix(v.Route.Path, "/welcome/") }

func (p *Pages) showApp(v *shell.Visit) error {
	if welcome(v) && v.Person().Factor { // coming back to a screen that is done
		v.Redirect("/welcome/codes")
		return nil
	}
	d, err := p.appData(v, false)
	if err != nil {
		return err
	}
	return v.Show(p.app, d)
}

// welcomeVerify makes the first factor, signs the person in fully, and makes
// the recovery codes that belong to it.
func (p *Pages) welcomeVerify(v *shell.Visit) error {
	if v.Person().Factor {
		v.Redirect("/welcome/codes")
		return nil
	}
	err := v.Box.Accounts.VerifyFactor(v.Ctx(), v.Person(), v.R.PostFormValue("code"), func() error {
		return v.Record("set second factor", v.Person().Email, nil)
	})
	if err != nil {
		return p.appAgain(v, err)
	}
	if err := v.SignIn(v.Person(), account.StageFull); err != nil {
		return err
	}
	if err := p.make(v); err != nil {
		return err
	}
	v.Redirect("/welcome/codes")
	return nil
}

func (p *Pages) appAgain(v *shell.Visit, err error) error {
	d, dataErr := p.appData(v, false)
	if dataErr != nil {
		return dataErr
	}
	return v.ShowAgain(p.app, d, err)
}

func (p *Pages) replace(v *shell.Visit) error {
	if v.R.PostFormValue("action") == "anew" {
		d, err := p.appData(v, true)
		if err != nil {
			return err
		}
		return v.Show(p.app, d)
	}
	err := v.Box.Accounts.VerifyFactor(v.Ctx(), v.Person(), v.R.PostFormValue("code"), func() error {
		return v.Record("replace second factor", v.Person().Email, nil)
	})
	if err != nil {
		return p.appAgain(v, err)
	}
	// Whoever got in with the old one is out.
	if err := v.Box.Accounts.EndOthers(v.Ctx(), v.Person(), v.Session.ID, v.Origin.Device); err != nil {
		return err
	}
	v.Redirect("/account?done=factor")
	return nil
}

type codesData struct {
	Welcome bool
	Codes   []string
	Saved   bool
	Left    int
	Typed   bool
	Onward  string // of the set-up
}

// afterCodes is the next screen of the set-up: the recovery key of the box is
// its owner's.
func afterCodes(v *shell.Visit) string {
	if right.May(v.Person().Role, right.ManageKeys) {
		return "/welcome/recovery"
	}
	return "/welcome/place"
}

func (p *Pages) of(v *shell.Visit) *shown {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, s := range p.shown {
		if p.steady().After(s.until) {
			delete(p.shown, id)
		}
	}
	return p.shown[v.Session.ID]
}

func (p *Pages) codesData(v *shell.Visit) (d codesData, err error) {
	d.Welcome, d.Onward = welcome(v), afterCodes(v)
	if s := p.of(v); s != nil {
		d.Codes, d.Saved = s.codes, s.saved
	}
	d.Left, err = v.Box.Accounts.RecoveryLeft(v.Ctx(), v.Person())
	return d, err
}

func (p *Pages) showCodes(v *shell.Visit) error {
	d, err := p.codesData(v)
	if err != nil {
		return err
	}
	return v.Show(p.backup, d)
}

// make replaces the recovery codes; the event comes first.
func (p *Pages) make(v *shell.Visit) error {
	if err := v.Record("make recovery codes", v.Person().Email, nil); err != nil {
		return err
	}
	codes, err := v.Box.Accounts.NewRecoveryCodes(v.Ctx(), v.Person())
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shown[v.Session.ID] = &shown{codes: codes, until: p.steady().Add(shownTime)}
	return nil
}

func (p *Pages) codes(v *shell.Visit) error {
	here, onward := v.Route.Path, "/account?done=codes"
	if welcome(v) {
		onward = afterCodes(v)
	}
	switch v.R.PostFormValue("action") {
	case "make":
		if err := p.make(v); err != nil {
			return err
		}
		v.Redirect(here)
		return nil
	case "typed":
		ok, err := v.Box.Accounts.IsRecoveryCode(v.Ctx(), v.Person(), v.R.PostFormValue("typed"))
		if err == nil && !ok {
			err = shell.Refuse("That is none of the ten codes. Type one of them as you saved it.")
		}
		if err != nil {
			return p.codesAgain(v, err)
		}
	default:
		if s := p.of(v); s == nil || !s.saved {
			return p.codesAgain(v, shell.Refuse("Download the codes first, or print them and type one of them back: without them a lost phone means a lost box."))
		}
	}
	p.mu.Lock()
	delete(p.shown, v.Session.ID)
	p.mu.Unlock()
	if err := p.settings.Done(v.Ctx(), setup.TodoCodes); err != nil {
		return err
	}
	v.Redirect(onward)
	return nil
}

func (p *Pages) codesAgain(v *shell.Visit, err error) error {
	d, dataErr := p.codesData(v)
	if dataErr != nil {
		return dataErr
	}
	return v.ShowAgain(p.backup, d, err)
}

func (p *Pages) download(v *shell.Visit) error {
	s := p.of(v)
	if s == nil {
		return shell.Refuse("The codes are shown for 15 minutes after they are made, and were not kept. Make new ones.")
	}
	if err := v.Record("download", "recovery codes", nil); err != nil {
		return err
	}
	p.mu.Lock()
	s.saved = true
	p.mu.Unlock()
	h := v.W.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", v.Box.Name+"-recovery-codes.txt"))
	_, err := fmt.Fprintf(v.W, "Recovery codes of %s for %s\r\nmade %s, each works once in the place of the app's code\r\n\r\n%s\r\n",
		v.Box.Name, v.Person().Email, v.Box.Wall().UTC().Format("2006-01-02 15:04 UTC"), strings.Join(s.codes, "\r\n"))
	return err
}
