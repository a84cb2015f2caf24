package consoletest

import (
	"crypto/tls"
	"encoding/base32"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/account/onetime"
)

// Password is a person's that the console accepts.
const Password = "orbit walnut cathedral seven"

// Browser is a person's browser without scripts.
type Browser struct {
	*http.Client
	URL    string
	Secret []byte // of the second factor, once it was seen
	Codes  []string
	t      testing.TB
}

// Page is an answer.
type Page struct {
	Status int
	Path   string // after redirects
	Body   string
	Header http.Header
	TLS    *tls.ConnectionState
}

// Browser opens one. It keeps cookies as browsers do, and takes any certificate.
func (b *Box) Browser() *Browser {
	jar, err := cookiejar.New(nil)
	must(b.t, err)
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	b.t.Cleanup(transport.CloseIdleConnections)
	return &Browser{Client: &http.Client{Jar: jar, Transport: transport, Timeout: 30 * time.Second}, URL: b.URL, t: b.t}
}

func (br *Browser) page(resp *http.Response, err error) Page {
	br.t.Helper()
	must(br.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	must(br.t, err)
	return Page{resp.StatusCode, resp.Request.URL.Path, string(body), resp.Header, resp.TLS}
}

// Open opens a path.
func (br *Browser) Open(path string) Page {
	br.t.Helper()
	return br.page(br.Get(br.URL + path))
}

// Send sends a form: name, value, name, value …
func (br *Browser) Send(path string, fields ...string) Page {
	br.t.Helper()
	form := url.Values{}
	for i := 0; i < len(fields); i += 2 {
		form.Set(fields[i], fields[i+1])
	}
	return br.page(br.PostForm(br.URL+path, form))
}

// SendJSON sends a document.
func (br *Browser) SendJSON(path, document string) Page {
	br.t.Helper()
	return br.page(br.Post(br.URL+path, "application/json", strings.NewReader(document)))
}

// Own claims the box as ada@example.org, up to the second factor.
func (br *Browser) Own(b *Box) Page {
	br.t.Helper()
	p := br.Send("/setup", "claim-code", b.Code.String(), "name", "Ada Lovelace", "email", "ada@example.org", "password", Password)
	if p.Path != "/welcome/clock" {
		br.t.Fatalf("the claim led to %d %s:\n%s", p.Status, p.Path, p.Body)
	}
	return p
}

var (
	secretIn = regexp.MustCompile(`secret=([A-Z2-7]{32})`)
	codeIn   = regexp.MustCompile(`<li>([0-9A-Z]{4}-[0-9A-Z]{4}-[0-9A-Z]{4}-[0-9A-Z]{4})</li>`)
)

// Enrol sets up the second factor and reads the recovery codes.
func (br *Browser) Enrol() Page {
	br.t.Helper()
	m := secretIn.FindStringSubmatch(html.UnescapeString(br.Open("/welcome/factor").Body))
	if m == nil {
		br.t.Fatal("the page shows no secret")
	}
	var err error
	br.Secret, err = base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(m[1])
	must(br.t, err)
	p := br.Send("/welcome/factor", "code", onetime.Code(br.Secret, onetime.Step(time.Now())-1))
	for _, m := range codeIn.FindAllStringSubmatch(p.Body, -1) {
		br.Codes = append(br.Codes, m[1])
	}
	if p.Path != "/welcome/codes" || len(br.Codes) != 10 {
		br.t.Fatalf("verifying led to %d %s, %d codes", p.Status, p.Path, len(br.Codes))
	}
	return p
}

// Owned starts a box and an owner who is signed in with a second factor.
func Owned(t testing.TB, run RunFunc) (*Box, *Browser) {
	t.Helper()
	b := Start(t, run)
	br := b.Browser()
	br.Own(b)
	br.Enrol()
	return b, br
}
