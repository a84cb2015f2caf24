package netconf

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"gatehouse/appliance/control"
)

func settings(t testing.TB, text string) control.NetworkSettings {
	t.Helper()
	var s control.NetworkSettings
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return s
}

var there = []control.Link{
	{Name: "eth0", MAC: "52:54:00:00:00:01"}, {Name: "eth1", MAC: "52:54:00:00:00:02"}, {Name: "eth2", MAC: "52:54:00:00:00:03"},
}

const static = `{"name":"eth0","mode":"static","addresses":["192.0.2.7/24"]`

// What is refused, and a word of the reason that a person reads.
func TestBOX7_CheckRefuses(t *testing.T) {
	for _, c := range []struct{ name, text, at, word string }{
		{"no such link", `{"links":[{"name":"eth7","mode":"automatic"}]}`, "eth7 name", "eth0, eth1, eth2"},
		{"no such card", `{"links":[{"name":"eth0","mac":"52:54:00:00:00:99","mode":"automatic"}]}`, "eth0 name", "no link of that MAC address"},
		{"MAC", `{"links":[{"name":"eth0","mac":"5254.0000.0001","mode":"automatic"}]}`, "eth0 mac", "52:54:00"},
		{"one card twice", `{"links":[{"name":"a","mac":"52:54:00:00:00:01","mode":"off"},{"name":"b","mac":"52:54:00:00:00:01","mode":"off"}]}`, "a mac", "b is the link"},
		{"one link twice", `{"links":[{"name":"eth0","mode":"off"},{"name":"eth0","mode":"off"}]}`, "eth0 name", "twice"},
		{"path as a name", `{"links":[{"name":"../x","mode":"off"}]}`, "../x name", "cannot be"},
		{"all", `{"links":[{"name":"all","mode":"off"}]}`, "all name", "cannot be"},
		{"loopback", `{"links":[{"name":"lo","mode":"off"}]}`, "lo name", "cannot be"},
		{"mode", `{"links":[{"name":"eth0","mode":"dhcp"}]}`, "eth0 mode", "automatic, static or off"},
		{"no mode", `{"links":[{"name":"eth0","mode":""}]}`, "eth0 mode", "automatic, static or off"},
		{"static of nothing", `{"links":[{"name":"eth0","mode":"static"}]}`, "eth0 addresses", "192.0.2.7/24"},
		{"automatic with an address", `{"links":[{"name":"eth0","mode":"automatic","addresses":["192.0.2.7/24"]}]}`, "eth0 mode", "static link"},
		{"small MTU", `{"links":[` + static + `,"mtu":576}]}`, "eth0 mtu", "1280"},
		{"huge MTU", `{"links":[` + static + `,"mtu":65536}]}`, "eth0 mtu", "9216"},
		{"loopback address", `{"links":[{"name":"eth0","mode":"static","addresses":["127.0.0.1/8"]}]}`, "eth0 addresses", "127.0.0.1"},
		{"no address", `{"links":[{"name":"eth0","mode":"static","addresses":[""]}]}`, "eth0 addresses", "not an address"},
		{"the internet", `{"links":[{"name":"eth0","mode":"static","addresses":["8.8.8.8/1"]}]}`, "eth0 addresses", "wider"},
		{"wide v6", `{"links":[{"name":"eth0","mode":"static","addresses":["2001:db8::1/32"]}]}`, "eth0 addresses", "wider"},
		{"group", `{"links":[{"name":"eth0","mode":"static","addresses":["224.0.0.1/24"]}]}`, "eth0 addresses", "224.0.0.1"},
		{"mapped", `{"links":[{"name":"eth0","mode":"static","addresses":["::ffff:10.0.0.1/120"]}]}`, "eth0 addresses", "not an address"},
		{"link-local", `{"links":[{"name":"eth0","mode":"static","addresses":["fe80::5/64"]}]}`, "eth0 addresses", "by itself"},
		{"network", `{"links":[{"name":"eth0","mode":"static","addresses":["192.0.2.0/24"]}]}`, "eth0 addresses", "names the network"},
		{"broadcast", `{"links":[{"name":"eth0","mode":"static","addresses":["192.0.2.255/24"]}]}`, "eth0 addresses", "names the network"},
		{"twice", `{"links":[{"name":"eth0","mode":"static","addresses":["192.0.2.7/24","192.0.2.7/25"]}]}`, "eth0 addresses", "twice"},
		{"two links in one network", `{"links":[` + static + `},{"name":"eth1","mode":"static","addresses":["192.0.2.8/24"]}]}`, "eth1 addresses", "bond"},
		{"gateway off the link", `{"links":[` + static + `,"gateways":["198.51.100.1"]}]}`, "eth0 gateways", "198.51.100.1"},
		{"gateway is ourselves", `{"links":[` + static + `,"gateways":["192.0.2.7"]}]}`, "eth0 gateways", "another host"},
		{"gateway is all", `{"links":[` + static + `,"gateways":["192.0.2.255"]}]}`, "eth0 gateways", "another host"},
		{"two gateways", `{"links":[` + static + `,"gateways":["192.0.2.1","192.0.2.2"]}]}`, "eth0 gateways", "at most one"},
		{"route off the link", `{"links":[` + static + `,"routes":[{"to":"198.51.100.0/24","via":"203.0.113.1"}]}]}`, "eth0 routes", "203.0.113.1"},
		{"route with host bits", `{"links":[` + static + `,"routes":[{"to":"198.51.100.9/24","via":"192.0.2.1"}]}]}`, "eth0 routes", "not a network"},
		{"default route", `{"links":[` + static + `,"routes":[{"to":"0.0.0.0/0","via":"192.0.2.1"}]}]}`, "eth0 routes", "gateways"},
		{"route to loopback", `{"links":[` + static + `,"routes":[{"to":"127.0.0.0/8","via":"192.0.2.1"}]}]}`, "eth0 routes", "no network"},
		{"route over the other family", `{"links":[` + static + `,"routes":[{"to":"2001:db8::/48","via":"192.0.2.1"}]}]}`, "eth0 routes", "192.0.2.1"},
		{"VLAN of nothing", `{"vlans":[{"name":"office","on":"eth9","id":5}]}`, "office on", "eth0"},
		{"VLAN number", `{"vlans":[{"name":"office","on":"eth0","id":4095}]}`, "office id", "1 to 4094"},
		{"VLAN 0", `{"vlans":[{"name":"office","on":"eth0","id":0}]}`, "office id", "1 to 4094"},
		{"VLAN on a VLAN", `{"vlans":[{"name":"a","on":"eth0","id":5},{"name":"b","on":"a","id":6}]}`, "b on", "VLAN itself"},
		{"VLAN twice", `{"vlans":[{"name":"a","on":"eth0","id":5},{"name":"b","on":"eth0","id":5}]}`, "b id", "already"},
		{"VLAN as a card", `{"vlans":[{"name":"eth1","on":"eth0","id":5}]}`, "eth1 name", "by itself"},
		{"VLAN on what is off", `{"links":[{"name":"eth0","mode":"off"}],"vlans":[{"name":"a","on":"eth0","id":5}]}`, "a on", "is off"},
		{"VLAN on a part", `{"bonds":[{"name":"bond0","links":["eth0"],"mode":"802.3ad"}],"vlans":[{"name":"a","on":"eth0","id":5}]}`, "a on", "part of bond0"},
		{"bond of nothing", `{"bonds":[{"name":"bond0","links":[],"mode":"802.3ad"}]}`, "bond0 links", "1 to 8"},
		{"bond mode", `{"bonds":[{"name":"bond0","links":["eth0"],"mode":"balance-rr"}]}`, "bond0 mode", "active-backup"},
		{"bond of bonds", `{"bonds":[{"name":"bond0","links":["eth0"],"mode":"802.3ad"},{"name":"bond1","links":["bond0"],"mode":"802.3ad"}]}`, "bond1 links", "own links"},
		{"one link in two bonds", `{"bonds":[{"name":"bond0","links":["eth0"],"mode":"802.3ad"},{"name":"bond1","links":["eth0"],"mode":"802.3ad"}]}`, "bond1 links", "already"},
		{"address of a part", `{"links":[` + static + `}],"bonds":[{"name":"bond0","links":["eth0"],"mode":"802.3ad"}]}`, "eth0 mode", "set them there"},
		{"name with a line end", `{"vlans":[{"name":"a\nb","on":"eth0","id":5}]}`, "a?b name", "cannot be"},
		{"resolver", `{"resolvers":["127.0.0.53"]}`, "resolvers", "127.0.0.53"},
		{"four resolvers", `{"resolvers":["192.0.2.1","192.0.2.2","192.0.2.3","192.0.2.4"]}`, "resolvers", "at most 3"},
		{"search ends its line", `{"search":["a\nnameserver 192.0.2.1"]}`, "search", "example.net"},
		{"time server", `{"time":["ntp server"]}`, "time", "host name"},
		{"time server with a zone", `{"time":["fe80::1%eth0"]}`, "time", "host name"},
	} {
		problems := Check(settings(t, c.text), there)
		if !slices.ContainsFunc(problems, func(p control.Problem) bool { return p.Text == c.at && strings.Contains(p.Reason, c.word) }) {
			t.Errorf("%s: %v, want one of %q with %q", c.name, problems, c.at, c.word)
		}
	}
	many := control.NetworkSettings{Links: make([]control.LinkSettings, mostLinks+1)}
	if p := Check(many, there); len(p) != 1 || p[0].Text != "links" {
		t.Errorf("too many links: %v", p)
	}
}

