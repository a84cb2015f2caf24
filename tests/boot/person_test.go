package boot

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base32"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
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
	t    testing.TB
	base string
	*http.Client
	seen string // SHA-256 of the certificate last seen, as the console writes it
	key  []byte // of the second factor
	step int64  // of the last code that was used
	tool *tool  // that claimed the box
}

// visit opens a browser on a box at an address. dial is nil on this host.
func visit(t testing.TB, address string, dial func(ctx context.Context, network, addr string) (net.Conn, error)) *person {
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

// open asks again when the box did not answer in time.
func (p *person) open(path string) (int, string, string) {
	p.t.Helper()
	late := time.Now().Add(patience)
	for {
		resp, err := p.Get(p.base + path)
		if err == nil || time.Now().After(late) {
			return p.page(resp, err)
		}
		p.t.Logf("asked again: %v", err)
		time.Sleep(time.Second)
	}
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
	// The box's line is ahead of its pages by a moment: PID 1 commits the claim.
	for late := time.Now().Add(time.Minute); status == http.StatusNotFound && time.Now().Before(late); time.Sleep(time.Second) {
		status, at, body = p.send("/sign-in", "email", email, "password", password)
	}
	if at != "/welcome/clock" {
		p.t.Fatalf("signing in led to %d %s:\n%s", status, at, body)
	}
}

var secret = regexp.MustCompile(`secret=([A-Z2-7]{32})`)

// own claims a box on its page and adds a second factor, of which it returns the secret.
func (p *person) own(code string) []byte {
	p.t.Helper()
	if status, at, body := p.send("/setup", "claim-code", code, "name", owner, "email", email, "password", password); at != "/welcome/clock" {
		p.t.Fatalf("the claim led to %d %s:\n%s", status, at, body)
	}
	return p.factor()
}

// factor adds the second factor, which comes before everything else, and returns its secret.
func (p *person) factor() []byte {
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
	if status, at, body := p.send("/welcome/factor", "code", p.code()); at != "/welcome/codes" {
		p.t.Fatalf("the second factor led to %d %s:\n%s", status, at, body)
	}
	return key
}

// code is one of the second factor that was not used yet; the box takes none twice.
func (p *person) code() string {
	for onetime.Step(time.Now()) == p.step {
		time.Sleep(time.Second)
	}
	p.step = onetime.Step(time.Now())
	return onetime.Code(p.key, p.step)
}

// signsIn signs a tool in that knows the box.
func (p *person) signsIn(c *tool) {
	p.t.Helper()
	c.run("login", c.box, "--email", email, "--password", c.file("password", password), "--code", c.file("code", p.code()))
}

// returns is a person who comes back to a box with the second factor of before.
func (p *person) returns(key []byte) {
	p.t.Helper()
	p.key = key
	p.enter()
}

var recoveryCode = regexp.MustCompile(`<ol class="codes"><li>([^<]+)</li>`)

// lends signs a tool in with one of the codes that are shown with a new second factor.
func (p *person) lends(c *tool) {
	p.t.Helper()
	_, _, body := p.open("/welcome/codes")
	m := recoveryCode.FindStringSubmatch(body)
	if m == nil {
		p.t.Fatalf("the page shows no recovery codes:\n%s", body)
	}
	c.run("login", c.box, "--email", email, "--password", c.file("password", password), "--code", c.file("code", html.UnescapeString(m[1])))
}

// tool is the operator's, with a folder of its own in which it keeps what it
// knows of one box.
type tool struct {
	t           testing.TB
	box, config string
	lan         *lan // where it runs; nil: on this host
}

func newTool(t testing.TB, address string) *tool {
	t.Helper()
	return &tool{t: t, box: address, config: t.TempDir()}
}

// file keeps a secret where the tool reads it from.
func (c *tool) file(name, text string) string {
	c.t.Helper()
	path := filepath.Join(c.config, name)
	if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return "file:" + path
}

// line is a command line of it, for whoever runs it in another place.
func (c *tool) line(args ...string) []string {
	c.t.Helper()
	return append([]string{"env", "XDG_CONFIG_HOME=" + c.config, built(c.t, "gatehouse")}, args...)
}

func (c *tool) command(args ...string) *exec.Cmd {
	c.t.Helper()
	line := c.line(args...)
	return exec.CommandContext(c.t.Context(), line[0], line[1:]...)
}

func (c *tool) run(args ...string) string {
	c.t.Helper()
	out, err := c.try(args...)
	if err != nil {
		c.t.Fatalf("gatehouse %s: %v", strings.Join(args, " "), err)
	}
	return out
}

func (c *tool) try(args ...string) (out string, err error) {
	c.t.Helper()
	var b []byte
	c.there(func() { b, err = c.command(args...).Output() })
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return string(b), err
}

// there starts something where the tool runs.
func (c *tool) there(f func()) {
	c.t.Helper()
	if c.lan == nil {
		f()
		return
	}
	c.lan.Do(c.t, func() error { f(); return nil })
}

// recovery makes a recovery key and confirms it by its last group.
func (c *tool) recovery() string {
	c.t.Helper()
	cmd := c.command("keys", "recovery", "new", "--box", c.box)
	in, err := cmd.StdinPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	key, err := bufio.NewReader(out).ReadString('\n')
	key = strings.TrimSpace(key)
	if err == nil {
		_, err = io.WriteString(in, key[strings.LastIndex(key, "-")+1:]+"\n")
	}
	if err := errors.Join(err, in.Close(), cmd.Wait()); err != nil || !strings.Contains(said.String(), "Confirmed.") {
		c.t.Fatalf("gatehouse keys recovery new: %v\n%s", err, said.String())
	}
	return key
}

// setup is what takes a box over with its code.
func (c *tool) setup(code string) []string {
	c.t.Helper()
	return []string{"setup", c.box, "--code", c.file("code", code), "--name", owner,
		"--email", email, "--password", c.file("password", password), "--no-browser"}
}

// claim takes a box over from the command line. A machine that is emulated on a
// busy host may not answer in time at first, exit code 6; if it was the answer
// to the claim itself that came too late, the next try is refused, exit code 3, or
// finds that nobody is waited for any more, 5.
// The box's line says then that it has an owner, for which callers wait.
func claim(t testing.TB, address, code string) *tool {
	t.Helper()
	return newTool(t, address).claim(code)
}

func (c *tool) claim(code string) *tool {
	t := c.t
	t.Helper()
	const unreachable, refused, owned = 6, 3, 5
	late := time.Now().Add(patience)
	for tries := 0; ; tries++ {
		var out []byte
		var err error
		c.there(func() { out, err = c.command(c.setup(code)...).CombinedOutput() })
		var exit *exec.ExitError
		switch {
		case err == nil, errors.As(err, &exit) && (exit.ExitCode() == refused || exit.ExitCode() == owned) && tries > 0:
			return c
		case time.Now().After(late), exit == nil || exit.ExitCode() != unreachable:
			t.Fatalf("gatehouse setup: %v\n%s", err, out)
		}
		t.Logf("gatehouse setup, tried again: %s", out)
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
	if status, at, body := p.send("/sign-in/code", "code", p.code()); status != 200 || strings.HasPrefix(at, "/sign-in") {
		p.t.Fatalf("the code led to %d %s:\n%s", status, at, body)
	}
}
