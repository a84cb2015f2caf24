package allowlist

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

const office = "enabled = true\n[[list]]\nname = \"office\"\nenabled = true\nscope = [\"console\"]\n"

func files(index, list string) []File {
	return []File{{Index, []byte(index)}, {"office.list", []byte(list)}}
}

// TestNET2_BadInputIsRefusedWithItsLine: every mistake is told with file, line
// and what would be right, and nothing of the files counts.
func TestNET2_BadInputIsRefusedWithItsLine(t *testing.T) {
	many := []File{{Index, []byte(office)}}
	for i := range 1000 {
		many = append(many, File{fmt.Sprintf("l%d.list", i), []byte("192.0.2.1\n")})
	}
	noise := bytes.Repeat([]byte("\x00\xff noise % \x07\n"), 10<<20/13)
	for name, c := range map[string]struct {
		files  []File
		file   string
		line   int
		reason string
	}{
		"empty index":          {[]File{{Index, nil}}, Index, 0, "does not say enabled"},
		"index of notes":       {[]File{{Index, []byte("# enabled = true\n")}}, Index, 0, "does not say enabled"},
		"prefix too long":      {files(office, "192.0.2.1\n\n10.0.0.0/33\n"), "office.list", 3, "0 to 32"},
		"IPv6 prefix too long": {files(office, "2001:db8::/129"), "office.list", 1, "0 to 128"},
		"no address":           {files(office, "# x\nexample.com"), "office.list", 2, "not an address"},
		"octal":                {files(office, "010.0.0.1"), "office.list", 1, "not an address"},
		"host bits":            {files(office, "10.0.0.1/8"), "office.list", 1, "write 10.0.0.0/8"},
		"zone":                 {files(office, "fe80::1%eth0"), "office.list", 1, "no zone"},
		"mapped":               {files(office, "::ffff:192.0.2.1"), "office.list", 1, "write 192.0.2.1"},
		"mixed families":       {files(office, "192.0.2.1-2001:db8::1"), "office.list", 1, "one family"},
		"backwards":            {files(office, "192.0.2.9-192.0.2.1"), "office.list", 1, "lower address first"},
		"all of IPv4":          {files(office, "192.0.2.1\n0.0.0.0/0"), "office.list", 2, "allow_all"},
		"all of IPv6":          {files(office, "::/0"), "office.list", 1, "allow_all"},
		"all as a range":       {files(office, "0.0.0.0-255.255.255.255"), "office.list", 1, "allow_all"},
		"long line":            {files(office, strings.Repeat("1", 300)), "office.list", 1, "limit is 256"},
		"cut off in the line":  {files(office, "192.0.2.1\n192.0."), "office.list", 2, "not an address"},
		"NUL":                  {files(office, "192.0.2.1\x00"), "office.list", 1, "not an address"},
		"noise":                {files(office, string(noise)), "office.list", 1, "not an address"},
		"empty and on":         {files(office, "# nothing\n"), Index, 0, "nobody could reach"},
		"no list is on":        {files(strings.Replace(office, "enabled = true\nscope", "enabled = false\nscope", 1), "192.0.2.1"), Index, 0, "nobody could reach"},
		"a thousand files":     {many, "", 0, "limit is 64"},
		"list without file":    {[]File{{Index, []byte(office)}}, "office.list", 0, "missing"},
		"file without list":    {append(files(office, "192.0.2.1"), File{"x.list", nil}), "x.list", 0, "names no such list"},
		"no index":             {[]File{{"office.list", []byte("192.0.2.1")}}, Index, 0, "missing"},
		"unknown setting":      {files(office+"colour = 1\n", "192.0.2.1"), Index, 6, "no such setting"},
		"wrong type":           {files("enabled = \"yes\"\n", ""), Index, 1, "not what the setting takes"},
		"no TOML":              {files("enabled = true\n[[", ""), Index, 2, "not what the setting takes"},
		"unknown scope":        {files(strings.Replace(office, "console", "world", 1), "192.0.2.1"), Index, 0, "no such scope"},
		"no scope":             {files(strings.Replace(office, "\"console\"", "", 1), "192.0.2.1"), Index, 0, "has no scope"},
		"path as name":         {files(strings.Replace(office, "office", "../office", 1), ""), Index, 0, "begins with a letter"},
		"name twice":           {files(office+strings.TrimPrefix(office, "enabled = true\n"), "192.0.2.1"), Index, 0, "earlier one"},
		"file twice":           {append(files(office, "192.0.2.1"), File{"office.list", nil}), "office.list", 0, "twice"},
		"control in the note":  {files(office+"note = \"a\\u001bb\"\n", "192.0.2.1"), Index, 0, "control characters"},
	} {
		t.Run(name, func(t *testing.T) {
			p, bad := Parse(c.files)
			if len(bad) == 0 {
				t.Fatalf("accepted: %+v", p)
			}
			if p.Enabled || len(p.Lists) != 0 {
				t.Errorf("part of it counts: %+v", p)
			}
			if b := bad[0]; b.File != c.file || b.Line != c.line || !strings.Contains(b.Reason, c.reason) {
				t.Errorf("got %+v, want %s line %d: …%s…", b, c.file, c.line, c.reason)
			}
			if len(bad) > maxProblems+1 {
				t.Errorf("%d problems are told", len(bad))
			}
			for _, b := range bad {
				if len(b.Text) > maxShown+8 {
					t.Errorf("a problem repeats %d bytes", len(b.Text))
				}
			}
		})
	}
}

