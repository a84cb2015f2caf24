package hosted

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base32"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/account/onetime"
	"gatehouse/appliance/control"
	"gatehouse/tests/netns"
)

const (
	boxAddress = "192.0.2.1"
	friend     = "192.0.2.2"
	stranger   = "192.0.2.3"
)

// lan is a box with a machine in its network that has several addresses.
type lan struct {
	*box
	machine *netns.Host
	jar     http.CookieJar
	secret  []byte // of ann's second factor
}

func newLAN(t *testing.T) *lan {
	t.Helper()
	l := &lan{box: newBox(t), machine: netns.New(t, "machine")}
	l.args = []string{"--https", ":443", "--http", ":80"}
	netns.Connect(t, l.host, "lan0", l.machine, "lan0")
	l.host.Up(t, "lan0", boxAddress+"/24")
	l.machine.Up(t, "lan0", friend+"/24", stranger+"/24")
	return l
}

// from is a browser at an address; all browsers share ann's cookies.
func (l *lan) from(address string, protocols ...string) *http.Client {
	tr := &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true, NextProtos: protocols},
		ForceAttemptHTTP2: len(protocols) == 0,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return l.dialFrom(address, patience)
		},
	}
	l.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Timeout: patience, Jar: l.jar, Transport: tr,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func (l *lan) dialFrom(address string, wait time.Duration) (conn net.Conn, err error) {
	d := net.Dialer{Timeout: wait, LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	l.machine.Do(l.T, func() error {
		conn, err = d.DialContext(l.Context(), "tcp", boxAddress+":443")
		return nil
	})
	return conn, err
}

// reaches says whether a new connection from the address is answered.
func (l *lan) reaches(address string) bool {
	conn, err := l.dialFrom(address, 1500*time.Millisecond)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

var secretIn = regexp.MustCompile(`secret=([A-Z2-7]{32})`)

// own claims the box and signs ann in, with a second factor.
func (l *lan) own() {
	l.Helper()
	l.start("unclaimed")
	l.claim()
	var err error
	if l.jar, err = cookiejar.New(nil); err != nil {
		l.Fatal(err)
	}
	c := l.from(friend)
	l.form(c, "/sign-in", "email", "ann@example.com", "password", password)
	_, page := l.open(c, "/welcome/factor")
	m := secretIn.FindStringSubmatch(html.UnescapeString(page))
	if m == nil {
		l.Fatalf("no second factor is offered:\n%s", page)
	}
	if l.secret, err = base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(m[1]); err != nil {
		l.Fatal(err)
	}
	l.form(c, "/welcome/factor", "code", onetime.Code(l.secret, onetime.Step(time.Now())-1))
	if code, page := l.open(c, "/allowlists"); code != 200 {
		l.Fatalf("the page answers %d:\n%s", code, page)
	}
}

func (l *lan) open(c *http.Client, path string) (int, string) {
	l.Helper()
	r, err := c.Get("https://" + boxAddress + path)
	if err != nil {
		l.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		l.Fatal(err)
	}
	return r.StatusCode, string(text)
}

func (l *lan) form(c *http.Client, path string, fields ...string) {
	l.Helper()
	f := url.Values{}
	for i := 0; i < len(fields); i += 2 {
		f.Set(fields[i], fields[i+1])
	}
	r, err := c.PostForm("https://"+boxAddress+path, f)
	if err != nil {
		l.Fatal(err)
	}
	defer r.Body.Close()
	if text, _ := io.ReadAll(r.Body); r.StatusCode >= 400 {
		l.Fatalf("%s answers %d:\n%s", path, r.StatusCode, text)
	}
}

func (l *lan) api(c *http.Client, path string, question, answer any) (int, string) {
	l.Helper()
	b, err := json.Marshal(question)
	if err != nil {
		l.Fatal(err)
	}
	r, err := c.Post("https://"+boxAddress+path, "application/json", bytes.NewReader(b))
	if err != nil {
		l.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		l.Fatal(err)
	}
	if answer != nil {
		if err := json.Unmarshal(text, answer); err != nil {
			l.Fatalf("%s answers %d %s: %v", path, r.StatusCode, text, err)
		}
	}
	return r.StatusCode, string(text)
}

type list struct {
	Name    string   `json:"name"`
	Enabled bool     `json:"enabled"`
	Scopes  []string `json:"scopes"`
	Text    string   `json:"text"`
}

// try proposes lists that are on, and gives the candidate.
func (l *lan) try(lists ...list) *control.Candidate {
	l.Helper()
	var r control.ListsReport
	code, text := l.api(l.from(friend), "/api/v1/allowlists/try", map[string]any{"document": map[string]any{"enabled": true, "lists": lists}}, &r)
	if code != 200 || r.Candidate == nil {
		l.Fatalf("trying lists answers %d %s\n%s", code, text, l.output())
	}
	return r.Candidate
}

func office(text string) list { return list{"office", true, []string{"console"}, text} }

// endsSoon says how long an idle connection lives on.
func endsSoon(c net.Conn) chan time.Time {
	ended := make(chan time.Time, 1)
	go func() {
		io.Copy(io.Discard, c)
		ended <- time.Now()
	}()
	return ended
}

// TestNET2_ListsInForce walks the whole: listed and served, unlisted and
// dropped in the kernel, cut off at once, taken back when nobody keeps it, kept
// only over a new connection, there again after a power cut.
func TestNET2_ListsInForce(t *testing.T) {
	l := newLAN(t)
	l.own()
	if !l.reaches(stranger) {
		t.Fatal("without lists a stranger is not served")
	}
	// What the stranger holds open when the lists come.
	other := l.from(stranger)
	if code, _ := l.open(other, "/api/v1/status"); code != 200 {
		t.Fatalf("the stranger is answered %d", code)
	}
	var open []net.Conn
	for _, protocols := range [][]string{{"h2"}, {"http/1.1"}, nil} {
		raw, err := l.dialFrom(stranger, patience)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		if protocols != nil {
			conn := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: protocols})
			if err := conn.HandshakeContext(t.Context()); err != nil {
				t.Fatal(err)
			}
		} // else it has said nothing yet and waits in the gateway
		open = append(open, raw)
	}
	before := l.from(friend)
	l.open(before, "/api/v1/status") // a connection that is older than the change
	var ends []chan time.Time
	for _, c := range open {
		ends = append(ends, endsSoon(c))
	}

	first := l.try(office(friend + "\n2001:db8::/32\n"))
	applied := time.Now()
	for i, e := range ends {
		select {
		case at := <-e:
			t.Logf("connection %d of the stranger ended %v after the answer", i, at.Sub(applied).Round(time.Millisecond))
			if at.Sub(applied) > time.Second {
				t.Errorf("NET4: connection %d lived on for %v", i, at.Sub(applied))
			}
		case <-time.After(patience):
			t.Errorf("NET4: connection %d of the stranger lives on\n%s", i, l.output())
		}
	}
	if l.reaches(stranger) {
		t.Error("a stranger is served")
	}
	if !l.reaches(friend) {
		t.Error("a friend is not served")
	}
	var shown control.Lists
	_, text := l.open(l.from(friend), "/api/v1/allowlists")
	if err := json.Unmarshal([]byte(text), &shown); err != nil {
		t.Fatal(err)
	}
	if !shown.Enabled || shown.Ranges != 2 || shown.Refused.Packets == 0 || len(shown.Lists) != 1 || shown.Lists[0].Packets == 0 || shown.Candidate == nil {
		t.Errorf("NET6: shown: %s", text)
	}
	if code, text := l.api(before, "/api/v1/allowlists/keep", map[string]string{"id": first.ID}, nil); code != 403 || !strings.Contains(text, "older than the change") {
		t.Errorf("NET3: kept over the old connection: %d %s", code, text)
	}

	t.Log("nobody keeps it: 60 s")
	time.Sleep(time.Until(applied.Add(control.KeepWithin)))
	l.eventually("the change is taken back", func() bool { return l.reaches(stranger) })

	second := l.try(office(friend))
	if code, text := l.api(l.from(friend), "/api/v1/allowlists/keep", map[string]string{"id": second.ID}, nil); code != 200 {
		t.Fatalf("keeping over a new connection: %d %s", code, text)
	}
	l.kill()
	l.start("ready")
	if !l.reaches(friend) || l.reaches(stranger) {
		t.Errorf("after a power cut: friend %v, stranger %v", l.reaches(friend), l.reaches(stranger))
	}
}

