package shell

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/account"
	"gatehouse/appliance/account/right"
	"gatehouse/appliance/control"
)

func box() *Box {
	return &Box{Name: "gatehouse-7f3k", Wall: time.Now, Log: slog.New(slog.DiscardHandler),
		Status: func(context.Context) (control.Status, error) { return control.Status{}, nil }}
}

func hello(v *Visit) error { return v.JSON(200, "hello") }

var ready = []control.State{control.StateReady}

func TestRouterRefusesAWrongTable(t *testing.T) {
	good := Route{Method: "GET", Path: "/x", States: ready, Handle: hello}
	change := func(f func(*Route)) Route { r := good; f(&r); return r }
	for name, table := range map[string][]Route{
		"twice":            {good, good},
		"no handler":       {change(func(r *Route) { r.Handle = nil })},
		"no state":         {change(func(r *Route) { r.States = nil })},
		"other method":     {change(func(r *Route) { r.Method = "PUT" })},
		"pattern":          {change(func(r *Route) { r.Path = "/x/{id}" })},
		"relative":         {change(func(r *Route) { r.Path = "x" })},
		"double slash":     {change(func(r *Route) { r.Path = "//x" })},
		"full, no right":   {change(func(r *Route) { r.Need = Full })},
		"right, not full":  {change(func(r *Route) { r.Right = right.Power })},
		"fresh, not full":  {change(func(r *Route) { r.Fresh = true })},
		"enrol with right": {change(func(r *Route) { r.Need, r.Right = Enrol, right.Power })},
	} {
		if _, err := NewRouter(box(), control.StateReady, table); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := NewRouter(box(), control.StateReady, []Route{good}); err != nil {
		t.Error(err)
	}
}

func serve(t *testing.T, h http.Handler, method, target string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, target, nil))
	return w
}

func TestRouterMatchesExactly(t *testing.T) {
	router, err := NewRouter(box(), control.StateReady, []Route{
		{Method: "GET", Path: "/x", States: ready, Handle: hello},
		{Method: "GET", Path: "/unclaimed", States: []control.State{control.StateUnclaimed}, Handle: hello},
	})
	if err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]int{"/x": 200, "/x?y": 200, "/x/": 404, "//x": 404, "/%78": 404, "/X": 404, "/./x": 404, "/y/../x": 404, "/unclaimed": 404} {
		if w := serve(t, router, "GET", target); w.Code != want {
			t.Errorf("%s: %d, want %d", target, w.Code, want)
		}
	}
	if w := serve(t, router, "POST", "/x"); w.Code != 405 || w.Header().Get("Allow") != "GET" {
		t.Errorf("POST: %d, Allow %q", w.Code, w.Header().Get("Allow"))
	}
	if w := serve(t, router, "HEAD", "/x"); w.Code != 200 {
		t.Errorf("HEAD: %d", w.Code)
	}
}

func TestGuardAnswersWhenAHandlerBreaks(t *testing.T) {
	h := Guard(box(), []string{"example.com"}, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("broken") }))
	w := serve(t, h, "GET", "/")
	if w.Code != 500 || w.Header().Get("Content-Security-Policy") == "" || strings.Contains(w.Body.String(), "broken") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// Work that the box itself gave up has an answer; only who went away has none.
func TestUSE3_CancelledWorkIsAnswered(t *testing.T) {
	for _, gone := range []bool{false, true} {
		ctx, leave := context.WithCancel(t.Context())
		defer leave()
		w := httptest.NewRecorder()
		b := box()
		v := &Visit{W: w, R: httptest.NewRequest("POST", "/api/v1/x", nil).WithContext(ctx), Box: b, Route: Route{Method: "POST", Path: "/api/v1/x", API: true}}
		if gone {
			leave()
		}
		v.answer(fmt.Errorf("asking the box: %w", context.Canceled))
		if answered := w.Body.Len() > 0; answered == gone || !gone && w.Code != http.StatusInternalServerError {
			t.Errorf("the visitor is gone %v: %d %q", gone, w.Code, w.Body)
		}
	}
}

