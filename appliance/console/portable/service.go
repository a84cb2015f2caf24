package portable

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"gatehouse/appliance/account"
	"gatehouse/appliance/broker/target"
	"gatehouse/appliance/cert/keeper"
	"gatehouse/appliance/console/allowlists"
	"gatehouse/appliance/control"
	format "gatehouse/appliance/portable"
	"gatehouse/appliance/setup"
	"gatehouse/netfilter/allowlist"
)

// Targets are those of the broker.
type Targets interface {
	Export(context.Context) ([]target.Moved, error)
	CheckMoved([]target.Moved) error
	Import(context.Context, *sql.Tx, []target.Moved) error
}

// Certificates are those of the keeper.
type Certificates interface {
	Export() (keeper.Moved, error)
	CheckMoved(keeper.Moved) error
	Restore(keeper.Moved, string, keeper.Record) error
}

// Ports are what has a part in the file.
type Ports struct {
	Dir          string // of the console: files on their way lie there, encrypted
	People       func() *account.Accounts
	Place        setup.Settings
	Targets      Targets
	Certificates Certificates
	Lists        allowlists.Ports
	Network      func(context.Context) (control.NetworkState, error)
	TryNetwork   func(context.Context, control.NetworkTry) (control.NetworkReport, error)
	Update       func(context.Context) (control.Update, error)
	SetUpdate    func(context.Context, control.UpdateSet) error
	// Imported is told once other people are those of the box.
	Imported func(context.Context) error
	Steady   func() time.Time
}

// The files in Dir. Both are encrypted to somebody who is elsewhere.
const (
	exportFile = "export.age"
	importFile = "import.age"
)

// stagedFor is how long an upload waits for a yes.
const stagedFor = 10 * time.Minute

// Counted is what is in a file, for a person to decide by.
type Counted struct {
	Box          string    `json:"box"`
	Version      string    `json:"version"`
	Made         time.Time `json:"made"`
	Parts        []string  `json:"parts"`
	People       int       `json:"people"`
	Owner        string    `json:"owner,omitempty"`
	Place        string    `json:"place,omitempty"`
	Targets      int       `json:"targets"`
	Certificates string    `json:"certificates,omitempty"` // where they come from
	Lists        []string  `json:"lists,omitempty"`
	ListsOn      bool      `json:"lists_on,omitempty"`
	Links        int       `json:"links"`
	Mirror       string    `json:"mirror,omitempty"`
}

// The parts by the names that people and programs say them.
const (
	people       = "people"
	place        = "place"
	targets      = "targets"
	certificates = "certificates"
	lists        = "lists"
	network      = "network"
	updates      = "updates"
)

// order is that in which parts are shown and taken.
var order = []string{people, place, targets, certificates, updates, lists, network}

// usual is what is taken unless said otherwise: another box stands elsewhere.
func usual(parts []string) []string {
	return slices.DeleteFunc(slices.Clone(parts), func(p string) bool { return p == network })
}

// content is a file that was read to its end.
type content struct {
	about        format.About
	people       []account.Moved
	place        *setup.Place
	targets      []target.Moved
	certificates *keeper.Moved
	network      *control.NetworkSettings
	updates      *control.UpdateSettings
	index        *allowlist.Settings
	files        []string // NAME.list
	has          map[string]bool
}

func (c *content) parts() (list []string) {
	for _, p := range order {
		if c.has[p] {
			list = append(list, p)
		}
	}
	return list
}

func (c *content) count() Counted {
	n := Counted{Box: c.about.Box, Version: c.about.Version, Made: c.about.Made, Parts: c.parts(), People: len(c.people), Targets: len(c.targets)}
	for _, p := range c.people {
		if p.Role == "owner" {
			n.Owner = p.Email
		}
	}
	if c.place != nil {
		n.Place = c.place.Site
	}
	if c.certificates != nil {
		n.Certificates = string(c.certificates.Source)
	}
	if c.index != nil {
		n.ListsOn = c.index.Enabled
		for _, l := range c.index.Lists {
			n.Lists = append(n.Lists, l.Name)
		}
	}
	if c.network != nil {
		n.Links = len(c.network.Links)
	}
	if c.updates != nil {
		n.Mirror = c.updates.Mirror
	}
	return n
}

// service is exports and imports. One is made at a time: each takes memory that
// a small box has once.
type service struct {
	Ports
	one sync.Mutex

	mu     sync.Mutex
	staged *staged
}

// staged is a file that was read, and waits to be taken.
type staged struct {
	id      string
	person  int64
	key     *format.Opener
	counted Counted
	until   time.Time
}

var errBusy = refuse("Another export or import is under way. Try again in a moment.")

func refuse(text string, a ...any) error { return &account.Refusal{Text: fmt.Sprintf(text, a...)} }

// words makes refusals of the file those of a page.
func words(err error) error {
	var f *format.Refusal
	if errors.As(err, &f) {
		return refuse("%s", f.Text)
	}
	var k *keeper.Refusal
	if errors.As(err, &k) {
		return refuse("%s", k.Text)
	}
	return err
}

func (s *service) path(name string) string { return filepath.Join(s.Dir, name) }
