package console

import (
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"gatehouse/appliance/console/consoletest"
)

var tokenIn = regexp.MustCompile(`id="token">(gh_[A-Za-z0-9_-]{43})<`)

// scrape asks as a program does.
func scrape(t *testing.T, b *consoletest.Box, headers ...string) (int, http.Header, string) {
	t.Helper()
	return ask(t, b.Browser(), headers...)
}

func ask(t *testing.T, br *consoletest.Browser, headers ...string) (int, http.Header, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", br.URL+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	resp, err := br.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var body strings.Builder
	if _, err := io.Copy(&body, resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, body.String()
}

// TestUSE6_MetricsByTokenAlone: whatever is not a good token in the one header
// is refused in the same words, and what was wrong is not told.
func TestUSE6_MetricsByTokenAlone(t *testing.T) {
	b, owner := consoletest.Owned(t, Run)
	p := owner.Send("/system/tokens/new", "name", "prometheus", "days", "365")
	m := tokenIn.FindStringSubmatch(p.Body)
	if m == nil {
		t.Fatalf("no token: %d %s\n%s", p.Status, p.Path, p.Body)
	}
	text := m[1]
	status, header, body := scrape(t, b, "Authorization", "Bearer "+text)
	if status != 200 || !strings.HasPrefix(header.Get("Content-Type"), "text/plain; version=0.0.4") || !strings.Contains(body, `gatehouse_list_packets_total{list="office"} 31`) {
		t.Fatalf("with the token: %d %s\n%s", status, header.Get("Content-Type"), body)
	}
	if status, header, body = scrape(t, b, "Authorization", "bearer "+text, "Accept", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"); status != 200 || !strings.HasPrefix(header.Get("Content-Type"), "application/openmetrics-text") || !strings.HasSuffix(body, "# EOF\n") {
		t.Errorf("as OpenMetrics: %d %s", status, header.Get("Content-Type"))
	}
	if p := owner.Open("/system/tokens"); !strings.Contains(p.Body, "prometheus") || strings.Contains(p.Body, text[3:]) || !strings.Contains(p.Body, "127.0.0.1") {
		t.Errorf("the list:\n%s", p.Body)
	}
	said := map[string]bool{}
	for name, headers := range map[string][]string{
		"wrong": {"Authorization", "Bearer gh_" + strings.Repeat("A", 43)}, "empty": {"Authorization", "Bearer "}, "basic": {"Authorization", "Basic " + text}, "bare": {"Authorization", text},
		"two": {"Authorization", "Bearer " + text, "Authorization", "Bearer " + text},
	} {
		status, header, body := scrape(t, b, headers...)
		if status != 401 || !strings.Contains(header.Get("WWW-Authenticate"), "invalid_token") || strings.Contains(body, "gatehouse_info") {
			t.Errorf("%s: %d %s", name, status, body)
		}
		said[body] = true
	}
	if status, _, body := ask(t, owner); status != 401 || !strings.Contains(body, "for programs with a token") {
		t.Errorf("by the owner's cookie: %d %s", status, body)
	}
	if status, _, _ := ask(t, owner, "Authorization", "Bearer gh_x"); status != 401 {
		t.Errorf("by the owner's cookie and a wrong token: %d", status)
	}
	if p := b.Browser().Open("/metrics?token=" + text + "&access_token=" + text); p.Status != 401 {
		t.Errorf("in the address: %d", p.Status)
	}
	if p := owner.Send("/metrics"); p.Status != 405 {
		t.Errorf("by POST: %d", p.Status)
	}
	for _, path := range []string{"/", "/api/v1/details", "/api/v1/exposure", "/api/v1/tokens", "/audit"} {
		r := request(t, b, "GET", path, func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+text) })
		if r.StatusCode == 200 {
			t.Errorf("the token opens %s", path)
		}
	}
	if p := owner.Send("/system/tokens/revoke", "id", "1"); p.Path != "/system/tokens" || !strings.Contains(p.Body, "No token yet") {
		t.Errorf("revoking: %d %s", p.Status, p.Path)
	}
	status, _, body = scrape(t, b, "Authorization", "Bearer "+text)
	if said[body] = true; status != 401 || len(said) != 1 {
		t.Errorf("revoked: %d; the refusals differ: %v", status, said)
	}
	last := 0
	for range 40 {
		last, header, _ = scrape(t, b, "Authorization", "Bearer gh_guess")
	}
	if last != 429 || header.Get("Retry-After") == "" {
		t.Errorf("after 40 guesses: %d", last)
	}
	for _, action := range []string{"create token", "revoke token"} {
		found := false
		for _, e := range b.Events() {
			found = found || e.Event.Action == action && e.Event.Object == "prometheus" && e.Event.Actor == "ada@example.org"
		}
		if !found {
			t.Errorf("the audit log does not tell of %q", action)
		}
	}
}

func TestACC10_TokensByAPI(t *testing.T) {
	b, owner := consoletest.Owned(t, Run)
	for _, bad := range []string{`{"name":"x","scope":"everything"}`, `{"name":"","scope":"metrics"}`, `{"name":"x","scope":"metrics","days":-1}`, `{"name":"x","scope":"metrics","colour":1}`} {
		if p := owner.SendJSON("/api/v1/tokens", bad); p.Status != 403 {
			t.Errorf("%s: %d %s", bad, p.Status, p.Body)
		}
	}
	if p := b.Browser().SendJSON("/api/v1/tokens", `{"name":"x","scope":"metrics","days":1}`); p.Status != 401 {
		t.Errorf("without sign-in: %d", p.Status)
	}
	p := owner.SendJSON("/api/v1/tokens", `{"name":"x","scope":"metrics","days":1}`)
	m := regexp.MustCompile(`"token":"(gh_[^"]+)"`).FindStringSubmatch(p.Body)
	if p.Status != 201 || m == nil {
		t.Fatalf("%d %s", p.Status, p.Body)
	}
	if p = owner.Open("/api/v1/tokens"); p.Status != 200 || strings.Contains(p.Body, m[1]) || !strings.Contains(p.Body, `"name":"x"`) || strings.Contains(p.Body, `"used"`) {
		t.Errorf("listed: %s", p.Body)
	}
	if p = owner.SendJSON("/api/v1/tokens/revoke", `{"name":"y"}`); p.Status != 403 {
		t.Errorf("revoking what is not there: %d", p.Status)
	}
	if p = owner.SendJSON("/api/v1/tokens/revoke", `{"name":"x"}`); p.Status != 200 {
		t.Errorf("revoking: %d %s", p.Status, p.Body)
	}
	if status, _, _ := scrape(t, b, "Authorization", "Bearer "+m[1]); status != 401 {
		t.Errorf("revoked: %d", status)
	}
	// A token that cannot be recorded is not made.
	b.FailAudit(http.ErrAbortHandler)
	if p = owner.SendJSON("/api/v1/tokens", `{"name":"z","scope":"metrics","days":1}`); p.Status < 400 {
		t.Errorf("without a record: %d", p.Status)
	}
	b.FailAudit(nil)
	if p = owner.Open("/api/v1/tokens"); strings.Contains(p.Body, `"z"`) {
		t.Errorf("made without a record: %s", p.Body)
	}
}
