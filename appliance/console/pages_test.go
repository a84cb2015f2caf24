package console

import (
	"encoding/base32"
	"encoding/json"
	"html"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/account/onetime"
	"gatehouse/appliance/console/consoletest"
)

func TestACC6_PasswordPage(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	other := b.Browser()
	other.Send("/sign-in", "email", "ada@example.org", "password", consoletest.Password)
	if p := other.Send("/sign-in/code", "code", br.Codes[0]); p.Path != "/" {
		t.Fatalf("%d %s", p.Status, p.Path)
	}
	for _, weak := range []string{"", "short", "password123", "ada@example.org"} {
		if p := br.Send("/account/password", "password", weak); p.Status != 422 || !strings.Contains(p.Body, `role="alert"`) {
			t.Errorf("%q: %d", weak, p.Status)
		}
	}
	if p := br.Send("/account/password", "password", "violet tractor sings again"); p.Path != "/account" || !strings.Contains(p.Body, "The password was changed") {
		t.Fatalf("%d %s", p.Status, p.Path)
	}
	if p := br.Open("/account"); p.Path != "/account" {
		t.Errorf("the one who changed it is out: %s", p.Path)
	}
	if p := other.Open("/account"); p.Path != "/sign-in" {
		t.Errorf("another session lives on: %s", p.Path)
	}
	if p := b.Browser().Send("/sign-in", "email", "ada@example.org", "password", consoletest.Password); p.Status != 422 {
		t.Errorf("the old password: %d %s", p.Status, p.Path)
	}
}

func TestACC6_MeterAndPageAgree(t *testing.T) {
	b := consoletest.Start(t, Run)
	br := b.Browser()
	for pw, accepted := range map[string]bool{"password123": false, "Ada Lovelace": false, "short": false, consoletest.Password: true} {
		doc, _ := json.Marshal(map[string]any{"password": pw, "context": []string{"Ada Lovelace", "ada@example.org"}})
		var s struct {
			Score int
			Words string
		}
		if err := json.Unmarshal([]byte(br.SendJSON("/api/v1/password-strength", string(doc)).Body), &s); err != nil {
			t.Fatal(err)
		}
		if (s.Score >= 3) != accepted || s.Words == "" {
			t.Errorf("%q: %+v", pw, s)
		}
	}
}

func TestACC8_SessionsOnTheAccountPage(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	other := b.Browser()
	other.Send("/sign-in", "email", "ada@example.org", "password", consoletest.Password)
	other.Send("/sign-in/code", "code", br.Codes[0])
	p := br.Open("/account")
	_, rest, ok := strings.Cut(p.Body, `name="session" value="`)
	if !ok {
		t.Fatalf("no other session is listed:\n%s", p.Body)
	}
	id, _, _ := strings.Cut(rest, `"`)
	if p := br.Send("/account/end", "session", "x"); p.Status != 403 {
		t.Errorf("ending nothing: %d", p.Status)
	}
	if p := other.Open("/account"); p.Path != "/account" {
		t.Fatalf("%s", p.Path)
	}
	if p := br.Send("/account/end", "session", id); p.Path != "/account" {
		t.Errorf("%d %s", p.Status, p.Path)
	}
	if p := other.Open("/account"); p.Path != "/sign-in" {
		t.Errorf("the ended session lives on: %s", p.Path)
	}
}

func TestACC4_RecoveryCodesOnThePages(t *testing.T) {
	_, br := consoletest.Owned(t, Run)
	old := br.Codes[0]
	if p := br.Send("/account/codes", "action", "make"); p.Status != 200 || strings.Contains(p.Body, old) {
		t.Fatalf("%d", p.Status)
	}
	for name, fields := range map[string][]string{
		"unsaved": {"action", "saved"}, "an old one": {"action", "typed", "typed", old}, "nonsense": {"action", "typed", "typed", "x"},
	} {
		if p := br.Send("/account/codes", fields...); p.Status != 422 {
			t.Errorf("%s: %d %s", name, p.Status, p.Path)
		}
	}
	body := br.Open("/account/codes").Body
	_, rest, _ := strings.Cut(body, `<ol class="codes"><li>`)
	fresh, _, _ := strings.Cut(rest, "<")
	if p := br.Send("/account/codes", "action", "typed", "typed", strings.ToLower(fresh)); p.Path != "/account" {
		t.Errorf("typing one back: %d %s", p.Status, p.Path)
	}
	if p := br.Open("/account/codes"); strings.Contains(p.Body, fresh) {
		t.Error("the codes are shown again after they were saved")
	}
	if p := br.Open("/account/codes.txt"); p.Status != 403 {
		t.Errorf("the download after that: %d", p.Status)
	}
}

