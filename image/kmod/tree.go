// Package kmod picks kernel modules with everything they need and writes the indexes that a modprobe reads.
package kmod

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
)

// A Module is one .ko file with what its .modinfo section says.
type Module struct {
	Name    string   // with underscores, as the kernel shows it
	Path    string   // below /lib/modules/<release>
	Aliases []string // device and service patterns it answers to
	depends []string // modules whose symbols it uses
	pre     []string // soft dependencies: wanted before it, by name or alias
	post    []string // and after it
}

// A Tree is all modules of one kernel, those built in included.
type Tree struct {
	modules map[string]*Module
	builtin map[string]bool
	aliases map[string][]string // exact alias → modules
	listing []byte              // modules.builtin as it came
}

// Read scans the folder of one kernel release: the one with modules.builtin.
func Read(release fs.FS) (*Tree, error) {
	t := &Tree{modules: make(map[string]*Module), builtin: make(map[string]bool), aliases: make(map[string][]string)}
	var err error
	if t.listing, err = fs.ReadFile(release, "modules.builtin"); err != nil {
		return nil, fmt.Errorf("reading the list of built-in modules: %w", err)
	}
	for line := range strings.Lines(string(t.listing)) {
		t.builtin[moduleName(strings.TrimSpace(line))] = true
	}
	if err := t.readBuiltinAliases(release); err != nil {
		return nil, err
	}
	err = fs.WalkDir(release, "kernel", func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || path.Ext(file) != ".ko" {
			return err
		}
		m, err := readModule(release, file)
		if err != nil {
			return fmt.Errorf("module %s: %w", file, err)
		}
		t.modules[m.Name] = m
		for _, alias := range m.Aliases {
			t.aliases[alias] = append(t.aliases[alias], m.Name)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading kernel modules: %w", err)
	}
	if len(t.modules) == 0 {
		return nil, errors.New("reading kernel modules: there is no .ko file; compressed modules are not understood")
	}
	return t, nil
}

// readBuiltinAliases reads modules.builtin.modinfo (module.key=value, each
// ended by NUL): a soft dependency on an alias of something built in is met.
func (t *Tree) readBuiltinAliases(release fs.FS) error {
	info, err := fs.ReadFile(release, "modules.builtin.modinfo")
	if err != nil {
		return fmt.Errorf("reading what the built-in modules say: %w", err)
	}
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		key, value, _ := strings.Cut(string(entry), "=")
		name, key, ok := strings.Cut(key, ".")
		if ok && key == "alias" {
			t.aliases[value] = append(t.aliases[value], underscored(name))
			t.builtin[underscored(name)] = true
		}
	}
	return nil
}

func readModule(release fs.FS, file string) (*Module, error) {
	content, err := fs.ReadFile(release, file)
	if err != nil {
		return nil, err
	}
	object, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	section := object.Section(".modinfo")
	if section == nil {
		return nil, errors.New("has no .modinfo section")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	m := &Module{Name: moduleName(file), Path: file}
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		key, value, _ := strings.Cut(string(entry), "=")
		switch key {
		case "alias":
			m.Aliases = append(m.Aliases, value)
		case "depends":
			for name := range strings.SplitSeq(value, ",") {
				if name != "" {
					m.depends = append(m.depends, underscored(name))
				}
			}
		case "softdep":
			m.addSoft(value)
		}
	}
	return m, nil
}

// addSoft reads one softdep line: "pre: a b post: c".
func (m *Module) addSoft(line string) {
	list := &m.pre
	words := bufio.NewScanner(strings.NewReader(line))
	words.Split(bufio.ScanWords)
	for words.Scan() {
		switch word := words.Text(); word {
		case "pre:":
			list = &m.pre
		case "post:":
			list = &m.post
		default:
			*list = append(*list, word)
		}
	}
}

// Closure returns the wanted modules with everything they need, by path. A
// name that is built in adds nothing; a name that this kernel does not know is
// an error, so that a rename in a new kernel cannot lose a driver in silence.
func (t *Tree) Closure(wanted []string) (Set, error) {
	chosen := make(map[string]*Module)
	var missing []error
	var add func(name string) error
	add = func(name string) error {
		name = underscored(name)
		if chosen[name] != nil || t.builtin[name] {
			return nil
		}
		m := t.modules[name]
		if m == nil {
			return fmt.Errorf("module %s is not in this kernel", name)
		}
		chosen[name] = m
		for _, need := range m.depends {
			if err := add(need); err != nil {
				return fmt.Errorf("%s needs it: %w", name, err)
			}
		}
		for _, need := range t.soft(slices.Concat(m.pre, m.post)) {
			if err := add(need); err != nil {
				return fmt.Errorf("%s wants it: %w", name, err)
			}
		}
		return nil
	}
	for _, name := range wanted {
		if err := add(name); err != nil {
			missing = append(missing, err)
		}
	}
	if len(missing) > 0 {
		return Set{}, fmt.Errorf("choosing kernel modules: %w", errors.Join(missing...))
	}
	sorted := slices.SortedFunc(maps.Values(chosen), func(a, b *Module) int { return strings.Compare(a.Path, b.Path) })
	return Set{Modules: sorted, tree: t, chosen: chosen}, nil
}

// soft turns the words of a soft dependency into modules: a module's name, or
// an alias that several may answer to (crc32c means crc32c_generic and
// crc32c_intel; without the generic one nf_tables does not load on every
// processor). Words that nothing answers to are optional by definition.
func (t *Tree) soft(words []string) []string {
	var names []string
	for _, word := range words {
		if name := underscored(word); t.modules[name] != nil {
			names = append(names, name)
			continue
		}
		for _, name := range t.aliases[word] {
			if !t.builtin[name] {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func moduleName(file string) string { return underscored(strings.TrimSuffix(path.Base(file), ".ko")) }

// The kernel treats - and _ in module names alike and shows _.
func underscored(name string) string { return strings.ReplaceAll(name, "-", "_") }
