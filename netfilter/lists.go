package netfilter

import (
	"slices"
	"strconv"
	"strings"

	"gatehouse/netfilter/allowlist"
)

// Lists is who judges sources while the box is ready. The zero value admits
// nobody: that all may come in has to be said.
type Lists struct {
	Off        bool     // the lists judge nobody: all may come in
	Generation uint64   // of the sets that hold the ranges
	Names      []string // enabled lists, in the order in which counters tell a hit
}

// Equal says whether the rules for both are the same.
func (l Lists) Equal(o Lists) bool {
	return l.Off == o.Off && l.Generation == o.Generation && slices.Equal(l.Names, o.Names)
}

// A SetName names the set that holds one list's ranges of one family. Each
// fill makes sets of its own, told apart by the generation, so that a set that
// rules use never changes.
type SetName struct {
	List       string
	V6         bool
	Generation uint64
}

// A Set is what the kernel shall hold under a name: ranges of one family,
// sorted, disjoint and not adjacent.
type Set struct {
	SetName
	Ranges []allowlist.Range
}

// Sets are those of a policy: two of each enabled list, even if one is empty,
// since the rules ask both. Lists is what goes into the State that uses them.
func Sets(p allowlist.Policy, generation uint64) (Lists, []Set) {
	if !p.Enabled {
		return Lists{Off: true}, nil
	}
	lists := Lists{Generation: generation}
	var sets []Set
	for _, l := range p.Lists {
		if !l.Enabled {
			continue
		}
		lists.Names = append(lists.Names, l.Name)
		v6 := 0
		for v6 < len(l.Ranges) && l.Ranges[v6].First.Is4() {
			v6++
		}
		sets = append(sets,
			Set{SetName{List: l.Name, Generation: generation}, l.Ranges[:v6]},
			Set{SetName{List: l.Name, Generation: generation, V6: true}, l.Ranges[v6:]})
	}
	return lists, sets
}

// ListCounter is the name of the counter of what a list let in.
func ListCounter(list string) string { return "list_" + list }

// String is the name in the kernel: office_4_17. Names of lists have no
// underscore, so it can be read back.
func (n SetName) String() string {
	family := "_4_"
	if n.V6 {
		family = "_6_"
	}
	return n.List + family + strconv.FormatUint(n.Generation, 10)
}

// ParseSetName reads a name of the kernel back.
func ParseSetName(s string) (SetName, bool) {
	parts := strings.Split(s, "_")
	if len(parts) != 3 || parts[0] == "" || (parts[1] != "4" && parts[1] != "6") {
		return SetName{}, false
	}
	generation, err := strconv.ParseUint(parts[2], 10, 64)
	n := SetName{List: parts[0], V6: parts[1] == "6", Generation: generation}
	return n, err == nil && n.String() == s
}

// rules judge by the lists. The two families of a list share a counter.
func (l Lists) rules(counted bool) []Rule {
	var rules []Rule
	for _, name := range l.Names {
		counter := ""
		if counted {
			counter = ListCounter(name)
		}
		for _, v6 := range []bool{false, true} {
			rules = append(rules, Rule{Set: SetName{List: name, V6: v6, Generation: l.Generation}, Counter: counter, Verdict: Accept})
		}
	}
	return rules
}
