package web

import (
	"os/exec"
	"testing"
	"time"

	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/console/recordings"
	"gatehouse/appliance/console/sessions"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/console/targets"
	"gatehouse/appliance/console/xterm"
)

// desk has the pages of targets, sessions and recordings over a double of the
// broker, which has what a test put there.
func desk(t *testing.T, b *consoletest.Broker) *consoletest.Desk {
	t.Helper()
	if xterm.Open().Module == "" {
		t.Fatal("the bundle of xterm.js is not built: run make tools")
	}
	return consoletest.NewDesk(t, func(*consoletest.Desk) (routes []shell.Route) {
		in := sessions.New(sessions.Ports{Sessions: b.Sessions, End: b.End})
		for _, pages := range [][]shell.Route{
			targets.New(targets.Ports{Targets: b.Targets, Target: b.Target, Declare: b.Declare, Remove: b.Remove, SetCredential: b.SetCredential, ForgetHostKeys: b.ForgetHostKeys}).Routes(),
			in.Routes(), {consoletest.CardRoute(in.Card)},
			recordings.New(recordings.Ports{Recordings: b.Recordings, Cast: b.Cast, RemoveRecording: b.RemoveRecording}).Routes(),
			xterm.Routes(),
		} {
			routes = append(routes, pages...)
		}
		return routes
	})
}

func driveDesk(t *testing.T, script string, d *consoletest.Desk, env ...string) {
	t.Helper()
	drive(t, script, (*exec.Cmd).Start, append(env, "GATEHOUSE_WEB_URL="+d.URL, "GATEHOUSE_WEB_SESSION="+d.Session)...)
}

// TestSES9_PlayerAndSessionsPages looks at the pages of a box at which people
// work, and uses the player by its keys.
func TestSES9_PlayerAndSessionsPages(t *testing.T) {
	driveDesk(t, "sessions.mjs", desk(t, consoletest.AtWork(t, time.Now())))
}
