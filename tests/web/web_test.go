package web

import (
	"os"
	"os/exec"
	"testing"

	"gatehouse/appliance/console"
	"gatehouse/appliance/console/consoletest"
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

func TestUSE4_LockedPage(t *testing.T) {
	b := consoletest.Start(t, console.Run)
	b.Stop()
	b.Lock(true)
	b.Boot()
	run(t, "locked.mjs", b.URL, "")
}
