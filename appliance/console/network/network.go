// Package network is the pages and the API of the box's links, addresses and names.
package network

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"gatehouse/appliance/console/network/form"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/console/trial"
	"gatehouse/appliance/control"
	"gatehouse/appliance/netconf"
)

//go:embed *.html
var files embed.FS

// Ports are the requests of the privileged process that this package makes.
type Ports struct {
	Network func(context.Context) (control.NetworkState, error)
	Try     func(context.Context, control.NetworkTry) (control.NetworkReport, error)
	Keep    func(context.Context, control.Keep) error
	Revert  func(context.Context, control.Revert) error
	Steady  func() time.Time
}

// Pages are the routes of the network.
type Pages struct {
	Ports
	trial                             trial.Trial
	tickets                           tickets
	all, link, names, checked, onward shell.Page
}

// New makes the pages.
func New(p Ports) *Pages {
	parse := func(name string) shell.Page { return shell.Parse(files, name) }
	pages := &Pages{Ports: p, tickets: tickets{now: p.Steady, all: make(map[string]ticket)},
		all: parse("network.html"), link: parse("link.html"), names: parse("names.html"), checked: parse("checked.html"), onward: parse("onward.html")}
	pages.trial = trial.Trial{Path: "/network", Keep: p.Keep, Revert: p.Revert, Again: pages.again}
	return pages
}

// Routes are this package's rows of the table. The two of /network/here ask for
// a ticket in the place of a session, which a new address does not have.
func (p *Pages) Routes() []shell.Route {
	here := func(method string, h func(*shell.Visit) error) shell.Route {
		return shell.Route{Method: method, Path: "/network/here", States: []control.State{control.StateReady}, Handle: h}
	}
	return append([]shell.Route{
		trial.Row("GET", "/network", p.show), trial.Row("GET", "/network/link", p.openLink), trial.Row("POST", "/network/link", p.changeLink),
		trial.Row("GET", "/network/names", p.openNames), trial.Row("POST", "/network/names", p.changeNames),
		trial.Row("POST", "/network/remove", p.remove), trial.Row("POST", "/network/try", p.try),
		here("GET", p.openHere), here("POST", p.keepHere),
		trial.Row("GET", "/api/v1/network", p.apiNetwork), trial.Row("POST", "/api/v1/network/try", p.apiTry),
	}, p.trial.Routes()...)
}

type view struct {
	control.NetworkState
	Rows   []row
	Absent []absent
	Local  netip.Addr // the address that the reader uses
	Hosted bool
}

// row is one link as it is shown.
type row struct {
	control.Link
	What string // VLAN 20 on eth0
	Mode string
	Made bool // a VLAN or bond, which can be removed
}

// absent is what is set for a link that is not there.
type absent struct{ Name, Shown, What string }

func absents(st control.NetworkState) []absent {
	var out []absent
	for _, l := range netconf.Absent(st.Settings, st.Own) {
		out = append(out, absent{l.Name, netconf.Shown(st.Settings, l.Name), netconf.Describe(st.Settings, l.Name)})
	}
	return out
}

func rows(st control.NetworkState) []row {
	var out []row
	add := func(l control.Link) {
		r := row{Link: l, Mode: netconf.Automatic}
		if x := netconf.Of(st.Settings, l.Name); x != nil {
			r.Mode = x.Mode
		}
		if v := form.VLANOf(st.Settings, l.Name); v != nil {
			r.What, r.Made = fmt.Sprintf("VLAN %d on %s", v.ID, netconf.Shown(st.Settings, v.On)), true
		}
		if b := form.BondOf(st.Settings, l.Name); b != nil {
			var parts []string
			for _, l := range b.Links {
				parts = append(parts, netconf.Shown(st.Settings, l))
			}
			r.What, r.Made = "bond of "+strings.Join(parts, ", ")+", "+b.Mode, true
		}
		for _, b := range st.Settings.Bonds {
			if slices.Contains(b.Links, l.Name) {
				r.What, r.Mode = "part of "+b.Name, "bonded"
			}
		}
		out = append(out, r)
	}
	for _, l := range st.Links {
		add(l)
	}
	have := func(name string) bool {
		return slices.ContainsFunc(st.Links, func(l control.Link) bool { return l.Name == name })
	}
	for _, v := range st.Settings.VLANs {
		if !have(v.Name) {
			add(control.Link{Name: v.Name})
		}
	}
	for _, b := range st.Settings.Bonds {
		if !have(b.Name) {
			add(control.Link{Name: b.Name})
		}
	}
	return out
}

