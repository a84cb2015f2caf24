package web

import (
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

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
	runSigned(t, "host.mjs", b, br)
}

// runSigned runs a script as somebody who is signed in.
func runSigned(t *testing.T, script string, b *consoletest.Box, br *consoletest.Browser) {
	t.Helper()
	at, err := url.Parse(b.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range br.Jar.Cookies(at) {
		if c.Name == "__Host-gatehouse" {
			drive(t, script, (*exec.Cmd).Start, "GATEHOUSE_WEB_URL="+b.URL, "GATEHOUSE_WEB_SESSION="+c.Value)
			return
		}
	}
	t.Fatal("nobody is signed in")
}

// TestKEY8_RecoveryKeyInTheBrowser makes one with and without scripts, and uses
// the rest of the page of the keys.
func TestKEY8_RecoveryKeyInTheBrowser(t *testing.T) {
	b, br := consoletest.Owned(t, console.Run)
	runSigned(t, "keys.mjs", b, br)
}

func TestUSE4_LockedPage(t *testing.T) {
	b := consoletest.Start(t, console.Run)
	k := consoletest.Guarded(time.Now())
	k.Registers[0].Value, k.Recovery = strings.Repeat("77c0e1d2", 8), "confirmed"
	k.Rungs[3] = control.Rung{Name: "keys", State: control.RungBroken, Sentence: "the TPM does not open the data key: PCR 7 is another than when it was sealed"}
	k.Rungs[4] = control.Rung{Name: "data", State: control.RungUnavailable, Sentence: "Without the data key the volume stays closed"}
	b.SetKeys(k)
	b.Stop()
	b.Lock(true)
	b.Boot()
	run(t, "locked.mjs", b.URL, "")
}