// TestNET2_ScopeHoldsWhereTheKernelAdmits: the kernel knows the union alone.
func TestNET2_ScopeHoldsWhereTheKernelAdmits(t *testing.T) {
	l := newLAN(t)
	l.own()
	other := l.from(stranger)
	if code, _ := l.open(other, "/sign-in"); code != 200 && code != 303 {
		t.Fatalf("before: %d", code)
	}
	l.try(office(friend), list{"branches", true, []string{"sites"}, stranger})
	// The same connection, which the kernel and the gateway let live.
	if code, text := l.open(other, "/sign-in"); code != 403 || !strings.Contains(text, "no allowlist for this") {
		t.Errorf("a site reads the console's page: %d\n%s", code, text)
	}
	if code, text := l.api(other, "/api/v1/site/enrol", map[string]string{}, nil); code == 403 && strings.Contains(text, "no allowlist") {
		t.Errorf("a site cannot enrol: %d %s", code, text)
	}
	if code, _ := l.open(l.from(friend), "/allowlists"); code != 200 {
		t.Errorf("the console's list does not open the console: %d", code)
	}
}

// TestNET3_SelfLockoutIsRefused, and what is bad changes nothing.
func TestNET3_SelfLockoutIsRefused(t *testing.T) {
	l := newLAN(t)
	l.own()
	thousand := make([]list, 1000)
	for i := range thousand {
		thousand[i] = list{fmt.Sprintf("l%d", i), true, []string{"console"}, friend}
	}
	for name, c := range map[string]struct {
		lists []list
		want  string
	}{
		"own address missing": {[]list{office(stranger)}, "your own address"},
		"bad line":            {[]list{office(friend + "\n10.0.0.0/33")}, `"line":2`},
		"everyone":            {[]list{office("0.0.0.0/0")}, "allow_all"},
		"nobody":              {[]list{office("")}, "nobody could reach"},
		"10 MB of noise":      {[]list{office(strings.Repeat("noise!\n", 10<<20/7))}, `"line":1`},
		"a thousand lists":    {thousand, "is the limit"},
		"half a file":         {[]list{office(friend + "\n192.0.")}, `"line":2`},
	} {
		var r control.ListsReport
		_, text := l.api(l.from(friend), "/api/v1/allowlists/try", map[string]any{"document": map[string]any{"enabled": true, "lists": c.lists}}, &r)
		if r.Candidate != nil || !strings.Contains(text, c.want) {
			t.Errorf("%s: %.300s, want %q", name, text, c.want)
		}
		if !l.reaches(stranger) {
			t.Errorf("%s: it took effect", name)
		}
	}
}

