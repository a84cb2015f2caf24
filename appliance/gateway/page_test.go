package gateway

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func testPage() *page {
	return newPage("gatehouse-7f3k", &net.TCPAddr{IP: net.IPv4zero, Port: 443})
}

func TestPageHasNothingElse(t *testing.T) {
	p := testPage()
	for _, target := range []string{
		"/setup", "/setup/", "//", "/.", "/%2e", "/index.html", "/favicon.ico", "/?x=1", "/api/v1/status", "/api/v1/setup",
		"/api/v1/setup/proof", "/SETUP", "/a/../", "/%2F", "/.well-known/acme-challenge/x", "/\x00", "/;",
	} {
		r := httptest.NewRequest("GET", "http://box/", nil)
		u, err := r.URL.Parse(strings.ReplaceAll(target, "\x00", "%00"))
		if err != nil {
			t.Fatal(err)
		}
		r.URL = u
		if target == "//" {
			r.URL.Path, r.URL.Host = "//", ""
		}
		if target == "/a/../" || target == "/." {
			r.URL.Path = target // as a client that does not clean would send it
		}
		w := httptest.NewRecorder()
		p.ServeHTTP(w, r)
		if w.Code != 404 || strings.Contains(w.Body.String(), "gatehouse") {
			t.Errorf("%q: %d %q", target, w.Code, w.Body)
		}
		if w.Header().Get("Content-Security-Policy") == "" {
			t.Errorf("%q: without a policy", target)
		}
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "X"} {
		w := httptest.NewRecorder()
		p.ServeHTTP(w, httptest.NewRequest(method, "http://box/", nil))
		if w.Code != 405 {
			t.Errorf("%s: %d", method, w.Code)
		}
	}
}

func TestPage(t *testing.T) {
	w := httptest.NewRecorder()
	testPage().ServeHTTP(w, httptest.NewRequest("GET", "http://gatehouse-7f3k.local/", nil))
	body := w.Body.String()
	for _, want := range []string{"<h1>gatehouse-7f3k</h1>", `href="https://gatehouse-7f3k.local/"`, "fingerprint", `<html lang="en">`} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %q:\n%s", want, body)
		}
	}
	for _, never := range []string{"<form", "<input", "<script", "javascript:", "http://", "<img", "<iframe"} {
		if strings.Contains(body, never) {
			t.Errorf("the page has %q", never)
		}
	}
	h := w.Header()
	policy := h.Get("Content-Security-Policy")
	if !strings.HasPrefix(policy, "default-src 'none'; style-src 'sha256-") || strings.Contains(policy, "unsafe") ||
		!strings.Contains(policy, "form-action 'none'") || !strings.Contains(policy, "frame-ancestors 'none'") {
		t.Errorf("policy %q", policy)
	}
	if h.Get("Cache-Control") != "no-store" || h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Set-Cookie") != "" {
		t.Errorf("headers %v", h)
	}
	// The hash in the policy is over the style as it stands in the page.
	if !strings.Contains(body, "<style>"+pageStyle+"</style>") {
		t.Error("the style was changed on its way into the page: its hash does not fit")
	}
}

func TestPageLink(t *testing.T) {
	p := testPage()
	other := newPage("x", &net.TCPAddr{Port: 8443})
	for _, c := range []struct {
		p          *page
		host, want string
	}{
		{p, "192.0.2.1", "https://192.0.2.1/"},
		{p, "192.0.2.1:80", "https://192.0.2.1/"},
		{p, "[2001:db8::1]", "https://[2001:db8::1]/"},
		{p, "[2001:db8::1]:80", "https://[2001:db8::1]/"},
		{p, "box.lan:80", "https://box.lan/"},
		{other, "192.0.2.1:8080", "https://192.0.2.1:8443/"},
		{other, "[::1]:8080", "https://[::1]:8443/"},
		{p, "", ""},
		{p, "evil@box", ""},
		{p, "box/path", ""},
		{p, `box"onclick="x`, ""},
		{p, "a b", ""},
		{p, "[fe80::1%25eth0]", ""},
		{p, "-box", ""},
		{p, strings.Repeat("a", 254), ""},
	} {
		if got := c.p.link(c.host); got != c.want {
			t.Errorf("link(%q) = %q, want %q", c.host, got, c.want)
		}
	}
	w := httptest.NewRecorder()
	r := httptest.NewRequest("GET", "http://box/", nil)
	r.Host = "a b"
	p.ServeHTTP(w, r)
	if strings.Contains(w.Body.String(), "href") || !strings.Contains(w.Body.String(), "<strong>https://</strong>") {
		t.Errorf("without a usable host:\n%s", w.Body)
	}
}

// TestPort80OnTheWire speaks to the real server.
func TestPort80OnTheWire(t *testing.T) {
	b := newBed(t, false)
	for _, c := range []struct{ name, sent, status string }{
		{"the page", "GET / HTTP/1.1\r\nHost: box\r\n\r\n", "HTTP/1.1 200 OK"},
		{"no host", "GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 400 "},
		{"a long header", "GET / HTTP/1.1\r\nHost: box\r\nX: " + strings.Repeat("x", 20000) + "\r\n\r\n", "HTTP/1.1 431 "},
		{"HTTP/2 in the clear", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/1.1 404 "},
		{"an upgrade", "GET /setup HTTP/1.1\r\nHost: box\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", "HTTP/1.1 404 "},
		{"asterisk", "OPTIONS * HTTP/1.1\r\nHost: box\r\n\r\n", "HTTP/1.1 "},
	} {
		conn := dial(t, b.http)
		if _, err := io.WriteString(conn, c.sent); err != nil {
			t.Fatal(err)
		}
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		r := bufio.NewReader(conn)
		line, err := r.ReadString('\n')
		if err != nil || !strings.HasPrefix(line, c.status) {
			t.Errorf("%s: %q, %v; want %q", c.name, line, err, c.status)
		}
		if _, err := io.Copy(io.Discard, r); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("%s: not closed after one answer: %v", c.name, err)
		}
	}
	resp, err := http.Get("http://" + b.http + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(body), fmt.Sprintf("https://%s/", b.https)) {
		t.Errorf("the page does not lead to port 443's address %s: %v\n%s", b.https, err, body)
	}
}