// state is the network with the names that its links have now: settings may
// know a card by its MAC address.
func (p *Pages) state(ctx context.Context) (control.NetworkState, error) {
	st, err := p.Network(ctx)
	st.Settings = netconf.Named(st.Settings, st.Own)
	return st, err
}

func (p *Pages) view(v *shell.Visit) (view, error) {
	status, err := v.Box.Status(v.Ctx())
	if err != nil {
		return view{}, err
	}
	st := control.NetworkState{Links: status.Links}
	if !status.Hosted {
		if st, err = p.state(v.Ctx()); err != nil {
			return view{}, err
		}
	}
	return view{st, rows(st), absents(st), v.Local(), status.Hosted}, nil
}

func (p *Pages) show(v *shell.Visit) error {
	w, err := p.view(v)
	if err != nil {
		return err
	}
	return v.Show(p.all, w)
}

func (p *Pages) again(v *shell.Visit, err error) error {
	w, verr := p.view(v)
	if verr != nil {
		return errors.Join(err, verr)
	}
	return v.ShowAgain(p.all, w, err)
}

func (p *Pages) openLink(v *shell.Visit) error {
	st, err := p.state(v.Ctx())
	if err != nil {
		return err
	}
	name, kind := v.R.FormValue("name"), v.R.FormValue("new")
	var f *form.Link
	switch {
	case kind == "vlan" || kind == "bond":
		f = form.LinkOf("", st.Settings)
		f.Kind = kind
		if kind == "bond" {
			f.Name = "bond0"
		}
	case slices.ContainsFunc(rows(st), func(r row) bool { return r.Name == name }):
		f = form.LinkOf(name, st.Settings)
	default:
		return shell.Refuse("There is no such link. It may have been removed, or its card was taken out.")
	}
	f.Links = carriers(st, f.Name)
	return v.Show(p.link, f)
}

// carriers are the links that a VLAN or bond can be made of.
func carriers(st control.NetworkState, except string) (list []string) {
	for _, l := range st.Own {
		if b := netconf.BondOf(st.Settings, l.Name); b == "" || b == except {
			list = append(list, l.Name)
		}
	}
	for _, b := range st.Settings.Bonds {
		if b.Name != except {
			list = append(list, b.Name)
		}
	}
	return list
}

func (p *Pages) changeLink(v *shell.Visit) error {
	st, err := p.state(v.Ctx())
	if err != nil {
		return err
	}
	if err := v.R.ParseForm(); err != nil {
		return err
	}
	f := form.ReadLink(v.R.PostForm)
	f.Links = carriers(st, f.Old)
	if v.R.PostForm.Get("do") == "edit" {
		return v.Show(p.link, f)
	}
	s := f.Apply(st)
	if len(f.Wrong) > 0 {
		return v.ShowAgain(p.link, f, shell.Refuse("Nothing was changed. See the fields below."))
	}
	report, err := p.judge(v, s, true)
	if err != nil {
		return v.ShowAgain(p.link, f, err)
	}
	if len(report.Problems) > 0 {
		f.Rest = place(report.Problems, f.Name, f.Wrong, "name", "on", "id", "links", "mode", "addresses", "gateways", "routes", "mtu")
		return v.ShowAgain(p.link, f, shell.Refuse("Nothing was changed. See below."))
	}
	return p.showChecked(v, st, s, report)
}

// place puts problems beside the fields that they are about, by the words
// that netconf.Check names them with: the link, if it is of one, and the field.
// It returns the rest.
func place(problems []control.Problem, link string, wrong map[string]string, fields ...string) (rest []string) {
	for _, q := range problems {
		of, field := "", q.Text
		if i := strings.LastIndexByte(q.Text, ' '); i >= 0 {
			of, field = q.Text[:i], q.Text[i+1:]
		}
		text := strings.TrimSuffix(q.Reason, ".") + "."
		if of == link && wrong[field] == "" && slices.Contains(fields, field) {
			wrong[field] = upper(text)
			continue
		}
		if q.Text != "" {
			text = q.Text + ": " + text
		}
		rest = append(rest, upper(text))
	}
	return rest
}

