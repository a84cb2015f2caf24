package host

import (
	"encoding/json"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
)

func settings(t *testing.T, text string) control.NetworkSettings {
	t.Helper()
	var s control.NetworkSettings
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return s
}

func configure(t *testing.T, h *Host, text string) {
	t.Helper()
	for range 2 { // the second time it is right already
		if err := h.Configure(settings(t, text)); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
}

func ip(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// ways lists the routes by a gateway, as "to via".
func ways(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := netlink.RouteList(nil, family)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			if r.Gw != nil {
				out = append(out, r.Dst.String()+" "+r.Gw.String())
			}
		}
	}
	slices.Sort(out)
	return out
}

// all are a link's addresses without the one that the kernel makes.
func all(t *testing.T, name string) []netip.Prefix {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	have, err := netlink.AddrList(l, unix.AF_UNSPEC)
	if err != nil {
		t.Fatal(err)
	}
	var out []netip.Prefix
	for _, a := range have {
		if p := prefixOf(a); !p.Addr().IsLinkLocalUnicast() {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Compare(b) })
	return out
}

const byHandText = `{"links":[{"name":"eth0","mode":"static","addresses":["192.0.2.7/24","192.0.2.8/24","2001:db8::7/64"],
	"gateways":["192.0.2.1","fe80::1"],"routes":[{"to":"198.51.100.0/24","via":"192.0.2.9"}],"mtu":1400}]}`

// A static link has exactly what was set, whatever was learnt before, and back
// again nothing of it.
func TestBOX7_StaticLink(t *testing.T) {
	h := isolate(t)
	configure(t, h, `{}`)
	if l := link(t, h, "eth0"); !l.Up || l.MTU != 1500 {
		t.Fatalf("automatic: %+v", l)
	}
	lease := control.NetworkApply{Interface: "eth0", Addresses: prefixList("10.0.0.2/24"), Gateways: addrList("10.0.0.1"), Seconds: 3600}
	if err := h.Apply(lease); err != nil {
		t.Fatal(err)
	}
	// As a router's advertisement leaves them.
	ip(t, "addr", "add", "2001:db8:9::5/64", "dev", "eth0", "valid_lft", "3600", "preferred_lft", "3600")
	ip(t, "-6", "route", "add", "default", "via", "fe80::9", "dev", "eth0", "proto", "ra")

	configure(t, h, byHandText)
	if got := all(t, "eth0"); !slices.Equal(got, prefixList("192.0.2.7/24", "192.0.2.8/24", "2001:db8::7/64")) {
		t.Errorf("addresses %v", got)
	}
	if got := ways(t); !slices.Equal(got, []string{"0.0.0.0/0 192.0.2.1", "198.51.100.0/24 192.0.2.9", "::/0 fe80::1"}) {
		t.Errorf("routes %v", got)
	}
	if l := link(t, h, "eth0"); l.MTU != 1400 {
		t.Errorf("MTU %d", l.MTU)
	}
	for key, want := range map[string]string{"accept_ra": "0", "autoconf": "0", "use_tempaddr": "0"} {
		if got, err := h.readLine("/proc/sys/net/ipv6/conf/eth0/" + key); got != want {
			t.Errorf("%s is %q, %v", key, got, err)
		}
	}
	if err := h.Apply(lease); err == nil || !strings.Contains(err.Error(), "static") {
		t.Errorf("a lease for a static link: %v", err)
	}
	if err := h.Apply(control.NetworkApply{Interface: "eth0"}); err != nil || len(all(t, "eth0")) != 3 {
		t.Errorf("taking a lease back from a static link: %v, %v", err, all(t, "eth0"))
	}

	configure(t, h, `{"links":[{"name":"eth0","mode":"static","addresses":["192.0.2.8/24"]}]}`)
	if got, w, l := all(t, "eth0"), ways(t), link(t, h, "eth0"); !slices.Equal(got, prefixList("192.0.2.8/24")) || len(w) != 0 || l.MTU != 1500 {
		t.Errorf("with less: %v, %v, MTU %d", got, w, l.MTU)
	}
	configure(t, h, `{}`)
	if got, w := all(t, "eth0"), ways(t); len(got) != 0 || len(w) != 0 {
		t.Errorf("automatic again: %v, %v", got, w)
	}
	if got, err := h.readLine("/proc/sys/net/ipv6/conf/eth0/accept_ra"); got != "1" {
		t.Errorf("accept_ra is %q, %v", got, err)
	}
	if err := h.Apply(lease); err != nil {
		t.Errorf("a lease for an automatic link: %v", err)
	}
}

