package console

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/broker"
	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
	"gatehouse/appliance/enroll"
	"gatehouse/appliance/enroll/hub"
	"gatehouse/appliance/setup"
)

// wholeTable is the table of every state, without a running box.
func wholeTable(t *testing.T) map[string]shell.Route {
	t.Helper()
	s := &console{hub: hub.New(hub.Own(enroll.Keys{}), nil, time.Now, nil), broker: new(broker.Broker), steady: time.Now, claimer: setup.NewClaimer(setup.Config{})}
	rows := make(map[string]shell.Route)
	for _, state := range []control.State{control.StateReady, control.StateLocked} {
		for _, r := range s.table(state) {
			for _, in := range r.States {
				rows[string(in)+" "+r.Method+" "+r.Path] = r
			}
		}
	}
	return rows
}

// TestRoutesAreTheOnesReviewed holds the table against a list that a person
// reads: adding a route means adding it here, with what it needs.
func TestRoutesAreTheOnesReviewed(t *testing.T) {
	want := strings.Fields(`
locked:GET:/:0: locked:GET:/api/v1/unlock:0: locked:POST:/api/v1/unlock:0: locked:GET:/api/v1/status:0: locked:GET:/assets/console.js:0: locked:GET:/assets/mark.svg:0: locked:GET:/assets/style.css:0:
unclaimed:GET:/:0: unclaimed:GET:/api/v1/setup:0: unclaimed:GET:/api/v1/status:0: unclaimed:GET:/assets/console.js:0: unclaimed:GET:/assets/mark.svg:0:
unclaimed:GET:/assets/style.css:0: unclaimed:GET:/setup:0: unclaimed:POST:/api/v1/password-strength:0: unclaimed:POST:/api/v1/setup/claim:0:
unclaimed:POST:/api/v1/setup/proof:0: unclaimed:POST:/api/v1/site/enrol:0: unclaimed:POST:/api/v1/site/report:0: unclaimed:POST:/setup:0: unclaimed:POST:/api/v1/site/attend:0:
ready:GET:/api/v1/status:0: ready:GET:/assets/console.js:0: ready:GET:/assets/mark.svg:0: ready:GET:/assets/style.css:0: ready:GET:/sign-in:0: ready:POST:/sign-in:0:
ready:POST:/api/v1/site/enrol:0: ready:POST:/api/v1/site/report:0: ready:POST:/api/v1/site/attend:0:
ready:GET:/api/v1/targets:3:use-sessions ready:POST:/api/v1/targets:3:manage-targets ready:POST:/api/v1/targets/change:3:manage-targets ready:POST:/api/v1/targets/remove:3:manage-targets
ready:POST:/api/v1/targets/credential:3:manage-targets ready:POST:/api/v1/targets/host-key/forget:3:manage-targets
ready:GET:/api/v1/sessions:3:use-sessions ready:POST:/api/v1/sessions:3:use-sessions ready:POST:/api/v1/sessions/meet:3:use-sessions
ready:POST:/api/v1/sessions/signal:3:use-sessions ready:POST:/api/v1/sessions/end:3:use-sessions ready:GET:/api/v1/sessions/notice:3:use-sessions
ready:GET:/api/v1/recordings:3:read-recordings ready:GET:/api/v1/recordings/cast:3:read-recordings ready:POST:/api/v1/recordings/remove:3:manage-sessions
ready:GET:/sign-in/code:1: ready:POST:/sign-in/code:1:
ready:GET:/welcome/clock:2: ready:POST:/welcome/clock:2: ready:GET:/welcome/factor:2: ready:POST:/welcome/factor:2: ready:POST:/sign-out:2:
ready:GET:/:3:read-status ready:GET:/status/live:3:read-status ready:GET:/api/v1/details:3:read-status
ready:GET:/metrics:4: ready:GET:/system/tokens:3:manage-tokens ready:POST:/system/tokens/revoke:3:manage-tokens ready:GET:/system/tokens/new:3:manage-tokens:fresh ready:POST:/system/tokens/new:3:manage-tokens:fresh
ready:GET:/api/v1/tokens:3:manage-tokens ready:POST:/api/v1/tokens:3:manage-tokens:fresh ready:POST:/api/v1/tokens/revoke:3:manage-tokens
ready:GET:/exposure:3:read-status ready:GET:/exposure/live:3:read-status ready:GET:/api/v1/exposure:3:read-status
ready:GET:/allowlists:3:configure ready:POST:/allowlists/turn:3:configure ready:GET:/allowlists/add:3:configure ready:POST:/allowlists/switch:3:configure ready:GET:/allowlists/edit:3:configure ready:POST:/allowlists/edit:3:configure
ready:POST:/allowlists/remove:3:configure ready:POST:/allowlists/keep:3:configure ready:POST:/allowlists/revert:3:configure
ready:GET:/api/v1/allowlists:3:configure ready:GET:/api/v1/allowlists/document:3:configure ready:POST:/api/v1/allowlists/try:3:configure
ready:POST:/api/v1/allowlists/test:3:configure ready:POST:/api/v1/allowlists/keep:3:configure ready:POST:/api/v1/allowlists/revert:3:configure
ready:GET:/network:3:configure ready:GET:/network/link:3:configure ready:POST:/network/link:3:configure ready:GET:/network/names:3:configure
ready:POST:/network/names:3:configure ready:POST:/network/remove:3:configure ready:POST:/network/try:3:configure ready:POST:/network/keep:3:configure
ready:POST:/network/revert:3:configure ready:GET:/network/here:0: ready:POST:/network/here:0: ready:GET:/api/v1/network:3:configure
ready:POST:/api/v1/network/try:3:configure ready:POST:/api/v1/network/keep:3:configure ready:POST:/api/v1/network/revert:3:configure
ready:GET:/clock:3:read-status ready:POST:/clock:3:configure ready:GET:/clock/floor:3:reset-clock:fresh ready:POST:/clock/floor:3:reset-clock:fresh
ready:GET:/api/v1/clock:3:read-status ready:POST:/api/v1/clock/reset-floor:3:reset-clock:fresh
ready:GET:/certificates:3:configure ready:POST:/certificates/use:3:configure ready:POST:/certificates/import:3:configure ready:POST:/certificates/renew:3:configure
ready:POST:/certificates/revoke:3:configure ready:GET:/certificates/trust:3:read-status ready:GET:/certificates/root.pem:3:read-status
ready:GET:/certificates/root.crt:3:read-status ready:GET:/certificates/root.mobileconfig:3:read-status ready:GET:/api/v1/certificates/root:0:
ready:GET:/api/v1/certificates:3:configure ready:POST:/api/v1/certificates/use:3:configure ready:POST:/api/v1/certificates/import:3:configure
ready:POST:/api/v1/certificates/renew:3:configure ready:POST:/api/v1/certificates/revoke:3:configure
ready:GET:/audit:3:read-audit ready:POST:/audit/verify:3:read-audit ready:GET:/audit/export.jsonl:3:read-audit
ready:GET:/system:3:read-logs ready:GET:/system/restart:3:power ready:POST:/system/restart:3:power ready:GET:/system/off:3:power ready:POST:/system/off:3:power
ready:GET:/keys:3:manage-keys ready:GET:/keys/recovery:3:manage-keys ready:POST:/keys/recovery:3:manage-keys:fresh ready:GET:/keys/recovery/confirm:3:manage-keys ready:POST:/keys/recovery/confirm:3:manage-keys
ready:GET:/welcome/recovery:3:manage-keys ready:POST:/welcome/recovery:3:manage-keys:fresh ready:GET:/welcome/recovery/confirm:3:manage-keys ready:POST:/welcome/recovery/confirm:3:manage-keys
ready:GET:/keys/rotate:3:manage-keys:fresh ready:POST:/keys/rotate:3:manage-keys:fresh ready:GET:/keys/passphrase:3:manage-keys:fresh ready:POST:/keys/passphrase:3:manage-keys:fresh
ready:GET:/keys/tpm:3:manage-keys:fresh ready:POST:/keys/tpm:3:manage-keys:fresh ready:GET:/keys/secure-boot:3:manage-keys:fresh ready:POST:/keys/secure-boot:3:manage-keys:fresh
ready:GET:/api/v1/keys:3:manage-keys ready:POST:/api/v1/keys/recovery:3:manage-keys:fresh ready:POST:/api/v1/keys/recovery/confirm:3:manage-keys ready:POST:/api/v1/keys/rotate:3:manage-keys:fresh
ready:POST:/api/v1/keys/passphrase:3:manage-keys:fresh ready:POST:/api/v1/keys/tpm:3:manage-keys:fresh ready:POST:/api/v1/keys/secure-boot:3:manage-keys:fresh
ready:GET:/system/updates:3:update ready:GET:/system/updates/live:3:update ready:GET:/system/updates/bring:3:update:fresh ready:POST:/system/updates/bring:3:update:fresh
ready:GET:/system/updates/start:3:update:fresh ready:POST:/system/updates/start:3:update:fresh ready:GET:/system/updates/settings:3:update:fresh ready:POST:/system/updates/settings:3:update:fresh
ready:POST:/system/updates/cancel:3:update ready:POST:/system/updates/look:3:update ready:GET:/system/updates/receive:3:update:fresh ready:POST:/system/updates/receive:3:update:fresh
ready:GET:/api/v1/update:3:update ready:POST:/api/v1/update:3:update:fresh ready:POST:/api/v1/update/offer:3:update:fresh ready:POST:/api/v1/update/part:3:update
ready:POST:/api/v1/update/start:3:update:fresh ready:POST:/api/v1/update/cancel:3:update ready:POST:/api/v1/update/settings:3:update:fresh ready:POST:/api/v1/update/look:3:update ready:POST:/api/v1/update/receive:3:update:fresh
ready:GET:/system/configuration:3:move:fresh ready:POST:/system/configuration/export:3:move:fresh ready:POST:/system/configuration/import:3:move:fresh
ready:GET:/system/configuration/import:3:move:fresh ready:POST:/system/configuration/take:3:move:fresh
ready:POST:/api/v1/export:3:move:fresh ready:POST:/api/v1/import:3:move:fresh ready:POST:/api/v1/import/take:3:move:fresh
ready:GET:/system/erase:3:move:fresh ready:POST:/system/erase:3:move:fresh ready:POST:/system/erase/statement:3:move:fresh
ready:POST:/api/v1/erase:3:move:fresh ready:POST:/api/v1/erase/statement:3:move:fresh
ready:GET:/welcome/place:3:configure ready:POST:/welcome/place:3:configure ready:POST:/welcome/dismiss:3:configure
ready:GET:/welcome/codes:3:own-account ready:POST:/welcome/codes:3:own-account:fresh
ready:GET:/account:3:own-account ready:GET:/api/v1/session:3:own-account ready:GET:/account/codes:3:own-account ready:POST:/account/codes:3:own-account:fresh ready:GET:/account/codes.txt:3:own-account
ready:GET:/account/confirm:3:own-account ready:POST:/account/confirm:3:own-account ready:POST:/account/end:3:own-account ready:POST:/account/end-others:3:own-account
ready:GET:/account/factor:3:own-account:fresh ready:POST:/account/factor:3:own-account:fresh ready:GET:/account/password:3:own-account:fresh
ready:POST:/account/password:3:own-account:fresh ready:POST:/api/v1/password-strength:3:own-account
ready:GET:/assets/xterm.js:3:own-account ready:GET:/assets/xterm.css:3:own-account ready:GET:/assets/xterm.LICENSE.txt:3:own-account
ready:GET:/sessions/terminal:3:use-sessions ready:GET:/assets/terminal.js:3:own-account ready:GET:/assets/link.js:3:own-account ready:GET:/assets/terminal.css:3:own-account
ready:GET:/targets:3:use-sessions ready:GET:/targets/new:3:manage-targets ready:POST:/targets/new:3:manage-targets ready:GET:/targets/edit:3:manage-targets
ready:POST:/targets/edit:3:manage-targets ready:GET:/targets/credential:3:manage-targets ready:POST:/targets/credential:3:manage-targets
ready:GET:/targets/host-key:3:manage-targets ready:POST:/targets/host-key:3:manage-targets ready:GET:/targets/remove:3:manage-targets ready:POST:/targets/remove:3:manage-targets
ready:GET:/sessions:3:use-sessions ready:GET:/sessions/live:3:use-sessions ready:POST:/sessions/end:3:use-sessions
ready:GET:/recordings:3:read-recordings ready:GET:/recordings/play:3:read-recordings ready:GET:/recordings/cast:3:read-recordings
ready:GET:/recordings/text:3:read-recordings ready:GET:/recordings/remove:3:manage-sessions ready:POST:/recordings/remove:3:manage-sessions ready:GET:/assets/player.js:3:own-account`)
	var got []string
	for key, r := range wholeTable(t) {
		state, rest, _ := strings.Cut(key, " ")
		row := fmt.Sprintf("%s:%s:%d:%s", state, strings.Replace(rest, " ", ":", 1), r.Need, r.Right)
		if r.Fresh {
			row += ":fresh"
		}
		got = append(got, row)
	}
	slices.Sort(got)
	slices.Sort(want)
	for _, row := range got {
		if !slices.Contains(want, row) {
			t.Errorf("not reviewed: %s", row)
		}
	}
	for _, row := range want {
		if !slices.Contains(got, row) {
			t.Errorf("gone: %s", row)
		}
	}
}

