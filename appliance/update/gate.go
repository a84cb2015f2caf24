package update

import (
	"strings"
	"time"

	"gatehouse/appliance/control"
)

// The things that a new system has to do as well as the one before.
const (
	CheckVault   = "vault"
	CheckLink    = "link"
	CheckAddress = "address"
	CheckRouter  = "router"
	CheckHTTPS   = "https"
	CheckRoles   = "roles"
	CheckHub     = "hub"
)

// checks is their order, as it is shown: what fails first explains the rest.
var checks = []string{CheckVault, CheckLink, CheckAddress, CheckRouter, CheckHTTPS, CheckRoles, CheckHub}

// Seen is one of them at one moment.
type Seen struct {
	Good   bool   `json:"good"`
	Detail string `json:"detail"` // in words
}

// Look is what is seen at one moment, by the name of the check.
type Look map[string]Seen

const (
	// Steady is how long everything has to be good without a break.
	Steady = 60 * time.Second
	// Patience is how long a trial may take to get there. A router that starts after
	// the same power cut as the box takes minutes.
	Patience = 10 * time.Minute
	// lookEach is how often the gate looks.
	lookEach = time.Second
)

// Gate decides whether a new system is kept. It compares with what was seen of
// the one before: a box whose cable was out before is not asked for an address.
type Gate struct {
	before Look
	began  time.Time
	until  time.Time
	good   time.Time // since when everything is; zero: something is not
	steady time.Duration
	last   Look
}

// NewGate begins a trial at a time. Its end was fixed before the roles were
// started, so that a start that takes for ever is bounded too.
func NewGate(before Look, began, until time.Time) *Gate {
	return &Gate{before: before, began: began, until: until, steady: Steady}
}

// Step takes a look, and says that the system is kept or goes back, or nothing yet.
// bad names in words what was not good at the end.
func (g *Gate) Step(now time.Time, l Look) (keep, back bool, bad string) {
	g.last = l
	var missing []string
	for _, name := range checks {
		if g.before[name].Good && !l[name].Good {
			missing = append(missing, name+": "+detail(l[name]))
		}
	}
	switch {
	case len(missing) > 0:
		g.good = time.Time{}
	case g.good.IsZero():
		g.good = now
	}
	if !g.good.IsZero() && now.Sub(g.good) >= g.steady {
		return true, false, ""
	}
	if !now.Before(g.until) {
		if len(missing) == 0 {
			missing = []string{"everything was good, but not for " + g.steady.String() + " without a break"}
		}
		return false, true, strings.Join(missing, "; ")
	}
	return false, false, ""
}

func detail(s Seen) string {
	if s.Detail == "" {
		return "nothing was seen of it"
	}
	return s.Detail
}

// Checks is how it stands, for people.
func (g *Gate) Checks() []control.Check {
	var out []control.Check
	for _, name := range checks {
		s := g.last[name]
		c := control.Check{Name: name, State: "waiting", Detail: s.Detail}
		switch {
		case !g.before[name].Good:
			c.State = "skipped"
			if c.Detail = "it was not so before the update either"; s.Good {
				c.Detail = s.Detail
			}
		case s.Good:
			c.State = "good"
		case g.last != nil:
			c.State = "bad"
		}
		out = append(out, c)
	}
	return out
}
