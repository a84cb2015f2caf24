package form

import (
	"encoding/json"
	"net/url"
	"reflect"
	"testing"

	"gatehouse/appliance/control"
	"gatehouse/appliance/netconf"
)

func state(t *testing.T, settings string) control.NetworkState {
	t.Helper()
	own := []control.Link{{Name: "eth0", MAC: "02:00:00:00:00:01"}, {Name: "eth1", MAC: "02:00:00:00:00:02"}, {Name: "eth2", MAC: "02:00:00:00:00:03"}}
	st := control.NetworkState{Own: own, Links: own}
	if err := json.Unmarshal([]byte(settings), &st.Settings); err != nil {
		t.Fatal(err)
	}
	return st
}

const whole = `{"links":[{"name":"eth0","mac":"02:00:00:00:00:01","mode":"static","addresses":["192.0.2.7/24","2001:db8::7/64"],"gateways":["192.0.2.1","2001:db8::1"],"routes":[{"to":"198.51.100.0/24","via":"192.0.2.9"}],"mtu":9000},
	{"name":"office","mode":"static","addresses":["203.0.113.7/24"]}],"vlans":[{"name":"office","on":"eth0","id":20}],"resolvers":["192.0.2.53"],"search":["example.org"],"time":["time.example.org"],"multicast":true}`

// sent is a form as a browser sends it back untouched.
func sent(f *Link) url.Values {
	return url.Values{"old": {f.Old}, "kind": {f.Kind}, "name": {f.Name}, "on": {f.On}, "id": {f.ID}, "member": f.Members, "bonding": {f.Bonding},
		"mode": {f.Mode}, "addresses": {f.Addresses}, "gateways": {f.Gateways}, "routes": {f.Routes}, "mtu": {f.MTU}}
}

// TestBOX7_FormChangesOnlyWhatItShows: a form that is sent back as it was
// shown changes nothing, whichever link it is of.
func TestBOX7_FormChangesOnlyWhatItShows(t *testing.T) {
	st := state(t, whole)
	for _, name := range []string{"eth0", "eth1", "office"} {
		f := ReadLink(sent(LinkOf(name, st.Settings)))
		s := f.Apply(st)
		if len(f.Wrong) > 0 || len(netconf.Changes(st.Settings, s)) != 1 || netconf.Changes(st.Settings, s)[0] != "nothing changes" {
			t.Errorf("%s: %v %v", name, f.Wrong, netconf.Changes(st.Settings, s))
		}
	}
	n := NamesOf(st.Settings)
	again := ReadNames(url.Values{"resolvers": {n.Resolvers}, "search": {n.Search}, "time": {n.Time}, "multicast": {"yes"}})
	if s := again.Apply(st); !netconf.Equal(s, st.Settings) {
		t.Errorf("names: %v", netconf.Changes(st.Settings, s))
	}
	if !netconf.Equal(st.Settings, state(t, whole).Settings) {
		t.Error("the settings in effect were changed by looking at forms")
	}
}

func TestBOX7_BondTakesItsLinksOver(t *testing.T) {
	st := state(t, whole)
	f := ReadLink(url.Values{"kind": {"bond"}, "name": {"bond0"}, "member": {"eth1", "eth2"}, "bonding": {"802.3ad"}, "mode": {"automatic"}})
	s := f.Apply(st)
	if p := netconf.Check(s, st.Own); len(p)+len(f.Wrong) > 0 {
		t.Fatalf("%v %v", p, f.Wrong)
	}
	st.Settings = s
	f = ReadLink(url.Values{"old": {"bond0"}, "kind": {"bond"}, "name": {"bond0"}, "member": {"eth0", "eth1"}, "bonding": {"active-backup"}, "mode": {"off"}})
	if s = f.Apply(st); netconf.Of(s, "eth0") != nil {
		t.Errorf("what was set for a part of the bond stays: %+v", s)
	}
	want := []control.Bond{{Name: "bond0", Links: []string{"eth0", "eth1"}, Mode: "active-backup"}}
	if !reflect.DeepEqual(s.Bonds, want) {
		t.Errorf("%+v", s.Bonds)
	}
	s, there := Remove(s, "bond0")
	if !there || len(s.Bonds) > 0 || netconf.Of(s, "bond0") != nil {
		t.Errorf("%v %+v", there, s)
	}
	if _, there := Remove(s, "eth1"); there {
		t.Error("a card was removed")
	}
}

// What is set for a card that is not there stays with every form, and can be dropped.
func TestBOX7_FormsKeepWhatIsNotThere(t *testing.T) {
	st := state(t, whole)
	st.Own[0].MAC = "02:00:00:00:00:09" // replaced
	kept := st.Settings
	st.Settings = netconf.Named(kept, st.Own)
	f := ReadLink(url.Values{"old": {"eth0"}, "kind": {"ethernet"}, "name": {"eth0"}, "mode": {"static"}, "addresses": {"192.0.2.7/24"}})
	s := f.Apply(st)
	if p := netconf.CheckChange(kept, s, st.Own); len(p)+len(f.Wrong) > 0 || len(s.Links) != 3 {
		t.Errorf("%v %v %+v", p, f.Wrong, s.Links)
	}
	n := NamesOf(st.Settings)
	if p := netconf.CheckChange(kept, ReadNames(url.Values{"resolvers": {"192.0.2.1"}, "time": {n.Time}}).Apply(st), st.Own); len(p) > 0 {
		t.Errorf("names: %v", p)
	}
	absent := netconf.Absent(st.Settings, st.Own)
	if len(absent) != 1 {
		t.Fatalf("%+v", absent)
	}
	s, there := Forget(st, absent[0].Name)
	if !there || len(s.Links) != 0 || len(s.VLANs) != 0 || len(netconf.CheckChange(kept, s, st.Own)) > 0 {
		t.Errorf("dropped: %v %+v", there, s)
	}
	if _, there := Forget(st, "eth1"); there {
		t.Error("a card that is there was dropped")
	}
}