func TestNET2_NoFilesAreOffAndSaidSo(t *testing.T) {
	p, bad := Parse(nil)
	if len(bad) != 0 || p.Enabled || p.Admits(netip.MustParseAddr("192.0.2.1")) != Everything {
		t.Fatalf("%+v %v", p, bad)
	}
	if (Compiled{Enabled: true}).Admits(netip.MustParseAddr("192.0.2.1")) != 0 {
		t.Error("lists that are on and empty let someone in")
	}
}

func TestParseMergesAndSorts(t *testing.T) {
	p, bad := Parse(files(office, "\ufeff192.0.2.128/25\r\n10.0.0.5 - 10.0.0.9 # desk\n2001:db8::/33\n192.0.2.0/25\n10.0.0.10\n255.255.255.255\n2001:db8:8000::/33\n10.0.0.1-10.0.0.6\n"))
	if len(bad) != 0 {
		t.Fatal(bad)
	}
	var got []string
	for _, r := range p.Lists[0].Ranges {
		got = append(got, r.String())
	}
	want := []string{"10.0.0.1-10.0.0.10", "192.0.2.0/24", "255.255.255.255", "2001:db8::/32"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	p, bad = Parse(files(office+"allow_all = true\n", "0.0.0.0/1\n128.0.0.0/1\n::/0"))
	if len(bad) != 0 || len(p.Lists[0].Ranges) != 2 {
		t.Errorf("with allow_all: %v %v", p, bad)
	}
}

// TestModel compares the policy, and its compiled form, with a naive search
// for random and edge addresses.
func TestNET2_CompiledJudgesLikeTheModel(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		p := Policy{Enabled: true}
		var raw [][]Range
		for l := range 3 {
			var rs []Range
			for range rnd.IntN(60) {
				rs = append(rs, randomRange(rnd))
			}
			raw = append(raw, slices.Clone(rs))
			p.Lists = append(p.Lists, List{Name: string(rune('a' + l)), Enabled: l != 1 || rnd.IntN(2) == 0, Scopes: 1 << l, Ranges: Merge(rs)})
		}
		c, err := Decode(Encode(p))
		if err != nil {
			t.Fatal(err)
		}
		var probes []netip.Addr
		for _, rs := range raw {
			for _, r := range rs {
				probes = append(probes, r.First, r.Last, r.First.Prev(), r.Last.Next())
			}
		}
		for range 200 {
			probes = append(probes, randomRange(rnd).First)
		}
		for _, a := range probes {
			var want Scope
			for i, rs := range raw {
				for _, r := range rs {
					if p.Lists[i].Enabled && a.IsValid() && a.BitLen() == r.First.BitLen() && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0 {
						want |= p.Lists[i].Scopes
					}
				}
			}
			if got := c.Admits(a); got != want {
				t.Fatalf("%v: compiled %b, model %b", a, got, want)
			}
			if got := p.Admits(a); a.IsValid() && got != want {
				t.Fatalf("%v: policy %b, model %b", a, got, want)
			}
			if mapped := a; a.Is4() {
				mapped = netip.AddrFrom16(a.As16())
				if got := c.Admits(mapped); got != want {
					t.Fatalf("%v in IPv6 form: %b, model %b", a, got, want)
				}
			}
		}
	}
}

func randomRange(rnd *rand.Rand) Range {
	if rnd.IntN(3) == 0 {
		var b [16]byte
		b[0], b[1], b[7], b[15] = 0x20, byte(rnd.IntN(3)), byte(rnd.IntN(4)), byte(rnd.Uint32())
		p := netip.PrefixFrom(netip.AddrFrom16(b), 8+rnd.IntN(121)).Masked()
		return Range{p.Addr(), last(p)}
	}
	b := [4]byte{byte([]int{0, 10, 255}[rnd.IntN(3)]), byte(rnd.IntN(2) * 255), byte(rnd.Uint32()), byte(rnd.Uint32())}
	p := netip.PrefixFrom(netip.AddrFrom4(b), 9+rnd.IntN(24)).Masked()
	return Range{p.Addr(), last(p)}
}

// TestDamagedEncodingIsRefused: any byte changed, any length but the right one.
func TestNET2_DamagedEncodingIsRefused(t *testing.T) {
	p, _ := Parse(files(office, "192.0.2.0/24\n2001:db8::/32"))
	b := Encode(p)
	for i := range b {
		if _, err := Decode(b[:i]); err == nil {
			t.Errorf("the first %d bytes are taken", i)
		}
		d := slices.Clone(b)
		d[i] ^= 1
		if _, err := Decode(d); err == nil {
			t.Errorf("byte %d changed is taken", i)
		}
	}
}

