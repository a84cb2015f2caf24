package intake

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/appliance/cert/certtest"
	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/control"
)

// slot takes pieces in order, as the one of a box does; what it makes of a
// manifest is the test's.
type slot struct {
	mu      sync.Mutex
	update  control.Update
	size    int64
	version string
	refuses error
	begun   []control.UpdateBegin
	started []control.UpdateStart
	content []byte
	whole   func() // as the last piece is written
}

func (s *slot) begin(_ context.Context, q control.UpdateBegin) (control.UpdateOffset, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begun = append(s.begun, q)
	if s.refuses != nil {
		return control.UpdateOffset{}, s.refuses
	}
	return control.UpdateOffset{Version: s.version, Size: s.size, Offset: int64(len(s.content))}, nil
}

func (s *slot) write(_ context.Context, q control.UpdateWrite) (control.UpdateOffset, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if q.Version != s.version || q.Offset != int64(len(s.content)) || len(q.Data) > control.MaxUpdateWrite || len(q.Data) == 0 {
		return control.UpdateOffset{}, invalid("a piece of %d bytes at %d does not fit", len(q.Data), q.Offset)
	}
	s.content = append(s.content, q.Data...)
	if int64(len(s.content)) == s.size {
		s.update.Stage, s.update.Transfer = control.UpdateReceived, &control.Transfer{Version: s.version, Size: s.size, Received: s.size, Actor: s.begun[len(s.begun)-1].Actor}
		if s.whole != nil {
			s.whole()
		}
	}
	return control.UpdateOffset{Version: s.version, Size: s.size, Offset: int64(len(s.content))}, nil
}

func (s *slot) got() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.content)
}

const size = 1 << 20

// place is a mirror and a box.
type place struct {
	*slot
	mirror           *Mirror
	intake           *Intake
	manifest, system []byte
	server           *httptest.Server
}

const systemName = "/m/gatehouse-0.2.0-" + runtime.GOARCH + ".efi"

func newPlace(t *testing.T, h http.HandlerFunc) *place {
	t.Helper()
	p := &place{slot: &slot{size: size, version: "0.2.0", update: control.Update{Newest: "0.1.0", Stage: control.UpdateIdle}}}
	p.manifest, p.system = consoletest.NewReleaser(t).Make("0.2.0", size)
	if h == nil {
		h = p.serve
	}
	p.server = httptest.NewServer(h)
	t.Cleanup(p.server.Close)
	p.update.Policy = control.UpdateSettings{Mirror: p.server.URL + "/m", Automatic: true, Window: "daily 02:00-04:00"}
	p.intake = New(Ports{Begin: p.begin, Write: p.write})
	p.mirror = NewMirror(p.intake, MirrorConfig{
		View: func(context.Context) (control.Update, error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.update, nil
		},
		Start: func(_ context.Context, q control.UpdateStart) error {
			p.started = append(p.started, q)
			return nil
		},
		Now: time.Now, Log: slog.New(slog.DiscardHandler),
	})
	return p
}

// serve is an honest mirror.
func (p *place) serve(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/m/release":
		w.Write(p.manifest)
	case systemName:
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(p.system))
	default:
		http.NotFound(w, r)
	}
}

