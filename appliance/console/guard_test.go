package console

import (
	"bytes"
	"context"
	"database/sql"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
)

func testBox() *shell.Box {
	return &shell.Box{Name: consoletest.Name, Wall: time.Now, Log: slog.New(slog.DiscardHandler),
		Status: func(context.Context) (control.Status, error) { return control.Status{}, nil }}
}

// pend puts a claimed owner back to pending, as a power cut leaves it.
func pend(t *testing.T, b *consoletest.Box) {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(b.Dir, "console", databaseFile))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("UPDATE person SET claim = 'pending'"); err != nil {
		t.Fatal(err)
	}
}

func request(t *testing.T, b *consoletest.Box, method, path string, change func(*http.Request)) *http.Response {
	t.Helper()
	br := b.Browser()
	br.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	r, err := http.NewRequestWithContext(t.Context(), method, b.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	change(r)
	resp, err := br.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp
}

func TestHostNames(t *testing.T) {
	b := consoletest.Start(t, Run)
	for host, want := range map[string]int{
		"evil.example": 421, "evil.example:443": 421, "gatehouse-7f3k.evil.example": 421, "localhost": 421, "192.168.1.40.evil.example": 421,
		"gatehouse-7f3k:x": 421, "": 200, "0x7f000001": 421, "2130706433": 421, "[fe80::1%25eth0]": 421,
		"192.168.1.40": 200, "10.0.0.1:8443": 200, "[2001:db8::1]": 200, "[2001:db8::1]:443": 200,
		"gatehouse-7f3k-2.local": 200, "gatehouse-7f3k-17.local.": 200, "gatehouse-7f3k-2": 421, "gatehouse-7f3k-x.local": 421, "gatehouse-7f3k-.local": 421, "gatehouse-7f3k-2-2.local": 421, "-2.local": 421,
		"gatehouse-7f3k": 200, "GATEHOUSE-7f3k.local": 200, "gatehouse-7f3k.local.": 200, "box.example.org:443": 200,
	} {
		resp := request(t, b, "GET", "/", func(r *http.Request) { r.Host = host })
		if resp.StatusCode != want && !(resp.StatusCode == 400 && want == 421) {
			t.Errorf("Host %q: %d, want %d", host, resp.StatusCode, want)
		}
	}
}

func TestOtherSitesCannotSend(t *testing.T) {
	b, _ := consoletest.Owned(t, Run)
	for name, set := range map[string]map[string]string{
		"cross-site": {"Sec-Fetch-Site": "cross-site"}, "same-site": {"Sec-Fetch-Site": "same-site"},
		"origin": {"Origin": "https://evil.example"}, "null": {"Origin": "null"},
		"pretended proxy": {"Origin": "https://evil.example", "X-Forwarded-Host": "evil.example"},
	} {
		resp := request(t, b, "POST", "/sign-in", func(r *http.Request) {
			for k, v := range set {
				r.Header.Set(k, v)
			}
		})
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s: %d", name, resp.StatusCode)
		}
	}
	resp := request(t, b, "POST", "/sign-in", func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-origin") })
	if resp.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("the own page: %d", resp.StatusCode)
	}
}

func TestHeadersAndCookies(t *testing.T) {
	b := consoletest.Start(t, Run)
	for _, path := range []string{"/", "/setup", "/no-such-page", "/api/v1/status", "/api/no-such", "/assets/style.css"} {
		h := request(t, b, "GET", path, func(*http.Request) {}).Header
		for name, want := range map[string]string{
			"Content-Security-Policy":   "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
			"Strict-Transport-Security": "max-age=31536000", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
			"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
		} {
			if h.Get(name) != want {
				t.Errorf("%s: %s is %q", path, name, h.Get(name))
			}
		}
		if cache := h.Get("Cache-Control"); cache != "no-store" && !strings.HasPrefix(path, "/assets/") {
			t.Errorf("%s: cached as %q", path, cache)
		}
	}
	br := b.Browser()
	br.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	p := br.Send("/setup", "claim-code", b.Code.String(), "name", "Ada", "email", "ada@example.org", "password", consoletest.Password)
	cookie := p.Header.Get("Set-Cookie")
	for _, want := range []string{"__Host-gatehouse=", "Path=/", "HttpOnly", "Secure", "SameSite=Lax"} {
		if !strings.Contains(cookie, want) {
			t.Errorf("the cookie %q has no %s", cookie, want)
		}
	}
	if strings.Contains(cookie, "Domain") {
		t.Errorf("the cookie %q has a domain", cookie)
	}
	if p.Header.Get("Location") != "/welcome/clock" {
		t.Errorf("%d %s", p.Status, p.Header.Get("Location"))
	}
}

func TestNoOpenRedirect(t *testing.T) {
	b, _ := consoletest.Owned(t, Run)
	for _, next := range []string{"//evil.example", "https://evil.example", "/\\evil.example", "/%2fevil", "javascript:x", "/a//b", " /audit", "/audit?x=1"} {
		br := b.Browser()
		p := br.Open("/sign-in?next=" + strings.NewReplacer("%", "%25", " ", "%20", "?", "%3F").Replace(next))
		if strings.Contains(p.Body, `name="next"`) {
			t.Errorf("%q was taken", next)
		}
	}
	if p := b.Browser().Open("/sign-in?next=/audit"); !strings.Contains(p.Body, `name="next" value="/audit"`) {
		t.Error("a page of ours was not taken")
	}
}

func TestStatusSaysNothingMore(t *testing.T) {
	b := consoletest.Start(t, Run)
	if p := b.Browser().Open("/api/v1/status"); p.Body != `{"name":"gatehouse-7f3k","state":"unclaimed"}`+"\n" {
		t.Errorf("%s", p.Body)
	}
	if p := b.Browser().Open("/"); strings.Contains(p.Body, b.Ready().Certificate.Words) {
		t.Error("the page shows the proof words: a man in the middle would show his")
	}
}

func TestLargeRequestsAreRefused(t *testing.T) {
	b := consoletest.Start(t, Run)
	if p := b.Browser().Send("/setup", "name", strings.Repeat("a", 100<<10)); p.Status != 413 && p.Status != 422 {
		t.Errorf("a form of 100 kB: %d", p.Status)
	}
	if p := b.Browser().SendJSON("/api/v1/setup/claim", strings.Repeat(" ", 100<<10)+"{}"); p.Status != 403 && p.Status != 413 {
		t.Errorf("a document of 100 kB: %d", p.Status)
	}
	r, err := http.NewRequestWithContext(t.Context(), "GET", b.URL+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Long", strings.Repeat("a", 40<<10))
	if resp, err := b.Browser().Do(r); err == nil { // HTTP/2 may end the connection instead
		resp.Body.Close()
		if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("headers of 40 kB: %d", resp.StatusCode)
		}
	}
}

func TestSecretsStayOutOfTheLog(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	br.Send("/account/password", "password", "violet tractor sings again")
	br.Send("/sign-out")
	br.Send("/sign-in", "email", "violet tractor sings again", "password", "x")
	b.Stop()
	for _, secret := range []string{consoletest.Password, "violet tractor", b.Code.String(), br.Codes[0]} {
		if bytes.Contains(b.Log.Bytes(), []byte(secret)) {
			t.Errorf("the log holds %q", secret)
		}
		for _, e := range b.Events() {
			if strings.Contains(e.Event.Actor+e.Event.Object, secret) {
				t.Errorf("the audit log holds %q", secret)
			}
		}
	}
}
