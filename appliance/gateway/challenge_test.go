package gateway

import (
	"context"
	"errors"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/control"
)

const (
	token = "LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDfowyjxAjEuX0"
	reply = token + ".9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
)

// challenged is a page with one challenge; asked counts the questions.
func challenged(asked *int, fail *error) *page {
	p := testPage()
	now := time.Unix(0, 0)
	p.challenges = &challenges{
		now: func() time.Time { now = now.Add(100 * time.Millisecond); return now },
		ask: func(context.Context) (control.Challenges, error) {
			*asked++
			return control.Challenges{Challenges: []control.Challenge{{Token: token, Text: reply}}}, *fail
		},
	}
	return p
}

func TestNET10_ChallengesAreAnsweredExactly(t *testing.T) {
	var asked int
	var fail error
	p := challenged(&asked, &fail)
	get := func(method, target string) (int, string) {
		r := httptest.NewRequest(method, "http://box/", nil)
		u, err := url.ParseRequestURI(target)
		if err != nil {
			t.Fatal(err)
		}
		r.URL = u
		w := httptest.NewRecorder()
		p.ServeHTTP(w, r)
		if w.Code == 200 && (w.Header().Get("Content-Type") != "application/octet-stream" || w.Header().Get("X-Content-Type-Options") != "nosniff" || w.Header().Get("Content-Security-Policy") == "") {
			t.Errorf("%s: headers %v", target, w.Header())
		}
		return w.Code, w.Body.String()
	}
	if code, body := get("GET", challengePath+token); code != 200 || body != reply {
		t.Fatalf("%d %q", code, body)
	}
	for _, target := range []string{
		challengePath, challengePath + token[:42], challengePath + token + "x", challengePath + strings.ToLower(token), challengePath + token + "/", challengePath + token + "?x",
		challengePath + "/" + token, challengePath + "../acme-challenge/" + token, "/.well-known/" + token, "/.well-known/acme-challenge%2f" + token,
		challengePath + "%4coqXcYV8q5ONbJQxbmR7SCTNo3tiAXDfowyjxAjEuX0"[:3] + token, "/.Well-Known/acme-challenge/" + token, "//.well-known/acme-challenge/" + token,
		challengePath + "<script>", challengePath + strings.Repeat("a", 5000),
	} {
		if code, body := get("GET", target); code != 404 || strings.Contains(body, "9jg46") || strings.Contains(body, "script") || strings.Contains(body, "aaaa") {
			t.Errorf("%.80s: %d %.80q", target, code, body)
		}
	}
	for _, method := range []string{"POST", "PUT", "OPTIONS", "DELETE"} {
		if code, body := get(method, challengePath+token); code == 200 || strings.Contains(body, "9jg46") {
			t.Errorf("%s: %d", method, code)
		}
	}
	fail = errors.New("the socket is gone")
	for range 10 {
		get("GET", challengePath+token)
	}
	if code, _ := get("GET", challengePath+token); code != 404 {
		t.Errorf("answered though nobody confirms it: %d", code)
	}
}

func TestNET10_StrangersCannotFloodThePrivilegedProcess(t *testing.T) {
	var asked int
	var fail error
	p := challenged(&asked, &fail)
	for range 1000 { // 100 s by the test's clock
		p.challenges.answer(t.Context(), challengePath+"x")
	}
	if asked > 201 {
		t.Errorf("%d questions in 100 s", asked)
	}
}