// visitor sends one request without following redirects.
type visitor struct{ *consoletest.Browser }

func (v visitor) ask(t *testing.T, method, path string) (status int, location string) {
	t.Helper()
	v.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	req, err := http.NewRequestWithContext(t.Context(), method, v.URL+path, strings.NewReader(""))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := v.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode, resp.Header.Get("Location")
}

func TestACC8_RouteMatrix(t *testing.T) {
	b, owner := consoletest.Owned(t, Run)
	password := b.Browser()
	if p := password.Send("/sign-in", "email", "ada@example.org", "password", consoletest.Password); p.Path != "/sign-in/code" {
		t.Fatalf("the password led to %s", p.Path)
	}
	expired := b.Browser()
	expired.Jar, _ = cookiejar.New(nil)
	ended := b.Browser()
	ended.Jar = owner.Jar // shares the owner's cookies until the owner signs out, below

	table := wholeTable(t)
	for key, r := range table {
		state, _, _ := strings.Cut(key, " ")
		if state != string(control.StateReady) {
			continue
		}
		for name, br := range map[string]*consoletest.Browser{"anonymous": b.Browser(), "password only": password, "forged": expired} {
			if name == "forged" {
				u := mustURL(t, b.URL)
				expired.Jar.SetCookies(u, []*http.Cookie{{Name: "__Host-gatehouse", Value: strings.Repeat("A", 43), Path: "/", Secure: true}})
			}
			if r.Need == shell.Code && name == "password only" && r.Method == "POST" {
				continue // judged by TestSecondStep; five of them would end the session
			}
			status, location := visitor{br}.ask(t, r.Method, r.Path)
			if ok, want := refusedRight(name, r, status, location); !ok {
				t.Errorf("%s as %s: %d %s, want %s", key, name, status, location, want)
			}
			if next := mustURL(t, location).Query().Get("next"); next != "" && table["ready GET "+next].Handle == nil {
				t.Errorf("%s as %s: %s goes on to what is no page", key, name, location)
			}
		}
	}
	for _, path := range []string{"/", "/audit", "/system", "/account", "/welcome/place", "/account/codes", "/api/v1/details", "/status/live"} {
		if status, location := (visitor{owner}).ask(t, "GET", path); status != 200 {
			t.Errorf("%s as the owner: %d %s", path, status, location)
		}
	}
	if status, location := (visitor{owner}).ask(t, "POST", "/sign-out"); status != 303 || !strings.HasPrefix(location, "/sign-in") {
		t.Errorf("signing out: %d %s", status, location)
	}
	for _, path := range []string{"/", "/account"} {
		if status, _ := (visitor{ended}).ask(t, "GET", path); status != 303 {
			t.Errorf("%s after signing out: %d", path, status)
		}
	}
}

