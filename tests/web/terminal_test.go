package web

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/console/terminal"
	"gatehouse/appliance/console/xterm"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
)

// TestSES4_HostileTargetInTheTerminal gives the page of a terminal 500 texts as
// output, titles, links, questions and reasons: it shows them, and does nothing else.
func TestSES4_HostileTargetInTheTerminal(t *testing.T) {
	b := consoletest.NewBroker()
	b.Put(api.Target{ID: 1, Target: session.Target{Name: "shell", Kind: session.SSH, Host: "192.0.2.1", Port: 22}, Recording: session.RecordingOff})
	d := consoletest.NewDesk(t, func(*consoletest.Desk) []shell.Route {
		return append(terminal.New(terminal.Ports{Target: b.Target}).Routes(), xterm.Routes()...)
	})
	list, err := json.Marshal(hostile(500))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "payloads.json")
	if err := os.WriteFile(file, list, 0o600); err != nil {
		t.Fatal(err)
	}
	driveDesk(t, "terminal-hostile.mjs", d, "GATEHOUSE_WEB_PAYLOADS="+file)
}
