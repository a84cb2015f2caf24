package console

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/control"
)

// bring sends the form of the page with a file.
func bring(t *testing.T, br *consoletest.Browser, path string, bundle []byte, fields ...string) consoletest.Page {
	t.Helper()
	var b bytes.Buffer
	form := multipart.NewWriter(&b)
	for i := 0; i < len(fields); i += 2 {
		if err := form.WriteField(fields[i], fields[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	part, err := form.CreateFormFile("bundle", "gatehouse.update")
	if err != nil {
		t.Fatal(err)
	}
	part.Write(bundle)
	form.Close()
	return send(t, br, path, form.FormDataContentType(), &b)
}

func send(t *testing.T, br *consoletest.Browser, path, kind string, body io.Reader) consoletest.Page {
	t.Helper()
	resp, err := br.Post(br.URL+path, kind, body)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return consoletest.Page{Status: resp.StatusCode, Path: resp.Request.URL.Path, Body: string(b), Header: resp.Header}
}

const octets = "application/octet-stream"

func withSystems(t *testing.T) (*consoletest.Box, *consoletest.Browser, *consoletest.Releaser) {
	t.Helper()
	b, br := consoletest.Owned(t, Run)
	r := consoletest.NewReleaser(t)
	b.GiveSystems(r)
	return b, br, r
}

// Refusals stand beside the form, in words, and nothing of them is in the slot.
func TestUSE3_BundlesThatAreRefusedSayWhy(t *testing.T) {
	b, br, r := withSystems(t)
	good := r.Bundle("0.2.0", 300_000)
	other := consoletest.NewReleaser(t).Bundle("0.2.0", 300_000)
	changed := bytes.Clone(good)
	changed[len(changed)-5] ^= 1
	for name, c := range map[string]struct {
		bundle []byte
		words  string
	}{
		"nothing":            {nil, "not a Gatehouse update"},
		"another file":       {bytes.Repeat([]byte("PK"), 200_000), "whose name ends in .update"},
		"another’s key":      {other, "too few of the release keys"},
		"older":              {r.Bundle("0.0.9", 1000), "older"},
		"cut in the note":    {good[:100], "ends within its manifest"},
		"cut in the system":  {good[:len(good)-70_000], "was not copied as a whole"},
		"a byte changed":     {changed, "SHA-256"},
		"a byte more":        {append(bytes.Clone(good), 'x'), "goes on after the system"},
		"endless after that": {append(bytes.Clone(good), make([]byte, 3<<20)...), "goes on after the system"},
	} {
		p := bring(t, br, "/system/updates/bring", c.bundle)
		if p.Status != 422 || !strings.Contains(p.Body, c.words) || !strings.Contains(p.Body, `role="alert"`) || !strings.Contains(p.Body, `type="file"`) {
			t.Errorf("%s: %d, want the form with %q:\n%s", name, p.Status, c.words, p.Body)
		}
		if p := send(t, br, "/api/v1/update", octets, bytes.NewReader(c.bundle)); p.Status != 403 || !strings.Contains(p.Body, strings.ReplaceAll(c.words, "’", "'")) || p.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s by the API: %d %s", name, p.Status, p.Body)
		}
		if u := b.Systems(); u.Stage == control.UpdateReceived {
			t.Fatalf("%s: it was received", name)
		}
		br.Send("/system/updates/cancel")
	}
	if p := br.Send("/system/updates/bring", "bundle", "x"); p.Status != 422 || !strings.Contains(p.Body, "Choose the file") {
		t.Errorf("a form without a file: %d", p.Status)
	}
	big := io.LimitReader(zeros{}, 70<<20)
	if p := send(t, br, "/api/v1/update", octets, io.MultiReader(bytes.NewReader(good[:len(good)-10]), big)); p.Status/100 != 4 {
		t.Errorf("more than a slot: %d", p.Status)
	}
	if len(b.Powered()) != 0 {
		t.Error("it restarted")
	}
}

// A file that was not copied as a whole is known by its length, before anything makes
// room for it.
func TestBOX4_AShortFileLeavesWhatIsThere(t *testing.T) {
	b, br, r := withSystems(t)
	if p := bring(t, br, "/system/updates/bring", r.Bundle("0.2.0", 300_000)); p.Path != "/system/updates" {
		t.Fatalf("%d %s", p.Status, p.Path)
	}
	newer := r.Bundle("0.3.0", 300_000)
	for _, lacks := range []int{1000, 299_999, 300_000} {
		short := newer[:len(newer)-lacks]
		if p := bring(t, br, "/system/updates/bring", short, "again", "yes"); p.Status != 422 || !strings.Contains(p.Body, "was not copied as a whole") || !strings.Contains(p.Body, "what the box has stays") {
			t.Errorf("%d bytes less: %d\n%s", lacks, p.Status, p.Body)
		}
		if p := send(t, br, "/api/v1/update", octets, bytes.NewReader(short)); p.Status != 403 || !strings.Contains(p.Body, "was not copied as a whole") {
			t.Errorf("%d bytes less, by the API: %d %s", lacks, p.Status, p.Body)
		}
		if u := b.Systems(); u.Stage != control.UpdateReceived || u.Transfer.Version != "0.2.0" {
			t.Fatalf("%d bytes less: %s %+v", lacks, u.Stage, u.Transfer)
		}
	}
	if p := send(t, br, "/api/v1/update", octets, bytes.NewReader(newer[:len(newer)-1])); p.Status != 403 || b.Systems().Transfer.Version != "0.2.0" {
		t.Errorf("a byte less: %d, %+v", p.Status, b.Systems().Transfer)
	}
	if p := bring(t, br, "/system/updates/bring", newer); p.Path != "/system/updates" || b.Systems().Transfer.Version != "0.3.0" {
		t.Errorf("the whole: %d %s", p.Status, p.Path)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// A whole update on the page, without a script: sent, started, on trial, kept.
func TestUSE3_AnUpdateFromThePage(t *testing.T) {
	b, br, r := withSystems(t)
	if p := br.Open("/system"); !strings.Contains(p.Body, `href="/system/updates"`) {
		t.Error("the page System does not lead to the updates")
	}
	p := br.Open("/system/updates")
	if !strings.Contains(p.Body, "Version 0.1.0&#43;test runs") || !strings.Contains(p.Body, "1 of 1: ada") || !strings.Contains(p.Body, "no other system to go back to") {
		t.Errorf("at rest:\n%s", p.Body)
	}
	if p := br.Open("/system/updates/start"); p.Path != "/system/updates" {
		t.Errorf("nothing was received, and it can be started: %s", p.Path)
	}
	const size = 2<<20 + 17
	p = bring(t, br, "/system/updates/bring", r.Bundle("0.2.0", size))
	if p.Path != "/system/updates" || !strings.Contains(p.Body, "Version 0.2.0 is here, and verified") {
		t.Fatalf("%d %s\n%s", p.Status, p.Path, p.Body)
	}
	_, want := r.Make("0.2.0", size)
	if got, pieces := b.Received(); !bytes.Equal(got, want) || pieces != 33 {
		t.Errorf("the slot has %d bytes in %d pieces", len(got), pieces)
	}
	if p := br.Open("/"); !strings.Contains(p.Body, "version 0.2.0 waits to be started") {
		t.Error("Status does not say so")
	}
	if p := br.Open("/system/updates/start"); !strings.Contains(p.Body, "Nobody is in a session") || !strings.Contains(p.Body, "No window is set") {
		t.Errorf("the question:\n%s", p.Body)
	}
	if p := br.Send("/system/updates/start", "when", "window"); p.Status != 422 || !strings.Contains(p.Body, "no window to wait for") {
		t.Errorf("at a window that is not there: %d", p.Status)
	}
	if p := br.Send("/system/updates/start", "when", "now"); p.Status != 200 || !strings.Contains(p.Body, "restarts into version 0.2.0") {
		t.Fatalf("%d\n%s", p.Status, p.Body)
	}
	p = br.Open("/system/updates")
	for _, word := range []string{"Version 0.2.0 is on trial", "443 answers since 20 s", "left out", "not yet", "There is nothing to do"} {
		if !strings.Contains(p.Body, word) {
			t.Errorf("on trial, without %q:\n%s", word, p.Body)
		}
	}
	if p := br.Send("/system/updates/cancel"); p.Status != 422 || !strings.Contains(p.Body, "goes back by a restart") {
		t.Errorf("cancelling a trial: %d", p.Status)
	}
	b.EndTrial(true, false, "all is as good as before")
	if p := br.Open("/"); !strings.Contains(p.Body, "version 0.2.0 was kept") {
		t.Error("Status does not say that it was kept")
	}
	if p := br.Open("/system/updates"); !strings.Contains(p.Body, "Version 0.2.0 runs") || !strings.Contains(p.Body, "kept. All is as good as before.") {
		t.Errorf("kept:\n%s", p.Body)
	}
	var seen []string
	for _, e := range b.Events() {
		if strings.HasPrefix(e.Event.Action, "update") {
			seen = append(seen, e.Event.Actor+" "+e.Event.Action)
		}
	}
	if got := strings.Join(seen, ", "); got != "ada@example.org update cancelled, ada@example.org update started, ada@example.org update offered" {
		t.Errorf("the audit log: %s", got)
	}
}

// A trial that went back: explained, and not.
func TestBOX4_ThePageSaysWhyItWentBack(t *testing.T) {
	b, br, r := withSystems(t)
	bundle := r.Bundle("0.2.0", 100_000)
	fail := func(explained bool, reason string) {
		t.Helper()
		if p := bring(t, br, "/system/updates/bring", bundle, "again", "yes"); p.Path != "/system/updates" {
			t.Fatalf("%d %s\n%s", p.Status, p.Path, p.Body)
		}
		br.Send("/system/updates/start", "when", "now")
		b.EndTrial(false, explained, reason)
	}
	fail(false, "it ended before it could say anything")
	p := br.Open("/system/updates")
	for _, word := range []string{"Version 0.2.0 went back to 0.1.0", "It ended before it could say anything.", "Try again …", "tried once", `href="/system/updates/start"`} {
		if !strings.Contains(p.Body, word) {
			t.Errorf("unexplained, without %q:\n%s", word, p.Body)
		}
	}
	if p := br.Open("/"); !strings.Contains(p.Body, "version 0.2.0 went back: it ended before") {
		t.Error("Status does not say so")
	}
	if p := br.Send("/system/updates/start", "when", "now"); p.Status != 200 || b.Systems().Stage != control.UpdateTrial {
		t.Fatalf("it cannot be tried again without being sent again: %d", p.Status)
	}
	b.EndTrial(false, false, "it ended before it could say anything")
	fail(true, "nothing answered on 443")
	p = br.Open("/system/updates")
	if !strings.Contains(p.Body, "not tried again unless you insist") || !strings.Contains(p.Body, "Nothing answered on 443.") {
		t.Errorf("explained:\n%s", p.Body)
	}
	if p := bring(t, br, "/system/updates/bring", bundle); p.Status != 422 || !strings.Contains(p.Body, "failed on this box") || !strings.Contains(p.Body, `name="again"`) {
		t.Errorf("it was taken again without a word: %d", p.Status)
	}
	if p := bring(t, br, "/system/updates/bring", bundle, "again", "yes"); p.Path != "/system/updates" {
		t.Errorf("it was not taken though its owner insists: %d", p.Status)
	}
}

// The API is the same in parts, which go on where they were cut.
func TestUSE3_PartsGoOnWhereTheyWereCut(t *testing.T) {
	b, br, r := withSystems(t)
	const size = 500_000
	manifest, system := r.Make("0.2.0", size)
	doc := func(p consoletest.Page, want int, v any) {
		t.Helper()
		if p.Status != want {
			t.Fatalf("%d %s", p.Status, p.Body)
		}
		if err := json.Unmarshal([]byte(p.Body), v); err != nil {
			t.Fatal(err)
		}
	}
	var at control.UpdateOffset
	part := func(from, to int64) consoletest.Page {
		return send(t, br, fmt.Sprintf("/api/v1/update/part?version=0.2.0&offset=%d", from), octets, bytes.NewReader(system[from:to]))
	}
	if p := part(0, 10); p.Status != 403 || !strings.Contains(p.Body, "not being received") {
		t.Errorf("a part of nothing: %d %s", p.Status, p.Body)
	}
	offer, err := json.Marshal(map[string]any{"manifest": manifest})
	if err != nil {
		t.Fatal(err)
	}
	doc(br.SendJSON("/api/v1/update/offer", string(offer)), 200, &at)
	if at.Version != "0.2.0" || at.Size != size || at.Offset != 0 {
		t.Fatalf("%+v", at)
	}
	doc(part(0, 70_001), 200, &at)
	if at.Offset != 70_001 {
		t.Fatalf("%+v", at)
	}
	for _, from := range []int64{0, 70_000, 70_002, 499_999} {
		if p := part(from, from+1); p.Status != 403 {
			t.Errorf("a part from %d, where 70001 are there: %d %s", from, p.Status, p.Body)
		}
	}
	for _, query := range []string{"", "?version=0.2.0", "?version=0.2.0&offset=-1", "?version=0.2.0&offset=x", "?version=0.2.0&offset=9999999", "?version=0.3.0&offset=70001"} {
		if p := send(t, br, "/api/v1/update/part"+query, octets, strings.NewReader("x")); p.Status != 403 {
			t.Errorf("%q: %d", query, p.Status)
		}
	}
	b.RefusePiece(errors.New("the disk is full"))
	if p := part(70_001, size); p.Status != 403 || !strings.Contains(p.Body, "disk is full") {
		t.Errorf("%d %s", p.Status, p.Body)
	}
	doc(br.SendJSON("/api/v1/update/offer", string(offer)), 200, &at)
	doc(part(at.Offset, size), 200, &at)
	if got, _ := b.Received(); at.Offset != size || !bytes.Equal(got, system) {
		t.Errorf("%+v", at)
	}
	var u struct {
		control.Update
		Sessions *int
	}
	doc(br.Open("/api/v1/update"), 200, &u)
	if u.Stage != control.UpdateReceived || u.Sessions == nil {
		t.Errorf("%+v", u)
	}
	doc(br.SendJSON("/api/v1/update/settings", `{"mirror":"http://192.0.2.1/m/","window":"Mon,Sun 02:00-04:00","automatic":true}`), 200, &u)
	if u.Policy.Window != "Mon,Sun 02:00-04:00" || !u.Policy.Automatic {
		t.Errorf("%+v", u.Policy)
	}
	doc(br.SendJSON("/api/v1/update/start", `{"wait":true}`), 200, &u)
	if u.Stage != control.UpdateWaiting || u.Restart == nil || !u.Restart.After(time.Now().Add(-time.Minute)) {
		t.Errorf("%+v", u)
	}
	if p := br.Open("/system/updates"); !strings.Contains(p.Body, "Version 0.2.0 starts") {
		t.Errorf("waiting:\n%s", p.Body)
	}
	doc(br.SendJSON("/api/v1/update/cancel", `{}`), 200, &u)
	if u.Stage != control.UpdateIdle {
		t.Errorf("%+v", u)
	}
	for _, bad := range []string{`{"mirror":"ftp://x/"}`, `{"mirror":"https://a:b@x/"}`, `{"window":"sundays"}`, `{"automatic":true}`, `{"mirror":"https://x/?q"}`, `{"zone":"UTC"}`} {
		if p := br.SendJSON("/api/v1/update/settings", bad); p.Status != 403 {
			t.Errorf("%s: %d", bad, p.Status)
		}
	}
}

// To look what the mirror has costs nothing. To have it brought in, or one that failed
// tried again, is for who gave password and code a short while ago.
func TestBOX4_ReceivingFromTheMirrorAsksAnew(t *testing.T) {
	b, br, r := withSystems(t)
	manifest, system := r.Make("0.2.0", 100_000)
	mirror := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Path == "/release" {
			w.Write(manifest)
			return
		}
		w.Write(system)
	}))
	defer mirror.Close()
	b.SetSystems(func(u *control.Update) {
		u.Last = &control.Outcome{Version: "0.2.0", Explained: true, Reason: "nothing answered on 443"}
	})
	if p := br.Open("/system/updates/receive"); p.Path != "/system/updates" {
		t.Errorf("without a mirror: %s", p.Path)
	}
	if p := br.SendJSON("/api/v1/update/settings", fmt.Sprintf(`{"mirror":%q}`, mirror.URL)); p.Status != 200 {
		t.Fatalf("%d %s", p.Status, p.Body)
	}
	looked := func() control.MirrorState {
		t.Helper()
		for {
			var d control.UpdateView
			if err := json.Unmarshal([]byte(br.Open("/api/v1/update").Body), &d); err != nil {
				t.Fatal(err)
			}
			if !d.Mirror.Busy {
				return d.Mirror
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	br.Send("/system/updates/look", "receive", "yes", "again", "yes")
	m := looked()
	for _, body := range []string{`{"receive":true}`, `{"again":true}`, `{"receive":true,"again":true}`} {
		if p := br.SendJSON("/api/v1/update/look", body); p.Status != 403 || !strings.Contains(p.Body, "not the JSON") {
			t.Errorf("%s: %d %s", body, p.Status, p.Body)
		}
	}
	if m.Offers != "" || m.Looked.IsZero() || len(b.Offered()) > 0 {
		t.Errorf("looked: %+v, offered %d", m, len(b.Offered()))
	}
	if p := br.Open("/system/updates/receive"); !strings.Contains(p.Body, "Also version 0.2.0, which failed") || !strings.Contains(p.Body, "Nothing restarts before you say so") {
		t.Errorf("the question:\n%s", p.Body)
	}
	if p := br.Send("/system/updates/receive"); p.Path != "/system/updates" {
		t.Errorf("%d %s", p.Status, p.Path)
	}
	if looked(); len(b.Offered()) > 0 {
		t.Error("one that failed was brought in without a word")
	}
	if p := br.Send("/system/updates/receive", "again", "yes"); p.Path != "/system/updates" {
		t.Errorf("%d %s", p.Status, p.Path)
	}
	if m, got := looked(), b.Offered(); len(got) != 1 || !got[0].Again || got[0].Actor != "ada@example.org" || b.Systems().Stage != control.UpdateReceived {
		t.Errorf("insisted upon: %+v, %+v, %s", m, got, b.Systems().Stage)
	}
	br.SendJSON("/api/v1/update/cancel", `{}`)
	if p := br.SendJSON("/api/v1/update/receive", `{"again":true}`); p.Status != 200 {
		t.Errorf("%d %s", p.Status, p.Body)
	}
	if looked(); b.Systems().Stage != control.UpdateReceived {
		t.Errorf("by the API: %s", b.Systems().Stage)
	}
	for name, route := range wholeTable(t) {
		if strings.HasSuffix(route.Path, "/receive") && !route.Fresh {
			t.Errorf("%s asks for no fresh sign-in", name)
		}
	}
}

// A transfer is seen from elsewhere while it runs, and a sender that is gone
// does not keep the next one out.
func TestUSE3_ProgressOutlivesThePage(t *testing.T) {
	_, br, r := withSystems(t)
	bundle := r.Bundle("0.2.0", 400_000)
	slow, write := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "POST", br.URL+"/api/v1/update", slow)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", octets)
	answered := make(chan int, 1)
	go func() {
		resp, err := br.Do(req)
		if err != nil {
			answered <- 0
			return
		}
		resp.Body.Close()
		answered <- resp.StatusCode
	}()
	if _, err := write.Write(bundle[:200_000]); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(br.Open("/system/updates/live").Body, "Version 0.2.0 is on its way into slot B") {
		time.Sleep(10 * time.Millisecond)
	}
	for !strings.Contains(br.Open("/system/updates/live?part=bar").Body, "Version 0.2.0") {
		time.Sleep(10 * time.Millisecond)
	}
	// The first one's connection is open and silent: the same file again takes over.
	if p := bring(t, br, "/system/updates/bring", bundle); p.Path != "/system/updates" || !strings.Contains(p.Body, "is here, and verified") {
		t.Fatalf("%d %s\n%s", p.Status, p.Path, p.Body)
	}
	if status := <-answered; status == 200 {
		t.Error("the one that was overtaken was told that all is well")
	}
	write.Close()
}

// A form has ten seconds, and its answer thirteen; an upload has them for each
// piece of its way.
func TestUSE3_ASlowUploadIsWaitedFor(t *testing.T) {
	t.Parallel() // both wait more than they work
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			b, br, r := withSystems(t)
			speak(br, protocol)
			bundle := r.Bundle("0.2.0", 400_000)
			resp, err := br.Post(br.URL+"/api/v1/update", octets, &trickle{bundle, len(bundle) / 14, time.Second})
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != 200 || resp.Proto != protocol || b.Systems().Stage != control.UpdateReceived {
				t.Errorf("%d by %s, stage %s", resp.StatusCode, resp.Proto, b.Systems().Stage)
			}
		})
	}
}

