// Package lanweb shows the web pages of a target at an address of this machine, to one browser.
//
// The address is a name below localhost with random letters in it, which
// browsers look up nowhere. Its first path works once and gives the browser a
// cookie, without which nothing is answered: other people on the machine do not
// get in, and a page elsewhere that has its own name point here, or that sends
// the browser here, is refused by the name and by Origin. What the target says
// of its own address is turned into this one and back.
package lanweb

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

const tokenCookie = "gatehouse-open"

// Config is what a Proxy is made with.
type Config struct {
	Label string // of the local name, from the target's: letters, digits, hyphens
	Port  int    // the local one
	HTTPS bool   // what the target speaks
	Host  string // the target's, as it is declared
	At    uint16 // its port
	// Dial opens a connection to the target's port.
	Dial func(context.Context) (net.Conn, error)
	// Trust judges the key of an https target: SHA-256 of its public key and of
	// the certificate. An error ends the connection before anything is sent.
	Trust func(key, certificate [sha256.Size]byte) error
}

// Proxy answers at the local address.
type Proxy struct {
	cfg    Config
	host   string   // name:port, the only Host that is answered
	origin string   // http://name:port
	target *url.URL // as the target knows itself
	cookie string
	proxy  httputil.ReverseProxy

	mu    sync.Mutex
	token string // "" once used
}

// New makes the proxy.
func New(cfg Config) *Proxy {
	p := &Proxy{cfg: cfg, cookie: random(20), token: random(20)}
	p.host = net.JoinHostPort(strings.Trim(cfg.Label+"-"+random(5), "-")+".localhost", strconv.Itoa(cfg.Port))
	p.origin = "http://" + p.host
	scheme, usual := "http", uint16(80)
	if cfg.HTTPS {
		scheme, usual = "https", 443
	}
	host := net.JoinHostPort(cfg.Host, strconv.Itoa(int(cfg.At)))
	if cfg.At == usual {
		host = strings.TrimSuffix(host, ":"+strconv.Itoa(int(usual)))
	}
	p.target = &url.URL{Scheme: scheme, Host: host}
	p.proxy = httputil.ReverseProxy{
		Rewrite: p.rewrite, ModifyResponse: p.answer, Transport: p.transport(), ErrorHandler: p.failed,
		ErrorLog:      log.New(io.Discard, "", 0), // failed says it to who asked
		FlushInterval: -1,                         // streams of events come as they are sent
	}
	return p
}

func random(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails (crypto/rand)
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b))
}

// URL is the address for the browser; it works once.
func (p *Proxy) URL() string { return p.origin + "/" + p.token }

// Origin is the address that it leads to, for the one browser.
func (p *Proxy) Origin() string { return p.origin }

// Probe does the handshake with an https target, so that a key that has changed
// is found before a browser is shown anything.
func (p *Proxy) Probe(ctx context.Context) error {
	c, err := p.cfg.Dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if !p.cfg.HTTPS {
		return nil
	}
	return tls.Client(c, p.tls()).HandshakeContext(ctx)
}

func (p *Proxy) transport() *http.Transport {
	t := &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return p.cfg.Dial(ctx) },
		DisableCompression: true, // what the browser asks for is passed on
		MaxConnsPerHost:    64, MaxIdleConnsPerHost: 8, IdleConnTimeout: 30 * time.Second,
		TLSHandshakeTimeout: 15 * time.Second, ResponseHeaderTimeout: 2 * time.Minute,
	}
	if p.cfg.HTTPS {
		t.TLSClientConfig = p.tls()
	}
	return t
}

// tls takes the target's key by Trust: devices in a LAN have certificates that
// no authority vouches for, many with the same name on them.
func (p *Proxy) tls() *tls.Config {
	c := &tls.Config{
		MinVersion: tls.VersionTLS12, InsecureSkipVerify: true, NextProtos: []string{"http/1.1"},
		VerifyConnection: func(cs tls.ConnectionState) error {
			leaf := cs.PeerCertificates[0]
			return p.cfg.Trust(sha256.Sum256(leaf.RawSubjectPublicKeyInfo), sha256.Sum256(leaf.Raw))
		},
	}
	if net.ParseIP(p.cfg.Host) == nil {
		c.ServerName = p.cfg.Host
	}
	return c
}

// ServeHTTP judges who asks, and passes on what the one browser asks.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Host != p.host:
		say(w, http.StatusMisdirectedRequest, "This address is not served here.")
	case p.use(r):
		http.SetCookie(w, &http.Cookie{Name: tokenCookie, Value: p.cookie, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode})
		w.Header().Set("Referrer-Policy", "no-referrer")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Location", "/")
		w.WriteHeader(http.StatusSeeOther)
	case !p.admits(r):
		say(w, http.StatusForbidden, "This page is open in another browser. Run gatehouse open again for this one.")
	case !p.own(r):
		say(w, http.StatusForbidden, "This request comes from another page, and was not passed on.")
	default:
		p.proxy.ServeHTTP(w, r)
	}
}

func say(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Cache-Control", "no-store")
	http.Error(w, text, status)
}

// use takes the token of the first address, once.
func (p *Proxy) use(r *http.Request) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	got := strings.TrimPrefix(r.URL.Path, "/")
	if p.token == "" || r.Method != http.MethodGet || subtle.ConstantTimeCompare([]byte(got), []byte(p.token)) != 1 {
		return false
	}
	p.token = ""
	return true
}

func (p *Proxy) admits(r *http.Request) bool {
	c, err := r.Cookie(tokenCookie)
	return err == nil && subtle.ConstantTimeCompare([]byte(c.Value), []byte(p.cookie)) == 1
}

