package console

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
	"gatehouse/appliance/setup/proof"
)

// prove gets a ticket as `gatehouse setup` does. The proof and its answer
// belong to one connection, so the client keeps to one.
func prove(t *testing.T, b *consoletest.Box, code proof.Code) (ticket string, p consoletest.Page) {
	t.Helper()
	br := b.Browser()
	p = br.Open("/api/v1/setup")
	var first struct {
		Name string
		Salt []byte
	}
	if err := json.Unmarshal([]byte(p.Body), &first); err != nil || first.Name != consoletest.Name {
		t.Fatalf("%v: %s", err, p.Body)
	}
	key := proof.Derive(code, [proof.SaltSize]byte(first.Salt))
	binding, err := proof.Binding(p.TLS)
	if err != nil {
		t.Fatal(err)
	}
	ours := proof.ClientProof(key, binding)
	body, _ := json.Marshal(map[string]any{"proof": ours[:]})
	p = br.SendJSON("/api/v1/setup/proof", string(body))
	var answer struct {
		Proof  []byte
		Ticket string
	}
	if err := json.Unmarshal([]byte(p.Body), &answer); err != nil {
		t.Fatalf("%v: %s", err, p.Body)
	}
	if p.Status == 200 && !proof.VerifyServer(key, binding, answer.Proof) {
		t.Error("the box's own proof is not right")
	}
	return answer.Ticket, p
}

func claimJSON(ticket, email string) string {
	b, _ := json.Marshal(map[string]string{"ticket": ticket, "name": "Ada", "email": email, "password": consoletest.Password})
	return string(b)
}

func TestACC1_ClaimOverTheChannel(t *testing.T) {
	b := consoletest.Start(t, Run)
	wrong, err := proof.ParseCode("0000-0000-0000")
	if err != nil {
		t.Fatal(err)
	}
	if ticket, p := prove(t, b, wrong); p.Status != 403 || ticket != "" || p.Header.Get("Content-Type") != "application/problem+json" || !strings.Contains(p.Body, "HDMI") {
		t.Errorf("a wrong code: %d %s", p.Status, p.Body)
	}
	ticket, p := prove(t, b, b.Code)
	if p.Status != 200 || ticket == "" {
		t.Fatalf("%d %s", p.Status, p.Body)
	}
	br := b.Browser()
	for _, body := range []string{"", "{}", claimJSON("", "ada@example.org"), claimJSON("x"+ticket, "ada@example.org"), claimJSON(ticket, "no address"), `{"ticket":"` + ticket + `","role":"owner"}`} {
		if p := br.SendJSON("/api/v1/setup/claim", body); p.Status != 403 {
			t.Errorf("%.60s: %d", body, p.Status)
		}
	}
	if p := br.SendJSON("/api/v1/setup/claim", claimJSON(ticket, "ada@example.org")); p.Status != 201 {
		t.Fatalf("%d %s", p.Status, p.Body)
	}
	if p := br.SendJSON("/api/v1/setup/claim", claimJSON(ticket, "eve@example.org")); p.Status != 404 {
		t.Errorf("a second claim: %d", p.Status)
	}
	if p := br.Send("/sign-in", "email", "ada@example.org", "password", consoletest.Password); p.Path != "/welcome/clock" {
		t.Errorf("the owner's first sign-in led to %s", p.Path)
	}
}

func TestACC1_AProofIsWorthNothingOnAnotherChannel(t *testing.T) {
	b := consoletest.Start(t, Run)
	victim, thief := b.Browser(), b.Browser()
	p := victim.Open("/api/v1/setup")
	var first struct{ Salt []byte }
	if err := json.Unmarshal([]byte(p.Body), &first); err != nil {
		t.Fatal(err)
	}
	binding, err := proof.Binding(p.TLS)
	if err != nil {
		t.Fatal(err)
	}
	stolen := proof.ClientProof(proof.Derive(b.Code, [proof.SaltSize]byte(first.Salt)), binding)
	body, _ := json.Marshal(map[string]any{"proof": stolen[:]})
	thief.Open("/api/v1/setup")
	if p := thief.SendJSON("/api/v1/setup/proof", string(body)); p.Status != 403 {
		t.Errorf("a proof of another channel: %d %s", p.Status, p.Body)
	}
}