// look asks without the waits of a box.
func (p *place) look(t *testing.T, w wish) (string, error) {
	t.Helper()
	f, err := newFolder(p.update.Policy, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	f.pause, f.slowest = time.Millisecond, 300*time.Millisecond
	return p.mirror.lookIn(t.Context(), f, p.update, w)
}

func TestUSE3_AHostileMirrorCostsLittle(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("the box asked another server")
	}))
	defer elsewhere.Close()
	var p *place
	onSystem := func(h http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == systemName {
				h(w, r)
				return
			}
			p.serve(w, r)
		}
	}
	endless := func(w http.ResponseWriter, r *http.Request) {
		b := bytes.Repeat([]byte("x"), 32<<10)
		for {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	}
	for name, c := range map[string]struct {
		h     http.HandlerFunc
		words string
	}{
		"an endless manifest": {endless, "more than 65536 bytes"},
		"elsewhere":           {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, http.StatusFound) }, "not followed"},
		"nothing":             {http.NotFound, "404"},
		"another document":    {func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") }, "malformed"},
		"an endless system":   {onSystem(endless), "goes on after the system"},
		"a longer system": {onSystem(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "9999999999")
		}), "9999999999"},
		"the system elsewhere": {onSystem(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL+systemName, http.StatusTemporaryRedirect)
		}), "not followed"},
		"a byte now and then": {onSystem(func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				w.Write([]byte("x"))
				w.(http.Flusher).Flush()
				time.Sleep(20 * time.Millisecond)
			}
		}), "sends less than 64 KiB"},
		"always cut": {onSystem(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(size))
			w.Write([]byte("xx"))
		}), "ends before"},
		"another range": {onSystem(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") == "" {
				w.Header().Set("Content-Length", fmt.Sprint(size))
				w.Write([]byte("xxx"))
				return
			}
			w.Header().Set("Content-Range", "bytes 0-99/100")
			w.WriteHeader(http.StatusPartialContent)
		}), "was asked for bytes 3-"},
		"compressed": {onSystem(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
				t.Error("it was asked to compress")
			}
			http.Error(w, "", http.StatusForbidden)
		}), "403"},
	} {
		p = newPlace(t, c.h)
		if c.h == nil {
			t.Fatal(name)
		}
		_, err := p.look(t, wish{by: system})
		if err == nil || !strings.Contains(err.Error(), c.words) || len(err.Error()) > 600 {
			t.Errorf("%s: %v, want %q", name, err, c.words)
		}
		if len(p.got()) >= size || len(p.started) > 0 {
			t.Errorf("%s: the system was taken", name)
		}
	}
}

func TestUSE3_AMirrorIsTakenFromAtTheWindow(t *testing.T) {
	p := newPlace(t, nil)
	offers, err := p.look(t, wish{by: system})
	if err != nil || offers != "0.2.0" || !bytes.Equal(p.got(), p.system) {
		t.Fatalf("%q, %v, %d bytes", offers, err, len(p.got()))
	}
	if len(p.started) != 1 || !p.started[0].Wait || p.started[0].Actor != "system" || len(p.begun) != 1 || !bytes.Equal(p.begun[0].Manifest, p.manifest) {
		t.Errorf("%+v %+v", p.started, p.begun)
	}
	// It waits for its window now: the next day changes nothing.
	p.update.Stage, p.update.Transfer = control.UpdateWaiting, &control.Transfer{Version: "0.2.0", Size: size, Received: size}
	if offers, err = p.look(t, wish{by: system}); err != nil || offers != "0.2.0" || len(p.begun) != 1 || len(p.started) != 1 {
		t.Errorf("%q, %v: it was offered again, or started", offers, err)
	}
	// Its trial ended without a reason: at the next window it has another one.
	p.update.Stage, p.update.Last = control.UpdateReceived, &control.Outcome{Version: "0.2.0"}
	if _, err = p.look(t, wish{by: system}); err != nil || len(p.begun) != 1 || len(p.started) != 2 {
		t.Errorf("%v: offered %d times, started %d times", err, len(p.begun), len(p.started))
	}
}

func TestUSE3_NothingComesByItselfUnlessAllowed(t *testing.T) {
	p := newPlace(t, nil)
	p.update.Policy.Automatic = false
	if offers, err := p.look(t, wish{by: system}); err != nil || offers != "0.2.0" || len(p.begun) > 0 {
		t.Fatalf("%q, %v, %d offered", offers, err, len(p.begun))
	}
	ada := control.By{Actor: "ada@example.org"}
	if _, err := p.look(t, wish{by: ada, receive: true}); err != nil || len(p.got()) != size || p.begun[0].By != ada || len(p.started) > 0 {
		t.Errorf("for a person: %v, %+v %+v", err, p.begun, p.started)
	}
	p.update.Policy.Automatic, p.update.Policy.Window = true, ""
	if _, err := p.look(t, wish{by: system}); err != nil || len(p.started) > 0 {
		t.Errorf("without a window: %v, started %v", err, p.started)
	}
}