func upper(s string) string { return strings.ToUpper(s[:min(1, len(s))]) + s[min(1, len(s)):] }

func (p *Pages) openNames(v *shell.Visit) error {
	st, err := p.state(v.Ctx())
	if err != nil {
		return err
	}
	return v.Show(p.names, form.NamesOf(st.Settings))
}

func (p *Pages) changeNames(v *shell.Visit) error {
	st, err := p.state(v.Ctx())
	if err != nil {
		return err
	}
	if err := v.R.ParseForm(); err != nil {
		return err
	}
	f := form.ReadNames(v.R.PostForm)
	if v.R.PostForm.Get("do") == "edit" {
		return v.Show(p.names, f)
	}
	s := f.Apply(st)
	if len(f.Wrong) > 0 {
		return v.ShowAgain(p.names, f, shell.Refuse("Nothing was changed. See the fields below."))
	}
	report, err := p.judge(v, s, true)
	if err != nil {
		return v.ShowAgain(p.names, f, err)
	}
	if len(report.Problems) > 0 {
		f.Rest = place(report.Problems, "", f.Wrong, "resolvers", "search", "time")
		return v.ShowAgain(p.names, f, shell.Refuse("Nothing was changed. See below."))
	}
	return p.showChecked(v, st, s, report)
}

func (p *Pages) remove(v *shell.Visit) error {
	st, err := p.state(v.Ctx())
	if err != nil {
		return err
	}
	name := v.R.FormValue("name")
	s, there := form.Remove(st.Settings, name)
	if !there {
		s, there = form.Forget(st, name)
	}
	if !there {
		return shell.Refuse("There is no such VLAN or bond. It may have been removed already.")
	}
	report, err := p.judge(v, s, true)
	if err != nil {
		return err
	}
	if len(report.Problems) > 0 {
		return shell.Refuse("Nothing was changed: " + strings.Join(place(report.Problems, "", nil), " "))
	}
	return p.showChecked(v, st, s, report)
}

func (p *Pages) judge(v *shell.Visit, s control.NetworkSettings, dry bool) (control.NetworkReport, error) {
	ctx := v.Ctx()
	if !dry {
		// The browser's connection may be what ends by it; the answer has to be
		// heard all the same.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
	}
	return p.Try(ctx, control.NetworkTry{Settings: s, DryRun: dry, Actor: v.Person().Email, From: v.Address().String(), Local: v.Local()})
}

// checked is the page between the form and the change.
type checked struct {
	Report   control.NetworkReport
	Local    netip.Addr
	Settings string // the proposal, to be sent back
	Base     string // what it was made of
	Ticket   string
	New      []string   // addresses to go on at, as a person opens them
	Other    []string   // that the box keeps
	Back     string     // the form to go back to
	Fields   url.Values // what it held
	InEffect bool
	Seconds  int
}

