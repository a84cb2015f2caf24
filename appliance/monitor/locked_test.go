package monitor

import (
	"context"
	"errors"
	"slices"
	"testing"

	"gatehouse/appliance/control"
	"gatehouse/appliance/lists"
	"gatehouse/netfilter"
)

// TestKEY6_LockedBoxLetsInItsNetworksOrItsLists and nobody else: lists that are off,
// that could not be put in force, or that admit nobody in particular are none.
func TestKEY6_LockedBoxLetsInItsNetworksOrItsLists(t *testing.T) {
	good := lists.Answer{Enabled: true, InForce: netfilter.Lists{Names: []string{"office"}, Generation: 7}}
	for name, c := range map[string]struct {
		answer lists.Answer
		err    error
		phase  control.State
	}{
		"lists":                   {good, nil, control.StateReady},
		"lists that are off":      {lists.Answer{InForce: netfilter.Lists{Off: true}}, nil, control.StateLocked},
		"off, and there":          {lists.Answer{InForce: netfilter.Lists{Off: true, Names: []string{"office"}}}, nil, control.StateLocked},
		"none enabled":            {lists.Answer{Enabled: true}, nil, control.StateLocked},
		"malformed":               {lists.Answer{Report: control.ListsReport{Problems: []control.Problem{{File: "office.list", Line: 1}}}}, nil, control.StateLocked},
		"a filter that failed":    {good, errors.New("no memory"), control.StateLocked},
		"a filter that says so":   {lists.Answer{Error: "no memory"}, nil, control.StateLocked},
		"nothing was kept at all": {lists.Answer{}, nil, control.StateLocked},
	} {
		folder, err := lists.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		var rules []netfilter.State
		b := newLocked(t, &keyring{}, func(cfg *Config) {
			cfg.Filter = func(s netfilter.State) error { rules = append(rules, s); return nil }
			cfg.Lists = &Lists{Folder: folder, Filter: func(context.Context, lists.Order) (lists.Answer, error) { return c.answer, c.err }}
		})
		got := rules[len(rules)-1]
		if got.Phase != c.phase || (c.phase == control.StateReady) != slices.Equal(got.Lists.Names, []string{"office"}) {
			t.Errorf("%s: the rules are of %s, %+v", name, got.Phase, got.Lists)
		}
		if b.State() != control.StateLocked || b.Status().Firewall.Lists {
			t.Errorf("%s: the box is %s", name, b.State())
		}
		if err := b.ListsOff(t.Context()); err == nil {
			t.Errorf("%s: the lists were switched off while locked", name)
		}
		if _, err := b.tryLists(t.Context(), control.Console, control.ListsTry{}); err == nil {
			t.Errorf("%s: the console changes lists while locked", name)
		}
	}
}
