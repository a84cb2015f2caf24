package update

import (
	"maps"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

func all() Look {
	l := make(Look)
	for _, name := range checks {
		l[name] = Seen{true, name + " is good"}
	}
	return l
}

func without(names ...string) Look {
	l := all()
	for _, n := range names {
		l[n] = Seen{false, "no " + n}
	}
	return l
}

func TestBOX4_GateNeedsWhatWasGoodBefore(t *testing.T) {
	for name, c := range map[string]struct {
		before Look
		look   func(second int) Look
		keep   int    // at which second; 0: never
		bad    string // why it goes back
	}{
		"everything is good":              {all(), func(int) Look { return all() }, 60, ""},
		"one is late":                     {all(), func(s int) Look { return map[bool]Look{true: all(), false: without(CheckHTTPS)}[s >= 100] }, 160, ""},
		"no address":                      {all(), func(int) Look { return without(CheckAddress, CheckHTTPS) }, 0, "address: no address; https: no https"},
		"no address before either":        {without(CheckAddress, CheckRouter, CheckHTTPS, CheckHub), func(int) Look { return without(CheckAddress, CheckRouter, CheckHTTPS, CheckHub) }, 60, ""},
		"a role that crashes each 50 s":   {all(), func(s int) Look { return map[bool]Look{true: without(CheckRoles), false: all()}[s%50 == 49] }, 0, "not for 1m0s without a break"},
		"good in the last minute alone":   {all(), func(s int) Look { return map[bool]Look{true: all(), false: without(CheckHub)}[s >= 545] }, 0, "without a break"},
		"nothing is seen":                 {all(), func(int) Look { return nil }, 0, "vault: nothing was seen of it"},
		"nothing was good before":         {nil, func(int) Look { return nil }, 60, ""},
		"better than before is no matter": {without(CheckHub), func(int) Look { return all() }, 60, ""},
	} {
		g := NewGate(c.before, noon, noon.Add(Patience))
		for s := 0; ; s++ {
			keep, back, bad := g.Step(noon.Add(time.Duration(s)*time.Second), c.look(s))
			if keep && (back || s != c.keep) || back && (c.keep != 0 || s != 600) || s > 600 {
				t.Errorf("%s: after %d s keep %v, back %v: %s", name, s, keep, back, bad)
			}
			if back && !strings.Contains(bad, c.bad) {
				t.Errorf("%s: went back because of %q, want %q", name, bad, c.bad)
			}
			if keep || back || s > 600 {
				break
			}
		}
	}
}

func TestBOX4_GateSaysHowItStands(t *testing.T) {
	g := NewGate(without(CheckHub), noon, noon.Add(Patience))
	states := func() map[string]string {
		out := make(map[string]string)
		for _, c := range g.Checks() {
			out[c.Name] = c.State
		}
		return out
	}
	want := map[string]string{}
	for _, n := range checks {
		want[n] = "waiting"
	}
	want[CheckHub] = "skipped"
	if got := states(); !maps.Equal(got, want) {
		t.Errorf("before a look: %v", got)
	}
	g.Step(noon, without(CheckHTTPS, CheckHub))
	for _, n := range checks {
		want[n] = "good"
	}
	want[CheckHTTPS], want[CheckHub] = "bad", "skipped"
	if got := states(); !maps.Equal(got, want) {
		t.Errorf("after one: %v, want %v", got, want)
	}
}
