package recordings_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/broker"
	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/console/recordings"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
)

func desk(t *testing.T, b *consoletest.Broker) *consoletest.Desk {
	t.Helper()
	return serve(t, recordings.Ports{Recordings: b.Recordings, Cast: b.Cast, RemoveRecording: b.RemoveRecording})
}

func serve(t *testing.T, p recordings.Ports) *consoletest.Desk {
	t.Helper()
	return consoletest.NewDesk(t, func(*consoletest.Desk) []shell.Route { return recordings.New(p).Routes() })
}

func at(path string, n int) string { return path + "?session=" + consoletest.SessionID(n).String() }

func TestSES9_RecordingsAreRefusedToWhoMayNot(t *testing.T) {
	b := consoletest.AtWork(t, time.Now())
	d := desk(t, b)
	paths := []string{"/recordings/play", "/recordings/cast", "/recordings/text", "/recordings/remove"}
	for _, path := range paths {
		for _, id := range []string{"", "x", strings.Repeat("0", 32), "../../etc/passwd"} {
			if p := d.Open(path + "?session=" + id); p.Status != 403 {
				t.Errorf("%s of %q: %d", path, id, p.Status)
			}
		}
	}
	if p := d.Send("/recordings/remove", "session", "x"); p.Status != 403 {
		t.Errorf("removing x: %d", p.Status)
	}
	for _, role := range []right.Role{right.Technician, right.Viewer} {
		d.As(role)
		for _, path := range append(paths, "/recordings") {
			if p := d.Open(at(path, 4)); p.Status != 403 {
				t.Errorf("a %s opens %s: %d", role, path, p.Status)
			}
		}
		if p := d.Send("/recordings/remove", "session", consoletest.SessionID(4).String()); p.Status != 403 {
			t.Errorf("a %s removes one: %d", role, p.Status)
		}
	}
	if len(b.Asked) != 0 {
		t.Errorf("something was done: %q", b.Asked)
	}
}

// That a recording was read is in the audit log once for each time it was; the
// page of the player alone shows nothing of it.
func TestSES9_PlayerPageReadsNothing(t *testing.T) {
	b := consoletest.AtWork(t, time.Now())
	d := desk(t, b)
	if p := d.Open(at("/recordings/play", 4)); p.Status != 200 || !strings.Contains(p.Body, at("/recordings/text", 4)) || !strings.Contains(p.Body, at("/recordings/cast", 4)) {
		t.Errorf("%d", p.Status)
	}
	if len(b.Asked) != 0 {
		t.Errorf("opening the page did %q", b.Asked)
	}
	d.Open(at("/recordings/cast", 4))
	if len(b.Asked) != 1 || b.By[0].Person.Email != "ada@example.org" || b.By[0].From != "127.0.0.1" {
		t.Errorf("%q by %+v", b.Asked, b.By)
	}
}

func TestSES9_DownloadIsAnAsciicast(t *testing.T) {
	b := consoletest.AtWork(t, time.Now())
	d := desk(t, b)
	p := d.Open(at("/recordings/cast", 4))
	if p.Header.Get("Content-Type") != "application/x-asciicast" || !strings.HasPrefix(p.Header.Get("Content-Disposition"), "attachment; filename=\""+consoletest.Name) {
		t.Errorf("%v", p.Header)
	}
	if last, n := lines(t, p.Body); n != 9 || last[2] != "exit\r\n" {
		t.Errorf("%d lines, the last is %v", n, last)
	}
	// What breaks on the way ends with a marker at the time of the break.
	last, n := lines(t, d.Open(at("/recordings/cast", 7)).Body)
	if n != 4 || last[0] != 7.5 || last[1] != "m" || !strings.Contains(last[2].(string), "changed after it was written") {
		t.Errorf("%d lines, the last is %v", n, last)
	}
}

func lines(t *testing.T, body string) (last []any, n int) {
	t.Helper()
	for s := bufio.NewScanner(strings.NewReader(body)); s.Scan(); n++ {
		if n == 0 {
			continue
		}
		last = nil
		if err := json.Unmarshal(s.Bytes(), &last); err != nil || len(last) != 3 {
			t.Fatalf("line %d is %q: %v", n+1, s.Text(), err)
		}
	}
	return last, n
}

func TestSES9_RecordingThatCannotBeBegunIsAnErrorsPage(t *testing.T) {
	b := consoletest.NewBroker()
	id := consoletest.SessionID(1)
	b.PutRecording(t, api.RecordingInfo{Session: id, Target: session.Target{Name: "nas"}}, nil)
	ports := recordings.Ports{Recordings: b.Recordings, RemoveRecording: b.RemoveRecording}
	ports.Cast = func(context.Context, broker.Who, session.ID, io.Writer) error {
		return errors.New("the key for recordings is gone")
	}
	d := serve(t, ports)
	for _, path := range []string{"/recordings/cast", "/recordings/text"} {
		if p := d.Open(at(path, 1)); p.Status != 500 || p.Header.Get("Content-Disposition") != "" || !strings.Contains(p.Body, "the key for recordings is gone") {
			t.Errorf("%s: %d %v", path, p.Status, p.Header)
		}
	}
}

func TestSES9_TranscriptIsTextAlone(t *testing.T) {
	b := consoletest.AtWork(t, time.Now())
	d := desk(t, b)
	p := d.Open(at("/recordings/text", 4))
	if p.Header.Get("Content-Type") != "text/plain; charset=utf-8" || p.Header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%v", p.Header)
	}
	want := `0:01  grace@pump-east:~$ systemctl status pump
0:01  ● pump.service - East pump
0:01     Active: active (running) since Mon
0:30  grace@pump-east:~$ tail -n1 /var/log/pump
0:30  pressure 4.2 bar, valve seven is open
0:50  — files: valves.toml was sent
1:02  exit
`
	if p.Body != want {
		t.Errorf("got\n%s\nwant\n%s", p.Body, want)
	}
	if p := d.Open(at("/recordings/text", 7)); !strings.Contains(p.Body, "cannot be read further: chunk 3 was changed") {
		t.Errorf("a broken one: %s", p.Body)
	}
}

func TestSES9_RemovingAsksFirst(t *testing.T) {
	b := consoletest.AtWork(t, time.Now())
	d := desk(t, b)
	if p := d.Open(at("/recordings/remove", 4)); p.Status != 200 || !strings.Contains(p.Body, "What is lost") || len(b.Asked) != 0 {
		t.Errorf("%d %q", p.Status, b.Asked)
	}
	if p := d.Send("/recordings/remove", "session", consoletest.SessionID(4).String()); p.Path != "/recordings" || strings.Contains(p.Body, consoletest.SessionID(4).String()) || !strings.Contains(p.Body, "The recording was removed") {
		t.Errorf("%d %s", p.Status, p.Path)
	}
}
