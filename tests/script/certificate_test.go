package script

import (
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/console"
	"gatehouse/appliance/console/consoletest"
)

// A certificate chosen, shown and trusted by the tool, refusals first.
func TestNET10_CertificatesByTheTool(t *testing.T) {
	b, br := consoletest.Owned(t, console.Run)
	c := newTool(t, "")
	next := 0
	run := func(exit int, args ...string) string {
		t.Helper()
		if args[0] == "certificate" && exit != 2 && exit != 3 {
			if err := os.WriteFile(filepath.Join(c.home, "code"), []byte(br.Codes[next]), 0o600); err != nil {
				t.Fatal(err)
			}
			next++
			args = append(args, "--email", "ada@example.org", "--password", "file:password", "--code", "file:code")
		}
		cmd := c.command(args...)
		var said strings.Builder
		cmd.Stderr = &said
		out, err := cmd.Output()
		if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != exit {
			t.Fatalf("%v: %v, want exit %d\n%s%s", args, err, exit, out, said.String())
		}
		return string(out) + said.String()
	}
	run(2, "ca", "trust", "--print") // no box is known
	run(4, "ca", "trust", "--print", "--box", b.URL)
	run(7, "ca", "trust", "--print", "--box", b.URL, "--proof", "amber canyon violin drift pencil north")
	words := b.Ready().Certificate.Words
	run(4, "ca", "trust", "--print", "--box", b.URL, "--proof", words) // it has no own CA yet
	run(2, "ca", "trust", "--print", "--remove")
	run(3, "certificate", "show")
	run(2, "certificate", "use", "acme")
	run(2, "certificate", "use")
	if out := run(5, "certificate", "use", "acme", "gate.example.net", "--directory", "https://127.0.0.1:1/"); !strings.Contains(out, "accepts its terms") {
		t.Error(out)
	}
	if out := run(5, "certificate", "renew"); !strings.Contains(out, "Nothing here renews") {
		t.Error(out)
	}
	if err := os.WriteFile(filepath.Join(c.home, "chain.pem"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := run(5, "certificate", "import", "--chain", "chain.pem", "--key", "chain.pem"); !strings.Contains(out, "no certificate in the chain") {
		t.Error(out)
	}
	if out := run(0, "certificate", "use", "ca", "--wait"); !strings.Contains(out, "in use") || !strings.Contains(out, "Own CA") {
		t.Error(out)
	}
	// The key of the box is still the pinned one, and the root comes by it.
	if out := run(0, "certificate", "show", "--json"); !strings.Contains(out, `"source": "ca"`) || strings.Contains(out, "PRIVATE") {
		t.Error(out)
	}
	if out := run(7, "ca", "trust", "--print"); !strings.Contains(out, "--also 2001:db8:1::40") {
		t.Errorf("a public address is taken unasked: %s", out)
	}
	if out := run(7, "ca", "trust", "--print", "--also", "2001:db8:1::40"); !strings.Contains(out, "--also box.example.org") {
		t.Errorf("a further name is taken unasked: %s", out)
	}
	out := run(0, "ca", "trust", "--print", "--also", "2001:db8:1::40", "--also", "box.example.org")
	block, rest := pem.Decode([]byte(out))
	if block == nil || len(rest) != 0 {
		t.Errorf("more than PEM: %s", out)
	}
	if root := br.Open("/certificates/root.pem").Body; root != out {
		t.Error("the tool prints another root than the page")
	}
	if p := br.Open("/account"); strings.Count(p.Body, "/account/end\"") > 1 {
		t.Error("the tool left a session open")
	}
	// Another box at the known address is found out before anything is asked.
	other := consoletest.Start(t, console.Run)
	known, err := os.ReadFile(filepath.Join(c.home, "gatehouse", "known.json"))
	if err != nil {
		t.Fatal(err)
	}
	swap := strings.ReplaceAll(string(known), strings.TrimPrefix(b.URL, "https://"), strings.TrimPrefix(other.URL, "https://"))
	if err := os.WriteFile(filepath.Join(c.home, "gatehouse", "known.json"), []byte(swap), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := run(7, "ca", "trust", "--print"); strings.Contains(out, "BEGIN") {
		t.Error(out)
	}
	if time.Since(b.Events()[0].Time) > time.Hour {
		t.Error("nothing was recorded")
	}
}
