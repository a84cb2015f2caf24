package netfilter

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"gatehouse/appliance/control"
	"gatehouse/netfilter/allowlist"
)

// TestNET2_NoListIsNotAll shows that what lets all in has to be said: a ready
// box of which nothing is known about lists lets nobody in.
func TestNET2_NoListIsNotAll(t *testing.T) {
	for _, form := range []Form{Box, Hosted} {
		for name, lists := range map[string]Lists{"none": {}, "none of a generation": {Generation: 4}} {
			s := State{Phase: control.StateReady, Form: form, Ports: Ports{HTTP: 80, HTTPS: 443}, Lists: lists}
			for _, c := range Rules(s).Chains {
				if !strings.HasPrefix(c.Name, "web") {
					continue
				}
				for _, r := range c.Rules {
					if r.Verdict == Accept {
						t.Errorf("form %d, %s: %q lets someone in", form, name, r)
					}
				}
			}
		}
		s := State{Phase: control.StateReady, Form: form, Lists: Lists{Off: true, Names: []string{"office"}}}
		if got := Rules(s).String(); form == Box && (!strings.Contains(got, WebOpen) || strings.Contains(got, "@office")) {
			t.Errorf("lists that are off judge:\n%s", got)
		}
	}
}

// TestNET2_ListsJudgeOnlyWhenReady shows that a box that is locked or has no
// owner lets in its own networks alone, whatever lists there are.
func TestNET2_ListsJudgeOnlyWhenReady(t *testing.T) {
	lists := Lists{Generation: 3, Names: []string{"office"}}
	for _, phase := range []control.State{control.StateStarting, control.StateUnclaimed, control.StateLocked, ""} {
		for _, form := range []Form{Box, Hosted} {
			s := State{Phase: phase, OnLink: prefixes("192.0.2.5/24"), Form: form, Ports: Ports{HTTP: 80, HTTPS: 443}}
			want := Rules(s).String()
			for _, l := range []Lists{lists, {Off: true}} {
				s.Lists = l
				if got := Rules(s); got.String() != want || len(got.Sets()) != 0 {
					t.Errorf("%q, form %d: lists %+v change the rules:\n%s", phase, form, l, got)
				}
			}
		}
	}
}

func TestNET2_EachListInOrder(t *testing.T) {
	rs := Rules(State{Phase: control.StateReady, Lists: Lists{Generation: 17, Names: []string{"office", "home"}}})
	want := []string{
		`ip saddr @office_4_17 counter name "list_office" accept`, `ip6 saddr @office_6_17 counter name "list_office" accept`,
		`ip saddr @home_4_17 counter name "list_home" accept`, `ip6 saddr @home_6_17 counter name "list_home" accept`,
		`limit rate 20/second burst 20 packets log prefix "gatehouse:no-list" group 80 snaplen 64`, `counter name "web_refused" drop`,
	}
	var got []string
	for _, r := range rs.Chains[1].Rules {
		got = append(got, r.String())
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("rules\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestSets(t *testing.T) {
	r := func(first, last string) allowlist.Range {
		return allowlist.Range{First: netip.MustParseAddr(first), Last: netip.MustParseAddr(last)}
	}
	v4, v6 := []allowlist.Range{r("192.0.2.0", "192.0.2.9"), r("198.51.100.1", "198.51.100.1")}, []allowlist.Range{r("2001:db8::", "2001:db8::ff")}
	p := allowlist.Policy{Enabled: true, Lists: []allowlist.List{
		{Name: "both", Enabled: true, Ranges: append(v4[:2:2], v6...)}, {Name: "off", Ranges: v4},
		{Name: "four", Enabled: true, Ranges: v4}, {Name: "six", Enabled: true, Ranges: v6},
	}}
	lists, sets := Sets(p, 9)
	if !reflect.DeepEqual(lists, Lists{Generation: 9, Names: []string{"both", "four", "six"}}) {
		t.Errorf("lists %+v", lists)
	}
	want := map[string][]allowlist.Range{"both_4_9": v4, "both_6_9": v6, "four_4_9": v4, "four_6_9": nil, "six_4_9": nil, "six_6_9": v6}
	for _, s := range sets {
		w, there := want[s.String()]
		if !there || len(w) != len(s.Ranges) || len(w) > 0 && !reflect.DeepEqual(w, s.Ranges) {
			t.Errorf("set %s has %v, want %v", s.SetName, s.Ranges, w)
		}
		delete(want, s.String())
	}
	if len(want) != 0 {
		t.Errorf("no sets %v", want)
	}
	p.Enabled = false
	if lists, sets := Sets(p, 9); !lists.Off || len(sets) != 0 || len(lists.Names) != 0 {
		t.Errorf("off: %+v, %d sets", lists, len(sets))
	}
}

func TestSetNames(t *testing.T) {
	for _, bad := range []string{"", "office", "office_4", "office_5_1", "_4_1", "office_4_", "office_4_01", "office_4_-1", "office_4_x", "office_4_18446744073709551616", "of_fice_4_1", "__set0"} {
		if n, ok := ParseSetName(bad); ok {
			t.Errorf("%q reads as %+v", bad, n)
		}
	}
	for _, n := range []SetName{{"office", false, 0}, {"a-b-1", true, 1<<64 - 1}} {
		if got, ok := ParseSetName(n.String()); !ok || got != n {
			t.Errorf("%s reads as %+v, %t", n, got, ok)
		}
	}
}
