package targets_test

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/console/targets"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
)

// desk has the pages over a double.
func desk(t *testing.T, b *consoletest.Broker) *consoletest.Desk {
	t.Helper()
	return consoletest.NewDesk(t, func(*consoletest.Desk) []shell.Route {
		return targets.New(targets.Ports{Targets: b.Targets, Target: b.Target, Declare: b.Declare, Remove: b.Remove,
			SetCredential: b.SetCredential, ForgetHostKeys: b.ForgetHostKeys}).Routes()
	})
}

// whole has them over the broker itself, with one target.
func whole(t *testing.T) *consoletest.Desk {
	t.Helper()
	d := consoletest.NewDesk(t, func(d *consoletest.Desk) []shell.Route {
		b := d.Real
		return targets.New(targets.Ports{Targets: b.Targets, Target: b.Target, Declare: b.Declare, Remove: b.Remove,
			SetCredential: b.SetCredential, ForgetHostKeys: b.ForgetHostKeys}).Routes()
	})
	if p := d.Send("/targets/new", "name", "nas", "kind", "ssh", "host", "192.168.1.20", "recording", "allowed", "idle", "30"); p.Path != "/targets" {
		t.Fatalf("no target was declared: %d\n%s", p.Status, p.Body)
	}
	return d
}

var good = []string{"name", "door", "kind", "ssh", "host", "192.168.1.30", "port", "", "recording", "allowed", "idle", "30"}

// but is the good form with some fields changed.
func but(fields ...string) []string { return append(append([]string(nil), good...), fields...) }

func TestSES5_WhatCannotBeATargetIsRefused(t *testing.T) {
	d := whole(t)
	for name, fields := range map[string][]string{
		"no name":              but("name", " "),
		"a name with controls": but("name", "door\x1b[31m"),
		"a turned name":        but("name", "door\u202e"),
		"a taken name":         but("name", "nas"),
		"no kind":              but("kind", ""),
		"an unknown kind":      but("kind", "telnet"),
		"the box again":        but("kind", "box", "host", "", "port", ""),
		"no host":              but("host", ""),
		"the box's loopback":   but("host", "127.0.0.1"),
		"localhost":            but("host", "localhost"),
		"the link":             but("host", "169.254.1.1"),
		"a host with a path":   but("host", "nas/x"),
		"port 0":               but("port", "0"),
		"port 65536":           but("port", "65536"),
		"a port in words":      but("port", "ssh"),
		"tcp has no port":      but("kind", "tcp"),
		"idle in words":        but("idle", "long"),
		"idle below":           but("idle", "-1"),
		"idle of days":         but("idle", "1441"),
		"recording":            but("recording", "sometimes"),
		"a number as a name":   but("name", "17"),
		"the box's name":       but("name", consoletest.Name),
		"forced for a port":    but("kind", "tcp", "port", "5432", "recording", "forced"),
		"no recording":         but("recording", ""),
	} {
		p := d.Send("/targets/new", fields...)
		if p.Status != 422 || !strings.Contains(p.Body, `role="alert"`) {
			t.Errorf("%s: %d %s", name, p.Status, p.Path)
		}
	}
	for _, path := range []string{"/targets/edit", "/targets/credential", "/targets/host-key", "/targets/remove"} {
		for _, id := range []string{"", "x", "-1", "77", "1e1"} {
			if p := d.Open(path + "?id=" + id); p.Status != 403 {
				t.Errorf("GET %s of %q: %d", path, id, p.Status)
			}
			if p := d.Send(path, but("id", id)...); p.Status != 403 {
				t.Errorf("POST %s of %q: %d", path, id, p.Status)
			}
		}
	}
	for _, path := range []string{"/targets/edit", "/targets/remove", "/targets/credential", "/targets/host-key"} {
		if p := d.Open(path + "?id=0"); p.Status != 403 {
			t.Errorf("%s of the box itself: %d", path, p.Status)
		}
	}
	for _, path := range []string{"/targets/edit", "/targets/remove"} {
		if p := d.Send(path, but("id", "0")...); p.Status != 403 {
			t.Errorf("%s of the box itself: %d", path, p.Status)
		}
	}
	if list, err := d.Real.Targets(t.Context()); err != nil || len(list) != 2 || list[1].Name != "nas" {
		t.Errorf("something was done: %+v %v", list, err)
	}
	if n := len(d.Recorded()); n != 1 {
		t.Errorf("%d events, want the one of the target that is there", n)
	}
}

