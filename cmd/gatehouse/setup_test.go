package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/appliance/cert/certtest"
	"gatehouse/appliance/setup/proof"
)

const testCode = "7K2M-QX9D-4TBH"

// fakeBox answers the set-up routes as docs/architecture.md has them.
type fakeBox struct {
	*httptest.Server
	salt    [16]byte
	key     [32]byte
	claimed atomic.Bool
	proved  atomic.Int32
	lie     bool // answers a wrong proof of its own
}

func newFakeBox(t *testing.T, change func(*fakeBox)) *fakeBox {
	t.Helper()
	b := &fakeBox{}
	rand.Read(b.salt[:])
	code, err := proof.ParseCode(testCode)
	if err != nil {
		t.Fatal(err)
	}
	b.key = proof.Derive(code, b.salt)
	change(b)
	b.Server = httptest.NewUnstartedServer(b.routes())
	b.EnableHTTP2 = true
	b.Config.ErrorLog = log.New(io.Discard, "", 0)
	b.StartTLS()
	t.Cleanup(b.Close)
	return b
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		panic(err)
	}
}

func (b *fakeBox) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/status", func(w http.ResponseWriter, _ *http.Request) {
		state := "unclaimed"
		if b.claimed.Load() {
			state = "ready"
		}
		answer(w, publicStatus{"gatehouse-test", state})
	})
	mux.HandleFunc("GET /api/v1/setup", func(w http.ResponseWriter, r *http.Request) {
		if b.claimed.Load() {
			http.NotFound(w, r)
			return
		}
		answer(w, greeting{"gatehouse-test", b.salt[:]})
	})
	mux.HandleFunc("POST /api/v1/setup/proof", func(w http.ResponseWriter, r *http.Request) {
		var q struct{ Proof []byte }
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		binding, err := proof.Binding(r.TLS)
		if err != nil || !proof.VerifyClient(b.key, binding, q.Proof) {
			w.WriteHeader(http.StatusForbidden)
			answer(w, map[string]string{"detail": "The proof is not right."})
			return
		}
		b.proved.Add(1)
		p := proof.ServerProof(b.key, binding)
		if b.lie {
			p = proof.ClientProof(b.key, binding)
		}
		answer(w, map[string]any{"proof": p[:], "ticket": "t&1"})
	})
	mux.HandleFunc("GET /setup", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("ticket") != "t&1" {
			http.Error(w, "no ticket", http.StatusForbidden)
			return
		}
		http.SetCookie(w, &http.Cookie{Name: "__Host-s", Value: "1", Path: "/", Secure: true, HttpOnly: true})
		w.Header().Set("Strict-Transport-Security", "max-age=1")
		io.WriteString(w, "own this box")
	})
	mux.HandleFunc("POST /setup", func(w http.ResponseWriter, r *http.Request) {
		_, err := r.Cookie("__Host-s")
		if _, leaked := r.Cookie(pageCookie); err != nil || leaked == nil || r.Host != strings.TrimPrefix(b.URL, "https://") || r.Header.Get("Origin") != b.URL || r.Header.Get("Referer") != "" {
			http.Error(w, "wrong request", http.StatusForbidden)
			return
		}
		b.claimed.Store(true)
		http.Redirect(w, r, b.URL+"/welcome", http.StatusSeeOther)
	})
	return mux
}

// person is a takeover with somebody at the keyboard, who types these lines.
func person(b string, types ...string) (*takeover, *bytes.Buffer, *bytes.Buffer) {
	var out, diag bytes.Buffer
	return &takeover{
		address: b, noBrowser: true, person: true,
		stdin:  bufio.NewReader(strings.NewReader(strings.Join(types, "\n") + "\n")),
		stdout: &out, stderr: &diag,
	}, &out, &diag
}

func codeOf(err error) exitCode {
	var f *failure
	if errors.As(err, &f) {
		return f.code
	}
	return exitFailure
}

func words(b *fakeBox) string {
	return proof.Words(sha256.Sum256(b.Certificate().RawSubjectPublicKeyInfo))
}

func TestACC1_SetupRefusals(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	honest := newFakeBox(t, func(*fakeBox) {})
	liar := newFakeBox(t, func(b *fakeBox) { b.lie = true })
	owned := newFakeBox(t, func(b *fakeBox) { b.claimed.Store(true) })
	for name, c := range map[string]struct {
		box   *fakeBox
		types []string
		want  exitCode
		proof int32
	}{
		"wrong code":               {honest, []string{"", "7K2M-QX9D-4TB0"}, exitDenied, 0},
		"no code":                  {honest, []string{"", "secret"}, exitUsage, 0},
		"words of another":         {honest, []string{proof.Words(sha256.Sum256([]byte("another key"))), testCode}, exitVerification, 0},
		"box without the code":     {liar, []string{words(liar), testCode}, exitVerification, 1},
		"owned":                    {owned, []string{"", testCode}, exitConflict, 0},
		"nobody answers any more":  {honest, []string{""}, exitUsage, 0},
		"words that are not words": {honest, []string{"yes", testCode}, exitVerification, 0},
	} {
		c.box.proved.Store(0)
		s, out, _ := person(c.box.URL, c.types...)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		err := s.run(ctx)
		cancel()
		if codeOf(err) != c.want || err == nil || c.box.proved.Load() != c.proof || out.Len() > 0 {
			t.Errorf("%s: %v (exit %d, want %d), %d proofs, output %q", name, err, codeOf(err), c.want, c.box.proved.Load(), out)
		}
	}
	if k, err := readKnown(); err != nil || len(k.Boxes) != 0 {
		t.Errorf("a box that was not proved is known: %+v, %v", k, err)
	}
}

