package lanweb

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// shown is a proxy that serves, and its target.
type shown struct {
	*Proxy
	t      *testing.T
	at     string // 127.0.0.1:port
	target *httptest.Server
	mux    *http.ServeMux
	asked  atomic.Int32
	trust  atomic.Pointer[error]
}

// show serves a target that thinks it is nas.lan.
func show(t *testing.T, secure bool) *shown {
	t.Helper()
	s := &shown{t: t, mux: http.NewServeMux()}
	s.target = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		if r.Host != "nas.lan" {
			t.Errorf("the target was asked for %q", r.Host)
		}
		for _, c := range r.Cookies() {
			if strings.HasPrefix(c.Name, "gatehouse") {
				t.Errorf("the target got the cookie %s", c.Name)
			}
		}
		s.mux.ServeHTTP(w, r)
	}))
	s.target.Config.ErrorLog = log.New(io.Discard, "", 0)
	at := uint16(80)
	if secure {
		at = 443
		s.target.StartTLS()
	} else {
		s.target.Start()
	}
	t.Cleanup(s.target.Close)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.at = l.Addr().String()
	s.Proxy = New(Config{
		Label: "nas", Port: l.Addr().(*net.TCPAddr).Port, HTTPS: secure, Host: "nas.lan", At: at,
		Dial: func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", s.target.Listener.Addr().String())
		},
		Trust: func(_, _ [sha256.Size]byte) error {
			if err := s.trust.Load(); err != nil {
				return *err
			}
			return nil
		},
	})
	server := &http.Server{Handler: s.Proxy, ErrorLog: log.New(io.Discard, "", 0)}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return s
}

// browser goes to every name at the proxy's address, as browsers do for *.localhost.
func (s *shown) browser() *http.Client {
	jar, err := cookiejar.New(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return &http.Client{
		Jar: jar, Timeout: 20 * time.Second,
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, s.at)
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (s *shown) ask(c *http.Client, method, path string, header ...string) (int, string, http.Header) {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), method, path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
		}
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Header
}

// admitted is the browser that was first.
func (s *shown) admitted() *http.Client {
	s.t.Helper()
	c := s.browser()
	if code, _, h := s.ask(c, "GET", s.URL()); code != 303 || h.Get("Location") != "/" || h.Get("Referrer-Policy") != "no-referrer" {
		s.t.Fatalf("the first address: %d %s", code, h)
	}
	return c
}

// Who is not the one browser gets nothing, and the target hears nothing of it.
func TestSES5_OpenIsForOneBrowser(t *testing.T) {
	s := show(t, false)
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "secret") })
	plain := s.browser()
	u, err := url.Parse(s.Origin())
	if err != nil || !strings.HasPrefix(u.Hostname(), "nas-") || !strings.HasSuffix(u.Hostname(), ".localhost") {
		t.Fatalf("%s, %v", s.Origin(), err)
	}
	if code, _, _ := s.ask(plain, "HEAD", s.URL()); code != 403 {
		t.Errorf("HEAD used the token up: %d", code)
	}
	mine := s.admitted()
	for name, c := range map[string]struct {
		client *http.Client
		method string
		url    string
		header []string
		want   int
	}{
		"no cookie":                {plain, "GET", s.Origin() + "/", nil, 403},
		"the token again":          {plain, "GET", s.URL(), nil, 403},
		"a guessed cookie":         {plain, "GET", s.Origin() + "/", []string{"Cookie", tokenCookie + "=" + random(20)}, 403},
		"an empty cookie":          {plain, "GET", s.Origin() + "/", []string{"Cookie", tokenCookie + "="}, 403},
		"by the address":           {mine, "GET", "http://" + s.at + "/", nil, 421},
		"by localhost":             {mine, "GET", "http://localhost:" + u.Port() + "/", nil, 421},
		"a rebound name":           {mine, "GET", s.Origin() + "/", []string{"Host", "evil.example:" + u.Port()}, 421},
		"the name without port":    {mine, "GET", s.Origin() + "/", []string{"Host", u.Hostname()}, 421},
		"a form of another page":   {mine, "POST", s.Origin() + "/", []string{"Origin", "https://evil.example"}, 403},
		"a form that hides itself": {mine, "POST", s.Origin() + "/", []string{"Origin", "null"}, 403},
		"a socket of another page": {mine, "GET", s.Origin() + "/", []string{"Origin", "http://evil.localhost", "Upgrade", "websocket", "Connection", "Upgrade"}, 403},
	} {
		if code, body, _ := s.ask(c.client, c.method, c.url, c.header...); code != c.want || strings.Contains(body, "secret") {
			t.Errorf("%s: %d %q, want %d", name, code, body, c.want)
		}
	}
	if n := s.asked.Load(); n != 0 {
		t.Errorf("the target was asked %d times by others", n)
	}
	for name, header := range map[string][]string{
		"plain": nil, "its own page": {"Origin", s.Origin()}, "its own page, hidden": {"Origin", "null", "Sec-Fetch-Site", "same-origin"},
	} {
		if code, body, _ := s.ask(mine, "POST", s.Origin()+"/", header...); code != 200 || body != "secret" {
			t.Errorf("%s: %d %q", name, code, body)
		}
	}
}

