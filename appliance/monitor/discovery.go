package monitor

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"gatehouse/appliance/control"
)

// localFor is how long a name that the network role told is shown; it tells it
// every few seconds.
const localFor = 20 * time.Second

// localName is what the box answers to by mDNS.
type localName struct {
	name string
	told time.Time
}

// multicast says whether the box may be found by mDNS: while nobody owns it,
// so that its owner can find it; then only when switched on. The kernel and
// the network role both follow. m.mu is held.
func (m *Monitor) multicast() bool {
	if m.cfg.Hosted {
		return false // there is no network role, and port 5353 is the host's
	}
	switch m.state {
	case control.StateUnclaimed:
		return true
	case control.StateReady, control.StateLocked:
		return m.network.effect.Multicast
	}
	return false
}

func (m *Monitor) discovery(_ context.Context, _ control.Role, q control.Discovery) (control.DiscoveryState, error) {
	if q.Name != "" && !isLocalName(m.cfg.Name, q.Name) {
		return control.DiscoveryState{}, &control.Error{Code: control.CodeInvalid, Text: fmt.Sprintf("%q is not a name of this box for mDNS: that is %s, or %s-2 and so on", q.Name, m.cfg.Name, m.cfg.Name)}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.local = localName{q.Name, m.cfg.Now()}
	return control.DiscoveryState{On: m.multicast(), Name: m.cfg.Name, State: m.state, Version: m.cfg.Version, Port: m.cfg.HTTPSPort}, nil
}

// isLocalName refuses what only a role in other hands would tell: faces show it.
func isLocalName(base, name string) bool {
	rest, ok := strings.CutPrefix(name, base)
	if !ok || rest == "" {
		return ok
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(rest, "-"), 10, 16)
	return err == nil && rest == "-"+strconv.FormatUint(n, 10) && n >= 2
}

// localNow is the whole name that answers now, or nothing. m.mu is held.
func (m *Monitor) localNow() string {
	if m.local.name == "" || !m.multicast() || m.cfg.Now().Sub(m.local.told) > localFor {
		return ""
	}
	return m.local.name + ".local"
}