// An upload that falls silent is not told that all is well.
func TestUSE3_ASilentUploadIsRefused(t *testing.T) {
	t.Parallel() // both wait more than they work
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			b, br, r := withSystems(t)
			speak(br, protocol)
			br.Timeout = 2 * time.Minute
			bundle := r.Bundle("0.2.0", 400_000)
			rest, hold := io.Pipe()
			defer hold.Close()
			resp, err := br.Post(br.URL+"/api/v1/update", octets, io.MultiReader(bytes.NewReader(bundle[:200_000]), rest))
			if err != nil { // cut is right, too
				return
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if resp.StatusCode != 403 || !strings.Contains(string(body), "goes on from where it is") || err != nil {
				t.Errorf("%d by %s, stage %s: %s %v", resp.StatusCode, resp.Proto, b.Systems().Stage, body, err)
			}
		})
	}
}

// speak has a browser use a protocol.
func speak(br *consoletest.Browser, protocol string) {
	if protocol == "HTTP/1.1" {
		br.Transport = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}
	}
}

// trickle gives a piece each pause.
type trickle struct {
	rest  []byte
	piece int
	pause time.Duration
}

func (s *trickle) Read(b []byte) (int, error) {
	if len(s.rest) == 0 {
		return 0, io.EOF
	}
	time.Sleep(s.pause)
	n := copy(b[:min(len(b), s.piece)], s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// What is chosen at the set-up is what updates go by, in UTC, until it is chosen
// anew; a finer window of the settings is left alone.
func TestTheWindowOfTheSetUpCounts(t *testing.T) {
	b, br, _ := withSystems(t)
	place := func(site, zone, choice, want string) {
		t.Helper()
		if p := br.Send("/welcome/place", "site", site, "zone", zone, "window", choice); p.Path != "/" {
			t.Fatalf("%d %s", p.Status, p.Body)
		}
		if got := b.Systems().Policy.Window; got != want {
			t.Errorf("%s in %s: the window is %q, want %q", choice, zone, got, want)
		}
	}
	place("Here", "Asia/Tokyo", "weekend", "Fri,Sat 17:00-21:00")
	br.Send("/system/updates/settings", "window", "Tue 09:00-10:00")
	place("There", "Asia/Tokyo", "weekend", "Tue 09:00-10:00")
	place("There", "UTC", "weekend", "Sat,Sun 02:00-06:00")
	place("There", "UTC", "night", "daily 02:00-04:00")
	place("There", "UTC", "asked", "")
}

// A form of Gatehouse without systems of its own has the pages, and says so.
func TestHostedUpdatesSayWhereTheyCome(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	b.Host()
	for _, path := range []string{"/system/updates", "/system/updates/bring", "/system/updates/settings"} {
		if p := br.Open(path); p.Status != 200 || !strings.Contains(p.Body, "updated as its packages are") || strings.Contains(p.Body, "<form method=\"post\" enctype") {
			t.Errorf("%s: %d\n%s", path, p.Status, p.Body)
		}
	}
	if p := br.Open("/"); p.Status != 200 || strings.Contains(p.Body, "<dt>Updates") {
		t.Errorf("Status: %d", p.Status)
	}
	if p := br.Open("/api/v1/update"); p.Status != 403 || !strings.Contains(p.Body, "somebody else") {
		t.Errorf("the API: %d %s", p.Status, p.Body)
	}
}
