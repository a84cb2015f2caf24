package shell

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"

	"gatehouse/appliance/handover"
)

// policy is the whole content security policy: no inline script or style, and
// nothing from anywhere else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

// Guard is what stands before every handler: headers, host names, requests
// from other sites, and a bound on how many run at once.
func Guard(box *Box, names []string, next http.Handler) http.Handler {
	running := &crowd{by: make(map[netip.Prefix]int), places: make(map[*place]struct{})}
	csrf := http.NewCrossOriginProtection() // no bypass patterns, ever
	csrf.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v := &Visit{W: w, R: r, Box: box}
		v.fail(http.StatusForbidden, "This was sent by a page of another site, and is refused.", "")
	}))
	inner := csrf.Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		headers(w.Header())
		v := &Visit{W: w, R: r, Box: box}
		defer func() {
			if p := recover(); p != nil && p != http.ErrAbortHandler {
				box.Log.Error("a handler broke", "path", r.URL.Path, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				v.fail(http.StatusInternalServerError, "That did not work. The log of the console says why.", "")
			}
		}()
		if !ours(r, names) {
			v.fail(http.StatusMisdirectedRequest, "This box does not have that name.", "Open it by its address or as "+strings.Join(names, " or ")+".")
			return
		}
		source := originOf(r).Source
		place := running.enter(source, w, r)
		if place == nil {
			w.Header().Set("Retry-After", "2")
			v.fail(http.StatusServiceUnavailable, "The box is busy. Try again in a moment.", "")
			return
		}
		defer running.leave(place)
		inner.ServeHTTP(w, r)
	})
}

func headers(h http.Header) {
	for name, value := range map[string]string{
		"Content-Security-Policy":      policy,
		"Strict-Transport-Security":    "max-age=31536000",
		"X-Content-Type-Options":       "nosniff",
		"Referrer-Policy":              "no-referrer",
		"Cross-Origin-Opener-Policy":   "same-origin",
		"Cross-Origin-Resource-Policy": "same-origin",
		"Permissions-Policy":           "camera=(), microphone=(), geolocation=(), usb=(), payment=()",
		"Cache-Control":                "no-store",
	} {
		h.Set(name, value)
	}
}

// ours judges the Host header. A page of a foreign name that was made to point
// at this address (DNS rebinding) would be the same origin as ours to the
// browser; an address literal cannot be pointed anywhere else.
func ours(r *http.Request, names []string) bool {
	if c := connOf(r); c != nil && c.Meta().Kind == handover.Agent {
		return true // the local socket; no browser gets there
	}
	host := r.Host
	if h, port, err := net.SplitHostPort(host); err == nil {
		if port == "" || strings.Trim(port, "0123456789") != "" {
			return false
		}
		host = h
	} else if inner, ok := strings.CutPrefix(host, "["); ok {
		if host, ok = strings.CutSuffix(inner, "]"); !ok {
			return false
		}
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return a.Zone() == ""
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return slices.Contains(names, host) || slices.Contains(names, unnumbered(host))
}

// unnumbered is a name of .local without the number that mDNS puts behind it
// where another box had the name first: gatehouse-7f3k-2.local.
func unnumbered(host string) string {
	label, local := strings.CutSuffix(host, ".local")
	i := strings.LastIndexByte(label, '-')
	if !local || i < 0 || label[i+1:] == "" || strings.Trim(label[i+1:], "0123456789") != "" {
		return host
	}
	return label[:i] + ".local"
}