// A man in the middle with a certificate of his own passes on every request:
// with or without the words, he gets neither a ticket nor a kept key.
func TestACC1_SetupThroughAManInTheMiddle(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	b := newFakeBox(t, func(*fakeBox) {})
	up, err := openBox(t.Context(), b.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	passOn := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.URL.Scheme, r.URL.Host, r.RequestURI = "https", up.address, ""
		resp, err := up.client.Do(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		w.WriteHeader(resp.StatusCode)
		io.Copy(w, resp.Body)
	})
	own, stolen := httptest.NewUnstartedServer(passOn), httptest.NewUnstartedServer(passOn)
	own.TLS = &tls.Config{Certificates: []tls.Certificate{certtest.Self(t)}}
	for name, c := range map[string]struct {
		man   *httptest.Server
		typed string
		want  exitCode
	}{
		"own certificate":              {own, "", exitDenied},
		"own certificate, words":       {own, words(b), exitVerification},
		"the box's own key":            {stolen, "", exitDenied}, // httptest has one for all servers
		"the box's own key, and words": {stolen, words(b), exitDenied},
	} {
		if c.man.URL == "" {
			c.man.StartTLS()
			defer c.man.Close()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		s, _, _ := person(c.man.URL, c.typed, testCode)
		err := s.run(ctx)
		cancel()
		if code := codeOf(err); err == nil || code != c.want || b.proved.Load() != 0 {
			t.Errorf("%s: %v (exit %d, want %d), %d proofs", name, err, code, c.want, b.proved.Load())
		}
	}
	if k, err := readKnown(); err != nil || len(k.Boxes) != 0 {
		t.Errorf("the man in the middle is known: %+v, %v", k, err)
	}
}

func TestACC1_KeyMayNotChangeOnTheWay(t *testing.T) {
	b := newFakeBox(t, func(*fakeBox) {})
	other := sha256.Sum256([]byte("another key"))
	c, err := openBox(t.Context(), b.URL, &other)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.call(t.Context(), "GET", "/api/v1/status", nil, &publicStatus{}); codeOf(err) != exitVerification {
		t.Errorf("a box with another key: %v", err)
	}
}

// browser is one with cookies that goes to *.localhost without DNS, as browsers do.
func browser(t *testing.T) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{
		Jar: jar,
		Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			return (&net.Dialer{}).DialContext(ctx, network, "127.0.0.1:"+port)
		}},
		CheckRedirect: func(r *http.Request, _ []*http.Request) error {
			if r.URL.Scheme == "https" {
				return http.ErrUseLastResponse
			}
			return nil
		},
	}
}

func ask(t *testing.T, c *http.Client, method, address, host, origin string) (int, string, http.Header) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(""))
	if err != nil {
		t.Fatal(err)
	}
	r.Host = host
	r.Header.Set("Referer", address)
	if origin != "" {
		r.Header.Set("Origin", origin)
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Header
}

// pipe hands the printed address to the test while setup goes on.
type pipe struct{ lines chan string }

func (p pipe) Write(b []byte) (int, error) {
	p.lines <- strings.TrimSpace(string(b))
	return len(b), nil
}

