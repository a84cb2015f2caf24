// Package modalias finds the kernel modules that a device needs in the text files that depmod writes.
//
// It is pure: the files are handed in, nothing is loaded. The formats are
// those of depmod(8) and modprobe(8): modules.dep ("PATH: PATH …"),
// modules.alias ("alias PATTERN MODULE") and modules.softdep ("softdep MODULE
// pre: … post: …"). Module names are compared with "-" as "_", as the kernel
// does.
package modalias

import (
	"bufio"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// An Index answers which modules exist and what they need.
type Index struct {
	modules map[string]module
	// aliases by what stands before the first colon ("pci"): a device's name
	// is compared with those of its bus alone. Patterns with a wildcard before
	// the colon are under "".
	aliases map[string][]alias
}

type module struct {
	path      string
	needs     []string // names
	pre, post []string // names or aliases, wished for
}

type alias struct{ pattern, module string }

// Parse reads the three files; softdep may be empty. A line that is not
// understood is an error: the files are ours, made at build.
func Parse(dep, aliases, softdep io.Reader) (*Index, error) {
	x := &Index{modules: make(map[string]module), aliases: make(map[string][]alias)}
	for _, f := range []struct {
		name string
		r    io.Reader
		line func(string) error
	}{
		{"modules.dep", dep, x.depLine},
		{"modules.alias", aliases, x.aliasLine},
		{"modules.softdep", softdep, x.softdepLine},
	} {
		lines := bufio.NewScanner(f.r)
		lines.Buffer(make([]byte, 0, 64<<10), 1<<20)
		for n := 1; lines.Scan(); n++ {
			line := strings.TrimSpace(lines.Text())
			if line == "" || line[0] == '#' {
				continue
			}
			if err := f.line(line); err != nil {
				return nil, fmt.Errorf("%s line %d: %w", f.name, n, err)
			}
		}
		if err := lines.Err(); err != nil {
			return nil, fmt.Errorf("reading %s: %w", f.name, err)
		}
	}
	return x, nil
}

// Name gives a module's name by the path of its file.
func Name(file string) string {
	base, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(base, "-", "_")
}

func (x *Index) depLine(line string) error {
	file, needs, ok := strings.Cut(line, ":")
	if !ok || strings.ContainsAny(file, " \t") || !strings.Contains(file, ".ko") {
		return fmt.Errorf("%q is not PATH: and the paths that it needs", line)
	}
	if path.IsAbs(file) || slices.Contains(strings.Split(file, "/"), "..") {
		return fmt.Errorf("the path %q leads out of the module folder", file)
	}
	name := Name(file)
	if _, double := x.modules[name]; double {
		return fmt.Errorf("the module %s is there twice", name)
	}
	m := module{path: file}
	for _, need := range strings.Fields(needs) {
		m.needs = append(m.needs, Name(need))
	}
	x.modules[name] = m
	return nil
}

func (x *Index) aliasLine(line string) error {
	f := strings.Fields(line)
	if len(f) != 3 || f[0] != "alias" {
		return fmt.Errorf("%q is not alias PATTERN MODULE", line)
	}
	bus := busOf(f[1])
	x.aliases[bus] = append(x.aliases[bus], alias{f[1], Name(f[2])})
	return nil
}

func (x *Index) softdepLine(line string) error {
	f := strings.Fields(line)
	if len(f) < 3 || f[0] != "softdep" {
		return fmt.Errorf("%q is not softdep MODULE, then pre: or post: and names", line)
	}
	name := Name(f[1])
	m, ok := x.modules[name]
	if !ok {
		return nil // of a module that is not in the image
	}
	var list *[]string
	for _, word := range f[2:] {
		switch word {
		case "pre:":
			list = &m.pre
		case "post:":
			list = &m.post
		default:
			if list == nil {
				return fmt.Errorf("%q comes before the kind of dependency", word)
			}
			*list = append(*list, word)
		}
	}
	x.modules[name] = m
	return nil
}

// busOf is what stands before the first colon, or "" if that is not literal.
func busOf(s string) string {
	bus, _, ok := strings.Cut(s, ":")
	if !ok || strings.ContainsAny(bus, `*?[\`) {
		return ""
	}
	return bus
}

// Match gives the modules whose alias fits a device's modalias, or that are
// called so, each once.
func (x *Index) Match(modalias string) []string {
	var out []string
	if name := Name(modalias); !strings.Contains(modalias, ":") && x.Has(name) {
		out = append(out, name)
	}
	buses := []string{""}
	if bus := busOf(modalias); bus != "" {
		buses = append(buses, bus)
	}
	for _, bus := range buses {
		for _, a := range x.aliases[bus] {
			if x.Has(a.module) && !slices.Contains(out, a.module) && glob(a.pattern, modalias) {
				out = append(out, a.module)
			}
		}
	}
	return out
}

// Has says whether the module is there.
func (x *Index) Has(name string) bool {
	_, ok := x.modules[Name(name)]
	return ok
}

// A Step loads one module file. Failure of an optional one is no failure of
// what follows (soft dependencies).
type Step struct {
	Name, Path string
	Optional   bool
}

// Plan gives the files to load for a module, in order: what it needs, what it
// wishes for before, itself, what it wishes for after; each once.
func (x *Index) Plan(name string) ([]Step, error) {
	p := planner{index: x, state: make(map[string]int)}
	if err := p.add(Name(name), false); err != nil {
		return nil, err
	}
	return p.steps, nil
}

type planner struct {
	index *Index
	state map[string]int // 1 being added, 2 added
	steps []Step
}

func (p *planner) add(name string, optional bool) error {
	m, ok := p.index.modules[name]
	switch {
	case !ok:
		return fmt.Errorf("the module %s is not in the image", name)
	case p.state[name] == 2:
		return nil
	case p.state[name] == 1:
		if optional { // soft dependencies may go in a circle; the hard ones decide
			return nil
		}
		return fmt.Errorf("the module %s needs itself", name)
	}
	p.state[name] = 1
	for _, need := range m.needs {
		if err := p.add(need, optional); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	p.wish(m.pre)
	p.steps = append(p.steps, Step{Name: name, Path: m.path, Optional: optional})
	p.state[name] = 2
	p.wish(m.post)
	return nil
}

// wish adds soft dependencies, which may be aliases: nf_tables wishes for
// "crc32c", which is crc32c_generic and the processor's own. One that is
// missing or cannot be planned is left out.
func (p *planner) wish(wishes []string) {
	for _, w := range wishes {
		for _, name := range p.index.Match(w) {
			before := len(p.steps)
			if err := p.add(name, true); err != nil {
				p.steps = p.steps[:before]
			}
		}
	}
}
