// Package certificates is the pages and the API of the web certificate: what is used, until when, and where the next comes from.
package certificates

import (
	"embed"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"strings"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/cert/authority"
	"gatehouse/appliance/cert/keeper"
	"gatehouse/appliance/cert/order"
	"gatehouse/appliance/cert/pair"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
)

//go:embed *.html
var files embed.FS

// Pages are the routes of the certificates.
type Pages struct {
	keeper          *keeper.Keeper
	overview, trust shell.Page
}

// New makes the pages.
func New(k *keeper.Keeper) *Pages {
	return &Pages{keeper: k, overview: shell.Parse(files, "certificates.html"), trust: shell.Parse(files, "trust.html")}
}

// maxUpload is a chain, a key, and what a form adds, percent-encoded at worst.
const maxUpload = 4 * (pair.MaxChainBytes + pair.MaxKeyBytes)

// Routes are this package's rows of the table.
func (p *Pages) Routes() []shell.Route {
	row := func(method, path string, r right.Right, h func(*shell.Visit) error) shell.Route {
		return shell.Route{Method: method, Path: path, States: []control.State{control.StateReady}, Need: shell.Full, Right: r, Handle: h,
			Body: maxUpload, API: strings.HasPrefix(path, "/api/")}
	}
	root := shell.Route{Method: "GET", Path: "/api/v1/certificates/root", States: []control.State{control.StateReady}, API: true, Handle: p.apiRoot}
	return []shell.Route{
		root,
		row("GET", "/certificates", right.Configure, p.show),
		row("POST", "/certificates/use", right.Configure, p.use), row("POST", "/certificates/import", right.Configure, p.bring),
		row("POST", "/certificates/renew", right.Configure, p.renew), row("POST", "/certificates/revoke", right.Configure, p.revoke),
		row("GET", "/certificates/trust", right.ReadStatus, p.help),
		row("GET", "/certificates/root.pem", right.ReadStatus, p.download("application/x-pem-file", ".pem", func(a *authority.Authority, _ string) []byte { return a.PEM() })),
		row("GET", "/certificates/root.crt", right.ReadStatus, p.download("application/x-x509-ca-cert", ".crt", func(a *authority.Authority, _ string) []byte { return a.Root.Raw })),
		row("GET", "/certificates/root.mobileconfig", right.ReadStatus, p.download("application/x-apple-aspen-config", ".mobileconfig", (*authority.Authority).MobileConfig)),
		row("GET", "/api/v1/certificates", right.Configure, p.apiShow),
		row("POST", "/api/v1/certificates/use", right.Configure, p.apiUse), row("POST", "/api/v1/certificates/import", right.Configure, p.apiImport),
		row("POST", "/api/v1/certificates/renew", right.Configure, p.apiRenew), row("POST", "/api/v1/certificates/revoke", right.Configure, p.apiRevoke),
	}
}

// form is the page, with what was typed into it.
type form struct {
	keeper.View
	ACMEForm keeper.ACMESettings
	Names    string
	Default  string // directory
	Words    map[keeper.Source]string
}

var words = map[keeper.Source]string{
	keeper.Self: "the box’s own certificate, which it signed itself", keeper.CA: "the box’s own CA", keeper.ACME: "an ACME server",
	keeper.Brought: "a certificate that was brought", keeper.Files: "files that the configuration names",
}

func (p *Pages) form() form {
	v := p.keeper.View()
	f := form{View: v, ACMEForm: v.ACME, Names: strings.Join(v.ACME.Names, "\n"), Default: order.LetsEncrypt, Words: words}
	f.ACMEForm.Agreed = false // said anew each time
	return f
}

func (p *Pages) show(v *shell.Visit) error { return v.Show(p.overview, p.form()) }

// refusal makes the keeper's words those of a page.
func refusal(err error) error {
	var r *keeper.Refusal
	if errors.As(err, &r) {
		return shell.Refuse(r.Text)
	}
	return err
}