func TestSettingsGoThere(t *testing.T) {
	s := Settings{Enabled: true, Lists: []ListSettings{{Name: "office", Enabled: true, Scopes: []string{"console", "sites"}, Note: "the desk \"x\""}, {Name: "b", Scopes: []string{"visitors"}, AllowAll: true}}}
	b, err := s.Format()
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseSettings(b)
	if err != nil || fmt.Sprint(back) != fmt.Sprint(s) {
		t.Errorf("%+v %v\n%s", back, err, b)
	}
	p, bad := Parse([]File{{Index, b}, {"office.list", []byte("192.0.2.1")}, {"b.list", nil}})
	if len(bad) != 0 {
		t.Error(bad)
	}
	if _, err := FormatIndex(p); err != nil {
		t.Error(err)
	}
	if _, err := ParseSettings([]byte("x = 1")); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("unknown setting: %v", err)
	}
}

func TestDiffSaysWhatChanges(t *testing.T) {
	old, _ := Parse(files(office, "192.0.2.1\n192.0.2.9"))
	changed, _ := Parse(files(office, "192.0.2.1\n10.0.0.0/8\n12.0.0.0/16"))
	if d := Diff(old, changed); d.Added != 2 || d.Removed != 1 || d.Summary[0] != "List office: 2 ranges added, 1 removed." {
		t.Errorf("%+v", d)
	}
	if d := Diff(old, Policy{}); d.Removed != 2 || !strings.Contains(d.Summary[0], "anyone may reach") {
		t.Errorf("%+v", d)
	}
	if d := Diff(old, old); d.Added+d.Removed != 0 || d.Summary[0] != "Nothing changes." {
		t.Errorf("%+v", d)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(office), []byte("192.0.2.0/24\n2001:db8::/32\n10.0.0.1-10.0.0.9 # x"))
	f.Add([]byte("enabled = false"), []byte("0.0.0.0/0"))
	f.Add([]byte("[[list]]\nname=1"), []byte("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))
	f.Fuzz(func(t *testing.T, index, list []byte) {
		p, bad := Parse([]File{{Index, index}, {"office.list", list}})
		if len(bad) > 0 {
			if p.Enabled || p.Lists != nil || bad[0].Reason == "" {
				t.Fatal("refused and half taken, or refused without a reason")
			}
			return
		}
		for _, l := range p.Lists {
			for i, r := range l.Ranges {
				if r.Last.Less(r.First) || r.First.BitLen() != r.Last.BitLen() || i > 0 && !l.Ranges[i-1].Last.Less(r.First) {
					t.Fatalf("ranges %v", l.Ranges)
				}
				if again, err := ParseRange(r.String()); err != nil || again != r {
					t.Fatalf("%v is written as %s", r, r)
				}
			}
		}
		if _, err := Decode(Encode(p)); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzParseRange: what a line is taken for is what it says when it is written.
func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"192.0.2.7", "192.0.2.0/24", "0.0.0.0/0", "2001:db8::/32", "10.0.0.1-10.0.0.9", "::ffff:1.2.3.4", "fe80::1%eth0", "1-", "-", "/", "1.2.3.4/033"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRange(s)
		if err != nil {
			return
		}
		if r.Last.Less(r.First) || r.First.BitLen() != r.Last.BitLen() || r.First.Is4In6() || r.First.Zone() != "" {
			t.Fatalf("%q is taken for %v", s, r)
		}
		if again, err := ParseRange(r.String()); err != nil || again != r {
			t.Fatalf("%q is %v, which is written as %s", s, r, r)
		}
	})
}

// FuzzSettings: allowlists.toml alone, as the page reads and writes it.
func FuzzSettings(f *testing.F) {
	f.Add([]byte(office))
	f.Add([]byte("enabled = false"))
	f.Add([]byte("[[list]]\nname = \"a\"\nscope = [\"console\", \"sites\"]\nnote = \"'\\\"\\n\"\nallow_all = true\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSettings(b)
		if err != nil {
			return
		}
		text, err := s.Format()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseSettings(text)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if again.Enabled != s.Enabled || !slices.EqualFunc(again.Lists, s.Lists, func(a, b ListSettings) bool {
			return a.Name == b.Name && a.Enabled == b.Enabled && slices.Equal(a.Scopes, b.Scopes) && a.Note == b.Note && a.AllowAll == b.AllowAll
		}) {
			t.Fatalf("%+v is written as\n%s", s, text)
		}
	})
}

func FuzzDecode(f *testing.F) {
	p, _ := Parse(files(office, "192.0.2.0/24\n2001:db8::/32"))
	f.Add(Encode(p))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Decode(b)
		if err == nil {
			c.Admits(netip.MustParseAddr("192.0.2.1"))
			c.Admits(netip.MustParseAddr("2001:db8::1"))
		}
	})
}

func BenchmarkParse(b *testing.B) {
	for _, n := range []int{1000, 100_000, 1_000_000} {
		var text bytes.Buffer
		for i := range n {
			fmt.Fprintf(&text, "%d.%d.%d.0/25\n", 11+i>>16, i>>8&255, i&255)
		}
		in := files(office, text.String())
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, bad := Parse(in); len(bad) != 0 {
					b.Fatal(bad[0])
				}
			}
		})
	}
}
