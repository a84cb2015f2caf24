package panel

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"gatehouse/appliance/control"
	"gatehouse/appliance/netconf"
	"gatehouse/appliance/panel/guide"
)

// links doubles what the monitor does: it holds settings, and refuses a gateway
// of 10.9.9.9.
type links struct {
	mu    sync.Mutex
	state control.NetworkState
	set   []control.NetworkSettings
}

func newLinks() *links {
	own := []control.Link{{Name: "eth0", MAC: "02:00:00:00:00:01"}, {Name: "eth1", MAC: "02:00:00:00:00:02"}}
	return &links{state: control.NetworkState{Own: own, Links: []control.Link{
		{Name: "eth0", MAC: "02:00:00:00:00:01", Carrier: true, Source: "dhcp", Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.1.40/24"), netip.MustParsePrefix("fe80::1/64")}, Gateways: []netip.Addr{netip.MustParseAddr("192.168.1.1")}},
		{Name: "eth1", MAC: "02:00:00:00:00:02"},
	}, Resolvers: []netip.Addr{netip.MustParseAddr("192.168.1.1")}}}
}

func (l *links) Network() control.NetworkState {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

func (l *links) SetNetwork(_ context.Context, s control.NetworkSettings) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, x := range s.Links {
		for _, g := range x.Gateways {
			if g.String() == "10.9.9.9" {
				return errors.New("10.9.9.9: that one is nobody's")
			}
		}
		if x.Mode == netconf.Off && x.Name == "eth1" {
			return errors.New("the audit log cannot be written")
		}
	}
	l.set = append(l.set, s)
	l.state.Settings = s
	return nil
}

func (l *links) last() (control.NetworkSettings, int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.set) == 0 {
		return control.NetworkSettings{}, 0
	}
	return l.set[len(l.set)-1], len(l.set)
}

func prefixes(s string) (list []netip.Prefix) {
	for _, x := range strings.Fields(s) {
		list = append(list, netip.MustParsePrefix(x))
	}
	return list
}

func addresses(s string) (list []netip.Addr) {
	for _, x := range strings.Fields(s) {
		list = append(list, netip.MustParseAddr(x))
	}
	return list
}

func TestBOX9_NetworkDialogueRefuses(t *testing.T) {
	b := start(t, false, func(*control.Status) {})
	for _, leave := range []string{"\n", "q\n", "1\nq\n", "1\nstatic\nq\n", "1\nstatic\n\nq\n", "1\nstatic\n\n\n\nno\n", "1\noff\nYES\n", "1\nvlan\nQ\n"} {
		b.types("1\n" + leave)
		b.shows("Nothing was changed.")
	}
	for _, c := range []struct{ typed, again string }{
		{"3\n", "There is no link of that number."}, {"0\n", "no link of that number"}, {"eth0\n", "no link of that number"}, {"1\nboth\n", "Type one of these words."}, {"1\nremove\n", "Type one of these words."},
		{"1\nvlan\n0\n", "number from 1 to 4094"}, {"1\nvlan\n4095\n", "number from 1 to 4094"}, {"1\nbond\n\n", "two links or more"}, {"1\nbond\n7\n", "no link of the number 7"},
		{"1\nstatic\n10.0.0.5\n", "10.0.0.5 is not an address with its length"}, {"1\nstatic\n10.0.0.5/33\n", "10.0.0.5/33 is not"}, {"2\nstatic\n\n", "A fixed link has an address"},
		{"1\nstatic\n10.0.0.5/24\n192.168.1.1\n", "is not on a network of this link"}, {"1\nstatic\n10.0.0.5/24\nrouter\n", "router is not an address"},
		{"1\nstatic\n10.0.0.5/24\n10.0.0.1 10.0.0.2\n", "is the most"}, {"1\nstatic\n10.0.0.5/24\n-\nx%y\n", "is not an address."},
	} {
		b.types("1\n" + c.typed)
		b.shows(c.again)
		b.types("q\n")
		b.shows("Nothing was changed.")
	}
	if s, n := b.links.last(); n != 0 {
		t.Fatalf("%d changes, %+v", n, s)
	}
	b.types("1\n1\nstatic\n10.9.9.5/24\n10.9.9.9\n-\nyes\n")
	b.shows("It did not work: 10.9.9.9: that one is nobody's.")
	b.types("1\n2\noff\nyes\n")
	b.shows("It did not work: the audit log cannot be written.")
	// What waits to be kept is not taken over: it may be what locks somebody out.
	b.set(func() {
		b.links.state.Candidate = &control.Candidate{ID: "x"}
		b.links.state.Settings.Resolvers = addresses("192.0.2.66")
	})
	b.types("1\n2\nautomatic\n\nyes\n")
	b.shows("The network is set.")
	if s, _ := b.links.last(); len(s.Resolvers) != 0 {
		t.Errorf("set with what waits: %+v", s)
	}
	b.set(func() { b.links.state.Links = nil })
	b.types("1\n")
	b.shows("No network card was found")
}