const whole = `{"links":[
 {"name":"eth0","mac":"52:54:00:00:00:01","mode":"static","addresses":["192.0.2.7/24","192.0.2.8/24","2001:db8::7/64"],
  "gateways":["192.0.2.1","fe80::1"],"routes":[{"to":"198.51.100.0/24","via":"192.0.2.9"}],"mtu":9000},
 {"name":"office","mode":"static","addresses":["203.0.113.7/31"],"gateways":["203.0.113.6"]},
 {"name":"bond0","mode":"automatic","mtu":1400}],
 "vlans":[{"name":"office","on":"bond0","id":5},{"name":"cams","on":"eth0","id":4094}],
 "bonds":[{"name":"bond0","links":["eth1","eth2"],"mode":"active-backup"}],
 "resolvers":["192.0.2.53","2001:db8::53"],"search":["example.net","lan"],"time":["0.pool.ntp.org","192.0.2.123"],"multicast":true}`

func TestBOX7_CheckAccepts(t *testing.T) {
	for _, text := range []string{`{}`, whole, `{"links":[{"name":"eth1","mode":"off"}]}`} {
		if p := Check(settings(t, text), there); len(p) > 0 {
			t.Errorf("%s: %v", text, p)
		}
		b, err := Encode(settings(t, text))
		if err != nil {
			t.Fatal(err)
		}
		s, err := Decode(b)
		if err != nil || !Equal(s, settings(t, text)) {
			t.Errorf("%s comes back as %+v, %v", text, s, err)
		}
	}
}

