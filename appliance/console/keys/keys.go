// Package keys is the page and the API of what guards the data: the ladder from firmware to data, the ways to the data key, and their change.
package keys

import (
	"context"
	"embed"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
)

//go:embed *.html
var files embed.FS

// Ports are the requests of the privileged process that this package makes. It
// writes each event to the audit log before it acts.
type Ports struct {
	Keys            func(context.Context) (control.Keys, error)
	MakeRecovery    func(context.Context, control.By) (control.RecoveryKey, error)
	ConfirmRecovery func(context.Context, control.RecoveryConfirm) error
	Rotate          func(context.Context, control.KeyRotate) error
	SetPassphrase   func(context.Context, control.PassphraseSet) error
	TakeTPM         func(context.Context, control.By) error
	Enrol           func(context.Context, control.By) error
	Steady          func() time.Time
}

// Pages are the routes of the keys.
type Pages struct {
	Ports
	page, recovery, rotate, passphrase, tpm, boot shell.Page

	mu    sync.Mutex
	known control.Keys
	until time.Time
}

// New makes the pages.
func New(p Ports) *Pages {
	parse := func(name string) shell.Page { return shell.Parse(files, name) }
	return &Pages{Ports: p, page: parse("keys.html"), recovery: parse("recovery.html"), rotate: parse("rotate.html"),
		passphrase: parse("passphrase.html"), tpm: parse("tpm.html"), boot: parse("boot.html")}
}

// Routes are this package's rows of the table. All are the owner's. What
// changes a way to the data asks for password and code; to confirm a recovery
// key takes the key itself, which is more.
func (p *Pages) Routes() []shell.Route {
	row := func(method, path string, fresh bool, h func(*shell.Visit) error) shell.Route {
		return shell.Route{Method: method, Path: path, States: []control.State{control.StateReady}, Need: shell.Full, Right: right.ManageKeys,
			Fresh: fresh, API: strings.HasPrefix(path, "/api/"), Handle: h}
	}
	return []shell.Route{
		row("GET", "/keys", false, p.show),
		row("GET", "/keys/recovery", false, p.showRecovery), row("POST", "/keys/recovery", true, p.makeRecovery),
		row("GET", "/keys/recovery/confirm", false, p.showRecovery), row("POST", "/keys/recovery/confirm", false, p.confirmRecovery),
		row("GET", "/welcome/recovery", false, p.showRecovery), row("POST", "/welcome/recovery", true, p.makeRecovery),
		row("GET", "/welcome/recovery/confirm", false, p.showRecovery), row("POST", "/welcome/recovery/confirm", false, p.confirmRecovery),
		row("GET", "/keys/rotate", true, p.askRotate), row("POST", "/keys/rotate", true, p.doRotate),
		row("GET", "/keys/passphrase", true, p.askPassphrase), row("POST", "/keys/passphrase", true, p.doPassphrase),
		row("GET", "/keys/tpm", true, p.askTPM), row("POST", "/keys/tpm", true, p.doTPM),
		row("GET", "/keys/secure-boot", true, p.askBoot), row("POST", "/keys/secure-boot", true, p.doBoot),
		row("GET", "/api/v1/keys", false, p.api),
		row("POST", "/api/v1/keys/recovery", true, p.apiRecovery), row("POST", "/api/v1/keys/recovery/confirm", false, p.apiConfirm),
		row("POST", "/api/v1/keys/rotate", true, p.apiRotate), row("POST", "/api/v1/keys/passphrase", true, p.apiPassphrase),
		row("POST", "/api/v1/keys/tpm", true, p.apiTPM), row("POST", "/api/v1/keys/secure-boot", true, p.apiBoot),
	}
}

// knownFor is how long Known answers without asking: the status page asks each
// five seconds, and a TPM takes its time for each of its registers.
const knownFor = time.Minute

// Known is what was seen of the keys within the last minute, and since their
// last change here.
func (p *Pages) Known(ctx context.Context) (control.Keys, error) {
	p.mu.Lock()
	k, until := p.known, p.until
	p.mu.Unlock()
	if p.Steady().Before(until) {
		return k, nil
	}
	return p.look(ctx)
}

// look asks.
func (p *Pages) look(ctx context.Context) (control.Keys, error) {
	k, err := p.Keys(ctx)
	if err != nil {
		return k, fmt.Errorf("asking what guards the keys: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known, p.until = k, p.Steady().Add(knownFor)
	return k, nil
}

// forget has the next one ask.
func (p *Pages) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.until = time.Time{}
}

func by(v *shell.Visit) control.By { return control.By{Actor: v.Person().Email, From: v.From()} }

// kinds are the ways to the data key, in words.
var kinds = map[string]string{"tpm": "TPM", "host-id": "Identifier of the machine", "passphrase": "Passphrase", "recovery": "Recovery key", "data": "Data key"}

// slot is a row of the table.
type slot struct {
	control.KeySlot
	Words string
	First bool // of its kind: what is done, is done to all of them
}

type view struct {
	control.Keys
	Slots   []slot
	Changed int  // registers
	Asks    bool // for a passphrase at the start
	Waits   bool // a new recovery key
}

func viewOf(k control.Keys) view {
	w := view{Keys: k}
	seen := map[string]bool{}
	for _, s := range k.Slots {
		w.Slots = append(w.Slots, slot{s, kinds[s.Kind], !seen[s.Kind]})
		seen[s.Kind] = true
	}
	for _, r := range k.Registers {
		if r.Changed() {
			w.Changed++
		}
	}
	w.Asks, w.Waits = seen["passphrase"], waits(k)
	return w
}

func (p *Pages) show(v *shell.Visit) error {
	k, err := p.look(v.Ctx())
	if err != nil {
		return err
	}
	return v.Show(p.page, viewOf(k))
}

func has(k control.Keys, kind string) bool {
	return slices.ContainsFunc(k.Slots, func(s control.KeySlot) bool { return s.Kind == kind })
}
