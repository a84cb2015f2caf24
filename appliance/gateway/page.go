package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

//go:embed page.html
var pageSource string

//go:embed page.css
var pageStyle string

// page is all of port 80: one text, the same in every state, and the answers
// to ACME challenges that the console waits for.
type page struct {
	name       string
	port       string // of https, "" for 443
	template   *template.Template
	policy     string
	challenges *challenges // nil: none
}

func newPage(name string, https net.Addr) *page {
	h := sha256.Sum256([]byte(pageStyle))
	p := &page{
		name:     name,
		template: template.Must(template.New("page").Parse(pageSource)),
		policy: "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(h[:]) +
			"'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
	}
	if a := address(https); a.Port() != 443 && a.Port() != 0 {
		p.port = strconv.Itoa(int(a.Port()))
	}
	return p
}

// serve answers until ctx ends. A connection lives for one request and at most
// ten seconds; how many there are is bounded by the same rule as on port 443.
func (p *page) serve(ctx context.Context, l net.Listener, log *slog.Logger) error {
	srv := &http.Server{
		Handler:           p,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       5 * time.Second,
		WriteTimeout:      5 * time.Second,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	srv.Protocols = new(http.Protocols)
	srv.Protocols.SetHTTP1(true)
	srv.SetKeepAlivesEnabled(false)
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	err := srv.Serve(&crowd{Listener: l, waiting: newWaiting(maxWaiting, maxSource)})
	if errors.Is(err, http.ErrServerClosed) {
		return ctx.Err()
	}
	return err
}

// crowd is a Listener whose open connections are bounded by a waiting.
type crowd struct {
	net.Listener
	waiting *waiting
}

func (c *crowd) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &member{Conn: conn, leave: c.waiting.leave, guest: c.waiting.enter(conn, address(conn.RemoteAddr()).Addr())}, nil
}

type member struct {
	net.Conn
	leave func(*guest)
	guest *guest
}

func (m *member) Close() error {
	m.leave(m.guest)
	return m.Conn.Close()
}

func (p *page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", p.policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	if p.serveChallenge(w, r) {
		return
	}
	if r.URL.Path != "/" || r.URL.RawPath != "" || r.URL.RawQuery != "" {
		http.Error(w, "There is nothing here. The page is /.", http.StatusNotFound)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "This page can be read, nothing more.", http.StatusMethodNotAllowed)
		return
	}
	var b bytes.Buffer
	err := p.template.Execute(&b, map[string]any{
		"Name": p.name, "Link": p.link(r.Host), "Style": template.CSS(pageStyle),
	})
	if err != nil {
		http.Error(w, fmt.Sprintf("The page could not be made: %v", err), http.StatusInternalServerError)
		return
	}
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(b.Len()))
	if _, err := w.Write(b.Bytes()); err != nil {
		return // the visitor has gone
	}
}

// link is the https address of the host that the visitor asked for, or "" if
// that is no address or host name.
func (p *page) link(host string) string {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.TrimSuffix(strings.TrimPrefix(name, "["), "]")
	if a, err := netip.ParseAddr(name); err == nil && a.Zone() == "" {
		name = a.String()
		if a.Is6() {
			name = "[" + name + "]"
		}
	} else if !hostName(name) {
		return ""
	}
	if p.port != "" {
		name += ":" + p.port
	}
	return "https://" + name + "/"
}

func hostName(s string) bool {
	return s != "" && len(s) <= 253 && s[0] != '-' && s[0] != '.' &&
		strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.") == ""
}
