package hub

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"gatehouse/appliance/enroll"
	"gatehouse/appliance/enroll/attend"
)

// TestSES1_WhoGetsNoLine: the line tells of sessions and their credentials, so
// it is for a site that has proved itself on this connection, and for no other.
func TestSES1_WhoGetsNoLine(t *testing.T) {
	served := make(chan string, 1)
	w := newWorld(t, nil)
	w.hub.serve = func(_ context.Context, site string, c net.Conn, _ io.Reader) error {
		served <- site
		return c.Close()
	}
	// One connection for all: what is signed is for one.
	w.client.Transport.(*http.Transport).MaxConnsPerHost = 1
	ask := func(upgrade string, headers ...string) (int, string) {
		t.Helper()
		req, err := http.NewRequest("POST", w.srv.URL+attend.Path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range headers {
			req.Header.Add("Authorization", h)
		}
		if upgrade != "" {
			req.Header.Set("Connection", "Upgrade")
			req.Header.Set("Upgrade", upgrade)
		}
		resp, err := w.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode == http.StatusSwitchingProtocols {
			return resp.StatusCode, ""
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	sign := func(keys enroll.Keys, path string, ch enroll.Channel) string {
		return keys.Authorize(enroll.Request{Method: "POST", Path: path, Channel: ch}, w.clock.now(), nonce(t))
	}
	ch := w.channel()
	if code, text := ask(attend.Protocol, sign(w.keys, attend.Path, ch)); code != 409 {
		t.Errorf("not enrolled: %d %s", code, text)
	}
	ch = w.enrol()
	once := sign(w.keys, attend.Path, ch)
	for _, c := range []struct {
		name, upgrade string
		headers       []string
		code          int
		say           string
	}{
		{"unsigned", attend.Protocol, nil, 400, "malformed"},
		{"signed twice", attend.Protocol, []string{sign(w.keys, attend.Path, ch), sign(w.keys, attend.Path, ch)}, 400, "malformed"},
		{"by a stranger's key", attend.Protocol, []string{sign(keysOf(t, 2), attend.Path, ch)}, 403, "unknown-key"},
		{"for a report", attend.Protocol, []string{sign(w.keys, enroll.PathReport, ch)}, 403, "mac"},
		{"for another connection", attend.Protocol, []string{sign(w.keys, attend.Path, enroll.Channel{1})}, 403, "mac"},
		{"no switch", "", []string{once}, 400, "malformed"},
		{"again", attend.Protocol, []string{once}, 403, "replay"},
	} {
		if code, text := ask(c.upgrade, c.headers...); code != c.code || !strings.Contains(text, `"`+c.say+`"`) {
			t.Errorf("%s: %d %s", c.name, code, text)
		}
	}
	if code, text := ask("gatehouse-attend/2", sign(w.keys, attend.Path, w.channel())); code != 400 {
		t.Errorf("another protocol: %d %s", code, text)
	}
	select {
	case site := <-served:
		t.Fatalf("a line of %s was served", site)
	default:
	}
	if code, text := ask(attend.Protocol, sign(w.keys, attend.Path, w.channel())); code != 101 {
		t.Fatalf("a good one: %d %s", code, text)
	}
	if site := <-served; site != strings.Repeat("a", 32) {
		t.Errorf("the line is %s's", site)
	}
}
