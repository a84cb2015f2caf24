package allowlist

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"gatehouse/appliance/control"
)

// The names of the files.
const (
	Index  = "allowlists.toml" // switch, order, scopes, notes
	Suffix = ".list"           // one range a line
)

// Limits of what a person reads or writes.
const (
	maxLine     = 256
	maxShown    = 64 // bytes of a bad line that a Problem repeats
	maxNote     = 200
	maxProblems = 50
	maxIndex    = 64 << 10
)

// File is one file of a policy.
type File struct {
	Name string
	Data []byte
}

// index is the shape of allowlists.toml. The switch has to be said: a file that
// lost its content must not read as "everyone may come in".
type index struct {
	Enabled *bool   `toml:"enabled"`
	XDP     XDP     `toml:"xdp,omitempty"`
	Lists   []entry `toml:"list"`
}

type entry struct {
	Name     string   `toml:"name"`
	Enabled  bool     `toml:"enabled"`
	Scopes   []string `toml:"scope"`
	Note     string   `toml:"note,omitempty"`
	AllowAll bool     `toml:"allow_all,omitempty"`
}

var scopeNames = []struct {
	name  string
	scope Scope
}{{"console", Console}, {"sites", Sites}, {"visitors", Visitors}}

// Names are the words of a scope, in order.
func (s Scope) Names() []string {
	var names []string
	for _, n := range scopeNames {
		if s&n.scope != 0 {
			names = append(names, n.name)
		}
	}
	return names
}

// CheckName says what is wrong with the name of a list; "" if nothing is.
func CheckName(name string) string {
	switch {
	case name == "":
		return "a list needs a name"
	case len(name) > 32:
		return "the name of a list has at most 32 characters"
	case name[0] < 'a' || name[0] > 'z' || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "":
		return "the name of a list begins with a letter and has only a to z, 0 to 9 and -"
	}
	return ""
}

// problems collects mistakes, bounded: a file of noise must not become a longer answer.
type problems struct {
	list []control.Problem
	more int
}

func (p *problems) add(file string, line int, text, format string, args ...any) {
	if len(p.list) >= maxProblems {
		p.more++
		return
	}
	if len(text) > maxShown {
		text = text[:maxShown] + "…"
	}
	p.list = append(p.list, control.Problem{File: file, Line: line, Text: strings.ToValidUTF8(text, "�"), Reason: fmt.Sprintf(format, args...)})
}

func (p *problems) all() []control.Problem {
	if p.more > 0 {
		return append(p.list, control.Problem{Reason: fmt.Sprintf("and %d more mistakes like these", p.more)})
	}
	return p.list
}

// Parse reads the files of a policy. Any Problem means that the whole is
// refused: half a list would cut off those in the other half. No files at all
// are the policy that is off.
func Parse(files []File) (Policy, []control.Problem) {
	var bad problems
	if len(files) > MaxLists+1 {
		bad.add("", 0, "", "there are %d files: the limit is %d lists and %s", len(files), MaxLists, Index)
		return Policy{}, bad.all()
	}
	total := 0
	byName := make(map[string][]byte, len(files))
	for _, f := range files {
		if total += len(f.Data); total > MaxBytes {
			bad.add(f.Name, 0, "", "the files have more than %d MiB in all: that is the limit", MaxBytes>>20)
			return Policy{}, bad.all()
		}
		if _, twice := byName[f.Name]; twice {
			bad.add(f.Name, 0, "", "the file is there twice")
		}
		byName[f.Name] = f.Data
	}
	if len(files) == 0 {
		return Policy{}, nil
	}
	raw, ok := byName[Index]
	if !ok {
		bad.add(Index, 0, "", "the file is missing: it names the lists, their order and their scopes")
		return Policy{}, bad.all()
	}
	x, ok := parseIndex(raw, &bad)
	if !ok {
		return Policy{}, bad.all()
	}
	if x.Enabled == nil {
		bad.add(Index, 0, "", "the file does not say enabled: write enabled = true, or enabled = false to let everyone in")
		return Policy{}, bad.all()
	}
	p := Policy{Enabled: *x.Enabled, XDP: x.XDP}
	named := map[string]bool{Index: true}
	for i, e := range x.Lists {
		file := e.Name + Suffix
		if named[file] {
			bad.add(Index, 0, e.Name, "list %d has the name of an earlier one", i+1)
			continue
		}
		named[file] = true
		l, ok := e.list(i, &bad)
		if !ok {
			continue
		}
		data, ok := byName[file]
		if !ok {
			bad.add(file, 0, "", "the file is missing: %s names this list", Index)
			continue
		}
		l.Ranges = parseRanges(file, data, e.AllowAll, &bad)
		p.Lists = append(p.Lists, l)
	}
	for _, f := range files {
		if !named[f.Name] {
			bad.add(f.Name, 0, "", "%s names no such list: add it there, or remove the file", Index)
		}
	}
	p.check(&bad)
	if len(bad.list) > 0 {
		return Policy{}, bad.all()
	}
	return p, nil
}

