package modalias

import (
	"path"
	"slices"
	"strings"
	"testing"
)

const (
	dep = `kernel/net/netfilter/nf_tables.ko: kernel/net/netfilter/nfnetlink.ko kernel/lib/libcrc32c.ko
kernel/net/netfilter/nfnetlink.ko:
kernel/lib/libcrc32c.ko:
kernel/crypto/crc32c_generic.ko:
kernel/arch/x86/crypto/crc32c-intel.ko:
kernel/drivers/net/ethernet/intel/e1000e/e1000e.ko:
kernel/drivers/net/ethernet/realtek/r8169.ko: kernel/drivers/net/phy/libphy.ko
kernel/drivers/net/phy/libphy.ko:
kernel/drivers/net/phy/realtek.ko: kernel/drivers/net/phy/libphy.ko
kernel/drivers/virtio/virtio_pci.ko:
`
	aliases = `# comment
alias pci:v00008086d000010D3sv*sd*bc*sc*i* e1000e
alias pci:v000010ECd00008168sv*sd*bc*sc*i* r8169
alias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci
alias crypto-crc32c crc32c_intel
alias crc32c crc32c_intel
alias crc32c crc32c_generic
alias nf_gone gone
`
	softdep = `softdep libcrc32c pre: crc32c
softdep r8169 pre: realtek post: nosuch
softdep gone pre: crc32c
`
)

func index(t testing.TB) *Index {
	t.Helper()
	x, err := Parse(strings.NewReader(dep), strings.NewReader(aliases), strings.NewReader(softdep))
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestParseRefuses(t *testing.T) {
	for name, c := range map[string]struct{ dep, alias, softdep, want string }{
		"no colon":           {"kernel/a.ko", "", "", "modules.dep line 1"},
		"no module":          {"kernel/a:", "", "", "modules.dep line 1"},
		"absolute path":      {"/kernel/a.ko:", "", "", "leads out"},
		"path upwards":       {"kernel/../../a.ko:", "", "", "leads out"},
		"twice":              {"kernel/a-b.ko:\nkernel/c/a_b.ko:", "", "", "twice"},
		"alias of nothing":   {"", "alias pci:*", "", "modules.alias line 1"},
		"not an alias":       {"", "\nsoftdep a b", "", "modules.alias line 2"},
		"softdep of nothing": {"a.ko:", "", "softdep a", "modules.softdep line 1"},
		"softdep, no kind":   {"a.ko:", "", "softdep a b c", "before the kind"},
		"endless line":       {"a.ko: " + strings.Repeat("b.ko ", 1<<18), "", "", "modules.dep"},
	} {
		_, err := Parse(strings.NewReader(c.dep), strings.NewReader(c.alias), strings.NewReader(c.softdep))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want something with %q", name, err, c.want)
		}
	}
}

func TestPlanRefuses(t *testing.T) {
	x := index(t)
	if _, err := x.Plan("nosuch"); err == nil {
		t.Error("a module that is not there was planned")
	}
	for name, text := range map[string]string{"a missing need": "a.ko: b.ko", "a circle": "a.ko: b.ko\nb.ko: a.ko", "itself": "a.ko: a.ko"} {
		x, err := Parse(strings.NewReader(text), strings.NewReader(""), strings.NewReader(""))
		if err != nil {
			t.Fatal(err)
		}
		if steps, err := x.Plan("a"); err == nil {
			t.Errorf("%s: planned as %v", name, steps)
		}
	}
}

func TestMatch(t *testing.T) {
	x := index(t)
	for _, c := range []struct{ device, want string }{
		{"pci:v00008086d000010D3sv000015D9sd00000001bc02sc00i00", "e1000e"},
		{"pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00", "virtio_pci"},
		{"pci:v00008086d000010D4sv000015D9sd00000001bc02sc00i00", ""},
		{"usb:v00008086d000010D3sv000015D9sd00000001bc02sc00i00", ""},
		{"crc32c", "crc32c_intel crc32c_generic"},
		{"crc32c-intel", "crc32c_intel"},
		{"nf_gone", ""},
		{"", ""},
	} {
		if got := strings.Join(x.Match(c.device), " "); got != c.want {
			t.Errorf("Match(%q) = %q, want %q", c.device, got, c.want)
		}
	}
}

