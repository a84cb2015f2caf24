package console

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/control"
	"gatehouse/appliance/session/api"
)

// board is what who is in a session is told; want nil: nothing.
func board(t *testing.T, br *consoletest.Browser, want func(*api.Notice) bool) {
	t.Helper()
	var got api.NoticeBoard
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		p := br.Open(api.NoticePath)
		if p.Status != 200 {
			t.Fatalf("%d %s", p.Status, p.Body)
		}
		got = api.NoticeBoard{}
		if err := json.Unmarshal([]byte(p.Body), &got); err != nil {
			t.Fatal(err)
		}
		if want == nil && got.Notice == nil || want != nil && got.Notice != nil && want(got.Notice) {
			return
		}
	}
	t.Errorf("the board says %+v", got.Notice)
}

// TestSES7_PagesLeavePeopleTheirGrace has the box restarted in five minutes from
// each page that can, and reads what people in sessions are told.
func TestSES7_PagesLeavePeopleTheirGrace(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	board(t, br, nil)
	soon := func(text string) func(*api.Notice) bool {
		return func(n *api.Notice) bool {
			left := time.Until(n.At)
			return n.Text == text && left > control.Grace-time.Minute && left <= control.Grace
		}
	}
	if p := br.Send("/system/restart", "when", "never"); p.Status != 403 {
		t.Errorf("taken back, and nothing was to come: %d", p.Status)
	}
	for _, c := range []struct{ path, text, page string }{
		{"/system/restart", "the box restarts", "The box restarts"},
		{"/system/off", "the box is switched off", "The box is switched off"},
	} {
		p := br.Send(c.path, "when", "later")
		if p.Path != "/system" || !strings.Contains(p.Body, c.page) || len(b.Powered()) != 0 {
			t.Fatalf("%s: %s, %v\n%s", c.path, p.Path, b.Powered(), p.Body)
		}
		board(t, br, soon(c.text))
		if p := br.Open("/sessions"); !strings.Contains(p.Body, c.text) {
			t.Errorf("the page Sessions does not say it:\n%s", p.Body)
		}
	}
	if p := br.Send("/system/restart", "when", "never"); p.Path != "/system" || strings.Contains(p.Body, "switched off") {
		t.Errorf("taken back:\n%s", p.Body)
	}
	board(t, br, nil)
	if p := br.Send("/system/restart", "when", "now"); len(b.Powered()) != 1 {
		t.Errorf("at once: %v\n%s", b.Powered(), p.Body)
	}
}

// TestBOX4_AnUpdateLeavesPeopleTheirGrace is the same for a release.
func TestBOX4_AnUpdateLeavesPeopleTheirGrace(t *testing.T) {
	b, br, r := withSystems(t)
	if p := bring(t, br, "/system/updates/bring", r.Bundle("0.2.0", 100_000)); !strings.Contains(p.Body, "is here, and verified") {
		t.Fatalf("%d\n%s", p.Status, p.Body)
	}
	if p := br.SendJSON("/api/v1/update/start", `{"wait":true,"later":true}`); p.Status != 403 {
		t.Errorf("at the window and in five minutes: %d", p.Status)
	}
	if p := br.Send("/system/updates/start", "when", "later"); p.Path != "/system/updates" || !strings.Contains(p.Body, "Version 0.2.0 starts") {
		t.Fatalf("%s\n%s", p.Path, p.Body)
	}
	board(t, br, func(n *api.Notice) bool {
		left := time.Until(n.At)
		return n.Text == "the box restarts into version 0.2.0" && left > control.Grace-time.Minute && left <= control.Grace
	})
	if p := br.Open("/system"); !strings.Contains(p.Body, "restarts into version 0.2.0") || strings.Contains(p.Body, `value="never"`) {
		t.Errorf("the page System:\n%s", p.Body)
	}
	br.SendJSON("/api/v1/update/cancel", `{}`)
	board(t, br, nil)
	if b.Systems().Stage != control.UpdateIdle {
		t.Error("it still waits")
	}
}
