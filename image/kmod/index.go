package kmod

import (
	"bytes"
	"fmt"
	"strings"
)

// A Set is a choice of modules that is complete: each finds all it needs in the set.
type Set struct {
	Modules []*Module
	tree    *Tree
	chosen  map[string]*Module
}

// Indexes returns the text files that belong beside the modules, in depmod's
// formats (depmod(8), modules.dep(5)): the .deb brings none of them.
//
//   - modules.dep: "path: path …", all needed modules, the last to be loaded first;
//   - modules.alias: "alias pattern module";
//   - modules.softdep: "softdep module pre: a b post: c", aliases already
//     replaced by the modules that answer to them;
//   - modules.builtin: what needs no loading.
func (s Set) Indexes() map[string][]byte {
	var dep, alias, soft bytes.Buffer
	alias.WriteString("# Aliases extracted from modules themselves.\n")
	soft.WriteString("# Soft dependencies extracted from modules themselves.\n")
	for _, m := range s.Modules {
		dep.WriteString(m.Path + ":")
		for _, need := range s.needs(m) {
			dep.WriteString(" " + need.Path)
		}
		dep.WriteString("\n")
		for _, pattern := range m.Aliases {
			fmt.Fprintf(&alias, "alias %s %s\n", pattern, m.Name)
		}
		pre, post := s.tree.soft(m.pre), s.tree.soft(m.post)
		if len(pre)+len(post) > 0 {
			fmt.Fprintf(&soft, "softdep %s", m.Name)
			if len(pre) > 0 {
				fmt.Fprintf(&soft, " pre: %s", strings.Join(pre, " "))
			}
			if len(post) > 0 {
				fmt.Fprintf(&soft, " post: %s", strings.Join(post, " "))
			}
			soft.WriteString("\n")
		}
	}
	return map[string][]byte{
		"modules.dep":     dep.Bytes(),
		"modules.alias":   alias.Bytes(),
		"modules.softdep": soft.Bytes(),
		"modules.builtin": s.tree.listing,
	}
}

// needs lists all modules that must be in the kernel before m, the one to be
// loaded first last: loading the line from its end to its start works.
func (s Set) needs(m *Module) []*Module {
	var order []*Module // in the order of loading
	seen := map[string]bool{m.Name: true}
	var visit func(*Module)
	visit = func(m *Module) {
		for _, name := range m.depends {
			need := s.chosen[name]
			if need == nil || seen[name] {
				continue
			}
			seen[name] = true
			visit(need)
			order = append(order, need)
		}
	}
	visit(m)
	for i, j := 0, len(order)-1; i < j; i, j = i+1, j-1 {
		order[i], order[j] = order[j], order[i]
	}
	return order
}