// TestNET2_ToolAppliesLists changes lists from a keyboard: refused with the
// line, not kept without an answer, kept over a new connection.
func TestNET2_ToolAppliesLists(t *testing.T) {
	l := newLAN(t)
	l.own()
	step := onetime.Step(time.Now()) // the one before was used by own
	tool := func(stdin string, args ...string) (string, int) {
		t.Helper()
		who := []string{"--email", "ann@example.com", "--password", l.file("password", password), "--code", l.file("code", onetime.Code(l.secret, step))}
		for onetime.Step(time.Now())+1 < step { // codes are taken once, and one early
			time.Sleep(time.Second)
		}
		step++
		return l.run(stdin, append(append([]string{"allowlist"}, args...), who...)...)
	}
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if out, code := l.run("", "allowlist", "list"); code != 3 {
		t.Errorf("without a person: %d %s", code, out)
	}
	if out, code := tool("", "apply", write("office.list", friend+"\n10.0.0.0/33\n"), "--keep"); code != 5 || !strings.Contains(out, "office.list, line 2: a prefix for IPv4 is a number from 0 to 32") {
		t.Fatalf("a bad line: %d %s", code, out)
	}
	if out, code := tool("", "apply", write("office.list", friend+"\n127.0.0.1\n"), "--keep"); code != 0 || !strings.Contains(out, "List office is new") || !strings.Contains(out, "Kept.") {
		t.Fatalf("applying: %d %s\n%s", code, out, l.output())
	}
	if l.reaches(stranger) || !l.reaches(friend) {
		t.Error("the list is not in force")
	}
	if out, code := tool("", "list"); code != 0 || !strings.Contains(out, "office") || !strings.Contains(out, "2 ranges may reach it") {
		t.Errorf("list: %d %s", code, out)
	}
}