// A transfer may take hours: what counts for the start is what the owner wants when
// it is over.
func TestUSE3_SettingsThatChangeMeanwhileCount(t *testing.T) {
	for name, change := range map[string]func(*control.Update){
		"the window is taken away": func(u *control.Update) { u.Policy.Window = "" },
		"automatic is off":         func(u *control.Update) { u.Policy.Automatic = false },
		"a person has it start":    func(u *control.Update) { u.Stage = control.UpdateWaiting },
		"another was brought":      func(u *control.Update) { u.Transfer.Version = "0.3.0" },
		"nothing":                  nil,
	} {
		p := newPlace(t, nil)
		p.whole = func() {
			if change != nil {
				change(&p.update)
			}
		}
		if _, err := p.look(t, wish{by: system}); err != nil || len(p.got()) != size || len(p.started) > 0 != (change == nil) {
			t.Errorf("%s: %v, %d bytes, started %+v", name, err, len(p.got()), p.started)
		}
	}
}

// A mirror may lag behind: what a person brought is not lost to it, and neither is
// something newer.
func TestUSE3_TheMirrorLeavesWhatAPersonBrought(t *testing.T) {
	const ada = "ada@example.org"
	ago := func(d time.Duration) time.Time { return time.Now().Add(-d) }
	failed := &control.Outcome{Version: "0.1.5"}
	for name, c := range map[string]struct {
		stage    string
		transfer control.Transfer
		last     *control.Outcome
		takes    bool
	}{
		"a newer one that waits":               {control.UpdateWaiting, control.Transfer{Version: "0.3.0", Actor: ada}, nil, false},
		"a newer one, received":                {control.UpdateReceived, control.Transfer{Version: "0.3.0", Actor: ada}, nil, false},
		"a newer one, by the mirror itself":    {control.UpdateReceived, control.Transfer{Version: "0.3.0", Actor: "system"}, nil, false},
		"an older one":                         {control.UpdateReceived, control.Transfer{Version: "0.1.5", Actor: ada}, nil, false},
		"one between two of its parts":         {control.UpdateReceiving, control.Transfer{Version: "0.3.0", Actor: ada, Changed: ago(time.Hour)}, nil, false},
		"the same between two of its parts":    {control.UpdateReceiving, control.Transfer{Version: "0.2.0", Actor: ada, Changed: ago(time.Hour)}, nil, false},
		"half of one that nobody sends on":     {control.UpdateReceiving, control.Transfer{Version: "0.3.0", Actor: ada, Changed: ago(25 * time.Hour)}, nil, true},
		"half of its own":                      {control.UpdateReceiving, control.Transfer{Version: "0.2.0", Actor: "system", Changed: ago(25 * time.Hour)}, nil, true},
		"an older one, by the mirror itself":   {control.UpdateReceived, control.Transfer{Version: "0.1.5", Actor: "system"}, nil, true},
		"an older one that went back":          {control.UpdateReceived, control.Transfer{Version: "0.1.5", Actor: ada}, failed, true},
		"one that went back and waits anew":    {control.UpdateWaiting, control.Transfer{Version: "0.1.5", Actor: ada}, failed, false},
		"a newer one that went back, as it is": {control.UpdateReceived, control.Transfer{Version: "0.3.0", Actor: ada}, &control.Outcome{Version: "0.3.0"}, false},
	} {
		for _, by := range []control.By{system, {Actor: ada}} { // who only looks has said nothing else
			p := newPlace(t, nil)
			p.update.Stage, p.update.Transfer, p.update.Last = c.stage, &c.transfer, c.last
			offers, err := p.look(t, wish{by: by})
			if err != nil || offers != "0.2.0" || len(p.begun) > 0 != c.takes || !c.takes && len(p.started) > 0 {
				t.Errorf("%s, for %s: %q, %v, offered %d times, started %d times", name, by.Actor, offers, err, len(p.begun), len(p.started))
			}
		}
		// To have it received is another thing.
		p := newPlace(t, nil)
		p.update.Stage, p.update.Transfer, p.update.Last = c.stage, &c.transfer, c.last
		if _, err := p.look(t, wish{by: control.By{Actor: ada}, receive: true}); err != nil || len(p.begun) != 1 {
			t.Errorf("%s, for a person: %v, offered %d times", name, err, len(p.begun))
		}
	}
}

