package console

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/control"
	"gatehouse/appliance/setup/proof"
	"gatehouse/appliance/unlock"
)

// unlocker speaks to the unlock API over one connection, as the tool does.
type unlocker struct {
	*testing.T
	*http.Client
	url     string
	headers map[string]string
}

func (u *unlocker) ask(method string, body any, answer any) (status int, binding []byte) {
	u.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		u.Fatal(err)
	}
	req, err := http.NewRequestWithContext(u.Context(), method, u.url+"/api/v1/unlock", bytes.NewReader(b))
	if err != nil {
		u.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for k, v := range u.headers {
		req.Header.Set(k, v)
	}
	r, err := u.Do(req)
	if err != nil {
		u.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		u.Fatal(err)
	}
	if r.StatusCode == http.StatusOK {
		if err := json.Unmarshal(text, answer); err != nil {
			u.Fatal(err)
		}
	}
	if binding, err = proof.Binding(r.TLS); err != nil {
		u.Fatal(err)
	}
	return r.StatusCode, binding
}

func lockedBox(t *testing.T) (*consoletest.Box, func() *unlocker) {
	t.Helper()
	b := consoletest.Start(t, Run)
	b.Stop()
	b.Lock(true)
	b.Boot()
	return b, func() *unlocker {
		transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
		t.Cleanup(transport.CloseIdleConnections)
		return &unlocker{T: t, url: b.URL, Client: &http.Client{Transport: transport}}
	}
}

type unlockKey struct {
	Name  string   `json:"name"`
	Key   []byte   `json:"key"`
	Takes []string `json:"takes"`
}

// TestKEY8_UnlockIsNotForBrowsers nor for forms, and only over the connection that
// it was made for.
func TestKEY8_UnlockIsNotForBrowsers(t *testing.T) {
	b, dial := lockedBox(t)
	var k unlockKey
	u := dial()
	if status, _ := u.ask("GET", nil, &k); status != http.StatusForbidden {
		t.Errorf("where nothing opens the box: %d", status)
	}
	words, err := b.OfferUnlock(control.TakesRecovery)
	if err != nil {
		t.Fatal(err)
	}
	if p := b.Browser().Open("/"); strings.Contains(p.Body, words) || strings.Contains(p.Body, "<form") || !strings.Contains(p.Body, "gatehouse unlock") {
		t.Errorf("the page shows the words, has a form, or does not say how it is unlocked:\n%s", p.Body)
	}
	status, binding := u.ask("GET", nil, &k)
	if status != http.StatusOK || len(k.Key) == 0 || !slices.Equal(k.Takes, []string{control.TakesRecovery}) || k.Name != consoletest.Name {
		t.Fatalf("%d, %+v", status, k)
	}
	sealed, err := unlock.Seal(k.Key, binding, unlock.Secret{Kind: unlock.Recovery, Text: []byte("A-B")})
	if err != nil {
		t.Fatal(err)
	}
	question := map[string][]byte{"sealed": sealed}
	for name, headers := range map[string]map[string]string{
		"its own page":    {"Origin": u.url, "Sec-Fetch-Site": "same-origin"},
		"another page":    {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
		"typed":           {"Sec-Fetch-Site": "none"},
		"an old browser":  {"Origin": u.url},
		"a cookie":        {"Cookie": "a=b"},
		"a form":          {"Content-Type": "application/x-www-form-urlencoded"},
		"a form as text":  {"Content-Type": "text/plain"},
		"a form in parts": {"Content-Type": "multipart/form-data"},
	} {
		u.headers = headers
		if status, _ := u.ask("POST", question, nil); status != http.StatusForbidden {
			t.Errorf("%s: %d", name, status)
		}
	}
	u.headers = nil
	if status, _ := dial().ask("POST", question, nil); status != http.StatusForbidden {
		t.Errorf("over another connection: %d", status)
	}
	if status, _ := u.ask("POST", map[string][]byte{"recovery_key": []byte("A-B")}, nil); status != http.StatusForbidden {
		t.Errorf("a key in the clear: %d", status)
	}
	if by := b.Unlocked(); by != nil {
		t.Fatalf("it was opened by %q", by)
	}
	var done struct{ Name string }
	if status, _ := u.ask("POST", question, &done); status != http.StatusOK || done.Name != k.Name {
		t.Errorf("%d, %+v", status, done)
	}
	if by := b.Unlocked(); len(by) != 1 || !strings.HasPrefix(by[0], "A-B from ") || strings.HasSuffix(by[0], " ") {
		t.Errorf("it was opened by %q", by)
	}
}

func TestKEY8_TriesToUnlockAreBraked(t *testing.T) {
	b, dial := lockedBox(t)
	if _, err := b.OfferUnlock(control.TakesRecovery); err != nil {
		t.Fatal(err)
	}
	u, passed := dial(), 0
	var k unlockKey
	_, binding := u.ask("GET", nil, &k)
	for i := range 12 {
		sealed, err := unlock.Seal(k.Key, binding, unlock.Secret{Kind: unlock.Recovery, Text: fmt.Append(nil, i)})
		if err != nil {
			t.Fatal(err)
		}
		if status, _ := u.ask("POST", map[string][]byte{"sealed": sealed}, &k); status == http.StatusOK {
			passed++
		}
	}
	if passed < 6 || passed > 9 || len(b.Unlocked()) != passed {
		t.Errorf("%d of 12 tries came through, %d arrived; want about 6", passed, len(b.Unlocked()))
	}
}
