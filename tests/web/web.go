// Package web drives the console's pages in Chromium.
package web

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// folder is where the scripts are, seen from any test.
func folder(t testing.TB) string {
	t.Helper()
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		t.Fatal("the folder of the scripts is not known: run the tests without -trimpath")
	}
	return filepath.Dir(file)
}

// install brings the two modules that package-lock.json pins. Tests of two folders run at
// once: the second waits for the first.
func install(t testing.TB, dir string) {
	t.Helper()
	lock, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close() // and unlocks
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "node_modules/.package-lock.json")); err == nil {
		return
	}
	cmd := exec.Command("npm", "ci", "--prefer-offline")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("npm ci: %v\n%s", err, out)
	}
}

// OwnBox claims a whole running box in Chromium: code, password, clock, second
// factor, recovery codes, Status with its agent, every page, signing in again.
// Start starts the command, which may be in another network namespace.
func OwnBox(t testing.TB, url, code string, start func(*exec.Cmd) error) {
	t.Helper()
	drive(t, "pages.mjs", start, "GATEHOUSE_WEB_URL="+url, "GATEHOUSE_WEB_CODE="+code, "GATEHOUSE_WEB_WHOLE=1")
}

// drive runs one of the scripts. Screenshots go to build/screenshots.
func drive(t testing.TB, script string, start func(*exec.Cmd) error, env ...string) {
	t.Helper()
	dir := folder(t)
	install(t, dir)
	cmd := exec.CommandContext(t.Context(), "node", script)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), env...), "GATEHOUSE_WEB_SHOTS="+filepath.Join(dir, "../../build/screenshots"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := start(cmd); err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out.String())
	}
}

// Target is one to be opened in Chromium.
type Target struct {
	URL     string // of the box's pages
	Session string // the value of the cookie of who is signed in
	ID      string
	Print   string // of the host key
	// Orders is a folder in which the script makes files, for what the test around it is to do.
	Orders string
}

func (a Target) drive(t testing.TB, script string, start func(*exec.Cmd) error) {
	t.Helper()
	drive(t, script, start, "GATEHOUSE_WEB_URL="+a.URL, "GATEHOUSE_WEB_SESSION="+a.Session, "GATEHOUSE_WEB_TARGET="+a.ID, "GATEHOUSE_WEB_PRINT="+a.Print, "GATEHOUSE_WEB_ORDERS="+a.Orders)
}

// Terminal uses a shell. It orders cut-gateway when the connections through the
// gateway are to be cut, and let-udp when UDP is to get through.
func Terminal(t testing.TB, a Target, start func(*exec.Cmd) error) {
	t.Helper()
	a.drive(t, "terminal.mjs", start)
}

// TerminalEnds has sessions ended. It orders end-relay and end-direct for the
// end of the session, lists when the technician is to be taken out of them, and
// let-udp; over-… has the time in ms at which the page knew.
func TerminalEnds(t testing.TB, a Target, start func(*exec.Cmd) error) {
	t.Helper()
	a.drive(t, "terminal-ends.mjs", start)
}