func TestUSE3_WhatTheBoxHasIsNotAskedFor(t *testing.T) {
	for name, change := range map[string]func(*control.Update){
		"it runs":     func(u *control.Update) { u.Newest = "0.2.0" },
		"newer ran":   func(u *control.Update) { u.Newest = "1.0.0" },
		"it is bad":   func(u *control.Update) { u.Last = &control.Outcome{Version: "0.2.0", Explained: true} },
		"it is tried": func(u *control.Update) { u.Stage = control.UpdateTrial },
	} {
		p := newPlace(t, nil)
		change(&p.update)
		if _, err := p.look(t, wish{by: system}); err != nil || len(p.begun) > 0 {
			t.Errorf("%s: %v, %d offered", name, err, len(p.begun))
		}
	}
	p := newPlace(t, nil)
	p.update.Last = &control.Outcome{Version: "0.2.0", Explained: false}
	if _, err := p.look(t, wish{by: system}); err != nil || len(p.begun) != 1 {
		t.Errorf("an end that nothing explains: %v, %d offered", err, len(p.begun))
	}
	p = newPlace(t, nil)
	p.refuses = invalid("too few of the release keys have signed the manifest")
	if _, err := p.look(t, wish{by: system}); !errors.Is(err, p.refuses) || len(p.got()) > 0 {
		t.Errorf("refused by the box: %v", err)
	}
}

// Cuts in the middle of pieces; a server that knows ranges and one that does not.
func TestUSE3_AMirrorGoesOnWhereItWasCut(t *testing.T) {
	for _, ranges := range []bool{true, false} {
		var p *place
		cuts, asked := 0, []string(nil)
		p = newPlace(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != systemName {
				p.serve(w, r)
				return
			}
			asked = append(asked, r.Header.Get("Range"))
			if cuts++; cuts > 3 {
				if !ranges {
					r.Header.Del("Range")
				}
				p.serve(w, r)
				return
			}
			from := min(int64(len(p.got())), size)
			if from > 0 && ranges {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, size-1, size))
				w.Header().Set("Content-Length", fmt.Sprint(size-from))
				w.WriteHeader(http.StatusPartialContent)
				w.Write(p.system[from : from+100_001])
				return
			}
			w.Header().Set("Content-Length", fmt.Sprint(size))
			w.Write(p.system[:from+100_001])
		})
		if _, err := p.look(t, wish{by: system}); err != nil || !bytes.Equal(p.got(), p.system) {
			t.Errorf("with ranges %v: %v, %d bytes", ranges, err, len(p.got()))
		}
		if len(asked) != 4 || asked[0] != "" || asked[3] != "bytes=300003-" {
			t.Errorf("with ranges %v it was asked for %q", ranges, asked)
		}
	}
}

