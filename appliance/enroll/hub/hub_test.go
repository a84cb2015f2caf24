package hub

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/appliance/enroll"
	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/enroll/report"
)

type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.t }
func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// world is a hub on TLS and what a site needs to speak to it by hand.
type world struct {
	t      *testing.T
	hub    *Hub
	srv    *httptest.Server
	client *http.Client
	keys   enroll.Keys
	clock  *clock
	device []byte
}

func newWorld(t *testing.T, store Store) *world {
	t.Helper()
	w := &world{t: t, keys: keysOf(t, 1), clock: &clock{t: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)}}
	if store == nil {
		store = Own(w.keys)
	}
	w.hub = New(store, nil, w.clock.now, slog.New(slog.DiscardHandler))
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+enroll.PathEnrol, w.hub.HandleEnrol)
	mux.HandleFunc("POST "+attend.Path, w.hub.HandleAttend)
	mux.HandleFunc("POST "+enroll.PathReport, w.hub.HandleReport)
	w.srv = httptest.NewTLSServer(mux)
	t.Cleanup(w.srv.Close)
	w.client = w.srv.Client()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if w.device, err = x509.MarshalPKIXPublicKey(key.Public()); err != nil {
		t.Fatal(err)
	}
	return w
}

func keysOf(t *testing.T, v byte) enroll.Keys {
	t.Helper()
	var k enroll.APIKey
	k[0] = v
	keys, err := k.Keys()
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func nonce(t *testing.T) enroll.Nonce {
	t.Helper()
	n, err := enroll.NewNonce(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// channel asks for the value of the connection that the client keeps open.
func (w *world) channel() enroll.Channel {
	w.t.Helper()
	resp, err := w.client.Get(w.srv.URL + "/")
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	ch, err := enroll.ChannelOf(resp.TLS)
	if err != nil {
		w.t.Fatal(err)
	}
	return ch
}

func (w *world) post(path string, body []byte, headers ...string) (int, string) {
	w.t.Helper()
	req, err := http.NewRequest("POST", w.srv.URL+path, bytes.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, h := range headers {
		req.Header.Add("Authorization", h)
	}
	resp, err := w.client.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func (w *world) message(keys enroll.Keys, ch enroll.Channel) (enroll.Enrol, []byte) {
	w.t.Helper()
	e := enroll.Enrol{Site: strings.Repeat("a", 32), Device: w.device, Time: w.clock.now(), Nonce: nonce(w.t), Channel: ch,
		Metadata: enroll.Metadata{Name: "gatehouse-7f3k"}}
	b, err := keys.SealEnrol(e)
	if err != nil {
		w.t.Fatal(err)
	}
	return e, b
}

func (w *world) enrol() enroll.Channel {
	w.t.Helper()
	ch := w.channel()
	e, b := w.message(w.keys, ch)
	status, answer := w.post(enroll.PathEnrol, b)
	if status != 200 {
		w.t.Fatalf("enrolling: %d %s", status, answer)
	}
	if a, err := w.keys.OpenAnswer([]byte(answer), e); err != nil || a.Interval != Interval {
		w.t.Fatalf("the answer: %+v, %v", a, err)
	}
	return ch
}

func code(body string) string {
	var f Refusal
	if json.Unmarshal([]byte(body), &f) != nil {
		return ""
	}
	return f.Code
}

func TestHUB2_EnrolRefusals(t *testing.T) {
	w := newWorld(t, nil)
	ch := w.channel()
	_, good := w.message(w.keys, ch)
	_, stranger := w.message(keysOf(t, 2), ch)
	impostorKeys := keysOf(t, 2)
	impostorKeys.ID = w.keys.ID
	_, impostor := w.message(impostorKeys, ch)
	other := ch
	other[0] ^= 1
	_, relayed := w.message(w.keys, other)
	w.clock.add(-301 * time.Second)
	_, late := w.message(w.keys, ch)
	w.clock.add(301 * time.Second)
	for _, c := range []struct {
		name   string
		body   []byte
		status int
		code   string
	}{
		{"nothing", nil, 400, "malformed"},
		{"HTML", []byte("<html>"), 400, "malformed"},
		{"too large", make([]byte, enroll.MaxMessage+1), 413, "too-large"},
		{"a stranger", stranger, 403, "unknown-key"},
		{"an impostor", impostor, 403, "mac"},
		{"relayed from another connection", relayed, 403, "channel"},
		{"an old one", late, 403, "clock"},
	} {
		if status, body := w.post(enroll.PathEnrol, c.body); status != c.status || code(body) != c.code {
			t.Errorf("%s: %d %s, want %d %s", c.name, status, body, c.status, c.code)
		}
	}
	if len(w.hub.Sites()) != 0 {
		t.Errorf("refused ones are shown as sites: %+v", w.hub.Sites())
	}
	if status, body := w.post(enroll.PathEnrol, good); status != 200 {
		t.Fatalf("a good one: %d %s", status, body)
	}
	if status, body := w.post(enroll.PathEnrol, good); status != 403 || code(body) != "replay" {
		t.Errorf("again: %d %s", status, body)
	}
}

type refusing struct{ Store }

func (refusing) Enrolled(context.Context, enroll.Enrol) error { return errors.New("the disk is full") }

func TestStoreFailureRefuses(t *testing.T) {
	w := newWorld(t, refusing{Own(keysOf(t, 1))})
	_, b := w.message(w.keys, w.channel())
	status, body := w.post(enroll.PathEnrol, b)
	if status != 500 || strings.Contains(body, "disk") || len(w.hub.Sites()) != 0 {
		t.Errorf("%d %s, sites %v: a failure inside is not the site's to read", status, body, w.hub.Sites())
	}
}

func TestHUB2_WithoutTLS(t *testing.T) {
	w := newWorld(t, nil)
	_, b := w.message(w.keys, enroll.Channel{})
	rec := httptest.NewRecorder()
	w.hub.HandleEnrol(rec, httptest.NewRequest("POST", enroll.PathEnrol, bytes.NewReader(b)))
	if rec.Code != 403 || code(rec.Body.String()) != "channel" {
		t.Errorf("in the clear: %d %s", rec.Code, rec.Body)
	}
}

func TestHUB2_ReportRefusals(t *testing.T) {
	w := newWorld(t, nil)
	health, err := json.Marshal(report.Report{Version: 1, Health: &report.Health{Uptime: 5}})
	if err != nil {
		t.Fatal(err)
	}
	ch := w.channel()
	sign := func(k enroll.Keys, body []byte, ch enroll.Channel) string {
		return k.Authorize(enroll.Request{Method: "POST", Path: enroll.PathReport, Body: body, Channel: ch}, w.clock.now(), nonce(t))
	}
	if status, body := w.post(enroll.PathReport, health, sign(w.keys, health, ch)); status != 409 || code(body) != "enrol-first" {
		t.Errorf("before enrolling: %d %s", status, body)
	}
	w.enrol()
	other := ch
	other[1] ^= 1
	bad := []byte(`{"version":1,"health":{"uptime":-5}}`)
	once := sign(w.keys, health, ch)
	for _, c := range []struct {
		name    string
		path    string
		body    []byte
		headers []string
		status  int
		code    string
	}{
		{"no header", "", health, nil, 400, "malformed"},
		{"two headers", "", health, []string{sign(w.keys, health, ch), sign(w.keys, health, ch)}, 400, "malformed"},
		{"basic", "", health, []string{"Basic YTpi"}, 400, "malformed"},
		{"a stranger", "", health, []string{sign(keysOf(t, 2), health, ch)}, 403, "unknown-key"},
		{"another body", "", bad, []string{sign(w.keys, health, ch)}, 403, "mac"},
		{"another connection", "", health, []string{sign(w.keys, health, other)}, 403, "mac"},
		{"a query", "?x=1", health, []string{sign(w.keys, health, ch)}, 403, "mac"},
		{"bad inside", "", bad, []string{sign(w.keys, bad, ch)}, 400, "malformed"},
		{"too large", "", make([]byte, report.MaxReport+1), []string{sign(w.keys, nil, ch)}, 413, "too-large"},
		{"good", "", health, []string{once}, 204, ""},
		{"again", "", health, []string{once}, 403, "replay"},
	} {
		status, body := w.post(enroll.PathReport+c.path, c.body, c.headers...)
		if status != c.status || code(body) != c.code {
			t.Errorf("%s: %d %s, want %d %s", c.name, status, body, c.status, c.code)
		}
	}
	if s := w.hub.Sites(); len(s) != 1 || s[0].Health == nil || s[0].Health.Uptime != 5 {
		t.Errorf("what is shown: %+v", s)
	}
}

func TestSitesShowsTheNewest(t *testing.T) {
	w := newWorld(t, nil)
	ch := w.enrol()
	send := func(r report.Report) {
		t.Helper()
		r.Version = 1
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		a := w.keys.Authorize(enroll.Request{Method: "POST", Path: enroll.PathReport, Body: b, Channel: ch}, w.clock.now(), nonce(t))
		if status, body := w.post(enroll.PathReport, b, a); status != 204 {
			t.Fatalf("%d %s", status, body)
		}
	}
	first := w.clock.now()
	send(report.Report{Inventory: &report.Inventory{Host: "a"}, Health: &report.Health{Uptime: 1}})
	w.clock.add(10 * time.Second)
	send(report.Report{Health: &report.Health{Uptime: 11}})
	s := w.hub.Sites()
	if len(s) != 1 {
		t.Fatalf("%d sites", len(s))
	}
	got := s[0]
	if got.ID != w.keys.ID || got.Metadata.Name != "gatehouse-7f3k" || got.Site != strings.Repeat("a", 32) || got.From == "" ||
		got.Inventory.Host != "a" || !got.InventoryAt.Equal(first) || got.Health.Uptime != 11 || !got.HealthAt.Equal(first.Add(10*time.Second)) {
		t.Errorf("%+v", got)
	}
	// Enrolling anew, as after a restart of the site, keeps what was reported.
	w.enrol()
	if s := w.hub.Sites(); len(s) != 1 || s[0].Health == nil {
		t.Errorf("after enrolling anew: %+v", s)
	}
}

// every is a Store that knows whoever asks; the test makes the keys.
type every map[enroll.ID]enroll.Keys

func (s every) Keys(_ context.Context, id enroll.ID) (enroll.Keys, error) { return s[id], nil }
func (every) Enrolled(context.Context, enroll.Enrol) error                { return nil }

func TestSitesAreBounded(t *testing.T) {
	store := every{}
	w := newWorld(t, store)
	ch := w.channel()
	for i := range maxSites + 1 {
		var k enroll.APIKey
		k[0], k[1], k[2] = byte(i), byte(i>>8), 7
		keys, err := k.Keys()
		if err != nil {
			t.Fatal(err)
		}
		store[keys.ID] = keys
		_, b := w.message(keys, ch)
		want := 200
		if i == maxSites {
			want = 500
		}
		if status, body := w.post(enroll.PathEnrol, b); status != want {
			t.Fatalf("site %d: %d %s, want %d", i, status, body, want)
		}
	}
	if len(w.hub.Sites()) != maxSites {
		t.Errorf("%d sites", len(w.hub.Sites()))
	}
}