func TestACC1_LocalPage(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	b := newFakeBox(t, func(*fakeBox) {})
	s, _, diag := person(b.URL, words(b), testCode)
	out := pipe{make(chan string, 1)}
	s.stdout = out
	ended := make(chan error, 1)
	go func() { ended <- s.run(context.Background()) }()
	var address string
	select {
	case address = <-out.lines:
	case err := <-ended:
		t.Fatalf("setup ended: %v\n%s", err, diag)
	}
	u, err := url.Parse(address)
	if err != nil || !strings.HasSuffix(u.Hostname(), ".localhost") {
		t.Fatalf("address %q, %v", address, err)
	}
	own, base := browser(t), "http://"+u.Host
	for name, f := range map[string]func() int{
		"without the token": func() int { c, _, _ := ask(t, browser(t), "GET", base+"/setup?ticket=t%261", "", ""); return c },
		"a wrong token":     func() int { c, _, _ := ask(t, browser(t), "GET", base+"/aaaa/", "", ""); return c },
		"another name":      func() int { c, _, _ := ask(t, browser(t), "GET", address, "127.0.0.1:"+u.Port(), ""); return c },
		"a rebound name":    func() int { c, _, _ := ask(t, browser(t), "GET", address, "evil.example", ""); return c },
		"another page":      func() int { c, _, _ := ask(t, browser(t), "GET", address, "", "https://evil.example"); return c },
		"posted":            func() int { c, _, _ := ask(t, browser(t), "POST", address, "", ""); return c },
	} {
		if c := f(); c != http.StatusForbidden && c != http.StatusMisdirectedRequest {
			t.Errorf("%s: %d", name, c)
		}
	}
	status, body, header := ask(t, own, "GET", address, "", "")
	if status != 200 || body != "own this box" || header.Get("Set-Cookie") != "" || header.Get("Strict-Transport-Security") != "" {
		t.Fatalf("the page: %d %q %v", status, body, header)
	}
	if c, _, _ := ask(t, browser(t), "GET", address, "", ""); c != http.StatusForbidden {
		t.Errorf("the token works twice: %d", c)
	}
	if c, _, _ := ask(t, own, "POST", base+"/setup", "", "https://evil.example"); c != http.StatusForbidden {
		t.Errorf("posted from another page: %d", c)
	}
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	status, body, header = ask(t, own, "POST", base+"/setup", "", base)
	if status != http.StatusSeeOther || header.Get("Location") != "/welcome" {
		t.Fatalf("the claim: %d %q %v", status, body, header)
	}
	for range 1000 { // until setup has seen the owner
		status, _, header = ask(t, own, "GET", base+"/", "", "")
		if status == http.StatusSeeOther {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if header.Get("Location") != b.URL+"/" {
		t.Errorf("the end leads to %q", header.Get("Location"))
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", "127.0.0.1:"+u.Port()); err == nil {
		t.Error("the local page is still open")
	}
	k, err := readKnown()
	if err != nil || len(k.Boxes) != 1 || k.Boxes[0].Name != "gatehouse-test" {
		t.Errorf("known: %+v, %v", k, err)
	}
	info, err := os.Stat(k.path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("known.json: %v, %v", info, err)
	}
}

func TestResolve(t *testing.T) {
	for in, want := range map[string]string{
		"192.168.1.40": "192.168.1.40:443", "192.168.1.40:8443": "192.168.1.40:8443",
		"https://192.168.1.40/": "192.168.1.40:443", " https://[fd00::1]:8443/setup ": "[fd00::1]:8443",
		"fd00::1": "[fd00::1]:443", "[fd00::1]": "[fd00::1]:443", "": "", "http://192.168.1.40/": "", "a b": "", "https://": "",
	} {
		got, err := resolve(t.Context(), in)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("resolve(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
}

func TestUSE2_SecretsNeverInArguments(t *testing.T) {
	for _, args := range [][]string{
		{"setup", "192.0.2.1", "--code", testCode},
		{"setup", "192.0.2.1", "--code=" + testCode},
		{"setup", "192.0.2.1", "--name", "a", "--email", "a@b.c", "--password", "correct horse"},
		{"setup", "192.0.2.1", "--code", "-", "--name", "a", "--email", "a@b.c", "--password", "-"},
		{"setup", "192.0.2.1", "--email", "a@b.c"},
	} {
		var out, diag bytes.Buffer
		if code := execute(t.Context(), args, strings.NewReader(""), &out, &diag); code != exitUsage || out.Len() > 0 {
			t.Errorf("%v: exit %d, %s", args, code, &diag)
		}
		if strings.Contains(diag.String(), testCode) || strings.Contains(diag.String(), "correct horse") {
			t.Errorf("%v: the secret is printed again: %s", args, &diag)
		}
	}
}

func TestReadSecret(t *testing.T) {
	dir := t.TempDir()
	file := func(content string) string {
		path := filepath.Join(dir, "secret")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return "file:" + path
	}
	for _, bad := range []string{"", "\n", "one\ntwo\n", strings.Repeat("x", maxSecret+1)} {
		if s, err := readSecret("code", file(bad), nil); err == nil {
			t.Errorf("%.10q was read as %q", bad, s)
		}
	}
	if _, err := readSecret("code", "file:"+dir+"/none", nil); codeOf(err) != exitNotFound {
		t.Errorf("a file that is not there: %v", err)
	}
	for in, want := range map[string]string{"a b\n": "a b", "x\r\n": "x", " y ": " y "} {
		if s, err := readSecret("code", file(in), nil); s != want || err != nil {
			t.Errorf("%q was read as %q, %v", in, s, err)
		}
		if s, err := readSecret("code", "-", strings.NewReader(in)); s != want || err != nil {
			t.Errorf("%q was read as %q, %v", in, s, err)
		}
	}
}

func TestPrintable(t *testing.T) {
	if got := printable("a\x1b[2J\r\n\u202eb\x9b\xff\u2028é"); got != "a?[2J???b??é" {
		t.Errorf("printable = %q", got)
	}
}
