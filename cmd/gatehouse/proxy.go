package main

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base32"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"
)

const (
	pageTime   = 30 * time.Minute // how long the local page waits for the claim
	wizardTime = 10 * time.Minute // how long it stays for the rest of the wizard
	pageCookie = "gatehouse-setup"
)

// page is the box's set-up page at an address of this machine, for one
// browser. Other people on the machine do not get in: the path token in the
// address works once and gives a cookie, which every other request must have.
// The box's own cookies stay here, in jar: over plain http not every browser
// keeps them.
type page struct {
	box    *box
	host   string // x7k2….localhost:41234
	start  string // where the token leads, on the box
	cookie string
	jar    http.CookieJar

	mu    sync.Mutex
	token string // "" once used

	claimed  chan struct{} // closed when the box has an owner
	finished chan struct{} // closed when the browser has reached the end of the wizard
	once     [2]sync.Once
}

func newPage(b *box, port int, ticket string) (*page, error) {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return nil, err
	}
	return &page{
		box: b, jar: jar,
		host:  fmt.Sprintf("%s.localhost:%d", randomText(10), port),
		start: "/setup?ticket=" + url.QueryEscape(ticket),
		token: randomText(20), cookie: randomText(20),
		claimed: make(chan struct{}), finished: make(chan struct{}),
	}, nil
}

func randomText(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails (crypto/rand)
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b))
}

func (p *page) url() string { return "http://" + p.host + "/" + p.token + "/" }

func (p *page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Host != p.host:
		// Another name for 127.0.0.1 means a page elsewhere that was rebound to it.
		http.Error(w, "This address is not served here.", http.StatusMisdirectedRequest)
	case r.Header.Get("Origin") != "" && r.Header.Get("Origin") != "http://"+p.host:
		http.Error(w, "This request comes from another page.", http.StatusForbidden)
	case p.use(r):
		http.SetCookie(w, &http.Cookie{Name: pageCookie, Value: p.cookie, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode})
		w.Header().Set("Referrer-Policy", "no-referrer")
		w.Header().Set("Cache-Control", "no-store")
		http.Redirect(w, r, p.start, http.StatusSeeOther)
	case !p.admits(r):
		http.Error(w, "This page was opened in another browser. Run gatehouse setup again.", http.StatusForbidden)
	case r.URL.Path == "/" && isClosed(p.claimed):
		// The wizard is done: from here on the box's own address counts.
		http.Redirect(w, r, "https://"+p.box.address+"/", http.StatusSeeOther)
		p.once[1].Do(func() { close(p.finished) })
	default:
		p.forward(w, r)
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// use takes the path token, once.
func (p *page) use(r *http.Request) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	got := strings.Trim(r.URL.Path, "/")
	if p.token == "" || r.Method != http.MethodGet || subtle.ConstantTimeCompare([]byte(got), []byte(p.token)) != 1 {
		return false
	}
	p.token = ""
	return true
}

func (p *page) admits(r *http.Request) bool {
	c, err := r.Cookie(pageCookie)
	return err == nil && subtle.ConstantTimeCompare([]byte(c.Value), []byte(p.cookie)) == 1
}

func (p *page) forward(w http.ResponseWriter, r *http.Request) {
	target := &url.URL{Scheme: "https", Host: p.box.address}
	proxy := httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.SetURL(target)
			pr.Out.Host = p.box.address
			pr.Out.Header.Del("Cookie")
			for _, c := range p.jar.Cookies(target) {
				pr.Out.AddCookie(c)
			}
			if pr.In.Header.Get("Origin") != "" {
				pr.Out.Header.Set("Origin", target.String())
			}
			pr.Out.Header.Del("Referer")
		},
		ModifyResponse: func(resp *http.Response) error {
			p.jar.SetCookies(target, resp.Cookies())
			resp.Header.Del("Set-Cookie")
			resp.Header.Del("Strict-Transport-Security")
			if l, err := resp.Location(); err == nil && l.Host == target.Host {
				l.Scheme, l.Host = "", ""
				resp.Header.Set("Location", l.String())
			}
			return nil
		},
		Transport: p.box.client.Transport, // accepts the proved key alone
		ErrorLog:  log.New(discard{}, "", 0),
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, "The box cannot be reached: "+err.Error(), http.StatusBadGateway)
		},
	}
	proxy.ServeHTTP(w, r)
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// openPage serves the page until the wizard is done.
func (s *takeover) openPage(ctx context.Context, b *box, t taken, ticket string) error {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("opening the local set-up page: %w", err)
	}
	p, err := newPage(b, l.Addr().(*net.TCPAddr).Port, ticket)
	if err != nil {
		l.Close()
		return err
	}
	server := &http.Server{Handler: p, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(discard{}, "", 0)}
	defer server.Close()
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }() // ends with Close above
	t.URL = p.url()
	if s.asJSON {
		err = printJSON(s.stdout, t)
	} else {
		_, err = fmt.Fprintln(s.stdout, t.URL)
	}
	if err != nil {
		return err
	}
	if s.noBrowser {
		fmt.Fprintln(s.stderr, "Open this address in a browser on this machine; it works once.")
	} else {
		openBrowser(ctx, t.URL)
		fmt.Fprintln(s.stderr, "Your browser opens the set-up page. If it does not, open the address yourself; it works once.")
	}
	return s.wait(ctx, b, p, served)
}

// wait looks every second whether the box has an owner.
func (s *takeover) wait(ctx context.Context, b *box, p *page, served <-chan error) error {
	end := time.NewTimer(pageTime)
	tick := time.NewTicker(time.Second)
	defer end.Stop()
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-served:
			return fmt.Errorf("serving the local set-up page: %w", err)
		case <-p.finished:
			fmt.Fprintf(s.stderr, "Done. From now on the box is at https://%s/\n", b.address)
			// The redirect that ends it is on its way to the browser.
			time.Sleep(200 * time.Millisecond)
			return nil
		case <-end.C:
			if isClosed(p.claimed) {
				fmt.Fprintf(s.stderr, "The local page is closed. Go on at https://%s/\n", b.address)
				return nil
			}
			return fail(exitUnreachable, "nobody took over the box within %s: the local page is closed. Run gatehouse setup again", pageTime)
		case <-tick.C:
			var now publicStatus
			_, err := b.call(ctx, http.MethodGet, "/api/v1/status", nil, &now)
			var f *failure
			if errors.As(err, &f) && f.code == exitVerification {
				return err
			}
			if err == nil && now.State == "ready" && !isClosed(p.claimed) {
				p.once[0].Do(func() { close(p.claimed) })
				fmt.Fprintf(s.stderr, "The box has its owner. The page stays open for the rest of the wizard, at most %s.\n", wizardTime)
				end.Reset(wizardTime)
			}
		}
	}
}

// openBrowser asks the desktop to show an address. That it cannot is no
// failure: the address was printed.
func openBrowser(ctx context.Context, address string) {
	name, args := "xdg-open", []string{address}
	switch runtime.GOOS {
	case "darwin":
		name = "open"
	case "windows":
		name, args = "rundll32", []string{"url.dll,FileProtocolHandler", address}
	}
	cmd := exec.CommandContext(ctx, name, args...)
	if cmd.Start() == nil {
		go cmd.Wait() // reaps it whenever it ends
	}
}
