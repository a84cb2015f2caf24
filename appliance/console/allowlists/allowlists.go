package allowlists

import (
	"embed"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/console/trial"
	"gatehouse/appliance/control"
	"gatehouse/netfilter/allowlist"
)

//go:embed *.html
var files embed.FS

const (
	// maxText is the most that the page edits; a textarea with more is no help.
	// The tool sends up to maxDocument.
	maxText     = 1 << 20
	maxDocument = 16 << 20
)

// Pages are the routes of the allowlists.
type Pages struct {
	service
	list, edit, choose shell.Page
	trial              trial.Trial
}

// New makes the pages.
func New(p Ports) *Pages {
	pages := &Pages{service: service{Ports: p}, list: shell.Parse(files, "allowlists.html"), edit: shell.Parse(files, "edit.html"), choose: shell.Parse(files, "add.html")}
	pages.trial = trial.Trial{Path: "/allowlists", Keep: p.Keep, Revert: p.Revert, Again: pages.again}
	return pages
}

// Routes are this package's rows of the table.
func (p *Pages) Routes() []shell.Route {
	edit := trial.Row("POST", "/allowlists/edit", p.change)
	edit.Body = 4 * maxText // percent-encoded at worst three to one
	try := trial.Row("POST", "/api/v1/allowlists/try", p.apiTry)
	try.Body = maxDocument
	return append([]shell.Route{
		trial.Row("GET", "/allowlists", p.show), trial.Row("POST", "/allowlists/switch", p.turn),
		trial.Row("POST", "/allowlists/turn", p.turnOne), trial.Row("GET", "/allowlists/add", p.add),
		trial.Row("GET", "/allowlists/edit", p.open), edit, trial.Row("POST", "/allowlists/remove", p.remove),
		trial.Row("GET", "/api/v1/allowlists", p.apiLists), trial.Row("GET", "/api/v1/allowlists/document", p.apiDocument), try,
		trial.Row("POST", "/api/v1/allowlists/test", p.apiTest),
	}, p.trial.Routes()...)
}

type view struct {
	Lists    control.Lists
	Address  netip.Addr // of the reader
	In       []string   // lists that have it
	Admitted bool
	Tested   *tested
	Report   *control.ListsReport // of a switch that was refused
	Turn     turned               // what that switch was to do
	Cut      bool                 // the reader would be cut off, and may insist
	Hits     map[string]uint64    // packets that a list let in within a day
	Since    time.Time            // when the hits begin
	Whole    bool                 // they are of a whole day
}

// turned is a switch: of one list, or of all if it has no name.
type turned struct {
	Name string
	On   bool
}

type tested struct {
	Address string
	In      []string
	Scopes  []string
}

func (p *Pages) view(v *shell.Visit) (view, error) {
	lists, err := p.Lists(v.Ctx())
	if err != nil {
		return view{}, err
	}
	w := view{Lists: lists, Address: v.Address()}
	var scopes allowlist.Scope
	w.In, scopes = p.Judge(w.Address)
	w.Admitted = scopes&allowlist.Console != 0
	e, err := p.Exposure(v.Ctx())
	if err != nil {
		return view{}, err
	}
	w.Hits, w.Since, w.Whole = make(map[string]uint64), e.Since, v.Box.Wall().Sub(e.Since) >= 24*time.Hour
	for _, h := range e.Lists {
		w.Hits[h.Name] = h.Day
	}
	return w, nil
}

func (p *Pages) show(v *shell.Visit) error {
	w, err := p.view(v)
	if err != nil {
		return err
	}
	if text := strings.TrimSpace(v.R.FormValue("address")); text != "" {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			return v.ShowAgain(p.list, w, shell.Refuse(fmt.Sprintf("%.60q is not an address. Write one such as 192.0.2.7 or 2001:db8::7.", text)))
		}
		t := tested{Address: a.Unmap().String()}
		var scopes allowlist.Scope
		t.In, scopes = p.Judge(a)
		t.Scopes = scopes.Names()
		w.Tested = &t
	}
	return v.Show(p.list, w)
}

func (p *Pages) ask(v *shell.Visit, dry, force bool) control.ListsTry {
	return control.ListsTry{DryRun: dry, Force: force, Watch: []netip.Addr{v.Address()}, Actor: v.Person().Email, From: v.Address().String()}
}

// turn is the switch for all lists.
func (p *Pages) turn(v *shell.Visit) error {
	d, err := p.document(v.Ctx())
	if err != nil {
		return err
	}
	d.Enabled = v.R.FormValue("to") == "on"
	report, err := p.propose(v.Ctx(), d, p.ask(v, false, v.R.FormValue("force") == "yes"))
	if err == nil && report.Candidate != nil {
		return p.trial.Applied(v)
	}
	return p.notTurned(v, turned{On: d.Enabled}, report, err)
}