func TestSES5_OpenTurnsAddressesAround(t *testing.T) {
	s := show(t, true)
	s.mux.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Origin") != "https://nas.lan" || r.Header.Get("Referer") != "https://nas.lan/form?x" || r.Header.Get("X-Forwarded-For") != "" {
			t.Errorf("the target got %v", r.Header)
		}
		for _, c := range []string{
			"__Host-sid=a b\"c; Path=/; Secure; HttpOnly; SameSite=None", "lang=de; Domain=.lan; secure; Partitioned", tokenCookie + "=mine", "=x", "nothing",
		} {
			w.Header().Add("Set-Cookie", c)
		}
		w.Header().Set("Strict-Transport-Security", "max-age=1")
		w.Header().Set("Content-Security-Policy", "default-src 'self'; Upgrade-Insecure-Requests; img-src *")
		w.Header().Set("Access-Control-Allow-Origin", "https://nas.lan")
		w.Header().Set("Location", "https://NAS.lan:443/home?a=b#c")
		w.WriteHeader(302)
	})
	s.mux.HandleFunc("/home", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Header.Get("Cookie"), "|", r.URL.RawQuery)
	})
	mine := s.admitted()
	code, _, h := s.ask(mine, "POST", s.Origin()+"/login", "Origin", s.Origin(), "Referer", s.Origin()+"/form?x")
	want := []string{"gatehouse-host-sid=a b\"c; Path=/; HttpOnly; SameSite=Lax", "lang=de"}
	if got := h["Set-Cookie"]; code != 302 || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%d, cookies %q, want %q", code, got, want)
	}
	if l := h.Get("Location"); l != "/home?a=b#c" {
		t.Errorf("the redirect leads to %s", l)
	}
	if h.Get("Strict-Transport-Security") != "" || h.Get("Content-Security-Policy") != "default-src 'self'; img-src *" || h.Get("Access-Control-Allow-Origin") != s.Origin() {
		t.Errorf("%v", h)
	}
	_, body, _ := s.ask(mine, "GET", s.Origin()+"/home?q=%2f")
	if !strings.Contains(body, "lang=de") || !strings.HasSuffix(body, "|q=%2f") {
		t.Errorf("the target got %s", body)
	}
	if _, body, _ = s.ask(s.browserWith(mine, "gatehouse-host-sid=a b\"c; lang=de"), "GET", s.Origin()+"/home"); body != "__Host-sid=a b\"c; lang=de|" {
		t.Errorf("the target got %s", body)
	}
	s.mux.HandleFunc("/to", func(w http.ResponseWriter, r *http.Request) {
		to, err := url.QueryUnescape(r.URL.RawQuery)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Location", to)
		w.WriteHeader(302)
	})
	for to, want := range map[string]string{
		"http://nas.lan/x":      "502 ", // another port: another target
		"https://nas.lan:8443/": "502 ",
		"https://nas.lan":       "302 /",
		"/y":                    "302 /y",
		"https://nas.lan//evil": "302 " + s.Origin() + "//evil",
		"https://example.org/x": "302 https://example.org/x",
	} {
		code, body, h := s.ask(mine, "GET", s.Origin()+"/to?"+url.QueryEscape(to))
		if got := fmt.Sprint(code, " ", h.Get("Location")); got != want || code == 502 && !strings.Contains(body, "Declare that as a target") {
			t.Errorf("a redirect to %s: %s, want %s (%s)", to, got, want, body)
		}
	}
}

// browserWith sends these cookies and the one that admits it.
func (s *shown) browserWith(admitted *http.Client, cookies string) *http.Client {
	u, err := url.Parse(s.Origin())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, c := range admitted.Jar.Cookies(u) {
		if c.Name == tokenCookie {
			cookies += "; " + c.Name + "=" + c.Value
		}
	}
	c := s.browser()
	c.Jar = nil
	c.Transport = adding{c.Transport, cookies}
	return c
}

type adding struct {
	http.RoundTripper
	cookies string
}

func (a adding) RoundTrip(r *http.Request) (*http.Response, error) {
	r.Header.Set("Cookie", a.cookies)
	return a.RoundTripper.RoundTrip(r)
}

func TestSES5_OpenCarriesWebSockets(t *testing.T) {
	s := show(t, false)
	s.mux.HandleFunc("/socket", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Origin") != "http://nas.lan" || r.Header.Get("Upgrade") != "websocket" {
			http.Error(w, "not a socket of this page", 400)
			return
		}
		c, b, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
		line, _ := b.ReadString('\n')
		io.WriteString(c, "you said "+line)
	})
	mine := s.admitted()
	u, err := url.Parse(s.Origin())
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", s.at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(c, "GET /socket HTTP/1.1\r\nHost: %s\r\nOrigin: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nCookie: %s\r\n\r\n", u.Host, s.Origin(), mine.Jar.Cookies(u)[0])
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatalf("%v, %v", resp, err)
	}
	io.WriteString(c, "hello\n")
	if line, err := r.ReadString('\n'); line != "you said hello\n" {
		t.Errorf("%q, %v", line, err)
	}
}

// A key that is not trusted gets no request, before the browser and while it is there.
func TestSES5_OpenTrustsOneKey(t *testing.T) {
	s := show(t, true)
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") })
	other := errors.New("another certificate")
	s.trust.Store(&other)
	if err := s.Probe(t.Context()); !errors.Is(err, other) {
		t.Errorf("the probe: %v", err)
	}
	mine := s.admitted()
	if code, body, _ := s.ask(mine, "GET", s.Origin()+"/"); code != 502 || !strings.Contains(body, "another certificate") {
		t.Errorf("%d %s", code, body)
	}
	if s.asked.Load() != 0 {
		t.Error("the target was asked")
	}
	s.trust.Store(nil)
	if err := s.Probe(t.Context()); err != nil {
		t.Error(err)
	}
	if code, body, _ := s.ask(mine, "GET", s.Origin()+"/"); code != 200 || body != "ok" {
		t.Errorf("%d %s", code, body)
	}
}
