// Package locked is the one page of a box that cannot open its data: what broke, and the two ways on.
package locked

import (
	"embed"

	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
)

//go:embed *.html
var files embed.FS

// Routes are this package's rows of the table: a page without any form. A
// certificate that may be new deserves nobody's secret.
func Routes(reason string) []shell.Route {
	page := shell.Parse(files, "locked.html")
	return []shell.Route{{
		Method: "GET", Path: "/", States: []control.State{control.StateLocked},
		Handle: func(v *shell.Visit) error {
			st, err := v.Box.Status(v.Ctx())
			if err != nil {
				return err
			}
			if st.Reason == "" {
				st.Reason = reason
			}
			return v.Show(page, st)
		},
	}}
}
