// Package portable is the pages and the API that bring the configuration of a box out, encrypted, and into another.
package portable

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"filippo.io/age"

	"gatehouse/appliance/account/password"
	"gatehouse/appliance/account/right"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
	format "gatehouse/appliance/portable"
)

//go:embed *.html
var files embed.FS

// Database is the one transaction of an import.
type Database interface {
	Update(context.Context, func(*sql.Tx) error) error
}

// Pages are the routes of export and import.
type Pages struct {
	service
	db                func() Database
	page, found, done shell.Page
}

// New makes the pages. A file that an import before a power cut left is removed:
// nobody waits for it any more.
func New(p Ports, db func() Database) *Pages {
	parse := func(name string) shell.Page { return shell.Parse(files, name) }
	pages := &Pages{service: service{Ports: p}, db: db, page: parse("portable.html"), found: parse("found.html"), done: parse("done.html")}
	if p.Dir != "" {
		os.Remove(pages.path(exportFile))
		os.Remove(pages.path(importFile))
	}
	return pages
}

// Routes are this package's rows of the table. All are the owner's, and want
// password and code: an export holds what everybody's sign-in is checked by.
func (p *Pages) Routes() []shell.Route {
	row := func(method, path string, h func(*shell.Visit) error) shell.Route {
		return shell.Route{Method: method, Path: path, States: []control.State{control.StateReady}, Need: shell.Full, Right: right.Move,
			Fresh: true, API: strings.HasPrefix(path, "/api/"), Handle: h}
	}
	long := func(r shell.Route) shell.Route {
		r.Body = format.MaxFile + 64<<10
		return r
	}
	return []shell.Route{
		row("GET", "/system/configuration", p.show), row("POST", "/system/configuration/export", p.doExport),
		long(row("POST", "/system/configuration/import", p.doImport)), row("GET", "/system/configuration/import", p.showFound),
		row("POST", "/system/configuration/take", p.doTake),
		row("POST", "/api/v1/export", p.apiExport), long(row("POST", "/api/v1/import", p.apiImport)), row("POST", "/api/v1/import/take", p.apiTake),
	}
}

// half is which of the page's two forms was sent: what went wrong stands in it.
type half struct{ Import bool }

func (p *Pages) show(v *shell.Visit) error { return v.Show(p.page, half{}) }

// To is who an export is for: one of the two.
type To struct {
	Passphrase string   `json:"passphrase,omitempty"`
	Keys       []string `json:"keys,omitempty"` // age1…
}

// recipients judges them; words are what the audit log keeps of them.
func (t To) recipients(v *shell.Visit) (to []age.Recipient, words string, err error) {
	switch {
	case (t.Passphrase == "") == (len(t.Keys) == 0):
		return nil, "", shell.Refuse("Give either a passphrase, or keys that begin with age1.")
	case t.Passphrase != "":
		if to, err = format.Passphrase(t.Passphrase); err != nil {
			return nil, "", err
		}
		if problem := password.Problem(t.Passphrase, v.Person().Name, v.Person().Email, v.Box.Name); problem != "" {
			return nil, "", shell.Refuse(strings.Replace(problem, "password", "passphrase", 1)) // judged as one
		}
		return to, "a passphrase", nil
	}
	to, err = format.Recipients(t.Keys)
	return to, strings.Join(t.Keys, " "), err
}

// give answers with the export as a file.
func (p *Pages) give(v *shell.Visit, t To) error {
	to, name, err := t.recipients(v)
	if err != nil {
		return words(err)
	}
	st, err := v.Box.Status(v.Ctx())
	if err != nil {
		return err
	}
	if err := v.Record("export configuration", v.Box.Name, map[string]string{"to": name}); err != nil {
		return err
	}
	now := v.Box.Wall().UTC().Truncate(time.Second)
	patient(v)
	return p.export(v.Ctx(), to, format.About{Box: v.Box.Name, Version: st.Version, Made: now}, func(f *os.File, size int64) error {
		h := v.W.Header()
		h.Set("Content-Type", "application/octet-stream")
		h.Set("Content-Disposition", fmt.Sprintf(`attachment; filename="%s-%s.age"`, v.Box.Name, now.Format("2006-01-02")))
		h.Set("Content-Length", strconv.FormatInt(size, 10))
		_, err := io.Copy(v.W, f)
		return err
	})
}

func (p *Pages) doExport(v *shell.Visit) error {
	q := v.R.FormValue
	t := To{Passphrase: q("password"), Keys: strings.Fields(q("keys"))}
	err := error(nil)
	if t.Passphrase != q("again") {
		err = shell.Refuse("The two passphrases are not the same. Type both again.")
	} else {
		err = p.give(v, t)
	}
	if err != nil {
		return v.ShowAgain(p.page, half{}, err)
	}
	return nil
}