// notTurned shows the lists again, with why a switch was refused.
func (p *Pages) notTurned(v *shell.Visit, t turned, report control.ListsReport, err error) error {
	w, verr := p.view(v)
	if verr != nil {
		return errors.Join(err, verr)
	}
	if err != nil {
		return v.ShowAgain(p.list, w, err)
	}
	w.Report, w.Cut, w.Turn = &report, report.SelfCut, t
	return v.ShowAgain(p.list, w, shell.Refuse("Nothing was changed: "+reason(report)))
}

// reason is the first problem as a sentence.
func reason(r control.ListsReport) string {
	if len(r.Problems) == 0 {
		return "the lists were refused."
	}
	q := r.Problems[0]
	where := ""
	switch {
	case q.Line > 0:
		where = fmt.Sprintf(" (%s, line %d)", q.File, q.Line)
	case q.File != "":
		where = " (" + q.File + ")"
	}
	return strings.TrimSuffix(q.Reason, ".") + where + "."
}

type editor struct {
	Old     string // name in force; "" for a new list
	Files   string // folder of the host that the lists come from: nothing is edited here
	List    ListDocument
	Text    string
	TooBig  int64 // bytes, of a list that the page does not edit
	Address netip.Addr
	Scopes  []scopeBox
	Report  *control.ListsReport
	Lines   map[int]string // what is wrong, by line
	Rest    []control.Problem
	Added   string // a range that was put at the end of the text
	Checked bool   // a dry run went through
	Cut     bool
}

type scopeBox struct {
	Name, Words string
	On          bool
}

var scopeWords = map[string]string{
	"console": "Console: these pages, the API and the tool", "sites": "Sites: boxes that enrol here and report", "visitors": "Visitors: people invited to one session",
}

func (e *editor) boxes() {
	e.Scopes = nil
	for _, name := range allowlist.Everything.Names() {
		e.Scopes = append(e.Scopes, scopeBox{name, scopeWords[name], slices.Contains(e.List.Scopes, name)})
	}
}

func (p *Pages) open(v *shell.Visit) error {
	e := editor{Old: v.R.FormValue("name"), Address: v.Address(), List: ListDocument{Enabled: true, Scopes: allowlist.Everything.Names()}}
	lists, err := p.Lists(v.Ctx())
	if err != nil {
		return err
	}
	if e.Files = lists.Files; e.Files != "" && e.Old == "" {
		return ofTheHost(e.Files)
	}
	if e.Old != "" {
		d, err := p.document(v.Ctx())
		if err != nil {
			return err
		}
		l := d.find(e.Old)
		if l == nil {
			return shell.Refuse("There is no such list. It may have been removed meanwhile.")
		}
		b, err := p.file(v.Ctx(), e.Old+allowlist.Suffix)
		if err != nil {
			return err
		}
		e.List, e.Text = *l, string(b)
		if len(b) > maxText {
			e.Text, e.TooBig = "", int64(len(b))
		}
	}
	if e.Old == "" && v.R.FormValue("mine") == "yes" {
		e.List.Name, e.Text = "office", v.Address().String()+"  # added by "+v.Person().Email+"\n"
	}
	if text := v.R.FormValue("add"); text != "" {
		switch {
		case e.Files != "":
			return ofTheHost(e.Files)
		case e.TooBig > 0:
			return shell.Refuse("This list has more than a page edits. Add the address with the tool: gatehouse allowlist edit.")
		}
		if err := e.add(v, text); err != nil {
			return err
		}
	}
	e.boxes()
	return v.Show(p.edit, e)
}

// ofTheHost refuses what is not done here but with the host's files.
func ofTheHost(dir string) error {
	return shell.Refuse("These lists are files of the host: change them there, in " + dir + ".")
}

// change is the editor's form: check says what would change, apply does it.
func (p *Pages) change(v *shell.Visit) error {
	if err := v.R.ParseForm(); err != nil {
		return err
	}
	if lists, err := p.Lists(v.Ctx()); err != nil {
		return err
	} else if lists.Files != "" {
		return ofTheHost(lists.Files)
	}
	f := v.R.PostForm
	text := strings.ReplaceAll(f.Get("text"), "\r\n", "\n")
	e := editor{Old: f.Get("old"), Text: text, Address: v.Address(), List: ListDocument{
		Name: strings.TrimSpace(f.Get("name")), Enabled: f.Get("enabled") == "yes", Scopes: f["scope"], Note: strings.TrimSpace(f.Get("note")), AllowAll: f.Get("allow_all") == "yes", Text: &text,
	}}
	e.boxes()
	if f.Get("do") == "mine" {
		if e.Text != "" && !strings.HasSuffix(e.Text, "\n") {
			e.Text += "\n"
		}
		e.Text += v.Address().String() + "  # added by " + v.Person().Email + "\n"
		return v.Show(p.edit, e)
	}
	if shorter, ok := without(e.Text, f.Get("do")); ok {
		e.Text = shorter
		return v.Show(p.edit, e)
	}
	if len(text) > maxText {
		return v.ShowAgain(p.edit, e, shell.Refuse("That is more than a page edits. Use the tool: gatehouse allowlist apply."))
	}
	d, err := p.document(v.Ctx())
	if err != nil {
		return err
	}
	if err := d.put(e.Old, e.List); err != nil {
		return v.ShowAgain(p.edit, e, err)
	}
	if len(d.Lists) == 1 && e.Old == "" {
		d.Enabled = f.Get("all") == "yes"
	}
	dry := f.Get("do") != "apply"
	report, err := p.propose(v.Ctx(), d, p.ask(v, dry, f.Get("force") == "yes"))
	if err != nil {
		return v.ShowAgain(p.edit, e, err)
	}
	if report.Candidate != nil {
		return p.trial.Applied(v)
	}
	return p.judged(v, e, report, dry)
}