func TestAUD1_AuditPage(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	b.Checkpoint(t.Context())
	p := br.Open("/audit")
	for _, want := range []string{"claim", "set second factor", "make recovery codes", "ada@example.org", "127.0.0.1", "Sealed"} {
		if !strings.Contains(p.Body, want) {
			t.Errorf("the page does not show %q", want)
		}
	}
	if p := br.Open("/audit?what=claim"); strings.Count(p.Body, "<tr><td>") != 1 {
		t.Errorf("the filter shows %d rows", strings.Count(p.Body, "<tr><td>"))
	}
	if p := br.Open("/audit?who=nobody"); !strings.Contains(p.Body, "Nothing here") {
		t.Error("no empty state")
	}
	for _, bad := range []string{"/audit?day=x", "/audit?below=-1"} {
		if p := br.Open(bad); p.Status != 422 {
			t.Errorf("%s: %d", bad, p.Status)
		}
	}
	if p := br.Send("/audit/verify"); p.Status != 200 || !strings.Contains(p.Body, "unbroken") {
		t.Errorf("verify: %d", p.Status)
	}
	lines := strings.Split(strings.TrimSpace(br.Open("/audit/export.jsonl").Body), "\n")
	for _, l := range lines {
		if !json.Valid([]byte(l)) {
			t.Errorf("not JSON: %s", l)
		}
	}
	if len(lines) < 5 {
		t.Errorf("%d lines", len(lines))
	}
}

func TestSystemPage(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	if p := br.Open("/system?log=console"); p.Status != 200 || !strings.Contains(p.Body, "msg=serving") || !strings.Contains(p.Body, "Switch off") {
		t.Errorf("%d", p.Status)
	}
	if p := br.Open("/system/off"); !strings.Contains(p.Body, "What is lost") || len(b.Powered()) != 0 {
		t.Errorf("%d, %v", p.Status, b.Powered())
	}
	if p := br.Send("/system/restart"); p.Status != 200 || !strings.Contains(p.Body, "is restarting") {
		t.Errorf("%d", p.Status)
	}
	if got := b.Powered(); len(got) != 1 || got[0].Action != "restart" || got[0].Actor != "ada@example.org" || got[0].From != "127.0.0.1" {
		t.Errorf("%+v", got)
	}
}

func TestClockPage(t *testing.T) {
	b := consoletest.Start(t, Run)
	br := b.Browser()
	br.Own(b)
	for _, bad := range []string{"", "tomorrow", "2020-01-01 00:00:00", "2026-13-01 00:00"} {
		if p := br.Send("/welcome/clock", "action", "set", "time", bad); p.Status != 422 {
			t.Errorf("%q: %d %s", bad, p.Status, p.Path)
		}
	}
	if p := br.Send("/welcome/clock", "action", "set", "time", "2026-12-01 10:00:00"); p.Path != "/welcome/factor" {
		t.Errorf("%d %s", p.Status, p.Path)
	}
}

func TestAPersonsWordMakesTheClockTrusted(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	count := func() (n int) {
		for _, e := range b.Events() {
			if e.Event.Action == "set clock" {
				n++
			}
		}
		return n
	}
	before := count()
	br.Send("/welcome/clock", "action", "keep")
	if count() != before {
		t.Error("a clock that time servers agree on was set again by hand")
	}
	b.DoubtClock()
	if p := br.Open("/"); !strings.Contains(p.Body, "not confirmed") {
		t.Error("Status does not say that nobody confirmed the clock")
	}
	br.Send("/welcome/clock", "action", "keep")
	if p := br.Open("/"); count() != before+1 || strings.Contains(p.Body, "not confirmed") {
		t.Errorf("after the owner's word the clock was set %d times, and Status still doubts it", count()-before)
	}
}

