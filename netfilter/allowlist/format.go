package allowlist

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// FormatIndex writes allowlists.toml for the policy; a list that has all
// addresses of a family gets the flag that allows it.
func FormatIndex(p Policy) ([]byte, error) {
	x := index{Enabled: &p.Enabled, XDP: p.XDP}
	for _, l := range p.Lists {
		x.Lists = append(x.Lists, entry{
			Name: l.Name, Enabled: l.Enabled, Scopes: l.Scopes.Names(), Note: l.Note,
			AllowAll: slices.ContainsFunc(l.Ranges, Range.all),
		})
	}
	b, err := toml.Marshal(x)
	if err != nil {
		return nil, fmt.Errorf("writing %s: %w", Index, err)
	}
	return b, nil
}

// Settings are an index alone, for those who edit it without the lists.
type Settings struct {
	Enabled bool
	XDP     XDP
	Lists   []ListSettings
}

// ListSettings is one list without its ranges.
type ListSettings struct {
	Name     string
	Enabled  bool
	Scopes   []string
	Note     string
	AllowAll bool
}

// ParseSettings reads allowlists.toml alone; an empty file is the policy that is off.
func ParseSettings(b []byte) (Settings, error) {
	var bad problems
	x, ok := parseIndex(b, &bad)
	if !ok {
		return Settings{}, fmt.Errorf("%s, line %d: %s", Index, bad.list[0].Line, bad.list[0].Reason)
	}
	s := Settings{Enabled: x.Enabled != nil && *x.Enabled, XDP: x.XDP}
	for _, e := range x.Lists {
		s.Lists = append(s.Lists, ListSettings(e))
	}
	return s, nil
}

// Format writes allowlists.toml.
func (s Settings) Format() ([]byte, error) {
	x := index{Enabled: &s.Enabled, XDP: s.XDP}
	for _, l := range s.Lists {
		x.Lists = append(x.Lists, entry(l))
	}
	b, err := toml.Marshal(x)
	if err != nil {
		return nil, fmt.Errorf("writing %s: %w", Index, err)
	}
	return b, nil
}

// Change is what differs between two policies.
type Change struct {
	Added, Removed uint64   // ranges, of lists that are enforced before or after
	Summary        []string // in words, a line each
}

// Diff says what going from old to new changes.
func Diff(old, new Policy) Change {
	var c Change
	say := func(format string, args ...any) { c.Summary = append(c.Summary, fmt.Sprintf(format, args...)) }
	switch {
	case old.Enabled && !new.Enabled:
		say("All lists are switched off: anyone may reach ports 80 and 443.")
	case !old.Enabled && new.Enabled:
		say("The lists are switched on: only addresses in an enabled list may reach ports 80 and 443.")
	}
	if word := func(x XDP) XDP { return cmp.Or(x, XDPAuto) }; word(old.XDP) != word(new.XDP) {
		say("The early stage (xdp) is set to %s.", word(new.XDP))
	}
	find := func(p Policy, name string) *List {
		if i := slices.IndexFunc(p.Lists, func(l List) bool { return l.Name == name }); i >= 0 {
			return &p.Lists[i]
		}
		return nil
	}
	for _, l := range old.Lists {
		if find(new, l.Name) == nil {
			c.Removed += uint64(len(l.Ranges))
			say("List %s is removed, with %s.", l.Name, ranges(len(l.Ranges)))
		}
	}
	for _, l := range new.Lists {
		before := find(old, l.Name)
		if before == nil {
			c.Added += uint64(len(l.Ranges))
			say("List %s is new, with %s, for %s.", l.Name, ranges(len(l.Ranges)), strings.Join(l.Scopes.Names(), ", "))
			continue
		}
		added, removed := difference(before.Ranges, l.Ranges)
		c.Added, c.Removed = c.Added+added, c.Removed+removed
		if added+removed > 0 {
			say("List %s: %s added, %d removed.", l.Name, ranges(int(added)), removed)
		}
		if before.Enabled != l.Enabled {
			say("List %s is switched %s.", l.Name, map[bool]string{true: "on", false: "off"}[l.Enabled])
		}
		if before.Scopes != l.Scopes {
			say("List %s is for %s, not %s.", l.Name, strings.Join(l.Scopes.Names(), ", "), strings.Join(before.Scopes.Names(), ", "))
		}
		if before.Note != l.Note {
			say("List %s has another note.", l.Name)
		}
	}
	if len(c.Summary) == 0 {
		say("Nothing changes.")
	}
	return c
}

func ranges(n int) string {
	if n == 1 {
		return "1 range"
	}
	return fmt.Sprintf("%d ranges", n)
}

// difference counts the ranges that one of two sorted lists has and the other has not.
func difference(old, new []Range) (added, removed uint64) {
	for len(old) > 0 && len(new) > 0 {
		switch c := compare(old[0], new[0]); {
		case c == 0:
			old, new = old[1:], new[1:]
		case c < 0:
			removed, old = removed+1, old[1:]
		default:
			added, new = added+1, new[1:]
		}
	}
	return added + uint64(len(new)), removed + uint64(len(old))
}

func compare(a, b Range) int {
	if c := a.First.Compare(b.First); c != 0 {
		return c
	}
	return a.Last.Compare(b.Last)
}