func TestBOX7_DecodeRefuses(t *testing.T) {
	good, err := Encode(settings(t, whole))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"nothing":       "",
		"half":          string(good[:len(good)/2]),
		"two":           string(good) + string(good),
		"a later form":  strings.Replace(string(good), `"version":1`, `"version":2`, 1),
		"unknown field": strings.Replace(string(good), `"links"`, `"linx"`, 1),
		"a name twice":  strings.Replace(string(good), `"version":1`, `"version":1,"version":1`, 1),
		"spaces":        " " + string(good),
		"what cannot be": `{"version":1,"settings":{"links":[{"name":"eth0","mode":"static"}]}}
`,
		"long": `{"version":1,"settings":{"search":["` + strings.Repeat("a", Size) + `"]}}` + "\n",
	} {
		if _, err := Decode([]byte(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzDecode(f *testing.F) {
	good, err := Encode(settings(f, whole))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":1,"settings":{}}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Decode(b)
		if err != nil {
			return
		}
		if p := Check(s, nil); len(p) > 0 {
			t.Errorf("accepted, and refused: %v", p)
		}
		for _, l := range s.Links {
			for _, p := range l.Addresses {
				if p.Addr().IsLoopback() || p.Bits() < 8 || p.Addr().Is6() && p.Bits() < 64 {
					t.Errorf("%s was accepted as an address", p)
				}
			}
		}
		Changes(control.NetworkSettings{}, s)
		Cut(control.NetworkSettings{}, Named(s, there), there, netip.MustParseAddr("192.0.2.7"))
	})
}

// FuzzCheck asks what a page can send, with no limit kept by anything else.
func FuzzCheck(f *testing.F) {
	f.Add([]byte(whole))
	f.Fuzz(func(t *testing.T, b []byte) {
		var s control.NetworkSettings
		if json.Unmarshal(b, &s) != nil || len(Check(s, there)) > 0 {
			return
		}
		for _, v := range s.VLANs {
			if strings.ContainsAny(v.Name, "/ \n") || len(v.Name) > 15 {
				t.Errorf("%q is to be the name of a link", v.Name)
			}
		}
		e, err := Encode(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(e); err != nil {
			t.Errorf("accepted, and cannot be kept: %v", err)
		}
	})
}

// A link told by its card keeps its settings under another name, and one whose
// card is gone gives them to nobody.
func TestBOX7_SettingsFollowTheCard(t *testing.T) {
	s := settings(t, `{"links":[{"name":"eth0","mac":"52:54:00:00:00:02","mode":"static","addresses":["192.0.2.7/24"]}],
		"vlans":[{"name":"office","on":"eth0","id":5}],"bonds":[{"name":"bond0","links":["eth0"],"mode":"802.3ad"}]}`)
	n := Named(s, there)
	if n.Links[0].Name != "eth1" || n.VLANs[0].On != "eth1" || n.Bonds[0].Links[0] != "eth1" || s.Links[0].Name != "eth0" {
		t.Errorf("%+v", n)
	}
	n = Named(s, there[:1])
	if Of(n, "eth0") != nil || Mode(n, "eth0") != Automatic {
		t.Errorf("another card got the settings: %+v", n)
	}
}

// A card that was replaced holds up no change: what was set for the old one
// stays, word by word, and the new one may have its address. It can be kept,
// changed again, replaced again, and dropped.
func TestBOX7_ReplacedCardHoldsUpNoChange(t *testing.T) {
	now := []control.Link{{Name: "eth0", MAC: "52:54:00:00:00:09"}, {Name: "eth1", MAC: "52:54:00:00:00:02"}}
	kept := settings(t, `{"links":[{"name":"eth0","mac":"52:54:00:00:00:01","mode":"static","addresses":["192.0.2.7/24"]},{"name":"usb0","mode":"off"}],
		"vlans":[{"name":"cams","on":"eth0","id":5},{"name":"tv","on":"usb1","id":5}],"bonds":[{"name":"bond0","links":["eth1","eth2"],"mode":"active-backup"}]}`)
	shown := Named(kept, now) // as the page and the console see it
	good := func(what string, kept, s control.NetworkSettings, there []control.Link) {
		t.Helper()
		if p := CheckChange(kept, s, there); len(p) > 0 {
			t.Errorf("%s: %v", what, p)
		}
		b, err := Encode(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(b); err != nil {
			t.Errorf("%s, and cannot be kept: %v", what, err)
		}
	}
	good("as it was", kept, shown, now)
	good("as it was kept", kept, kept, now)
	s := shown
	s.Resolvers = []netip.Addr{netip.MustParseAddr("192.0.2.53")}
	good("resolvers", kept, s, now)
	s = shown
	s.Links = append(slices.Clone(shown.Links), settings(t, `{"links":[{"name":"eth0","mac":"52:54:00:00:00:09","mode":"static","addresses":["192.0.2.7/24"]}]}`).Links...)
	good("the same address", kept, s, now)
	if n := Named(s, now); Mode(n, "eth0") != Static || len(Absent(n, now)) != 2 || !Equal(Named(n, now), n) {
		t.Errorf("%+v, not there: %+v", n, Absent(n, now))
	}
	// And once more: each card has its own.
	next := []control.Link{{Name: "eth0", MAC: "52:54:00:00:00:0a"}, now[1]}
	good("the second in its place", s, Named(s, next), next)
	if got := Absent(Named(s, next), next); len(got) != 3 {
		t.Errorf("not there: %+v", got)
	}
	// The old one comes back.
	if n := Named(s, []control.Link{{Name: "eth3", MAC: "52:54:00:00:00:01"}}); Of(n, "eth3") == nil || n.VLANs[0].On != "eth3" {
		t.Errorf("%+v", n)
	}
	dropped := shown
	dropped.Links, dropped.VLANs = shown.Links[1:], shown.VLANs[1:]
	good("dropped", kept, dropped, now)
	if got := strings.Join(Changes(shown, dropped), "; "); got != "what was set for a card that is not there (52:54:00:00:00:01) is dropped: 192.0.2.7/24; cams goes away (it was VLAN 5 on a card that is not there (52:54:00:00:00:01), automatic)" {
		t.Errorf("in words: %s", got)
	}
	// What is new about it is judged as ever.
	for what, change := range map[string]func(*control.NetworkSettings){
		"another address": func(s *control.NetworkSettings) {
			s.Links[0].Addresses = []netip.Prefix{netip.MustParsePrefix("192.0.2.8/24")}
		},
		"another mode": func(s *control.NetworkSettings) { s.Links[1].Mode = Automatic },
		"a new card":   func(s *control.NetworkSettings) { s.Links[0].MAC = "52:54:00:00:00:77" },
		"a new VLAN": func(s *control.NetworkSettings) {
			s.VLANs = append(s.VLANs, control.VLAN{Name: "x", On: "usb1", ID: 6})
		},
		"a new number": func(s *control.NetworkSettings) { s.VLANs[0].ID = 7 },
		"a new part":   func(s *control.NetworkSettings) { s.Bonds[0].Links = []string{"eth1", "eth4"} },
	} {
		s := Named(kept, now) // a copy
		change(&s)
		if p := CheckChange(kept, s, now); len(p) == 0 {
			t.Errorf("%s of what is not there: accepted", what)
		}
	}
}

// Two links are never in the same network, nor one in a part of the other's.
func TestBOX7_NetworksOfTwoLinksDoNotOverlap(t *testing.T) {
	two := func(one, other string) []control.Problem {
		return Check(settings(t, `{"links":[{"name":"eth0","mode":"static","addresses":["`+one+`"]},{"name":"eth1","mode":"static","addresses":["`+other+`"]}]}`), there)
	}
	for _, other := range []string{"192.0.2.8/24", "192.0.2.130/25", "192.0.2.7/32", "192.0.3.1/16"} {
		if p := two("192.0.2.7/24", other); len(p) != 1 || p[0].Text != "eth1 addresses" || !strings.Contains(p[0].Reason, "eth0") {
			t.Errorf("%s beside 192.0.2.7/24: %v", other, p)
		}
	}
	if p := two("2001:db8::7/64", "2001:db8::8/96"); len(p) != 1 {
		t.Errorf("IPv6: %v", p)
	}
	for _, other := range []string{"192.0.3.1/24", "2001:db8::7/64"} {
		if p := two("192.0.2.7/24", other); len(p) != 0 {
			t.Errorf("%s beside 192.0.2.7/24: %v", other, p)
		}
	}
	if p := Check(settings(t, `{"links":[{"name":"eth0","mode":"static","addresses":["192.0.2.7/24","192.0.2.130/25"]}]}`), there); len(p) != 0 {
		t.Errorf("two addresses of one link: %v", p)
	}
}

func TestBOX7_ChangesInWords(t *testing.T) {
	for _, c := range []struct{ from, to, want string }{
		{`{}`, `{}`, "nothing changes"},
		{`{}`, `{"links":[` + static + `,"gateways":["192.0.2.1"]}]}`, "eth0: 192.0.2.7/24, gateway 192.0.2.1, and was automatic"},
		{`{"links":[` + static + `}]}`, `{"links":[{"name":"eth0","mode":"off"}]}`, "eth0: off, and was 192.0.2.7/24"},
		{`{}`, `{"vlans":[{"name":"office","on":"eth0","id":5}]}`, "office is made: VLAN 5 on eth0, automatic"},
		{`{"vlans":[{"name":"office","on":"eth0","id":5}]}`, `{}`, "office goes away (it was VLAN 5 on eth0, automatic)"},
		{`{}`, `{"bonds":[{"name":"bond0","links":["eth1"],"mode":"802.3ad"}]}`, "bond0 is made: bond (802.3ad) of eth1, automatic; eth1: part of bond0, and was automatic"},
		{`{"resolvers":["192.0.2.1"]}`, `{"time":["ntp.example"]}`, "resolvers: as learnt, and were 192.0.2.1; time servers: ntp.example, and were as learnt, and the usual pool"},
	} {
		if got := strings.Join(Changes(settings(t, c.from), settings(t, c.to)), "; "); got != c.want {
			t.Errorf("from %s to %s:\n got %s\nwant %s", c.from, c.to, got, c.want)
		}
	}
}

func TestNET3_CutSaysWhoseAddressGoes(t *testing.T) {
	now := []control.Link{
		{Name: "eth0", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/24"), netip.MustParsePrefix("fe80::1/64")}},
		{Name: "office", Addresses: []netip.Prefix{netip.MustParsePrefix("203.0.113.7/24")}},
	}
	vlan := `,"vlans":[{"name":"office","on":"eth0","id":5}]`
	for _, c := range []struct {
		from, to, local string
		want            bool
	}{
		{`{}`, `{}`, "192.0.2.7", false},
		{`{}`, `{"resolvers":["192.0.2.1"]}`, "192.0.2.7", false},
		{`{}`, `{"links":[` + static + `}]}`, "192.0.2.7", false}, // what was learnt is set
		{`{}`, `{"links":[` + static + `}]}`, "::ffff:192.0.2.7", false},
		{`{}`, `{"links":[{"name":"eth0","mode":"static","addresses":["192.0.2.8/24"]}]}`, "192.0.2.7", true},
		{`{}`, `{"links":[{"name":"eth0","mode":"static","addresses":["192.0.2.8/24"]}]}`, "::ffff:192.0.2.7", true},
		{`{}`, `{"links":[{"name":"eth0","mode":"static","addresses":["192.0.2.8/24"]}]}`, "fe80::1%eth0", false},
		{`{}`, `{"links":[{"name":"eth0","mode":"off"}]}`, "fe80::1", true},
		{`{"links":[` + static + `}]}`, `{}`, "192.0.2.7", true},
		{`{}`, `{"links":[{"name":"eth0","mode":"off"}]}`, "192.0.2.7", true},
		{`{}`, `{"links":[{"name":"eth0","mode":"off"}]}`, "198.51.100.9", false}, // not ours: somebody's NAT
		{`{}`, `{"links":[{"name":"eth0","mode":"off"}]}`, "127.0.0.1", false},
		{`{}`, `{"bonds":[{"name":"bond0","links":["eth0"],"mode":"802.3ad"}]}`, "192.0.2.7", true},
		{`{"links":[]` + vlan + `}`, `{}`, "203.0.113.7", true},
		{`{"links":[]` + vlan + `}`, `{"links":[]` + strings.Replace(vlan, "5", "6", 1) + `}`, "203.0.113.7", true},
		{`{"links":[]` + vlan + `}`, `{"links":[` + static + `}]` + vlan + `}`, "203.0.113.7", false},
	} {
		if got := Cut(settings(t, c.from), settings(t, c.to), now, netip.MustParseAddr(c.local)); got != c.want {
			t.Errorf("from %s to %s, by %s: %v", c.from, c.to, c.local, got)
		}
	}
	if Cut(control.NetworkSettings{}, control.NetworkSettings{}, nil, netip.Addr{}) {
		t.Error("nobody's address goes")
	}
}

func ExampleSentence() {
	fmt.Println(Sentence(Check(control.NetworkSettings{Links: []control.LinkSettings{{Name: "eth0", Mode: Static}}}, there)[0]))
	// Output: eth0 addresses: a static link has an address: write it with the length of its network, as in 192.0.2.7/24
}
