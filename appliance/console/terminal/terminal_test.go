package terminal

import (
	"strconv"
	"strings"
	"testing"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/console/xterm"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
)

func TestPageHasItsRightAndItsFiles(t *testing.T) {
	routes := New(Ports{}).Routes()
	if len(routes) != 1+len(assets) || routes[0].Path != "/sessions/terminal" || routes[0].Right != "use-sessions" {
		t.Fatalf("%+v", routes)
	}
	for _, r := range routes {
		if r.Need != shell.Full || r.Method != "GET" {
			t.Errorf("%s: need %d", r.Path, r.Need)
		}
	}
}

// What the page's own files may not have under the policy, or in any case.
func TestFilesFollowThePolicy(t *testing.T) {
	for name, most := range map[string]int{"terminal.js": 14 << 10, "link.js": 14 << 10, "terminal.css": 4 << 10, "terminal.html": 8 << 10} {
		text := string(asset(name))
		if len(text) > most {
			t.Errorf("%s has %d bytes", name, len(text))
		}
		for _, bad := range []string{"eval(", "innerHTML", "insertAdjacentHTML", "document.write", "@import", "https://", " style=", "onclick=\"", "window.open"} {
			if strings.Contains(text, bad) {
				t.Errorf("%s has %q", name, bad)
			}
		}
	}
}

func TestSES4_TerminalPage(t *testing.T) {
	b := consoletest.NewBroker()
	b.Put(api.Target{ID: 1, Target: session.Target{Name: `<img src=x onerror="x()">`, Kind: session.SSH, Host: "192.0.2.1", Port: 22}, Recording: session.RecordingAllowed})
	b.Put(api.Target{ID: 2, Target: session.Target{Name: "pages", Kind: session.HTTP, Host: "192.0.2.1", Port: 80}, Recording: session.RecordingOff})
	var pages *Pages
	d := consoletest.NewDesk(t, func(*consoletest.Desk) []shell.Route {
		pages = New(Ports{Target: b.Target})
		return pages.Routes()
	})
	d.As(right.Viewer)
	if p := d.Open("/sessions/terminal?target=1"); p.Status != 403 {
		t.Errorf("a viewer: %d", p.Status)
	}
	d.As(right.Technician)
	for _, none := range []string{"", "?target=", "?target=x", "?target=99", "?target=-1", "?target=1;2"} {
		if p := d.Open("/sessions/terminal" + none); p.Status < 400 || p.Status >= 500 {
			t.Errorf("%q: %d", none, p.Status)
		}
	}
	open := func(id int, more string) string {
		p := d.Open("/sessions/terminal?target=" + strconv.Itoa(id) + more)
		if p.Status != 200 {
			t.Fatalf("target %d: %d", id, p.Status)
		}
		return p.Body
	}
	if body := open(2, ""); strings.Contains(body, "<script type=\"module\"") || !strings.Contains(body, "no terminal") {
		t.Error("a target of another kind has a terminal")
	}
	// With the bundle and without: both are programs that somebody builds.
	for _, bundle := range []xterm.Bundle{{}, {Module: "/assets/xterm.js?1", Style: "/assets/xterm.css?1"}} {
		pages.bundle = bundle
		body := open(1, "&record=1")
		if strings.Contains(body, "<img") {
			t.Error("the name of a target is not escaped")
		}
		built := bundle.Module != ""
		for text, want := range map[string]bool{
			"built without the terminal": !built, `data-do="terminal"`: built, `data-record="1"`: built, "/assets/terminal.js?": built, "/assets/link.js?": built, "<noscript>": built,
		} {
			if strings.Contains(body, text) != want {
				t.Errorf("built with the bundle: %v, and %q is there: %v", built, text, !want)
			}
		}
		if body := open(1, ""); strings.Contains(body, "data-record") || built && !strings.Contains(body, "record=1") {
			t.Error("it is recorded unasked, or cannot be asked for")
		}
		if body := open(0, ""); built && !strings.Contains(body, `data-do="console"`) {
			t.Error("the box itself has no console")
		}
	}
}