func TestBOX7_LinkOffAndMTU(t *testing.T) {
	h := isolate(t)
	configure(t, h, byHandText)
	configure(t, h, `{"links":[{"name":"eth0","mode":"off"}]}`)
	if l := link(t, h, "eth0"); l.Up || len(all(t, "eth0")) != 0 || l.MTU != 1400 && l.MTU != 1500 {
		t.Errorf("off: %+v", l)
	}
	configure(t, h, `{"links":[{"name":"eth0","mode":"automatic","mtu":1300}]}`)
	if err := h.Apply(control.NetworkApply{Interface: "eth0", Addresses: prefixList("10.0.0.2/24"), MTU: 1450}); err != nil {
		t.Fatal(err)
	}
	if l := link(t, h, "eth0"); !l.Up || l.MTU != 1300 {
		t.Errorf("a lease overruled a person's MTU: %+v", l)
	}
	configure(t, h, `{}`)
	if l := link(t, h, "eth0"); l.MTU != 1500 {
		t.Errorf("MTU %d, want that of before", l.MTU)
	}
}

// Settings follow the card, and those of a card that is gone go to no other.
func TestBOX7_ConfigureByMAC(t *testing.T) {
	h := isolate(t)
	mac := link(t, h, "peer0").MAC.String()
	configure(t, h, `{"links":[{"name":"eth0","mac":"`+mac+`","mode":"static","addresses":["192.0.2.7/24"]}]}`)
	if len(all(t, "eth0")) != 0 || len(all(t, "peer0")) != 1 {
		t.Errorf("eth0 has %v, the card %v", all(t, "eth0"), all(t, "peer0"))
	}
	configure(t, h, `{"links":[{"name":"eth0","mac":"52:54:00:12:34:56","mode":"static","addresses":["192.0.2.7/24"]}]}`)
	if len(all(t, "eth0")) != 0 || !link(t, h, "eth0").Up {
		t.Error("another card got the settings")
	}
}

// What cannot be set is said, and the rest is set all the same.
func TestBOX7_ConfigureGoesOnAfterAFailure(t *testing.T) {
	h := isolate(t)
	err := h.Configure(settings(t, `{"links":[{"name":"eth0","mode":"static","addresses":["192.0.2.7/24"],"routes":[{"to":"198.51.100.0/24","via":"203.0.113.1"}]},
		{"name":"peer0","mode":"static","addresses":["192.0.2.9/25"]}]}`)) // unchecked: the kernel knows no way to that gateway
	if err == nil || !strings.Contains(err.Error(), "203.0.113.1") {
		t.Errorf("%v", err)
	}
	if len(all(t, "peer0")) != 1 {
		t.Error("the other link was left out")
	}
}