func TestUSE3_AddressesOfMirrors(t *testing.T) {
	for _, bad := range []string{"mirror.example.net", "ftp://x/", "file:///etc", "http:///x", "https://a@x/", "https://x/?a", "https://x/#a", "https:x", "https://x/" + strings.Repeat("a", 500), " https://x/", "https://[::1", "javascript:alert(1)"} {
		if CheckMirror(bad) == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	for _, good := range []string{"", "http://192.168.1.9/gatehouse", "https://mirror.example.net:8443/a/b/", "http://[fd00::1]/"} {
		if err := CheckMirror(good); err != nil {
			t.Error(err)
		}
	}
}

// A person goes before the mirror, and before another person.
func TestAPersonDoesNotWaitForTheMirror(t *testing.T) {
	began := make(chan struct{})
	var p *place
	p = newPlace(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != systemName {
			p.serve(w, r)
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(size))
		w.Write(p.system[:200_000])
		w.(http.Flusher).Flush()
		close(began)
		<-r.Context().Done()
	})
	ended := make(chan error, 1)
	go func() {
		_, err := p.look(t, wish{by: system})
		ended <- err
	}()
	<-began
	var file bytes.Buffer
	fmt.Fprintf(&file, "gatehouse update 1 %d\n%s%s", len(p.manifest), p.manifest, p.system)
	if _, err := p.intake.Bundle(t.Context(), control.By{Actor: "ada"}, false, Source{Reader: &file}); err != nil || !bytes.Equal(p.got(), p.system) {
		t.Errorf("the person: %v, %d bytes", err, len(p.got()))
	}
	if err := <-ended; err == nil {
		t.Error("the mirror was told that all is well")
	}
	_, end, err := p.intake.enter(t.Context(), nil, true)
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	p.update.Stage, p.update.Transfer = control.UpdateIdle, nil // it is another release that is sent
	if _, err := p.look(t, wish{by: system}); !errors.Is(err, errBusy) {
		t.Errorf("while a person sends: %v", err)
	}
}

// A mirror inside a closed network has a certificate of the owner's own authority.
func TestUSE3_AMirrorWithAnAuthorityOfItsOwn(t *testing.T) {
	p := newPlace(t, nil)
	p.server.Close()
	p.server = httptest.NewUnstartedServer(http.HandlerFunc(p.serve))
	p.server.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that are refused
	p.server.StartTLS()
	t.Cleanup(p.server.Close)
	p.update.Policy.Mirror = p.server.URL + "/m"
	own := authority(p.server.Certificate().Raw)
	other := authority(certtest.Self(t, func(c *x509.Certificate) { c.IsCA = true }).Leaf.Raw) // that nobody here asked
	for what, bad := range map[string]struct{ mirror, roots, words string }{
		"without the s":  {"http://mirror.example.org/m/", own, "begins with https://"},
		"for no mirror":  {"", own, "begins with https://"},
		"not PEM":        {p.update.Policy.Mirror, "trust me", "no certificate in the chain"},
		"a key":          {p.update.Policy.Mirror, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "only certificates"},
		"a damaged one":  {p.update.Policy.Mirror, strings.Replace(own, "MII", "AAA", 1), "reading certificate 1"},
		"more than fits": {p.update.Policy.Mirror, strings.Repeat(own, 1+control.MaxUpdateRoots/len(own)), "at most 24576"},
		"too many":       {p.update.Policy.Mirror, strings.Repeat(own, 7), "more than 6"},
	} {
		if err := Check(control.UpdateSettings{Mirror: bad.mirror, Roots: bad.roots}); err == nil || !strings.Contains(err.Error(), bad.words) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, roots := range map[string]string{"the public authorities": "", "another's": other} {
		p.update.Policy.Roots = roots
		if _, err := p.look(t, wish{by: system}); !errors.Is(err, errMirror) || !strings.Contains(err.Error(), "authority of your own") || len(p.got()) > 0 {
			t.Errorf("%s: %v", what, err)
		}
	}
	p.update.Policy.Roots = other + own
	if offers, err := p.look(t, wish{by: system}); err != nil || offers != "0.2.0" || !bytes.Equal(p.got(), p.system) {
		t.Errorf("its own: %q, %v, %d bytes", offers, err, len(p.got()))
	}
}

func authority(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
