package supervise

import (
	"flag"
	"os"
	"strconv"
	"strings"
	"testing"

	"gatehouse/appliance/control"
)

var update = flag.Bool("update", false, "write the golden files anew")

func itoa(n int) string { return strconv.Itoa(n) }

func TestBOX12_TableIsAsAgreed(t *testing.T) {
	box := Paths{Control: "/run/gatehouse/control.sock", GatewaySocket: "/run/gatehouse/gateway.sock", Data: "/data", Lists: "/data/lists", Admission: "/run/gatehouse/lists/admission", Stage: "/sys/fs/bpf/gatehouse"}
	hosted := Paths{Control: "/srv/gatehouse/run/control.sock", GatewaySocket: "/srv/gatehouse/run/gateway.sock", Data: "/srv/gatehouse", Lists: "/srv/gatehouse/lists", Admission: "/srv/gatehouse/run/lists/admission"}
	for _, test := range []struct {
		name string
		p    Paths
		o    Options
	}{
		{"box", box, Options{Privileged: true, Version: "1.2.3", Drops: true}},
		{"locked", Paths{Control: box.Control, GatewaySocket: box.GatewaySocket, Data: box.Data}, Options{Privileged: true, Version: "1.2.3", Locked: true}},
		{"container", hosted, Options{Privileged: true, Version: "1.2.3", Hosted: "container", Drops: true}},
		{"user", hosted, Options{UID: 1000, GID: 1000, Version: "1.2.3", Hosted: "host"}},
	} {
		var b strings.Builder
		for _, s := range Table(test.p, test.o) {
			b.WriteString(s.String())
		}
		if !test.o.Locked {
			b.WriteString(Filter(test.p, test.o).String())
		}
		path := "testdata/" + test.name + ".txt"
		if *update {
			if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if b.String() != string(want) {
			t.Errorf("%s: the table is not the agreed one (go test -update writes it anew; look at the difference):\n%s", test.name, b.String())
		}
	}
}

// TestBOX14_NoCapabilityWhereThereIsNone: a role that asks for a capability that
// this process does not have could not be started at all.
func TestBOX14_NoCapabilityWhereThereIsNone(t *testing.T) {
	p := Paths{Data: "/srv/gatehouse", Lists: "/srv/gatehouse/lists", Admission: "/srv/gatehouse/run/lists/admission"}
	o := Options{Privileged: true, Hosted: "container", NoFilter: true}
	if s := Filter(p, o); len(s.Caps) > 0 || !s.SetUID || s.UID != uidFilter {
		t.Errorf("without the right to filter:\n%s", s)
	}
	if o.NoFilter = false; len(Filter(p, o).Caps) != 1 {
		t.Error("with it, the filter has no capability")
	}
}

// What must hold for every row, whatever the golden files say.
func TestTableKeepsItsPromises(t *testing.T) {
	seen := map[uint32]control.Role{0: "root"}
	for _, s := range Table(Paths{Data: "/data"}, Options{Privileged: true}) {
		if other, ok := seen[s.UID]; ok {
			t.Errorf("%s has the uid of %s", s.Role, other)
		}
		seen[s.UID] = s.Role
		if len(s.Caps) > 0 && s.Role != control.Network {
			t.Errorf("%s has capabilities %v", s.Role, s.Caps)
		}
		for _, c := range s.Caps {
			if c != "CAP_NET_RAW" {
				t.Errorf("%s has %s", s.Role, c)
			}
		}
		for _, w := range s.Confine.Write {
			if w != "/data/"+string(s.Role) {
				t.Errorf("%s may write %s", s.Role, w)
			}
		}
		for _, r := range s.Confine.Read {
			if r == "/" || r == "/data" || r == "/dev" || r == "/run" {
				t.Errorf("%s may read all of %s", s.Role, r)
			}
		}
		if s.Confine.Limits["CORE"] != 0 || s.OOMScore <= 0 {
			t.Errorf("%s: core files %d, score %d", s.Role, s.Confine.Limits["CORE"], s.OOMScore)
		}
	}
	for _, s := range Table(Paths{Data: "/data"}, Options{Privileged: true, Locked: true}) {
		if strings.Contains(s.String(), "/data") {
			t.Errorf("locked, %s is given something of the data volume:\n%s", s.Role, s)
		}
	}
}