// check judges the whole, once its parts are right.
func (p Policy) check(bad *problems) {
	ranges, useful := 0, false
	for _, l := range p.Lists {
		ranges += len(l.Ranges)
		useful = useful || l.Enabled && len(l.Ranges) > 0
	}
	if ranges > MaxRanges {
		bad.add("", 0, "", "the lists have %d ranges after merging: the limit is %d", ranges, MaxRanges)
	}
	if p.Enabled && !useful && len(bad.list) == 0 {
		bad.add(Index, 0, "", "the lists are switched on and no enabled list has an address: nobody could reach the box. Add an address, or set enabled = false")
	}
}

func parseIndex(raw []byte, bad *problems) (index, bool) {
	var x index
	if len(raw) > maxIndex {
		bad.add(Index, 0, "", "the file has %d bytes: the limit is %d", len(raw), maxIndex)
		return x, false
	}
	d := toml.NewDecoder(strings.NewReader(string(raw)))
	d.DisallowUnknownFields()
	err := d.Decode(&x)
	var wrong *toml.DecodeError
	var unknown *toml.StrictMissingError
	switch {
	case errors.As(err, &unknown):
		for _, e := range unknown.Errors {
			row, _ := e.Position()
			bad.add(Index, row, strings.Join(e.Key(), "."), "there is no such setting: there are enabled and xdp, and for each [[list]] name, enabled, scope, note and allow_all")
		}
		return x, false
	case errors.As(err, &wrong):
		row, _ := wrong.Position()
		bad.add(Index, row, "", "this is not what the setting takes: %s", strings.TrimPrefix(wrong.Error(), "toml: "))
		return x, false
	case err != nil:
		bad.add(Index, 0, "", "the file cannot be read as TOML: %v", err)
		return x, false
	}
	switch x.XDP {
	case "", XDPAuto, XDPOn, XDPOff:
	default:
		bad.add(Index, 0, string(x.XDP), "xdp is auto, on or off")
		return x, false
	}
	if len(x.Lists) > MaxLists {
		bad.add(Index, 0, "", "there are %d lists: the limit is %d", len(x.Lists), MaxLists)
		return x, false
	}
	return x, true
}

func (e entry) list(i int, bad *problems) (List, bool) {
	if wrong := CheckName(e.Name); wrong != "" {
		bad.add(Index, 0, e.Name, "list %d: %s", i+1, wrong)
		return List{}, false
	}
	l := List{Name: e.Name, Enabled: e.Enabled, Note: e.Note}
	for _, word := range e.Scopes {
		at := slices.IndexFunc(scopeNames, func(n struct {
			name  string
			scope Scope
		}) bool {
			return n.name == word
		})
		if at < 0 {
			bad.add(Index, 0, word, "list %s: there is no such scope: there are console, sites and visitors", e.Name)
			return l, false
		}
		l.Scopes |= scopeNames[at].scope
	}
	if l.Scopes == 0 {
		bad.add(Index, 0, e.Name, "list %s has no scope: give it one or more of console, sites and visitors", e.Name)
		return l, false
	}
	if len(e.Note) > maxNote || strings.ContainsFunc(e.Note, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		bad.add(Index, 0, e.Name, "the note of list %s is longer than %d bytes or has control characters", e.Name, maxNote)
		return l, false
	}
	return l, true
}