func TestGuardBoundsWhatRuns(t *testing.T) {
	hold, began := make(chan struct{}), make(chan struct{}, maxRunning)
	h := Guard(box(), []string{"example.com"}, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { began <- struct{}{}; <-hold }))
	done := make(chan struct{})
	from := func(i int) *httptest.ResponseRecorder {
		w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = fmt.Sprintf("192.0.2.%d:1024", i)
		h.ServeHTTP(w, r)
		return w
	}
	for i := range maxRunning {
		go func() {
			from(i / maxSource)
			done <- struct{}{}
		}()
		<-began
		if i == maxSource-1 {
			if w := from(0); w.Code != 503 {
				t.Errorf("one too many of one source: %d", w.Code)
			}
		}
	}
	if w := from(200); w.Code != 503 {
		t.Errorf("one too many: %d", w.Code)
	}
	close(hold)
	for range maxRunning {
		<-done
	}
}

func TestNextTakesOurPathsOnly(t *testing.T) {
	for next, want := range map[string]string{
		"/audit": "/audit", "/account/password": "/account/password", "": "/", "/": "/", "//evil": "/", "https://evil": "/", "/a//b": "/",
		"/\\evil": "/", "/x?y": "/", "/X": "/", "/" + strings.Repeat("a", 200): "/",
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Form = map[string][]string{"next": {next}}
		if got := (&Visit{R: r}).Next("/"); got != want {
			t.Errorf("%q: %q, want %q", next, got, want)
		}
	}
}

// What was sent cannot be sent again by a redirect: after the sign-in comes the
// form itself, or the nearest page above it, and never an error page.
func TestACC8_AfterTheSignInComesAPage(t *testing.T) {
	route := func(method, path string) Route {
		return Route{Method: method, Path: path, States: ready, Need: Full, Right: right.Configure, Handle: hello}
	}
	data, live, early := route("GET", "/network/here"), route("GET", "/network/here/live"), route("GET", "/list/turn")
	data.API, live.Quiet, early.States = true, true, []control.State{control.StateUnclaimed}
	router, err := NewRouter(box(), control.StateReady, []Route{
		route("GET", "/"), route("GET", "/network"), route("GET", "/network/link"), route("POST", "/network/link"), route("POST", "/network/keep"),
		data, live, route("POST", "/network/here/live"), route("GET", "/list"), early, route("POST", "/list/turn"), route("POST", "/welcome/dismiss"),
	})
	if err != nil {
		t.Fatal(err)
	}
	for asked, next := range map[string]string{
		"GET /network": "/network", "GET /network/link": "/network/link", "HEAD /network": "/network", "POST /network/link": "/network/link",
		"POST /network/keep": "/network", "POST /network/here/live": "/network", "POST /list/turn": "/list", "POST /welcome/dismiss": "", "GET /": "",
	} {
		method, path, _ := strings.Cut(asked, " ")
		want := "/sign-in"
		if next != "" {
			want += "?next=" + url.QueryEscape(next)
		}
		if w := serve(t, router, method, path); w.Code != http.StatusSeeOther || w.Header().Get("Location") != want {
			t.Errorf("%s: %d to %q, want %q", asked, w.Code, w.Header().Get("Location"), want)
		}
	}
}