func TestSES5_TargetsAreManagedByWhoMay(t *testing.T) {
	b := consoletest.AtWork(t, time.Now())
	d := desk(t, b)
	d.As(right.Technician)
	p := d.Open("/targets")
	if p.Status != 200 || !strings.Contains(p.Body, "/sessions/terminal?target=1") {
		t.Fatalf("a technician sees no target to open: %d", p.Status)
	}
	for id, want := range map[string]bool{"0": true, "1": true, "2": false} { // allowed, allowed, forced
		if got := strings.Contains(p.Body, "/sessions/terminal?target="+id+"&amp;record=1"); got != want {
			t.Errorf("target %s can be opened recorded: %v", id, got)
		}
	}
	for _, word := range []string{"/targets/new", "/targets/edit", "/targets/credential", "/targets/host-key", "/targets/remove"} {
		if strings.Contains(p.Body, word) {
			t.Errorf("a technician is shown %s", word)
		}
		if p := d.Open(word + "?id=1"); p.Status != 403 {
			t.Errorf("a technician opens %s: %d", word, p.Status)
		}
		if p := d.Send(word, but("id", "1", "user", "x", "password", "y")...); p.Status != 403 {
			t.Errorf("a technician sends %s: %d", word, p.Status)
		}
	}
	d.As(right.Viewer)
	if p := d.Open("/targets"); p.Status != 403 {
		t.Errorf("a viewer sees the targets: %d", p.Status)
	}
	if len(b.Asked) != 0 {
		t.Errorf("something was done: %q", b.Asked)
	}
}

func TestSES5_TargetIsDeclaredChangedRemoved(t *testing.T) {
	if p := desk(t, consoletest.NewBroker()).Open("/targets"); !strings.Contains(p.Body, "What a target is") {
		t.Error("the empty list does not say what a target is")
	}
	d := whole(t)
	second := func() api.Target {
		list, err := d.Real.Targets(t.Context())
		if err != nil || len(list) != 2 {
			t.Fatalf("%+v %v", list, err)
		}
		return list[1]
	}
	if got, want := second(), (session.Target{Name: "nas", Kind: session.SSH, Host: "192.168.1.20", Port: 22}); got.Target != want || got.Recording != session.RecordingAllowed || got.Idle != 30 {
		t.Fatalf("%+v", got)
	}
	id := strconv.FormatInt(second().ID, 10)
	if p := d.Send("/targets/edit", but("id", id, "kind", "tcp", "host", "DB.lan", "port", "5432", "recording", "off", "idle", "0")...); p.Path != "/targets" || !strings.Contains(p.Body, "The target was stored") {
		t.Fatalf("%d\n%s", p.Status, p.Body)
	}
	if got, want := second(), (session.Target{Name: "door", Kind: session.TCP, Host: "db.lan", Port: 5432}); got.Target != want || got.Recording != session.RecordingOff || got.Idle != 0 {
		t.Fatalf("%+v", got)
	}
	if p := d.Open("/targets"); !strings.Contains(p.Body, "gatehouse connect door --forward 5432") || strings.Contains(p.Body, "What a target is") {
		t.Error("the list does not say how it is opened")
	}
	if p := d.Open("/targets/remove?id=" + id); p.Status != 200 || !strings.Contains(p.Body, "What is lost") {
		t.Errorf("asking: %d", p.Status)
	}
	second() // asking removes nothing
	if p := d.Send("/targets/remove", "id", id); p.Path != "/targets" {
		t.Errorf("removing: %d", p.Status)
	}
	if list, err := d.Real.Targets(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("%+v %v", list, err)
	}
	var did []string
	for _, e := range d.Recorded() {
		did = append(did, e.Action+" "+e.Object+" by "+e.Actor+" from "+e.From)
	}
	want := []string{"declare target nas", "change target door", "remove target door"}
	for i := range want {
		want[i] += " by ada@example.org from 127.0.0.1"
	}
	if !slices.Equal(did, want) {
		t.Errorf("the audit log has %q", did)
	}
}

