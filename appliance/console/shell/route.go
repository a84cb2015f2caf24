// Package shell is what all pages of the console share: the table of routes and who may use each, the checks before a handler, the layout and its assets.
package shell

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/control"
	"gatehouse/appliance/token"
	"gatehouse/netfilter/allowlist"
)

// Need is who may use a route.
type Need int

// The needs, from the least to the most.
const (
	Anyone  Need = iota
	Code         // the password was right and the second step is to come
	Enrol        // the password was right, and no second factor yet, or signed in
	Full         // signed in, with the route's right
	Program      // a token of the route's scope; cookies count for nothing
)

// Route is one row of the table. What is not in the table does not exist.
type Route struct {
	Method string // GET (HEAD goes with it) or POST
	Path   string // exact; there are no patterns
	States []control.State
	Scope  allowlist.Scope // what the source's lists must be for; none said: the console
	Need   Need
	Right  right.Right // for Full
	Token  token.Scope // for Program
	Fresh  bool        // password and factor given a short while ago
	API    bool        // answers with JSON and problem documents
	Body   int64       // most bytes of a request; 0: 64 KiB
	Quiet  bool        // a page asks this by itself: it does not keep a session alive
	Handle func(*Visit) error
}

// InEach are the states in which the box is somebody's or nobody's yet.
var InEach = []control.State{control.StateUnclaimed, control.StateReady}

// scope is what the source must have, one of it.
func (r Route) scope() allowlist.Scope {
	if r.Scope == 0 {
		return allowlist.Console
	}
	return r.Scope
}

func (r Route) check() error {
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodPost:
		return fmt.Errorf("route %s %s: the method is neither GET nor POST", r.Method, r.Path)
	case !strings.HasPrefix(r.Path, "/") || strings.ContainsAny(r.Path, "{}%?#") || strings.Contains(r.Path, "//"):
		return fmt.Errorf("route %s %s: the path is not a plain one", r.Method, r.Path)
	case r.Handle == nil || len(r.States) == 0:
		return fmt.Errorf("route %s %s has no handler or no state", r.Method, r.Path)
	case (r.Need == Full) != (r.Right != ""):
		return fmt.Errorf("route %s %s: a signed-in route names a right, another does not", r.Method, r.Path)
	case (r.Need == Program) != (r.Token != ""):
		return fmt.Errorf("route %s %s: a route for programs names the scope of their tokens, another does not", r.Method, r.Path)
	case r.Fresh && r.Need != Full:
		return fmt.Errorf("route %s %s: only a signed-in route can ask for a fresh sign-in", r.Method, r.Path)
	}
	return nil
}

// Router finds routes by exact path and method. It is not http.ServeMux, which
// answers unclean paths with redirects: after the claim every spelling of a
// set-up path has to be 404 and nothing else.
type Router struct {
	box    *Box
	routes map[string]map[string]Route
}

// NewRouter registers the routes of the table that exist in a state. The
// others are not refused but absent.
func NewRouter(box *Box, state control.State, table []Route) (*Router, error) {
	m := make(map[string]map[string]Route)
	for _, r := range table {
		if err := r.check(); err != nil {
			return nil, err
		}
		if !slices.Contains(r.States, state) {
			continue
		}
		if m[r.Path] == nil {
			m[r.Path] = make(map[string]Route)
		}
		if _, twice := m[r.Path][r.Method]; twice {
			return nil, fmt.Errorf("route %s %s is there twice", r.Method, r.Path)
		}
		m[r.Path][r.Method] = r
	}
	return &Router{box, m}, nil
}

func (rt *Router) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v := &Visit{W: w, R: r, Box: rt.box, router: rt}
	if r.URL.RawPath != "" || r.URL.EscapedPath() != r.URL.Path {
		v.notFound()
		return
	}
	methods, ok := rt.routes[r.URL.Path]
	if !ok {
		v.notFound()
		return
	}
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	route, ok := methods[method]
	if !ok {
		allow := make([]string, 0, 2)
		for m := range methods {
			allow = append(allow, m)
		}
		slices.Sort(allow)
		w.Header().Set("Allow", strings.Join(allow, ", "))
		v.fail(http.StatusMethodNotAllowed, "This address does not take "+safeMethod(r.Method)+".", "")
		return
	}
	v.serve(route)
}

// page is where a person goes on after a sign-in: where they were going. What
// was sent to a path cannot be sent again by a redirect, so for that it is the
// page at the path, or the nearest above it.
func (rt *Router) page(method, path string) string {
	if method != http.MethodPost {
		return path
	}
	for path != "" {
		if r, ok := rt.routes[path][http.MethodGet]; ok && !r.API && !r.Quiet {
			return path
		}
		path = path[:strings.LastIndexByte(path, '/')]
	}
	return "/"
}

func safeMethod(m string) string {
	if len(m) > 10 {
		return "that method"
	}
	return m
}