func TestBOX9_NetworkDialogueSets(t *testing.T) {
	b := start(t, true, func(s *control.Status) { s.Links[0].Source, s.URL = "link-local", "https://169.254.12.7/" })
	expect := func(want control.NetworkSettings) {
		t.Helper()
		if got, _ := b.links.last(); !reflect.DeepEqual(got, want) {
			t.Fatalf("set\n%+v\nwant\n%+v", got, want)
		}
	}
	eth0 := control.LinkSettings{Name: "eth0", MAC: "02:00:00:00:00:01", Mode: netconf.Static}
	// What it has now is offered; Enter takes it.
	b.types("1\n")
	b.shows("1 eth0 cable DHCP 192.168.1.40/24 2 eth1 no cable")
	b.types("1\nstatic\n")
	b.shows("[192.168.1.40/24]:")
	b.types("\n")
	b.shows("[192.168.1.1]:")
	b.types("\n\n")
	b.shows("eth0 will be set so: addresses 192.168.1.40/24 gateway 192.168.1.1 resolvers 192.168.1.1")
	b.types("yes\n")
	b.shows("The network is set.")
	eth0.Addresses, eth0.Gateways = prefixes("192.168.1.40/24"), addresses("192.168.1.1")
	want := control.NetworkSettings{Links: []control.LinkSettings{eth0}, Resolvers: addresses("192.168.1.1")}
	expect(want)
	// Both families, and no resolver of its own.
	b.types("1\n1\n\n10.0.0.5/24, 2001:db8::5/64\n10.0.0.1 2001:db8::1\n-\nyes\n")
	b.shows("The network is set.")
	eth0.Addresses, eth0.Gateways = prefixes("10.0.0.5/24 2001:db8::5/64"), addresses("10.0.0.1 2001:db8::1")
	want = control.NetworkSettings{Links: []control.LinkSettings{eth0}}
	expect(want)
	// A VLAN on it, then away with it.
	b.types("1\n1\nvlan\n20\nstatic\n10.20.0.5/24\n-\n\nyes\n")
	b.shows("The network is set.")
	want.VLANs = []control.VLAN{{Name: "eth0.20", On: "eth0", ID: 20}}
	want.Links = append(want.Links, control.LinkSettings{Name: "eth0.20", Mode: netconf.Static, Addresses: prefixes("10.20.0.5/24")})
	expect(want)
	b.set(func() {
		b.links.state.Links = append(b.links.state.Links, control.Link{Name: "eth0.20", Carrier: true})
	})
	b.types("1\n3\nremove\nyes\n")
	b.shows("The network is set.")
	expect(control.NetworkSettings{Links: []control.LinkSettings{eth0}, VLANs: []control.VLAN{}, Bonds: nil})
	// Back to DHCP.
	b.types("1\n1\nautomatic\n-\nyes\n")
	b.shows("The network is set.")
	expect(control.NetworkSettings{Links: []control.LinkSettings{}, VLANs: []control.VLAN{}})
	b.types("1\n1\nbond\n2\nautomatic\n\nyes\n")
	b.shows("The network is set.")
	expect(control.NetworkSettings{Links: []control.LinkSettings{}, VLANs: []control.VLAN{}, Bonds: []control.Bond{{Name: "bond0", Links: []string{"eth0", "eth1"}, Mode: "active-backup"}}})
}

func TestBOX9_FactorResetAsksTwice(t *testing.T) {
	b := start(t, false, func(s *control.Status) { s.State, s.Owner = control.StateReady, "ada@example.org" })
	for _, refused := range []string{"8\nyes\n", "8\n\n", "8\ngatehouse-7f3k\nno\n", "8\ngatehouse-7f3k\n\n", "8\n8\n"} {
		b.types(refused)
		b.shows("Nothing was done.")
	}
	if done := b.actions.list(); done != "" {
		t.Fatalf("done without being asked twice: %s", done)
	}
	b.types("8\n")
	b.shows("the password alone opens this box")
	b.types("gatehouse-7f3k\n")
	b.shows("Once more: does ada@example.org know")
	b.types("yes\n")
	b.shows("ada@example.org signs in with the password now")
	if done := b.actions.list(); done != "factor" {
		t.Errorf("done: %s", done)
	}
	for _, state := range []control.State{control.StateUnclaimed, control.StateLocked, control.StateStarting} {
		for _, c := range choices(control.Status{State: state}, true, true) {
			if c.key == "8" {
				t.Errorf("offered while %s", state)
			}
		}
	}
}

// TestBOX9_DialogueFitsTheConsole holds each screen of the dialogue against a
// file that a person has read.
func TestBOX9_DialogueFitsTheConsole(t *testing.T) {
	l := newLinks()
	for range 30 {
		l.state.Links = append(l.state.Links, control.Link{Name: "enp129s0f0np0v9", Carrier: true, Source: "dhcp", Addresses: prefixes("2001:db8:1111:2222:3333:4444:5555:6666/64 2001:db8:1111:2222:3333:4444:5555:7777/64 10.0.0.5/24")})
	}
	g := guide.New(l.state)
	var all strings.Builder
	for _, answer := range []string{"1", "static", "10.0.0.5/24 2001:db8::5/64", "10.0.0.1", "10.0.0.1", "yes"} {
		shown, text := g.Question()
		out := Render(status(), Screen{Prompt: text, Dialogue: shown, Network: true}, Width)
		fits(t, "dialogue", out)
		all.WriteString(out + "\n")
		g.Answer(answer)
	}
	path := filepath.Join("testdata", "dialogue.txt")
	if *update {
		if err := os.WriteFile(path, []byte(all.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(path); err != nil || all.String() != string(want) {
		t.Errorf("%v\n%s\nwant\n%s", err, all.String(), want)
	}
}
