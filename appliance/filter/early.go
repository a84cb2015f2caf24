package filter

import (
	"fmt"
	"strings"

	"gatehouse/appliance/control"
	"gatehouse/appliance/lists"
	"gatehouse/netfilter"
	"gatehouse/netfilter/allowlist"
	"gatehouse/netfilter/nft"
	"gatehouse/netfilter/xdp"
)

// install swaps the lists in nftables, and in the early stage if the policy
// asks for one. Both are filled first; the early stage is open while nftables
// changes, so that it is never ahead of it or behind. Killed anywhere, what it
// leaves is an open stage, or one that has what nftables asks.
//
// nftables must succeed. The early stage need not: without it everything is
// judged as before, and the answer says why.
func install(o lists.Order, p allowlist.Policy, rules netfilter.RuleSet, sets []netfilter.Set, generation uint64) (control.EarlyStage, error) {
	var early control.EarlyStage
	if err := nft.Fill(sets); err != nil {
		return early, err
	}
	wanted := p.Early()
	if o.Stage == "" {
		if wanted {
			early.Sentence = "the early stage is off: " + o.NoStage
		}
		return early, nft.Apply(rules)
	}
	var filled *xdp.Filled
	var problem error
	if wanted {
		if filled, problem = xdp.Fill(p); problem == nil {
			defer filled.Release()
		}
	}
	if err := xdp.Open(o.Stage, 0); err != nil {
		// It would keep out whom the new lists let in.
		if gone := xdp.Remove(o.Stage); gone != nil {
			return early, fmt.Errorf("%w; %w", err, gone)
		}
	}
	if err := nft.Apply(rules); err != nil {
		return early, err
	}
	if !wanted {
		return early, xdp.Remove(o.Stage)
	}
	if problem == nil {
		var at xdp.Links
		at, problem = xdp.Stage{Dir: o.Stage, Ports: ports(o.Ports)}.Close(filled, generation)
		early = describeStage(at, filled.Exact)
	}
	if problem != nil {
		early = control.EarlyStage{Sentence: fmt.Sprintf("the early stage could not be used, the lists judge without it: %v", problem)}
	}
	return early, nil
}

func ports(p netfilter.Ports) []uint16 {
	if p == (netfilter.Ports{}) {
		return []uint16{80, 443}
	}
	return p.List()
}

func describeStage(at xdp.Links, exact bool) control.EarlyStage {
	e := control.EarlyStage{Links: at.With, Sentence: "the early stage drops strangers at " + strings.Join(at.With, ", ") + " before the lists are asked"}
	if len(at.Without) > 0 {
		e.Sentence += ", but not at " + strings.Join(at.Without, ", ")
	}
	if !exact {
		e.Sentence += "; the lists are too large for it to hold every range, so it lets some strangers pass to them"
	}
	return e
}