func TestSES5_CredentialGoesInAndNeverOut(t *testing.T) {
	b := consoletest.AtWork(t, time.Now())
	d := desk(t, b)
	const key = "-----BEGIN OPENSSH PRIVATE KEY-----\r\nc2VjcmV0\r\n-----END OPENSSH PRIVATE KEY-----\r\n"
	for name, fields := range map[string][]string{
		"no user":   {"id", "2", "user", "", "password", "tiger-mosaic-9"},
		"no secret": {"id", "2", "user", "grace", "password", ""},
		"both":      {"id", "2", "user", "grace", "password", "tiger-mosaic-9", "private-key", key},
	} {
		p := d.Send("/targets/credential", fields...)
		if p.Status != 422 || strings.Contains(p.Body, "tiger-mosaic-9") || strings.Contains(p.Body, "c2VjcmV0") {
			t.Errorf("%s: %d, or the secret comes back", name, p.Status)
		}
	}
	if p := d.Send("/targets/credential", "id", "3", "user", "x", "password", "y"); p.Status != 403 {
		t.Errorf("for a web page: %d", p.Status)
	}
	if len(b.Kept) != 0 {
		t.Fatalf("kept: %+v", b.Kept)
	}
	if p := d.Send("/targets/credential", "id", "2", "user", " grace ", "password", " tiger-mosaic-9 "); p.Path != "/targets" {
		t.Fatalf("%d\n%s", p.Status, p.Body)
	}
	if p := d.Send("/targets/credential", "id", "1", "user", "root", "private-key", key); p.Path != "/targets" {
		t.Fatalf("%d\n%s", p.Status, p.Body)
	}
	want := []api.CredentialSet{{ID: 2, User: "grace", Password: " tiger-mosaic-9 "},
		{ID: 1, User: "root", PrivateKey: strings.ReplaceAll(key, "\r\n", "\n")}}
	if len(b.Kept) != 2 || b.Kept[0] != want[0] || b.Kept[1] != want[1] {
		t.Errorf("kept %+v", b.Kept)
	}
	for _, path := range []string{"/targets", "/targets/credential?id=1", "/targets/credential?id=2", "/targets/edit?id=2"} {
		if p := d.Open(path); p.Status != 200 || strings.Contains(p.Body, "tiger-mosaic-9") || strings.Contains(p.Body, "c2VjcmV0") {
			t.Errorf("%s: %d, or it shows the secret", path, p.Status)
		}
	}
	if p := d.Send("/targets/credential", "id", "2", "do", "remove"); p.Path != "/targets" || !strings.Contains(p.Body, "The credential was removed") {
		t.Errorf("removing: %d %s", p.Status, p.Path)
	}
	if last := b.Kept[len(b.Kept)-1]; last != (api.CredentialSet{ID: 2}) {
		t.Errorf("removing set %+v", last)
	}
}

func TestSES5_HostKeyIsShownBeforeItIsForgotten(t *testing.T) {
	b := consoletest.AtWork(t, time.Now())
	d := desk(t, b)
	if p := d.Open("/targets/host-key?id=2"); p.Status != 403 {
		t.Errorf("none is pinned: %d", p.Status)
	}
	if p := d.Open("/targets/host-key?id=1"); !strings.Contains(p.Body, "SHA256:9jYqkF0mE1b2vJ8l1nYw4cSx7GfVd3m1o1Hh7eTzKfA") || len(b.Asked) != 0 {
		t.Errorf("the fingerprint is not shown, or was forgotten: %q", b.Asked)
	}
	if p := d.Send("/targets/host-key", "id", "1"); p.Path != "/targets" || len(b.Asked) != 1 || b.Asked[0] != "forget 1" {
		t.Errorf("%d %q", p.Status, b.Asked)
	}
}

func TestSES4_CommandsArePastedSafely(t *testing.T) {
	b := consoletest.NewBroker()
	b.Put(api.Target{ID: 1, Target: session.Target{Name: "a'; rm -rf ~ #", Kind: session.HTTP, Host: "a", Port: 80}},
		api.Target{ID: 2, Target: session.Target{Name: "--help", Kind: session.VNC, Host: "a", Port: 5900}})
	body := desk(t, b).Open("/targets").Body
	for _, want := range []string{`gatehouse open &#39;a&#39;\&#39;&#39;; rm -rf ~ #&#39;`, `gatehouse connect &#39;--help&#39; --forward 5900`} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s", want)
		}
	}
}