// refusedRight says what a visitor without a full session has to get.
func refusedRight(who string, r shell.Route, status int, location string) (bool, string) {
	quiet := r.API || r.Quiet
	switch {
	case r.Need == shell.Anyone:
		return status < 500 && status != 303 || r.Path == "/sign-in", "an answer"
	case who == "password only" && r.Need == shell.Code:
		return status == 200, "the page"
	case who == "password only" && quiet, quiet:
		return status == 401, "401"
	case who == "password only":
		return status == 303 && strings.HasPrefix(location, "/sign-in/code"), "the second step"
	}
	return status == 303 && strings.HasPrefix(location, "/sign-in") && !strings.HasPrefix(location, "/sign-in/code"), "the sign-in"
}

func TestRolesHaveOnlyTheirRights(t *testing.T) {
	for key, r := range wholeTable(t) {
		if r.Need == shell.Full && r.Right == "" || r.Need != shell.Full && r.Right != "" {
			t.Errorf("%s: need %d, right %q", key, r.Need, r.Right)
		}
		if r.Method == "GET" && strings.Contains(r.Path, "/end") {
			t.Errorf("%s changes something by GET", key)
		}
	}
}

func TestSecondStepEndsAfterFiveWrongCodes(t *testing.T) {
	b, _ := consoletest.Owned(t, Run)
	br := b.Browser()
	br.Send("/sign-in", "email", "ada@example.org", "password", consoletest.Password)
	for i := range 5 {
		p := br.Send("/sign-in/code", "code", "000000")
		if p.Status != 422 {
			t.Fatalf("try %d: %d %s", i, p.Status, p.Path)
		}
	}
	if p := br.Open("/sign-in/code"); p.Path != "/sign-in" {
		t.Errorf("the second step is still open: %s", p.Path)
	}
}

func mustURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestAUD1_NothingHappensThatCannotBeRecorded(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	second := b.Browser()
	b.FailAudit(errors.New("no space left on device"))
	if p := second.Send("/sign-in", "email", "ada@example.org", "password", consoletest.Password); p.Path != "/sign-in/code" {
		t.Fatalf("the password: %d %s", p.Status, p.Path) // not signed in yet, so nothing to record
	}
	if p := second.Send("/sign-in/code", "code", br.Codes[0]); p.Status == 200 {
		t.Errorf("the sign-in: %d %s", p.Status, p.Path)
	}
	if p := second.Open("/"); p.Path == "/" {
		t.Error("signed in without a record")
	}
	for _, c := range [][]string{
		{"/account/password", "password", "violet tractor sings again"},
		{"/welcome/place", "site", "Elsewhere", "zone", "UTC", "window", "night"},
		{"/account/codes", "action", "make"},
		{"/account/end-others"},
		{"/system/tokens/new", "name", "x", "days", "1"},
		{"/system/restart"},
		{"/sign-out"},
	} {
		if p := br.Send(c[0], c[1:]...); p.Status < 400 {
			t.Errorf("%s: %d %s", c[0], p.Status, p.Path)
		}
	}
	b.FailAudit(nil)
	if len(b.Powered()) != 0 {
		t.Error("it restarted")
	}
	if p := br.Open("/welcome/place"); strings.Contains(p.Body, "Elsewhere") {
		t.Error("the place was stored")
	}
	if p := br.Open("/account"); p.Path != "/account" || !strings.Contains(p.Body, "9 left") {
		t.Errorf("signed out, or other codes than the one that was used are gone: %s", p.Path)
	}
	other := b.Browser()
	if p := other.Send("/sign-in", "email", "ada@example.org", "password", consoletest.Password); p.Path != "/sign-in/code" {
		t.Error("the password was changed")
	}
}