func plan(t *testing.T, x *Index, name string) string {
	t.Helper()
	steps, err := x.Plan(name)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, s := range steps {
		if s.Path == "" || Name(s.Path) != s.Name {
			t.Errorf("step %+v", s)
		}
		if s.Optional {
			out = append(out, "("+s.Name+")")
		} else {
			out = append(out, s.Name)
		}
	}
	return strings.Join(out, " ")
}

// Without the soft dependency on an alias, nf_tables fails with ENOENT.
func TestPlan(t *testing.T) {
	x := index(t)
	for name, want := range map[string]string{
		"nf_tables":    "nfnetlink (crc32c_intel) (crc32c_generic) libcrc32c nf_tables",
		"r8169":        "libphy (realtek) r8169",
		"crc32c-intel": "crc32c_intel",
	} {
		if got := plan(t, x, name); got != want {
			t.Errorf("Plan(%s) = %s, want %s", name, got, want)
		}
	}
}

// What is wished for first and needed later must not stay optional: its
// failure decides. And soft circles are none.
func TestPlanSoftCircle(t *testing.T) {
	x, err := Parse(strings.NewReader("a.ko:\nb.ko:\n"), strings.NewReader(""),
		strings.NewReader("softdep a pre: b\nsoftdep b pre: a\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := plan(t, x, "a"); got != "(b) a" {
		t.Errorf("Plan(a) = %s", got)
	}
	x, err = Parse(strings.NewReader("a.ko: c.ko\nb.ko:\nc.ko: b.ko\n"), strings.NewReader(""),
		strings.NewReader("softdep c pre: b\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := plan(t, x, "a"); got != "b c a" {
		t.Errorf("Plan(a) = %s", got)
	}
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"", "a", false}, {"*", "", true}, {"***", "abc", true}, {"?", "", false},
		{"a*b*c", "aXXbYYc", true}, {"a*b*c", "aXXcYYb", false}, {"a*", "b", false},
		{"d*dc*", "dxdydc1", true}, {"[0-9]x", "5x", true}, {"[0-9]x", "ax", false}, {"[!0-9]x", "ax", true},
		{"[^a]", "a", false}, {"[]]", "]", true}, {"[a-]", "-", true}, {"[", "[", true}, {"[ab", "[ab", true},
		{`\*`, "*", true}, {`\*`, "a", false}, {`a\`, `a\`, true}, {"a/b*", "a/b/c", true},
		{"dmi:*pn[Xx]*:", "dmi:bvn:pnXyz:", true}, {"*ab", "aab", true}, {"a?c*", "abcd", true},
	} {
		if got := glob(c.pattern, c.s); got != c.want {
			t.Errorf("glob(%q, %q) = %v", c.pattern, c.s, got)
		}
	}
}

// Where both understand a pattern, path.Match must agree; and hostile
// patterns must end soon.
func FuzzGlob(f *testing.F) {
	f.Add("pci:v*d*[0-9]", "pci:v1d29")
	f.Add(strings.Repeat("*a", 50), strings.Repeat("a", 100)+"b")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		got := glob(pattern, s)
		plain := strings.IndexFunc(pattern+s, func(r rune) bool { return r == '/' || r == '\\' || r == '[' || r >= 0x80 }) < 0
		if want, err := path.Match(pattern, s); plain && err == nil && got != want {
			t.Errorf("glob(%q, %q) = %v, path.Match says %v", pattern, s, got, want)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add(dep, aliases, softdep, "nf_tables")
	f.Add("a.ko: b.ko\nb.ko: a.ko", "alias x a", "softdep a pre: x", "x")
	f.Fuzz(func(t *testing.T, dep, aliases, softdep, name string) {
		x, err := Parse(strings.NewReader(dep), strings.NewReader(aliases), strings.NewReader(softdep))
		if err != nil {
			return
		}
		for _, m := range append(x.Match(name), name) {
			steps, err := x.Plan(m)
			if err != nil {
				continue
			}
			seen := map[string]bool{}
			for _, s := range steps {
				if seen[s.Name] {
					t.Fatalf("Plan(%q) loads %q twice", m, s.Name)
				}
				for _, need := range x.modules[s.Name].needs {
					if !seen[need] {
						t.Fatalf("Plan(%q) loads %q before %q, which it needs", m, s.Name, need)
					}
				}
				seen[s.Name] = true
			}
			if !slices.ContainsFunc(steps, func(s Step) bool { return s.Name == Name(m) && !s.Optional }) {
				t.Fatalf("Plan(%q) does not load it", m)
			}
		}
	})
}
