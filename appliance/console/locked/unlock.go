package locked

import (
	"context"
	"net/http"
	"time"

	"gatehouse/appliance/brake"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
	"gatehouse/appliance/setup/proof"
)

// Tries cost the privileged process work, and a wrong one can never be right:
// the limits are for those who only want to keep the box busy.
var (
	ofOneSource = brake.Rate{Burst: 6, Each: 5 * time.Second}
	ofAll       = brake.Rate{Burst: 60, Each: 500 * time.Millisecond}
)

// unlockRoutes are for gatehouse unlock, not for browsers: a page could ask a
// person for his key, and nobody could tell it from one that another shows.
func (p *pages) unlockRoutes() []shell.Route {
	locked := []control.State{control.StateLocked}
	return []shell.Route{
		{Method: http.MethodGet, Path: "/api/v1/unlock", States: locked, API: true, Handle: p.key},
		{Method: http.MethodPost, Path: "/api/v1/unlock", States: locked, API: true, Handle: p.unlock},
	}
}

// refuseBrowsers knows them by what each of them sends with such a request and
// no program needs to (Fetch standard; W3C Fetch Metadata).
func refuseBrowsers(v *shell.Visit) error {
	for _, h := range []string{"Origin", "Sec-Fetch-Site", "Sec-Fetch-Mode", "Sec-Fetch-Dest", "Cookie"} {
		if _, there := v.R.Header[h]; there {
			return shell.Refuse("A browser does not unlock a box: use gatehouse unlock, which compares the words of its console first.")
		}
	}
	return nil
}

func (p *pages) key(v *shell.Visit) error {
	if err := refuseBrowsers(v); err != nil {
		return err
	}
	k, err := p.UnlockKey(v.Ctx())
	if err != nil {
		return err
	}
	return v.JSON(http.StatusOK, map[string]any{"name": v.Box.Name, "key": k.Public, "takes": k.Takes})
}

func (p *pages) unlock(v *shell.Visit) error {
	if err := refuseBrowsers(v); err != nil {
		return err
	}
	var q struct {
		Sealed []byte `json:"sealed"`
	}
	if err := v.Decode(&q); err != nil {
		return err
	}
	if v.R.TLS == nil {
		return shell.Refuse("A key needs a TLS connection that it is bound to.")
	}
	binding, err := proof.Binding(v.R.TLS)
	if err != nil {
		return err
	}
	if !p.tries.Take(p.Steady(), v.Origin.Source) {
		return shell.Refuse("Too many tries. Wait a few seconds and try again.")
	}
	// The tool's going away must not leave it open what came of it.
	if err := p.Unlock(context.WithoutCancel(v.Ctx()), control.Unlock{Sealed: q.Sealed, Binding: binding, From: v.From()}); err != nil {
		return err
	}
	return v.JSON(http.StatusOK, map[string]any{"name": v.Box.Name})
}
