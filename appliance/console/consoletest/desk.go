package consoletest

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"database/sql"
	"html/template"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"gatehouse/appliance/account"
	"gatehouse/appliance/account/right"
	"gatehouse/appliance/broker"
	"gatehouse/appliance/cert"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
	"gatehouse/appliance/setup"
	"gatehouse/appliance/store"
)

// Desk is pages by themselves, with somebody who is signed in, and no console
// around them: what stands behind the pages is the test's.
type Desk struct {
	*Browser
	Session string // the cookie of who is signed in
	Box     *shell.Box
	Real    *broker.Broker // over an empty database, without an agent
	Place   setup.Settings

	db *store.DB

	mu     sync.Mutex
	events []control.Event
}

// NewDesk serves the routes, and the assets.
func NewDesk(t testing.TB, routes func(*Desk) []shell.Route) *Desk {
	t.Helper()
	d := &Desk{}
	var keys store.Keys
	keys.Fields, keys.Pepper = make([]byte, 32), make([]byte, 32)
	rand.Read(keys.Fields)
	rand.Read(keys.Pepper)
	var err error
	d.db, err = store.Open(t.Context(), filepath.Join(t.TempDir(), "desk.db"), keys, append([]store.Domain{account.Domain(), setup.Domain()}, broker.Domains()...)...)
	must(t, err)
	t.Cleanup(func() { d.db.Close() })
	d.Place = setup.Settings{DB: d.db}
	d.Box = &shell.Box{
		Name: Name, Wall: time.Now, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Accounts: account.New(account.Config{DB: d.db, Wall: time.Now, Steady: time.Now}),
		Status: func(context.Context) (control.Status, error) {
			return control.Status{Name: Name, Now: time.Now(), Started: time.Now().Add(-time.Hour)}, nil
		},
		Audit: func(_ context.Context, e control.Event) error {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.events = append(d.events, e)
			return nil
		},
	}
	d.Real, err = broker.Open(t.Context(), broker.Config{DB: d.db, Box: Name, Folder: t.TempDir(), Wall: time.Now, Audit: d.Box.Audit, SignedIn: d.Box.Accounts.SignedIn, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	must(t, err)
	router, err := shell.NewRouter(d.Box, control.StateReady, append(shell.Assets(), routes(d)...))
	must(t, err)
	c, err := cert.Ephemeral(Name)
	must(t, err)
	server := httptest.NewUnstartedServer(shell.Guard(d.Box, []string{Name}, router))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{c}}
	server.EnableHTTP2 = true
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // a browser that asks whether it may go on
	server.StartTLS()
	t.Cleanup(server.Close)
	jar, err := cookiejar.New(nil)
	must(t, err)
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	d.Browser = &Browser{Client: &http.Client{Jar: jar, Transport: transport, Timeout: 30 * time.Second}, URL: server.URL, t: t}
	person, err := d.Box.Accounts.AddPendingOwner(t.Context(), account.Owner{Name: "Ada Lovelace", Email: "ada@example.org", Password: Password})
	must(t, err)
	must(t, d.Box.Accounts.FinishClaim(t.Context()))
	d.Session, _, err = d.Box.Accounts.Start(t.Context(), person, account.StageFull, account.Origin{Source: netip.MustParsePrefix("127.0.0.1/32"), Agent: "desk"}, "")
	must(t, err)
	at, err := url.Parse(d.URL)
	must(t, err)
	jar.SetCookies(at, []*http.Cookie{{Name: "__Host-gatehouse", Value: d.Session, Path: "/", Secure: true}})
	return d
}

// As makes the person one of another role.
func (d *Desk) As(r right.Role) {
	d.t.Helper()
	must(d.t, d.db.Update(d.t.Context(), func(tx *sql.Tx) error {
		_, err := tx.ExecContext(d.t.Context(), "UPDATE person SET role = ?", string(r))
		return err
	}))
}

// Recorded are the events of the audit log.
func (d *Desk) Recorded() []control.Event {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.events
}

// CardRoute is a page that is only a card of the status page.
func CardRoute(card func(*shell.Visit) (template.HTML, error)) shell.Route {
	return shell.Route{Method: "GET", Path: "/card", States: []control.State{control.StateReady}, Need: shell.Full, Right: right.ReadStatus,
		Handle: func(v *shell.Visit) error {
			h, err := card(v)
			if err != nil {
				return err
			}
			v.W.Header().Set("Content-Type", "text/html; charset=utf-8")
			_, err = v.W.Write([]byte(h))
			return err
		}}
}