// done ends a change: back to the page, over a new connection that is under the
// certificate of now.
func (p *Pages) done(v *shell.Visit, f form, err error, note string) error {
	if err != nil {
		return v.ShowAgain(p.overview, f, refusal(err))
	}
	v.CloseAfter()
	v.Redirect("/certificates?done=" + note)
	return nil
}

func (p *Pages) use(v *shell.Visit) error {
	if err := v.R.ParseForm(); err != nil {
		return err
	}
	q := v.R.PostForm
	f := p.form()
	c := keeper.Choice{Source: keeper.Source(q.Get("source")), NewCA: q.Get("new") == "yes"}
	if c.Source == keeper.ACME {
		c.ACME = keeper.ACMESettings{Directory: strings.TrimSpace(q.Get("directory")), Roots: strings.TrimSpace(q.Get("roots")), Email: strings.TrimSpace(q.Get("email")),
			Names: strings.Fields(strings.ReplaceAll(q.Get("names"), ",", " ")), Challenge: q.Get("challenge"), Agreed: q.Get("agreed") == "yes"}
		f.ACMEForm, f.Names = c.ACME, q.Get("names")
	}
	return p.done(v, f, p.keeper.Choose(v.Ctx(), c, v.Record), "certificate")
}

// bring takes what was pasted, or files in its place.
func (p *Pages) bring(v *shell.Visit) error {
	if err := v.R.ParseMultipartForm(maxUpload); err != nil && !errors.Is(err, http.ErrNotMultipart) {
		return fmt.Errorf("reading what was sent: %w", err)
	}
	chain, err := given(v.R, "chain", pair.MaxChainBytes)
	if err != nil {
		return err
	}
	key, err := given(v.R, "key", pair.MaxKeyBytes)
	if err != nil {
		return err
	}
	defer clear(key)
	return p.done(v, p.form(), p.keeper.Import(chain, key, v.Record), "imported")
}

// given is the file of a form's field, or its text.
func given(r *http.Request, name string, most int64) ([]byte, error) {
	if r.MultipartForm != nil {
		for _, h := range r.MultipartForm.File[name+"-file"] {
			if h.Size > 0 {
				return read(h, most)
			}
		}
	}
	return []byte(r.PostFormValue(name)), nil
}

func read(h *multipart.FileHeader, most int64) ([]byte, error) {
	f, err := h.Open()
	if err != nil {
		return nil, fmt.Errorf("reading the file: %w", err)
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most+1)) // one more is refused as too many
}

func (p *Pages) renew(v *shell.Visit) error {
	return p.done(v, p.form(), p.keeper.Renew(v.Record), "renewing")
}

func (p *Pages) revoke(v *shell.Visit) error {
	f := p.form()
	if v.R.FormValue("sure") != "yes" {
		return p.done(v, f, shell.Refuse("Say that you mean it: a revoked certificate cannot be used again."), "")
	}
	return p.done(v, f, p.keeper.Revoke(v.Ctx(), v.Record), "revoked")
}

type trustView struct {
	*keeper.Root
	Box     string
	Further []string
}

func (p *Pages) help(v *shell.Visit) error {
	w := trustView{Root: p.keeper.View().Root, Box: v.Box.Name}
	if a := p.keeper.Authority(); a != nil {
		w.Further = a.Further(v.Box.Name)
	}
	return v.Show(p.trust, w)
}

func (p *Pages) download(kind, suffix string, content func(*authority.Authority, string) []byte) func(*shell.Visit) error {
	return func(v *shell.Visit) error {
		a := p.keeper.Authority()
		if a == nil {
			return shell.Refuse("This box has no own CA yet. An administrator makes one on the page Certificates.")
		}
		v.W.Header().Set("Content-Type", kind)
		v.W.Header().Set("Content-Disposition", `attachment; filename="`+v.Box.Name+"-ca"+suffix+`"`)
		_, err := v.W.Write(content(a, v.Box.Name))
		return err
	}
}
