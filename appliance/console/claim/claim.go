// Package claim is the pages and the API of a box that nobody owns yet.
package claim

import (
	"crypto/tls"
	"embed"
	"net/http"
	"slices"

	"gatehouse/appliance/account"
	"gatehouse/appliance/account/password"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
	"gatehouse/appliance/setup"
	"gatehouse/appliance/setup/proof"
)

//go:embed *.html
var files embed.FS

// Pages are the set-up routes; they exist only while the box is unclaimed.
type Pages struct {
	claimer     *setup.Claimer
	fingerprint string
	before, own shell.Page
}

// New makes the pages. fingerprint is the SHA-256 of the certificate.
func New(c *setup.Claimer, fingerprint string) *Pages {
	return &Pages{c, fingerprint, shell.Parse(files, "before.html"), shell.Parse(files, "own.html")}
}

// Routes are this package's rows of the table.
func (p *Pages) Routes() []shell.Route {
	unclaimed := []control.State{control.StateUnclaimed}
	return []shell.Route{
		{Method: "GET", Path: "/", States: unclaimed, Handle: p.showBefore},
		{Method: "GET", Path: "/setup", States: unclaimed, Handle: p.showOwn},
		{Method: "POST", Path: "/setup", States: unclaimed, Handle: p.own1},
		{Method: "GET", Path: "/api/v1/setup", States: unclaimed, API: true, Handle: p.salt},
		{Method: "POST", Path: "/api/v1/setup/proof", States: unclaimed, API: true, Handle: p.prove},
		{Method: "POST", Path: "/api/v1/setup/claim", States: unclaimed, API: true, Handle: p.claim},
		{Method: "POST", Path: "/api/v1/password-strength", States: unclaimed, API: true, Handle: Strength},
	}
}

func (p *Pages) showBefore(v *shell.Visit) error {
	return v.Show(p.before, map[string]any{"Fingerprint": p.fingerprint, "Where": setup.WhereTheCodeIs})
}

type form struct {
	Code, Ticket, Name, Email string
	Where                     string
}

func (p *Pages) showOwn(v *shell.Visit) error {
	return v.Show(p.own, form{Ticket: v.R.FormValue("ticket"), Where: setup.WhereTheCodeIs})
}

// own1 is the first screen of the wizard. What is wrong with the particulars
// is said before the code is looked at, so that a typing error costs no try.
func (p *Pages) own1(v *shell.Visit) error {
	f := form{v.R.FormValue("claim-code"), v.R.FormValue("ticket"), v.R.FormValue("name"), v.R.FormValue("email"), setup.WhereTheCodeIs}
	o := account.Owner{Name: f.Name, Email: f.Email, Password: v.R.FormValue("password")}
	err := o.Check(v.Box.Name)
	ticket := f.Ticket
	if err == nil && ticket == "" {
		ticket, err = p.claimer.CheckCode(v.Ctx(), v.Origin.Source, f.Code)
	}
	var owner account.Person
	if err == nil {
		owner, err = p.claimer.Claim(v.Ctx(), ticket, o, v.From())
		f.Ticket = "" // used up, whatever came of it
	}
	if err != nil {
		return v.ShowAgain(p.own, f, err)
	}
	if err := v.SignIn(owner, account.StageEnrol); err != nil {
		return err
	}
	v.Redirect("/welcome/clock")
	return nil
}

func (p *Pages) salt(v *shell.Visit) error {
	salt, err := p.claimer.Salt(v.Ctx())
	if err != nil {
		return err
	}
	return v.JSON(http.StatusOK, map[string]any{"name": v.Box.Name, "salt": salt})
}

func (p *Pages) prove(v *shell.Visit) error {
	var q struct {
		Proof []byte `json:"proof"`
	}
	if err := v.Decode(&q); err != nil {
		return err
	}
	binding, err := bindingOf(v.R.TLS)
	if err != nil {
		return err
	}
	ours, ticket, err := p.claimer.Prove(v.Ctx(), v.Origin.Source, binding, q.Proof)
	if err != nil {
		return err
	}
	return v.JSON(http.StatusOK, map[string]any{"proof": ours, "ticket": ticket})
}

func bindingOf(cs *tls.ConnectionState) ([]byte, error) {
	if cs == nil {
		return nil, shell.Refuse("A proof needs a TLS connection that it is bound to.")
	}
	return proof.Binding(cs)
}

func (p *Pages) claim(v *shell.Visit) error {
	var q struct {
		Ticket   string `json:"ticket"`
		Name     string `json:"name"`
		Email    string `json:"email"`
		Password string `json:"password"`
	}
	if err := v.Decode(&q); err != nil {
		return err
	}
	owner, err := p.claimer.Claim(v.Ctx(), q.Ticket, account.Owner{Name: q.Name, Email: q.Email, Password: q.Password}, v.From())
	if err != nil {
		return err
	}
	return v.JSON(http.StatusCreated, map[string]any{"name": v.Box.Name, "owner": owner.Email})
}

// maxContext is the most of a name or an e-mail address, in bytes.
const maxContext = 512

// Strength answers the password meter. Nothing of it is kept or logged.
func Strength(v *shell.Visit) error {
	var q struct {
		Password string   `json:"password"`
		Context  []string `json:"context"`
	}
	if err := v.Decode(&q); err != nil {
		return err
	}
	if len(q.Password) > 4*password.MaxLength {
		return shell.Refuse("The password is longer than 256 characters.")
	}
	// Each word of the context is compared with each piece of the password.
	tooLong := func(s string) bool { return len(s) > maxContext }
	if len(q.Context) > 4 || slices.ContainsFunc(q.Context, tooLong) {
		return shell.Refuse("A name or an e-mail address is longer than any.")
	}
	context := append(q.Context, v.Box.Name)
	s := password.Judge(q.Password, context...)
	if problem := password.Problem(q.Password, context...); problem != "" {
		s = password.Strength{Score: min(s.Score, password.LeastScore-1), Words: problem}
	}
	return v.JSON(http.StatusOK, map[string]any{"score": s.Score, "words": s.Words})
}