// judged shows the form again with what was found.
func (p *Pages) judged(v *shell.Visit, e editor, report control.ListsReport, dry bool) error {
	e.Report, e.Cut, e.Lines = &report, report.SelfCut, make(map[int]string)
	for _, q := range report.Problems {
		if q.File == e.List.Name+allowlist.Suffix && q.Line > 0 {
			e.Lines[q.Line] = q.Reason
		} else {
			e.Rest = append(e.Rest, q)
		}
	}
	if e.Checked = dry && len(report.Problems) == 0; e.Checked {
		return v.Show(p.edit, e)
	}
	return v.ShowAgain(p.edit, e, shell.Refuse("Nothing was changed: "+reason(report)))
}

// put replaces the list of that name, or adds one.
func (d *Document) put(old string, l ListDocument) error {
	if old == "" {
		if d.find(l.Name) != nil {
			return shell.Refuse("There is a list of this name already. Choose another name, or edit that list.")
		}
		d.Lists = append(d.Lists, l)
		return nil
	}
	at := d.find(old)
	if at == nil {
		return shell.Refuse("The list was removed meanwhile, by someone else. Make a new one of this text.")
	}
	if old != l.Name && d.find(l.Name) != nil {
		return shell.Refuse("There is a list of this name already.")
	}
	*at = l
	return nil
}

func (p *Pages) remove(v *shell.Visit) error {
	d, err := p.document(v.Ctx())
	if err != nil {
		return err
	}
	name := v.R.FormValue("name")
	if d.find(name) == nil {
		return shell.Refuse("There is no such list. It may have been removed already.")
	}
	d.Lists = slices.DeleteFunc(d.Lists, func(l ListDocument) bool { return l.Name == name })
	report, err := p.propose(v.Ctx(), d, p.ask(v, false, v.R.FormValue("force") == "yes"))
	if err != nil {
		return err
	}
	if report.Candidate == nil {
		return shell.Refuse("Nothing was changed: " + reason(report))
	}
	return p.trial.Applied(v)
}

// again shows the page with why a change was not kept or taken back.
func (p *Pages) again(v *shell.Visit, err error) error {
	w, verr := p.view(v)
	if verr != nil {
		return errors.Join(err, verr)
	}
	return v.ShowAgain(p.list, w, err)
}

func (p *Pages) apiLists(v *shell.Visit) error {
	lists, err := p.Lists(v.Ctx())
	if err != nil {
		return err
	}
	return v.JSON(http.StatusOK, lists)
}

// apiDocument is the policy as it can be sent back; with ?list=NAME that one
// has its text.
func (p *Pages) apiDocument(v *shell.Visit) error {
	d, err := p.document(v.Ctx())
	if err != nil {
		return err
	}
	if q, err := url.ParseQuery(v.R.URL.RawQuery); err != nil {
		return shell.Refuse("The address cannot be read.")
	} else if name := q.Get("list"); name != "" {
		l := d.find(name)
		if l == nil {
			return shell.Refuse("There is no list of that name.")
		}
		b, err := p.file(v.Ctx(), name+allowlist.Suffix)
		if err != nil {
			return err
		}
		text := string(b)
		l.Text = &text
	}
	return v.JSON(http.StatusOK, d)
}

type apiTry struct {
	DryRun   bool     `json:"dry_run,omitempty"`
	Force    bool     `json:"force,omitempty"`
	Document Document `json:"document"`
}

func (p *Pages) apiTry(v *shell.Visit) error {
	var q apiTry
	if err := v.Decode(&q); err != nil {
		return err
	}
	report, err := p.propose(v.Ctx(), q.Document, p.ask(v, q.DryRun, q.Force))
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

func (p *Pages) apiTest(v *shell.Visit) error {
	var q struct {
		Address netip.Addr `json:"address"`
	}
	if err := v.Decode(&q); err != nil {
		return err
	}
	if !q.Address.IsValid() || q.Address.Zone() != "" {
		return shell.Refuse("Give an address such as 192.0.2.7 or 2001:db8::7.")
	}
	lists, scopes := p.Judge(q.Address)
	return v.JSON(http.StatusOK, map[string]any{"address": q.Address.Unmap(), "lists": append([]string{}, lists...), "scopes": append([]string{}, scopes.Names()...)})
}
