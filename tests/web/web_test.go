// Package web drives the console's pages in Chromium.
package web

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"gatehouse/appliance/console"
	"gatehouse/appliance/console/consoletest"
)

// install brings the two modules that package-lock.json pins.
func install(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("node_modules/.package-lock.json"); err == nil {
		return
	}
	if out, err := exec.Command("npm", "ci", "--prefer-offline").CombinedOutput(); err != nil {
		t.Fatalf("npm ci: %v\n%s", err, out)
	}
}

func run(t *testing.T, script, url, code string) {
	t.Helper()
	install(t)
	shots, err := filepath.Abs("../../build/screenshots")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("node", script)
	cmd.Env = append(os.Environ(), "GATEHOUSE_WEB_URL="+url, "GATEHOUSE_WEB_CODE="+code, "GATEHOUSE_WEB_SHOTS="+shots)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
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