func (p *Pages) apiExport(v *shell.Visit) error {
	var t To
	if err := v.Decode(&t); err != nil {
		return err
	}
	return p.give(v, t)
}

// How long an upload may be silent, and how long it may take until it was read.
const (
	silent   = 30 * time.Second
	answered = 3 * time.Minute
)

// patient gives a request more time than a form has.
func patient(v *shell.Visit) {
	rc := http.NewResponseController(v.W)
	now := time.Now()
	_ = errors.Join(rc.SetReadDeadline(now.Add(silent)), rc.SetWriteDeadline(now.Add(answered))) // where it cannot be set there is none
}

// upload is a body that may take its time as long as it goes on.
type upload struct {
	io.Reader
	v *shell.Visit
}

func (u upload) Read(b []byte) (int, error) {
	patient(u.v)
	return u.Reader.Read(b)
}

// receive takes a form: the passphrase or the key first, and then the file, which
// goes straight to where it waits.
func (p *Pages) receive(v *shell.Visit) (id string, n Counted, err error) {
	v.R.Body = io.NopCloser(upload{v.R.Body, v})
	form, err := v.R.MultipartReader()
	if err != nil {
		return "", n, shell.Refuse("Send a form with the passphrase or the key, and then the file.")
	}
	var phrase, identity string
	for {
		part, err := form.NextPart()
		switch {
		case errors.Is(err, io.EOF):
			return "", n, shell.Refuse("Choose the file that an export made.")
		case err != nil:
			return "", n, err
		}
		switch part.FormName() {
		case "passphrase", "identity":
			b, err := io.ReadAll(io.LimitReader(part, 16<<10))
			if err != nil {
				return "", n, err
			}
			if part.FormName() == "passphrase" {
				phrase = string(b)
			} else {
				identity = string(b)
			}
		case "file":
			key, err := format.Opening(phrase, identity)
			if err != nil {
				return "", n, words(err)
			}
			return p.stage(v.Person().ID, key, part)
		}
	}
}

func (p *Pages) doImport(v *shell.Visit) error {
	if _, _, err := p.receive(v); err != nil {
		// Browsers show an answer once they have sent everything.
		io.Copy(io.Discard, v.R.Body)
		return v.ShowAgain(p.page, half{Import: true}, err)
	}
	v.Redirect("/system/configuration/import")
	return nil
}

func (p *Pages) apiImport(v *shell.Visit) error {
	id, n, err := p.receive(v)
	if err != nil {
		return err
	}
	return v.JSON(http.StatusOK, struct {
		ID string `json:"id"`
		Counted
	}{id, n})
}

type foundView struct {
	Counted
	ID  string
	Has map[string]bool
}

func (g *staged) view() foundView {
	f := foundView{Counted: g.counted, ID: g.id, Has: make(map[string]bool)}
	for _, p := range g.counted.Parts {
		f.Has[p] = true
	}
	return f
}

func (p *Pages) showFound(v *shell.Visit) error {
	g := p.waiting(v.Person().ID, "")
	if g == nil {
		v.Redirect("/system/configuration")
		return nil
	}
	return v.Show(p.found, g.view())
}

func (p *Pages) accept(v *shell.Visit, q Choice) (Taken, error) {
	patient(v)
	who := asker{by: control.By{Actor: v.Person().Email, From: v.From()}, session: v.Session, address: v.Address(), local: v.Local(), record: v.Record}
	t, err := p.take(v.Ctx(), q, who, p.db().Update)
	if err == nil {
		v.CloseAfter() // what is kept is kept over a new connection
	}
	return t, err
}

func (p *Pages) doTake(v *shell.Visit) error {
	if err := v.R.ParseForm(); err != nil {
		return err
	}
	q := Choice{ID: v.R.PostForm.Get("id"), Only: v.R.PostForm["part"], Force: v.R.PostForm.Get("force") == "yes"}
	g := p.waiting(v.Person().ID, q.ID)
	var t Taken
	var err error
	if len(q.Only) == 0 {
		err = shell.Refuse("Choose what is taken.")
	} else {
		t, err = p.accept(v, q)
	}
	switch {
	case err != nil && g == nil:
		return v.ShowAgain(p.page, half{Import: true}, err)
	case err != nil:
		return v.ShowAgain(p.found, g.view(), err)
	}
	return v.Show(p.done, t)
}

func (p *Pages) apiTake(v *shell.Visit) error {
	var q Choice
	if err := v.Decode(&q); err != nil {
		return err
	}
	t, err := p.accept(v, q)
	if err != nil {
		return err
	}
	return v.JSON(http.StatusOK, t)
}