func TestACC1_HundredClaimsOneOwner(t *testing.T) {
	b := consoletest.Start(t, Run)
	ticket, _ := prove(t, b, b.Code)
	other, _ := prove(t, b, b.Code)
	var won atomic.Int32
	var wg sync.WaitGroup
	for i := range 100 {
		br := b.Browser()
		wg.Go(func() {
			ticket := ticket
			if i%2 == 1 {
				ticket = other
			}
			if p := br.SendJSON("/api/v1/setup/claim", claimJSON(ticket, fmt.Sprintf("p%d@example.org", i))); p.Status == 201 {
				won.Add(1)
			} else if p.Status != 403 && p.Status != 404 && p.Status != 503 {
				t.Errorf("claim %d: %d %s", i, p.Status, p.Body)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d owners", won.Load())
	}
	if ready := b.Ready(); ready.Database != control.DatabaseClaimed {
		t.Errorf("the console reported %+v", ready)
	}
}

func TestACC1_PowerCutsAroundTheCommit(t *testing.T) {
	b := consoletest.Start(t, Run)
	b.FailCommit(errors.New("the TPM does not answer"))
	br := b.Browser()
	if p := br.Send("/setup", "claim-code", b.Code.String(), "name", "Ada", "email", "ada@example.org", "password", consoletest.Password); p.Status < 400 || strings.Contains(p.Body, consoletest.Password) {
		t.Errorf("a claim that was not committed: %d %s", p.Status, p.Path)
	}
	if b.State() != control.StateUnclaimed {
		t.Fatalf("the state is %s", b.State())
	}
	b.FailCommit(nil)
	b.Restart()
	br.Own(b) // the box can be claimed as if nothing had been

	// After the commit and before the database: what was pending is finished.
	b.Stop()
	pend(t, b)
	b.Boot()
	if b.State() != control.StateReady || b.Ready().Database != control.DatabaseClaimed {
		t.Errorf("%s, %+v", b.State(), b.Ready())
	}
	// Before the commit: discarded.
	b.Stop()
	pend(t, b)
	b.SetClaimed(false)
	b.Boot()
	if b.State() != control.StateUnclaimed || b.Ready().Database != control.DatabaseUnclaimed {
		t.Errorf("%s, %+v", b.State(), b.Ready())
	}
}

func TestACC1_DisagreementIsLocked(t *testing.T) {
	b := consoletest.Start(t, Run)
	b.Browser().Own(b)
	b.Stop()
	b.SetClaimed(false)
	b.Boot()
	lockedPage(t, b, "disagree")
	b.Stop()
	b.SetClaimed(true)
	if err := os.RemoveAll(filepath.Join(b.Dir, "console")); err != nil { // a copy from before the claim
		t.Fatal(err)
	}
	b.Boot()
	lockedPage(t, b, "disagree")
}

func lockedPage(t *testing.T, b *consoletest.Box, words string) {
	t.Helper()
	br := b.Browser()
	if p := br.Open("/"); p.Status != 200 || !strings.Contains(p.Body, "locked") || !strings.Contains(p.Body, words) || strings.Contains(p.Body, "<form") || strings.Contains(p.Body, "<input") {
		t.Errorf("%d\n%s", p.Status, p.Body)
	}
	if p := br.Open("/api/v1/status"); p.Body != `{"name":"`+consoletest.Name+`","state":"locked"}`+"\n" {
		t.Errorf("%s", p.Body)
	}
	for _, path := range []string{"/setup", "/sign-in", "/api/v1/setup", "/welcome/clock", "/system"} {
		if p := br.Open(path); p.Status != 404 {
			t.Errorf("%s: %d", path, p.Status)
		}
	}
}

func TestLockedForm(t *testing.T) {
	b := consoletest.Start(t, Run)
	before := b.Ready().Certificate.SHA256
	b.Stop()
	b.Lock(true)
	b.Boot()
	lockedPage(t, b, "PCR 7")
	if b.Ready().Certificate.SHA256 == before {
		t.Error("the locked box shows its own certificate")
	}
	b.Stop()
	b.Lock(false)
	b.Boot()
	if b.Ready().Certificate.SHA256 != before {
		t.Error("the certificate did not come back")
	}
}

func TestADamagedDatabaseIsLockedAndKept(t *testing.T) {
	b := consoletest.Start(t, Run)
	b.Browser().Own(b)
	b.Stop()
	path := filepath.Join(b.Dir, "console", databaseFile)
	garbage := strings.Repeat("damaged ", 4096)
	if err := os.WriteFile(path, []byte(garbage), 0o600); err != nil {
		t.Fatal(err)
	}
	b.Boot()
	lockedPage(t, b, "not a database")
	b.Stop()
	if after, _ := os.ReadFile(path); string(after) != garbage {
		t.Error("the damaged file was changed")
	}
	b.Boot()
}

// variants are spellings of a path that some server somewhere takes for it.
func variants(path string) []string {
	last := path[strings.LastIndex(path, "/")+1:]
	list := []string{
		path + "/", path + "//", "/" + path, "//x" + path, "/." + path, "/x/.." + path, path + "/.", path + "/..", path + "/../" + last,
		path + "%2f", path + "%2F", path + "%00", path + "%20", path + "%09", path + "%0a", path + ".", path + ";", path + ";x=1", path + "%3b", path + "%3f", path + "%23",
		"/%2e" + path, "/%2e%2e" + path, "%2f" + path[1:], "/%2f" + path[1:], path + ".html", path + ".json", path + "\\", "/\\" + path[1:],
		strings.ToUpper(path), "/" + strings.ToUpper(path[1:2]) + path[2:], strings.ReplaceAll(path, "/", "//"), strings.ReplaceAll(path, "/", "/./"),
		"/%" + fmt.Sprintf("%02x", path[1]) + path[2:], "/%25" + fmt.Sprintf("%02x", path[1]) + path[2:], path[:len(path)-1], path + "x", path + "?x", path + "?ticket=x",
		"/assets/.." + path, "/assets/../" + path, "/api/v1/status/.." + path, "/welcome" + path, "/sign-in/.." + path,
	}
	return append(list, path)
}

func TestACC1_SetupIsGoneAfterTheClaim(t *testing.T) {
	b := consoletest.Start(t, Run)
	b.Browser().Own(b)
	s := &console{box: testBox(), identity: b.Ready().Certificate}
	router := readyRouter(t, s)
	methods := []string{"GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "PROPFIND"}
	for _, path := range []string{"/setup", "/api/v1/setup", "/api/v1/setup/proof", "/api/v1/setup/claim"} {
		tried := 0
		for _, v := range variants(path) {
			for _, m := range methods {
				u, err := url.Parse("https://192.168.1.40" + v)
				if err != nil {
					u = &url.URL{Scheme: "https", Host: "192.168.1.40", Path: v}
				}
				r := httptest.NewRequest("GET", "/", strings.NewReader(claimJSON("x", "eve@example.org")))
				r.Method, r.URL, r.Host, r.TLS = m, u, "192.168.1.40", &tls.ConnectionState{}
				w := httptest.NewRecorder()
				router.ServeHTTP(w, r)
				if w.Code != http.StatusNotFound {
					t.Errorf("%s %s: %d", m, v, w.Code)
				}
				tried++
			}
		}
		if tried < 200 {
			t.Errorf("%s: only %d variants", path, tried)
		}
	}
	// And over the wire, for what a client can send.
	br := b.Browser()
	for _, path := range []string{"/setup", "/setup/", "//setup", "/api/v1/setup", "/api/v1/setup/claim"} {
		for _, p := range []consoletest.Page{br.Open(path), br.Send(path, "claim-code", b.Code.String()), br.SendJSON(path, claimJSON("x", "eve@example.org"))} {
			if p.Status != 404 {
				t.Errorf("%s: %d", path, p.Status)
			}
		}
	}
	if owner := b.Ready().Owner; owner != "ada@example.org" {
		t.Errorf("the owner is %s", owner)
	}
}

func readyRouter(t *testing.T, s *console) http.Handler {
	t.Helper()
	var table []shell.Route
	for _, r := range wholeTable(t) {
		table = append(table, r)
	}
	rows := make(map[string]shell.Route)
	for _, r := range table {
		rows[fmt.Sprint(r.States, r.Method, r.Path)] = r
	}
	table = table[:0]
	for _, r := range rows {
		table = append(table, r)
	}
	router, err := shell.NewRouter(s.box, control.StateReady, table)
	if err != nil {
		t.Fatal(err)
	}
	return shell.Guard(s.box, []string{"gatehouse-7f3k"}, router)
}
