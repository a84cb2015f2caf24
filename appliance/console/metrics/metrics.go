// Package metrics tells programs how the box is, in the text format of Prometheus and OpenMetrics.
package metrics

import (
	"context"
	"net/http"
	"strings"
	"time"

	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
	"gatehouse/appliance/token"
)

// Ports are what the figures are asked of.
type Ports struct {
	Exposure func(context.Context) (control.Exposure, error)
	Lists    func(context.Context) (control.Lists, error)
	Expires  func() time.Time // of the page's certificate
}

// Routes is the one row of this package: by token, from addresses whose lists
// are for the console.
func Routes(p Ports) []shell.Route {
	return []shell.Route{{Method: "GET", Path: "/metrics", States: []control.State{control.StateReady}, Need: shell.Program, Token: token.Metrics, API: true, Quiet: true,
		Handle: func(v *shell.Visit) error { return p.serve(v) }}}
}

func (p Ports) serve(v *shell.Visit) error {
	var s snapshot
	var err error
	if s.status, err = v.Box.Status(v.Ctx()); err != nil {
		return err
	}
	if s.exposure, err = p.Exposure(v.Ctx()); err != nil {
		return err
	}
	if s.lists, err = p.Lists(v.Ctx()); err != nil {
		return err
	}
	s.expires, s.signIns, s.tokens = p.Expires(), v.Box.Accounts.Failures(), v.Box.Tokens.Refused()
	kind, open := plainType, strings.Contains(v.R.Header.Get("Accept"), "application/openmetrics-text")
	if open {
		kind = openType
	}
	var b strings.Builder
	write(&b, open, families, s)
	v.W.Header().Set("Content-Type", kind)
	v.W.WriteHeader(http.StatusOK)
	_, err = v.W.Write([]byte(b.String()))
	return err
}