// own says whether the target's own page asks. A browser that hides the origin
// of a form says by Sec-Fetch-Site that it is the same.
func (p *Proxy) own(r *http.Request) bool {
	o := r.Header.Get("Origin")
	return o == "" || o == p.origin || o == "null" && r.Header.Get("Sec-Fetch-Site") == "same-origin"
}

// rewrite makes a request one to the target.
func (p *Proxy) rewrite(pr *httputil.ProxyRequest) {
	pr.SetURL(p.target)
	pr.Out.Host = p.target.Host
	h := pr.Out.Header
	if o := h.Get("Origin"); o == p.origin {
		h.Set("Origin", p.target.String())
	}
	if rest, ok := strings.CutPrefix(h.Get("Referer"), p.origin); ok {
		h.Set("Referer", p.target.String()+rest)
	}
	h.Del("Cookie")
	if c := cookiesTo(pr.In.Header["Cookie"]); c != "" {
		h.Set("Cookie", c)
	}
}

// cookiesTo leaves out our own and gives the others their names back. Values
// stay as they are: not every target keeps to the letters that are allowed.
func cookiesTo(lines []string) string {
	var out []string
	for pair := range strings.SplitSeq(strings.Join(lines, ";"), ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
		if name != "" && name != tokenCookie {
			out = append(out, theirs(name)+"="+value)
		}
	}
	return strings.Join(out, "; ")
}

// cookieFrom makes a Set-Cookie of the target one for a http address of
// another name; "" if it would take the place of our own.
func cookieFrom(line string) string {
	parts := strings.Split(line, ";")
	name, value, ok := strings.Cut(strings.TrimSpace(parts[0]), "=")
	if name = strings.TrimSpace(name); !ok || name == "" || name == tokenCookie {
		return ""
	}
	out := []string{ours(name) + "=" + value}
	for _, part := range parts[1:] {
		part = strings.TrimSpace(part)
		key, v, _ := strings.Cut(part, "=")
		switch strings.ToLower(strings.TrimSpace(key)) {
		case "domain", "secure", "partitioned":
			continue
		case "samesite":
			if strings.EqualFold(strings.TrimSpace(v), "none") { // only secure ones may be
				part = "SameSite=Lax"
			}
		}
		out = append(out, part)
	}
	return strings.Join(out, "; ")
}

// Names with these beginnings are for https alone, whatever else they say.
var secureNames = map[string]string{"__Host-": "gatehouse-host-", "__Secure-": "gatehouse-secure-"}

func ours(name string) string {
	for theirs, ours := range secureNames {
		if rest, ok := strings.CutPrefix(name, theirs); ok {
			return ours + rest
		}
	}
	return name
}

func theirs(name string) string {
	for theirs, ours := range secureNames {
		if rest, ok := strings.CutPrefix(name, ours); ok {
			return theirs + rest
		}
	}
	return name
}

// answer makes what the target says fit for the local address.
func (p *Proxy) answer(resp *http.Response) error {
	h := resp.Header
	cookies := h["Set-Cookie"]
	h.Del("Set-Cookie")
	for _, line := range cookies {
		if c := cookieFrom(line); c != "" {
			h.Add("Set-Cookie", c)
		}
	}
	for _, name := range []string{"Strict-Transport-Security", "Alt-Svc", "Public-Key-Pins"} {
		h.Del(name)
	}
	for i, v := range h["Content-Security-Policy"] {
		h["Content-Security-Policy"][i] = withoutUpgrade(v)
	}
	if h.Get("Access-Control-Allow-Origin") == p.target.String() {
		h.Set("Access-Control-Allow-Origin", p.origin)
	}
	return p.redirect(resp)
}

// withoutUpgrade drops the wish that a browser turns http into https.
func withoutUpgrade(policy string) string {
	var kept []string
	for d := range strings.SplitSeq(policy, ";") {
		if d = strings.TrimSpace(d); d != "" && !strings.EqualFold(d, "upgrade-insecure-requests") {
			kept = append(kept, d)
		}
	}
	return strings.Join(kept, "; ")
}

// elsewhere is a redirect that a session to this target cannot follow.
type elsewhere struct{ to string }

func (e *elsewhere) Error() string {
	return "The target sends you on to " + e.to + ", which is another port or protocol of it. Declare that as a target, and open it."
}

func (p *Proxy) redirect(resp *http.Response) error {
	if resp.Header.Get("Location") == "" {
		return nil
	}
	l, err := resp.Location()
	if err != nil || !strings.EqualFold(l.Hostname(), p.target.Hostname()) {
		return nil // elsewhere: the browser goes there by itself
	}
	if l.Scheme != p.target.Scheme || portOf(l) != portOf(p.target) {
		return &elsewhere{l.Scheme + "://" + l.Host}
	}
	l.Scheme, l.Host, l.User = "", "", nil
	if l.Path == "" {
		l.Path = "/"
	}
	if strings.HasPrefix(l.Path, "//") { // as a whole it would name a host
		resp.Header.Set("Location", p.origin+l.String())
		return nil
	}
	resp.Header.Set("Location", l.String())
	return nil
}

func portOf(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	if u.Scheme == "https" {
		return "443"
	}
	return "80"
}

func (p *Proxy) failed(w http.ResponseWriter, r *http.Request, err error) {
	var e *elsewhere
	switch {
	case errors.As(err, &e):
		say(w, http.StatusBadGateway, e.Error())
	case r.Context().Err() != nil: // the browser went away
	default:
		say(w, http.StatusBadGateway, fmt.Sprintf("The target does not answer: %v", err))
	}
}
