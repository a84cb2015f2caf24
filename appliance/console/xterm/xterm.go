// Package xterm is xterm.js as the console's pages have it: the terminal of a session, the player of a recording.
//
// The bundle is made by make from what package-lock.json pins, and is not in
// the repository. A program that was built without it works, and its pages say
// what is missing.
package xterm

import (
	"embed"

	"gatehouse/appliance/console/shell"
)

//go:embed dist
var dist embed.FS

// Names of the bundle's files.
const (
	module   = "xterm.js"
	style    = "xterm.css"
	licences = "xterm.LICENSE.txt"
)

// Bundle is what a page needs to know.
type Bundle struct {
	Module   string // address of a module that exports Terminal, FitAddon and SearchAddon; "": this program was built without it
	Style    string // of the style sheet
	Licences string
}

// Open looks for the bundle in the program.
func Open() Bundle {
	m, s, l := read(module), read(style), read(licences)
	if m == nil || s == nil || l == nil {
		return Bundle{}
	}
	return Bundle{shell.AssetAddress(module, m), shell.AssetAddress(style, s), shell.AssetAddress(licences, l)}
}

// Routes are the files of the bundle. They are in the table whether it is there or not.
func Routes() []shell.Route {
	var routes []shell.Route
	for _, name := range []string{module, style, licences} {
		routes = append(routes, shell.PageAsset(name, read(name)))
	}
	return routes
}

// read is nil where the program was built without the file.
func read(name string) []byte {
	b, err := dist.ReadFile("dist/" + name)
	if err != nil {
		return nil
	}
	return b
}
