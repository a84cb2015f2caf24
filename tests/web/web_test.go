package web

import (
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"testing"

	"gatehouse/appliance/console"
	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/control"
)

func run(t *testing.T, script, url, code string) {
	t.Helper()
	drive(t, script, (*exec.Cmd).Start, "GATEHOUSE_WEB_URL="+url, "GATEHOUSE_WEB_CODE="+code)
}

// TestUSE4_EveryPage claims a box and looks at every page: no policy
// violation, axe clean, nothing wider than the window. GATEHOUSE_WEB_URL and
// GATEHOUSE_WEB_CODE point it at an unclaimed box; without them it starts a
// console of its own.
func TestUSE4_EveryPage(t *testing.T) {
	url, code := os.Getenv("GATEHOUSE_WEB_URL"), os.Getenv("GATEHOUSE_WEB_CODE")
	if url == "" {
		b := consoletest.Start(t, console.Run)
		b.Checkpoint(t.Context())
		url, code = b.URL, b.Code.String()
	}
	run(t, "pages.mjs", url, code)
}

func TestUSE4_ClaimAndSignInWithoutScripts(t *testing.T) {
	b := consoletest.Start(t, console.Run)
	run(t, "plain.mjs", b.URL, b.Code.String())
}

// TestUSE4_ListsOfTheHost looks at lists that are files of the host, as someone
// who is signed in already.
func TestUSE4_ListsOfTheHost(t *testing.T) {
	b, br := consoletest.Owned(t, console.Run)
	br.SendJSON("/api/v1/allowlists/try", `{"document":{"enabled":true,"lists":[{"name":"office","enabled":true,"scopes":["console"],"note":"head office","text":"127.0.0.0/8\n"}]}}`)
	m := regexp.MustCompile(`name="id" value="([^"]+)"`).FindStringSubmatch(br.Open("/allowlists").Body)
	if m == nil || br.SendJSON("/api/v1/allowlists/keep", `{"id":"`+m[1]+`"}`).Status != 200 {
		t.Fatal("no list was kept")
	}
	b.HostLists("/etc/gatehouse/lists", control.Problem{File: "office.list", Line: 7, Text: "10.0.0.0/33", Reason: "a prefix for IPv4 is a number from 0 to 32"})
	at, err := url.Parse(b.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range br.Jar.Cookies(at) {
		if c.Name == "__Host-gatehouse" {
			drive(t, "host.mjs", (*exec.Cmd).Start, "GATEHOUSE_WEB_URL="+b.URL, "GATEHOUSE_WEB_SESSION="+c.Value)
			return
		}
	}
	t.Fatal("nobody is signed in")
}

func TestUSE4_LockedPage(t *testing.T) {
	b := consoletest.Start(t, console.Run)
	b.Stop()
	b.Lock(true)
	b.Boot()
	run(t, "locked.mjs", b.URL, "")
}