func baseOf(s control.NetworkSettings) string {
	b, _ := json.Marshal(s)
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

func (p *Pages) showChecked(v *shell.Visit, st control.NetworkState, s control.NetworkSettings, report control.NetworkReport) error {
	doc, err := json.Marshal(s)
	if err != nil {
		return err
	}
	c := checked{Report: report, Local: v.Local(), Settings: string(doc), Base: baseOf(st.Settings), Back: v.Route.Path, Fields: v.R.PostForm}
	c.Fields.Set("do", "edit")
	if v.Route.Path == "/network/remove" {
		c.Back = ""
	}
	if report.SelfCut {
		c.Ticket = p.tickets.issue(v.Person().Email)
		if err := p.onwardOf(v, &c, st, s); err != nil {
			return err
		}
	}
	return v.Show(p.checked, c)
}

// onwardOf fills in where the person can go on.
func (p *Pages) onwardOf(v *shell.Visit, c *checked, st control.NetworkState, s control.NetworkSettings) error {
	status, err := v.Box.Status(v.Ctx())
	if err != nil {
		return err
	}
	url := func(a netip.Addr) string { return "https://" + hostPort(a, status.HTTPSPort) + "/" }
	for _, a := range newAddresses(s, st) {
		c.New = append(c.New, url(a))
	}
	for _, a := range otherAddresses(s, st, v.Local()) {
		c.Other = append(c.Other, url(a))
	}
	return nil
}

func hostPort(a netip.Addr, port uint16) string {
	switch {
	case port != 443 && port != 0:
		return netip.AddrPortFrom(a, port).String()
	case a.Is6():
		return "[" + a.String() + "]"
	}
	return a.String()
}

// try puts what was checked into effect.
func (p *Pages) try(v *shell.Visit) error {
	st, err := p.state(v.Ctx())
	if err != nil {
		return err
	}
	var s control.NetworkSettings
	if err := json.Unmarshal([]byte(v.R.FormValue("settings")), &s); err != nil {
		return shell.Refuse("The change cannot be read. Begin it again on the page Network.")
	}
	if v.R.FormValue("base") != baseOf(st.Settings) {
		return p.again(v, shell.Refuse("Nothing was changed: somebody else changed the settings since you looked. Begin again."))
	}
	report, err := p.judge(v, s, false)
	if err != nil {
		return p.again(v, err)
	}
	if report.Candidate == nil && len(report.Problems) == 0 {
		return p.again(v, shell.Refuse("Nothing was changed: these are the settings that are in effect."))
	}
	if report.Candidate == nil {
		return p.again(v, shell.Refuse("Nothing was changed: "+strings.Join(place(report.Problems, "", nil), " ")))
	}
	ticket := v.R.FormValue("ticket")
	p.tickets.bind(ticket, v.Person().Email, report.Candidate.ID)
	if !report.SelfCut {
		return p.trial.Applied(v)
	}
	// A redirect would lead to an address that is gone.
	v.CloseAfter()
	c := checked{Report: report, Local: v.Local(), Ticket: ticket, InEffect: true, Seconds: report.Candidate.Seconds}
	if err := p.onwardOf(v, &c, st, s); err != nil {
		return err
	}
	return v.Show(p.checked, c)
}

// onward is the page at the new address.
type onward struct {
	Ticket    string
	Candidate *control.Candidate
	Kept      bool
}

const deadTicket = "This link does not keep anything any more: the change was kept, or taken back because nobody did in time. Sign in to see."

func (p *Pages) openHere(v *shell.Visit) error {
	name := v.R.FormValue("ticket")
	t, ok := p.tickets.find(name)
	if !ok {
		return shell.Refuse(deadTicket)
	}
	w := onward{Ticket: name}
	if t.candidate != "" {
		st, err := p.Network(v.Ctx())
		if err != nil {
			return err
		}
		if w.Candidate = st.Candidate; w.Candidate == nil || w.Candidate.ID != t.candidate {
			return shell.Refuse(deadTicket)
		}
	}
	return v.Show(p.onward, w)
}

// keepHere keeps a change for its author, who has no session at this address.
func (p *Pages) keepHere(v *shell.Visit) error {
	name := v.R.PostFormValue("ticket")
	t, ok := p.tickets.find(name)
	if !ok || t.candidate == "" {
		return shell.Refuse(deadTicket)
	}
	if err := p.trial.Confirm(v, t.candidate, t.person); err != nil {
		return v.ShowAgain(p.onward, onward{Ticket: name}, err)
	}
	p.tickets.use(name)
	return v.Show(p.onward, onward{Kept: true})
}

func (p *Pages) apiNetwork(v *shell.Visit) error {
	st, err := p.Network(v.Ctx())
	if err != nil {
		return err
	}
	st.Taken = nil // the network role's
	return v.JSON(http.StatusOK, st)
}

func (p *Pages) apiTry(v *shell.Visit) error {
	var q struct {
		Settings control.NetworkSettings `json:"settings"`
		DryRun   bool                    `json:"dry_run,omitempty"`
	}
	if err := v.Decode(&q); err != nil {
		return err
	}
	report, err := p.judge(v, q.Settings, q.DryRun)
	if err != nil {
		return err
	}
	status := http.StatusOK
	if len(report.Problems) > 0 {
		status = http.StatusUnprocessableEntity
	}
	if report.Candidate != nil {
		v.CloseAfter()
	}
	return v.JSON(status, report)
}