func parseRanges(file string, data []byte, allowAll bool, bad *problems) []Range {
	var ranges []Range
	text := strings.TrimPrefix(string(data), "\ufeff") // editors put it there
	n := 0
	for line := range strings.SplitSeq(text, "\n") {
		n++
		if len(line) > maxLine {
			bad.add(file, n, line, "the line has %d bytes: the limit is %d", len(line), maxLine)
			continue
		}
		if at := strings.IndexByte(line, '#'); at >= 0 {
			line = line[:at]
		}
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		r, err := ParseRange(line)
		if err != nil {
			bad.add(file, n, line, "%v", err)
			continue
		}
		if r.all() && !allowAll {
			bad.add(file, n, line, "this lets every address in: if that is meant, set allow_all = true for this list in %s", Index)
			continue
		}
		if len(ranges) >= 2*MaxRanges {
			if ranges = Merge(ranges); len(ranges) > MaxRanges {
				bad.add(file, n, "", "the list has more than %d ranges: that is the limit", MaxRanges)
				return nil
			}
		}
		ranges = append(ranges, r)
	}
	return Merge(ranges)
}

// ParseRange reads an address, a prefix, or two addresses with - between.
func ParseRange(s string) (Range, error) {
	if first, last, ok := strings.Cut(s, "-"); ok {
		a, err := parseAddr(strings.TrimSpace(first))
		if err != nil {
			return Range{}, err
		}
		b, err := parseAddr(strings.TrimSpace(last))
		switch {
		case err != nil:
			return Range{}, err
		case a.Is4() != b.Is4():
			return Range{}, errors.New("a range has both ends in one family: both IPv4 or both IPv6")
		case b.Less(a):
			return Range{}, errors.New("the range ends before it begins: write the lower address first")
		}
		return Range{a, b}, nil
	}
	addr, bits, ok := strings.Cut(s, "/")
	a, err := parseAddr(addr)
	if err != nil {
		return Range{}, err
	}
	if !ok {
		return Range{a, a}, nil
	}
	p, err := netip.ParsePrefix(a.String() + "/" + bits)
	if err != nil {
		family, end := "IPv4", 32
		if a.Is6() {
			family, end = "IPv6", 128
		}
		return Range{}, fmt.Errorf("a prefix for %s is a number from 0 to %d", family, end)
	}
	if m := p.Masked(); m != p {
		return Range{}, fmt.Errorf("the address has bits beyond the prefix: write %s for the network, or %s for this one address", m, a)
	}
	return Range{p.Addr(), last(p)}, nil
}

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return a, errors.New("this is not an address: write for example 192.0.2.7, 192.0.2.0/24, 2001:db8::/32, or 192.0.2.1-192.0.2.9")
	case a.Zone() != "":
		return a, fmt.Errorf("an address in a list has no zone: write %s", a.WithZone(""))
	case a.Is4In6():
		return a, fmt.Errorf("this is an IPv4 address in IPv6 form: write %s", a.Unmap())
	}
	return a, nil
}

// last is the highest address of a prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := range b {
		host := 8*(i+1) - p.Bits()
		switch {
		case host >= 8:
			b[i] = 0xff
		case host > 0:
			b[i] |= 1<<host - 1
		}
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// all says whether the range is the whole of its family.
func (r Range) all() bool {
	return r.First.IsUnspecified() && !r.Last.Next().IsValid()
}

// String is the shortest form: an address, a prefix, or both ends.
func (r Range) String() string {
	if r.First == r.Last {
		return r.First.String()
	}
	for bits := 0; bits < r.First.BitLen(); bits++ {
		if p := netip.PrefixFrom(r.First, bits); p.Masked() == p && last(p) == r.Last {
			return p.String()
		}
	}
	return r.First.String() + "-" + r.Last.String()
}

// Merge sorts ranges, IPv4 first, and joins those that overlap or touch. It
// works in place.
func Merge(ranges []Range) []Range {
	slices.SortFunc(ranges, func(a, b Range) int { return a.First.Compare(b.First) })
	out := ranges[:0]
	for _, r := range ranges {
		if n := len(out); n > 0 && out[n-1].First.Is4() == r.First.Is4() {
			prev := &out[n-1]
			if next := prev.Last.Next(); !next.IsValid() || !next.Less(r.First) {
				if prev.Last.Less(r.Last) {
					prev.Last = r.Last
				}
				continue
			}
		}
		out = append(out, r)
	}
	return out
}