// A change that failed before it touched the addresses, put back, leaves a lease
// as it is; one that had touched them says that the lease is gone.
func TestBOX7_FailedChangeKeepsTheLease(t *testing.T) {
	h := isolate(t)
	configure(t, h, `{"links":[{"name":"peer0","mode":"automatic"}]}`)
	lease := control.NetworkApply{Interface: "eth0", Addresses: prefixList("10.0.0.2/24"), Gateways: addrList("10.0.0.1"), Seconds: 3600}
	if err := h.Apply(lease); err != nil {
		t.Fatal(err)
	}
	taken := h.Taken()["eth0"]
	// Unchecked: the kernel refuses that MTU, as a card refuses a smaller one.
	if err := h.Configure(settings(t, `{"links":[{"name":"eth0","mode":"static","addresses":["192.0.2.7/24"],"mtu":70000}]}`)); err == nil {
		t.Fatal("no failure")
	}
	configure(t, h, `{}`)
	if got, w := all(t, "eth0"), ways(t); !slices.Equal(got, lease.Addresses) || len(w) != 1 || h.Taken()["eth0"] != taken {
		t.Errorf("%v, %v, taken %d times, before %d", got, w, h.Taken()["eth0"], taken)
	}
	// The address by hand was set, and another link's mistake undoes it.
	if err := h.Configure(settings(t, `{"links":[{"name":"eth0","mode":"static","addresses":["192.0.2.7/24"]},{"name":"peer0","mode":"automatic","mtu":70000}]}`)); err == nil {
		t.Fatal("no failure")
	}
	configure(t, h, `{}`)
	if got := all(t, "eth0"); len(got) != 0 || h.Taken()["eth0"] == taken || h.Taken()["peer0"] != 0 {
		t.Errorf("%v, taken: %v", got, h.Taken())
	}
	if err := h.Apply(lease); err != nil {
		t.Errorf("learnt anew: %v", err)
	}
}

// A VLAN on a card that was pulled waits for it, as any link does.
func TestBOX7_VLANWaitsForItsCard(t *testing.T) {
	h := isolate(t)
	configure(t, h, `{"links":[{"name":"eth0","mode":"static","addresses":["192.0.2.7/24"]}],"vlans":[{"name":"cams","on":"eth7","id":5}]}`)
	if got := all(t, "eth0"); len(got) != 1 {
		t.Errorf("eth0 has %v", got)
	}
}

// Own tells a card that went and came under its name from one that stayed.
func TestBOX7_CardThatCameAgainIsAnother(t *testing.T) {
	h := isolate(t)
	index := func() int {
		own, err := h.Own()
		i := slices.IndexFunc(own, func(l control.Link) bool { return l.Name == "eth0" })
		if err != nil || i < 0 {
			t.Fatalf("%+v, %v", own, err)
		}
		return own[i].Index
	}
	before, stayed := index(), index()
	ip(t, "link", "del", "eth0")
	ip(t, "link", "add", "eth0", "type", "veth", "peer", "name", "peer0")
	if before != stayed || index() == before {
		t.Errorf("index %d, then %d, then %d", before, stayed, index())
	}
}

func TestOwnLinksAreCards(t *testing.T) {
	h := isolate(t)
	ip(t, "link", "add", "br0", "type", "bridge")
	own, err := h.Own()
	if err != nil || len(own) != 2 || slices.ContainsFunc(own, func(l control.Link) bool { return l.MAC == "" }) {
		t.Errorf("%+v, %v", own, err)
	}
}

// TestBondingMakesNothingByItself: the module's own default is a bond0.
func TestBOX7_BondingMakesNothingByItself(t *testing.T) {
	x := newTree(t, map[string]string{
		"proc/sys/kernel/osrelease": "6.1.0\n", lib + "modules.dep": "k/bonding.ko:\nk/8021q.ko:\n", lib + "modules.alias": "", lib + "modules.softdep": "",
	})
	got := make(chan string, 2)
	x.calls.LoadModule = func(path, parameters string) error {
		got <- path[strings.LastIndexByte(path, '/')+1:] + " " + parameters
		return nil
	}
	if err := open(t, x).Load("8021q", "bonding"); err != nil {
		t.Fatal(err)
	}
	did := []string{<-got, <-got}
	slices.Sort(did)
	if !slices.Equal(did, []string{"8021q.ko ", "bonding.ko max_bonds=0"}) {
		t.Errorf("%q", did)
	}
}
