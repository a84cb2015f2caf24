package boot

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base32"
	"encoding/hex"
	"encoding/json"
	"html"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/account/onetime"
)

const (
	owner    = "Ada Lovelace"
	email    = "ada@example.org"
	password = "orbit walnut cathedral seven"
)

// A person has a browser that keeps cookies and shows any certificate.
type person struct {
	t    *testing.T
	base string
	*http.Client
	seen string // SHA-256 of the certificate last seen, as the console writes it
	key  []byte // of the second factor
}

// visit opens a browser on a box at an address. dial is nil on this host.
func visit(t *testing.T, address string, dial func(ctx context.Context, network, addr string) (net.Conn, error)) *person {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DialContext: dial}
	t.Cleanup(transport.CloseIdleConnections)
	return &person{t: t, base: "https://" + address, Client: &http.Client{Jar: jar, Transport: transport, Timeout: 2 * time.Minute}}
}

// page reads an answer: status, path after redirects, body.
func (p *person) page(resp *http.Response, err error) (int, string, string) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		p.t.Fatal(err)
	}
	sum := sha256.Sum256(resp.TLS.PeerCertificates[0].Raw)
	pairs := make([]string, len(sum))
	for i, b := range sum {
		pairs[i] = strings.ToUpper(hex.EncodeToString([]byte{b}))
	}
	p.seen = strings.Join(pairs, ":")
	return resp.StatusCode, resp.Request.URL.Path, string(body)
}

func (p *person) open(path string) (int, string, string) {
	p.t.Helper()
	return p.page(p.Get(p.base + path))
}

func (p *person) send(path string, fields ...string) (int, string, string) {
	p.t.Helper()
	form := url.Values{}
	for i := 0; i < len(fields); i += 2 {
		form.Set(fields[i], fields[i+1])
	}
	return p.page(p.PostForm(p.base+path, form))
}

// expect compares what the box says of itself without sign-in with its line,
// and its certificate with the fingerprint there.
func (p *person) expect(state string, box line) {
	p.t.Helper()
	status, _, body := p.open("/api/v1/status")
	var answer map[string]string
	if err := json.Unmarshal([]byte(body), &answer); err != nil || status != 200 {
		p.t.Fatalf("the status answered %d %q (%v)", status, body, err)
	}
	if answer["state"] != state || answer["name"] != box["name"] || len(answer) != 2 {
		p.t.Errorf("the status says %v, want %s and the console's %v", answer, state, box)
	}
	if p.seen != box["fingerprint"] {
		p.t.Errorf("the page has the certificate %s, the console's line says %s", p.seen, box["fingerprint"])
	}
}

// locked checks that a locked box says why and offers nothing.
func (p *person) locked(box line, why string) {
	p.t.Helper()
	p.expect("locked", box)
	_, _, body := p.open("/")
	// The page begins a sentence where the console goes on after a label.
	text := strings.Join(strings.Fields(html.UnescapeString(body)), " ")
	if !strings.Contains(strings.ToLower(text), strings.ToLower(why)) {
		p.t.Errorf("the page does not say %q:\n%s", why, text)
	}
	for _, path := range []string{"/setup", "/api/v1/setup", "/sign-in", "/status"} {
		if status, at, _ := p.open(path); status != 404 && at != "/" {
			p.t.Errorf("locked, %s answers %d at %s", path, status, at)
		}
	}
	if status, _, _ := p.send("/setup", "claim-code", "0000-0000-0000", "name", owner, "email", email, "password", password); status != 404 {
		p.t.Errorf("locked, a claim is answered %d", status)
	}
	if box["code"] != "" {
		p.t.Errorf("locked, and the console shows a claim code: %v", box)
	}
}

// signIn signs in with the password, up to the second factor that is not there.
func (p *person) signIn() {
	p.t.Helper()
	status, at, body := p.send("/sign-in", "email", email, "password", password)
	if at != "/welcome/clock" {
		p.t.Fatalf("signing in led to %d %s:\n%s", status, at, body)
	}
}

var secret = regexp.MustCompile(`secret=([A-Z2-7]{32})`)

// own claims a box on its page and adds a second factor.
func (p *person) own(code string) {
	p.t.Helper()
	if status, at, body := p.send("/setup", "claim-code", code, "name", owner, "email", email, "password", password); at != "/welcome/clock" {
		p.t.Fatalf("the claim led to %d %s:\n%s", status, at, body)
	}
	p.factor()
}

// factor adds the second factor, which comes before everything else.
func (p *person) factor() {
	p.t.Helper()
	_, _, body := p.open("/welcome/factor")
	m := secret.FindStringSubmatch(html.UnescapeString(body))
	if m == nil {
		p.t.Fatalf("the page shows no secret for the second factor:\n%s", body)
	}
	key, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(m[1])
	if err != nil {
		p.t.Fatal(err)
	}
	p.key = key
	if status, at, body := p.send("/welcome/factor", "code", onetime.Code(key, onetime.Step(time.Now()))); at != "/welcome/codes" {
		p.t.Fatalf("the second factor led to %d %s:\n%s", status, at, body)
	}
}

// setup is the command line that takes a box over with its code.
func setup(t *testing.T, address, code string) []string {
	t.Helper()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return "file:" + path
	}
	t.Setenv("XDG_CONFIG_HOME", dir)
	return []string{
		built(t, "gatehouse"), "setup", address, "--code", file("code", code), "--name", owner,
		"--email", email, "--password", file("password", password), "--no-browser",
	}
}

// claim takes a box over from the command line.
func claim(t *testing.T, address, code string) {
	t.Helper()
	args := setup(t, address, code)
	if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("gatehouse setup: %v\n%s", err, out)
	}
}

// again is the same person after a restart of the box.
func (p *person) again() {
	p.t.Helper()
	fresh := visit(p.t, strings.TrimPrefix(p.base, "https://"), nil)
	fresh.Timeout = p.Timeout
	p.Client = fresh.Client
	p.enter()
}

// enter signs in with password and second factor.
func (p *person) enter() {
	p.t.Helper()
	if status, at, body := p.send("/sign-in", "email", email, "password", password); at != "/sign-in/code" {
		p.t.Fatalf("signing in led to %d %s:\n%s", status, at, body)
	}
	if status, at, body := p.send("/sign-in/code", "code", onetime.Code(p.key, onetime.Step(time.Now()))); status != 200 || strings.HasPrefix(at, "/sign-in") {
		p.t.Fatalf("the code led to %d %s:\n%s", status, at, body)
	}
}