func TestDetailsAreWhatThePageShows(t *testing.T) {
	_, br := consoletest.Owned(t, Run)
	p := br.Open("/api/v1/details")
	var d struct {
		Name, State, Headline string
		Sessions              int
		Trust                 struct{ Grade string }
	}
	if err := json.Unmarshal([]byte(p.Body), &d); err != nil || d.Name != consoletest.Name || d.State != "ready" || d.Trust.Grade != "B" || d.Sessions != 1 {
		t.Errorf("%v %+v", err, d)
	}
	if !strings.Contains(br.Open("/status/live").Body, d.Headline) {
		t.Errorf("the page has another headline than %q", d.Headline)
	}
}

func TestUSE4_NothingInlineOnAnyPage(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	second := b.Browser()
	second.Send("/sign-in", "email", "ada@example.org", "password", consoletest.Password)
	pages := map[string]string{"second step": second.Open("/sign-in/code").Body, "sign-in": b.Browser().Open("/sign-in").Body}
	for key, r := range wholeTable(t) {
		if strings.HasPrefix(key, "ready GET") && !r.API && !strings.HasPrefix(r.Path, "/assets/") {
			if p := br.Open(r.Path); p.Status == http.StatusOK && strings.Contains(p.Header.Get("Content-Type"), "html") {
				pages[r.Path] = p.Body
			}
		}
	}
	if len(pages) < 15 {
		t.Errorf("only %d pages were looked at", len(pages))
	}
	for path, body := range pages {
		for _, bad := range []string{"<style", " style=", " onclick", " onload", "javascript:", "http://", "ZgotmplZ"} {
			if strings.Contains(strings.ReplaceAll(body, "http://www.w3.org/2000/svg", ""), bad) {
				t.Errorf("%s has %q", path, bad)
			}
		}
		if n := strings.Count(body, "<script"); n > 1 {
			t.Errorf("%s has %d scripts", path, n)
		}
	}
}

func TestTextFromOutsideIsEscaped(t *testing.T) {
	b := consoletest.Start(t, Run)
	br := b.Browser()
	evil := `"><img src=x onerror=alert(1)>`
	p := br.Send("/setup", "claim-code", evil, "name", evil, "email", evil, "password", "x")
	if p.Status != 422 || strings.Contains(p.Body, "<img src=x") {
		t.Errorf("%d: not escaped", p.Status)
	}
	if p := br.Open("/setup?ticket=%22%3E%3Cimg+src%3Dx%3E"); strings.Contains(p.Body, "<img src=x") {
		t.Error("the ticket is not escaped")
	}
}

// TestReplacedFactorEndsOtherSessions: whoever got in with the old factor is out.
func TestReplacedFactorEndsOtherSessions(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	other := b.Browser()
	other.Send("/sign-in", "email", "ada@example.org", "password", consoletest.Password)
	if p := other.Send("/sign-in/code", "code", br.Codes[0]); p.Path != "/" {
		t.Fatalf("the second browser is at %d %s", p.Status, p.Path)
	}
	secret := regexp.MustCompile(`secret=([A-Z2-7]{32})`)
	m := secret.FindStringSubmatch(html.UnescapeString(br.Send("/account/factor", "action", "anew").Body))
	if m == nil {
		t.Fatal("no new secret is shown")
	}
	raw, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(m[1])
	if err != nil {
		t.Fatal(err)
	}
	if p := br.Send("/account/factor", "code", "000000"); p.Path == "/account" {
		t.Fatal("a wrong code replaced the factor")
	}
	if p := other.Open("/account"); p.Path != "/account" {
		t.Errorf("a try that failed ended the other session: %s", p.Path)
	}
	if p := br.Send("/account/factor", "code", onetime.Code(raw, onetime.Step(time.Now()))); p.Path != "/account" {
		t.Fatalf("replacing led to %d %s", p.Status, p.Path)
	}
	if p := other.Open("/account"); p.Path != "/sign-in" {
		t.Errorf("the other session is still at %s", p.Path)
	}
	if p := br.Open("/account"); p.Path != "/account" {
		t.Errorf("the one who replaced it is at %s", p.Path)
	}
}
