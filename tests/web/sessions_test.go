package web

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"html/template"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/appliance/audit"
	"gatehouse/appliance/broker"
	"gatehouse/appliance/console/auditlog"
	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/console/recordings"
	"gatehouse/appliance/console/sessions"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/console/status"
	"gatehouse/appliance/console/targets"
	"gatehouse/appliance/console/xterm"
	"gatehouse/appliance/control"
	"gatehouse/appliance/enroll"
	"gatehouse/appliance/enroll/hub"
	"gatehouse/appliance/enroll/report"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
)

// desk has the pages of targets, sessions and recordings over a double of the
// broker, which has what a test put there.
func desk(t *testing.T, b *consoletest.Broker, in sessions.Ports, more ...func(*consoletest.Desk) []shell.Route) *consoletest.Desk {
	t.Helper()
	if xterm.Open().Module == "" {
		t.Fatal("the bundle of xterm.js is not built: run make tools")
	}
	return consoletest.NewDesk(t, func(d *consoletest.Desk) (routes []shell.Route) {
		in := sessions.New(in)
		for _, pages := range [][]shell.Route{
			targets.New(targets.Ports{Targets: b.Targets, Target: b.Target, Declare: b.Declare, Remove: b.Remove, SetCredential: b.SetCredential, ForgetHostKeys: b.ForgetHostKeys}).Routes(),
			in.Routes(), {consoletest.CardRoute(in.Card)},
			recordings.New(recordings.Ports{Recordings: b.Recordings, Cast: b.Cast, RemoveRecording: b.RemoveRecording}).Routes(),
			xterm.Routes(),
		} {
			routes = append(routes, pages...)
		}
		for _, pages := range more {
			routes = append(routes, pages(d)...)
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
	b := consoletest.AtWork(t, time.Now())
	driveDesk(t, "sessions.mjs", desk(t, b, sessions.Ports{Sessions: b.Sessions, End: b.End, Notice: b.Notice}))
}

// TestSES4_HostileTextsStayText puts 500 texts into every field that a target,
// an agent or a technician's machine can fill, and opens every page that shows
// them: nothing of them runs, and what they say is shown.
func TestSES4_HostileTextsStayText(t *testing.T) {
	payloads, now := hostile(500), time.Now()
	b := consoletest.NewBroker()
	var in, over []api.Session
	var all [][3]any
	for i, s := range payloads {
		at := session.Target{Name: s, Kind: session.SSH, Host: s, Port: 22}
		switch i % 5 {
		case 1:
			at.Kind = session.HTTP
		case 2:
			at.Kind = session.Kind(s)
		}
		b.Put(api.Target{ID: int64(i + 1), Target: at, Recording: session.RecordingForced, Credential: s, User: s, HostKeys: []string{s, s}})
		one := api.Session{ID: consoletest.SessionID(i), Technician: s, From: s, Target: at, State: []api.State{api.Live, api.Lost, api.Waiting, api.State(s)}[i%4], Path: s,
			Functions: []string{s}, Open: []string{s, s}, Recording: session.Recording(s), Recorded: 7, Started: now, Until: now, Reason: s}
		in = append(in, one)
		one.State, one.Ended = api.Over, now
		over = append(over, one)
		b.PutRecording(t, api.RecordingInfo{Session: consoletest.SessionID(i), Technician: s, Target: at, Started: now, Seconds: 1, Problem: s}, errors.New(s), [3]any{0, "o", s})
		all = append(all, [3]any{i, "o", s + "\r\n"}, [3]any{i, "m", s}, [3]any{i, "r", s}, [3]any{i, "o", "\x1b]2;" + s + "\x07"}, [3]any{i, s, s})
	}
	// A terminal that is set back shows what comes, whatever came before.
	all = append(all, [3]any{len(payloads), "o", "\x1b\\\x1bcstill a terminal\r\n\x1b]8;;https://example.net/ran\x1b\\click\x1b]8;;\x1b\\"})
	b.PutRecording(t, api.RecordingInfo{Session: consoletest.SessionID(9999), Technician: "x", Target: session.Target{Name: "all"}, Started: now, Seconds: float64(len(payloads)), Whole: true}, nil, all...)
	// The page has room for a hundred that are over, so each visit is shown others.
	var visit atomic.Int32
	lists := func(context.Context, broker.Who) ([]api.Session, error) {
		n := int(visit.Add(1)-1) % 5 * 100
		return append(slices.Clone(in), over[n:n+100]...), nil
	}
	file := func(name string, show func(string) string) string {
		var want []string
		for _, s := range payloads {
			want = append(want, show(s))
		}
		list, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, list, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	none := func(*shell.Visit) (template.HTML, error) { return "", nil }
	d := desk(t, b, sessions.Ports{Sessions: lists, End: b.End, Notice: b.Notice}, func(d *consoletest.Desk) []shell.Route {
		log := audited(t, payloads)
		ports := status.Ports{Sites: func() []hub.Site { return reported(payloads) }, Log: log, Exposure: none, Inside: none, Update: none,
			Keys: func(context.Context) (control.Keys, error) { return control.Keys{}, nil }}
		return append(status.New(d.Place, ports).Routes(), auditlog.New(log).Routes()...)
	})
	driveDesk(t, "hostile.mjs", d, "GATEHOUSE_WEB_PAYLOADS="+file("told", shell.Told), "GATEHOUSE_WEB_PRINTED="+file("printed", asLogged), "GATEHOUSE_WEB_ALL="+consoletest.SessionID(9999).String(), "GATEHOUSE_WEB_FIRST="+consoletest.SessionID(0).String())
}

// asLogged is how the audit log shows a text: bytes that are no UTF-8 are one character there.
func asLogged(s string) string { return shell.Printed(strings.ToValidUTF8(s, "\uFFFD")) }

// reported are agents that say what is hostile of their machines.
func reported(payloads []string) (sites []hub.Site) {
	for _, s := range payloads {
		sites = append(sites, hub.Site{Metadata: enroll.Metadata{Name: s, Version: s, System: s, Hardware: s}, EnrolledAt: time.Now(),
			Inventory: &report.Inventory{Host: s, Machine: report.Machine{Vendor: s, Product: s}, CPU: report.CPU{Model: s, Count: 1}},
			Health:    &report.Health{Temperatures: []report.Temperature{{Sensor: s, Celsius: 40}}}})
	}
	return sites
}

// audited is an audit log in which each is in every field.
func audited(t *testing.T, payloads []string) audit.Reader {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	w, err := audit.Open(dir, audit.Config{Key: &key.PublicKey, Now: time.Now, Rand: rand.Reader, GID: -1,
		Sign: func(_ context.Context, digest []byte) ([]byte, error) {
			return ecdsa.SignASN1(rand.Reader, key, digest)
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	for _, s := range payloads {
		if _, err := w.Append(t.Context(), control.Event{Actor: s, Action: s, Object: s, From: s, Outcome: "ok", Detail: map[string]string{"reason": s, s: "x"}}); err != nil {
			t.Fatalf("%q: %v", s, err)
		}
	}
	return audit.Reader{Dir: dir}
}