// The brakes count an IPv6 network as one; the audit log names who it was.
func TestAUD1_TheAuditLogNamesTheAddressOfAVisitor(t *testing.T) {
	for remote, want := range map[string][2]string{
		"[fe80::5054:ff:fe12:3456%eth0]:4711": {"fe80::5054:ff:fe12:3456", "fe80::/64"}, "[2001:db8:1:2:3:4:5:6]:4711": {"2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"},
		"192.0.2.7:4711": {"192.0.2.7", "192.0.2.7/32"}, "[::ffff:192.0.2.7]:4711": {"192.0.2.7", "192.0.2.7/32"}, "@": {"::", "::/128"},
	} {
		var told control.Event
		b := box()
		b.Audit = func(_ context.Context, e control.Event) error { told = e; return nil }
		router, err := NewRouter(b, control.StateReady, []Route{{Method: "GET", Path: "/x", States: ready, Handle: func(v *Visit) error {
			if v.Origin.Source.String() != want[1] {
				t.Errorf("%s: the brakes count %s, want %s", remote, v.Origin.Source, want[1])
			}
			return v.Record("read", "x", nil)
		}}})
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest("GET", "/x", nil)
		r.RemoteAddr = remote
		router.ServeHTTP(httptest.NewRecorder(), r)
		if told.From != want[0] {
			t.Errorf("%s is written down as %q, want %q", remote, told.From, want[0])
		}
	}
}

func TestWordsForPeople(t *testing.T) {
	for got, want := range map[string]string{
		Size(512): "512 B", Size(2 << 10): "2 kB", Size(180 << 20): "180 MB", Size(28 << 30): "28.0 GB",
		Ago(30 * time.Second): "30 s", Ago(90 * time.Minute): "1 h 30 min", Ago(72 * time.Hour): "3 days",
		Number(7): "7", Number(1204): "1\u202f204", Number(1234567): "1\u202f234\u202f567",
		Sentence("it broke"): "It broke.", Sentence("It broke."): "It broke.", Sentence(""): "",
		browserName("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0 Safari/537.36"): "Chrome on Linux",
		browserName("curl/8"): "curl/8", browserName(""): "unnamed",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestAssetsAreSmallAndFollowThePolicy(t *testing.T) {
	for name, most := range map[string]int{"style.css": 20 << 10, "console.js": 8 << 10, "mark.svg": 1 << 10} {
		b, err := files.ReadFile("assets/" + name)
		if err != nil || len(b) > most {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
		for _, bad := range []string{"eval(", "innerHTML", "@import", "https://", "cssText"} {
			if strings.Contains(string(b), bad) {
				t.Errorf("%s has %q", name, bad)
			}
		}
	}
}

func TestSES4_ForeignTextIsOneLineThatHidesNothing(t *testing.T) {
	for sent, want := range map[string]string{
		"nas":                       "nas",
		"a\r\nb\tc":                 "a  b c",
		"\x1b[31mred\x07":           "\uFFFD[31mred\uFFFD",
		"user\u202egnp.exe":         "user\uFFFDgnp.exe",
		"zero\u200bwidth\ufeff":     "zero\uFFFDwidth\uFFFD",
		"\xff\xfe":                  "\uFFFD\uFFFD",
		"größe 日本":                  "größe 日本",
		strings.Repeat("x", 300):    strings.Repeat("x", 300),
		strings.Repeat("é", 1<<20):  strings.Repeat("é", 300) + "…",
		strings.Repeat("\x00", 400): strings.Repeat("\uFFFD", 300) + "…",
	} {
		if got := Told(sent); got != want {
			t.Errorf("%.40q is shown as %.40q, want %.40q", sent, got, want)
		}
	}
}

// A narrow window has room for a few pages; none is lost.
func TestUSE4_NarrowWindowsHaveEveryPage(t *testing.T) {
	for role, more := range map[right.Role]bool{right.Owner: true, right.Viewer: false} {
		v := &Visit{R: httptest.NewRequest("GET", "/", nil), Box: box()}
		v.Session.Stage, v.Session.Person.Role = account.StageFull, role
		w := v.view()
		if len(w.Bar) > barRoom || len(w.Bar)+len(w.More) != len(w.Nav) || (len(w.More) > 0) != more || len(w.Nav) == 0 {
			t.Errorf("%s: %d of %d at the bottom, %d behind More", role, len(w.Bar), len(w.Nav), len(w.More))
		}
	}
}
