package host

import (
	"bytes"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
)

func prefixList(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func addrList(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// What the network role may not talk PID 1 into.
func TestNET1_CheckApplyRefuses(t *testing.T) {
	for name, want := range map[string]control.NetworkApply{
		"loopback":             {Addresses: prefixList("127.0.0.1/8")},
		"loopback v6":          {Addresses: prefixList("::1/128")},
		"everywhere":           {Addresses: prefixList("0.0.0.0/0")},
		"the whole internet":   {Addresses: prefixList("8.8.8.8/1")},
		"multicast":            {Addresses: prefixList("224.0.0.1/24")},
		"broadcast":            {Addresses: prefixList("255.255.255.255/32")},
		"mapped":               {Addresses: prefixList("::ffff:10.0.0.1/120")},
		"wide v6":              {Addresses: prefixList("2001:db8::1/32")},
		"nothing":              {Addresses: []netip.Prefix{{}}},
		"too many":             {Addresses: prefixList(strings.Fields(strings.Repeat("10.0.0.1/24 ", 9))...)},
		"small MTU":            {MTU: 576},
		"huge MTU":             {MTU: 65536},
		"negative MTU":         {MTU: -1},
		"gateway off the link": {Addresses: prefixList("10.0.0.2/24"), Gateways: addrList("10.0.1.1")},
		"gateway is ourselves": {Addresses: prefixList("10.0.0.2/24"), Gateways: addrList("10.0.0.2")},
		"gateway v6, far":      {Addresses: prefixList("10.0.0.2/24"), Gateways: addrList("2001:db8::1")},
		"gateway with a zone":  {Gateways: addrList("fe80::1%eth1")},
		"gateway loopback":     {Addresses: prefixList("10.0.0.2/8"), Gateways: addrList("127.0.0.1")},
		"two gateways":         {Addresses: prefixList("10.0.0.2/24"), Gateways: addrList("10.0.0.1", "10.0.0.3")},
		"no gateway":           {Gateways: []netip.Addr{{}}},
		"loopback resolver":    {Resolvers: addrList("127.0.0.53")},
		"search ends its line": {Search: []string{"a\nnameserver 10.0.0.9"}},
		"search with a space":  {Search: []string{"a b"}},
		"empty search":         {Search: []string{""}},
		"search as an option":  {Search: []string{"-x"}},
		"long search":          {Search: []string{strings.Repeat("a", 254)}},
	} {
		want.Interface = "eth0"
		if err := CheckApply(want); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCheckApply(t *testing.T) {
	for name, want := range map[string]control.NetworkApply{
		"nothing":    {},
		"usual":      {Addresses: prefixList("192.168.1.5/24"), Gateways: addrList("192.168.1.1"), Resolvers: addrList("192.168.1.1", "2001:db8::53"), Search: []string{"home.arpa", "a_b.example"}, MTU: 1500},
		"both":       {Addresses: prefixList("10.1.2.3/8", "2001:db8::5/64", "2001:db8::6/128"), Gateways: addrList("10.0.0.1", "fe80::1")},
		"link-local": {Addresses: prefixList("169.254.3.4/16")},
	} {
		want.Interface = "eth0"
		if err := CheckApply(want); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSetResolvers(t *testing.T) {
	x := newTree(t, nil)
	if err := x.SetResolvers(nil, []string{"a\nb"}); err == nil {
		t.Error("a line was smuggled in")
	}
	if _, err := os.Stat(x.path("/etc/resolv.conf")); err == nil {
		t.Error("a refused list was written")
	}
	for range 2 {
		if err := x.SetResolvers(addrList("10.0.0.1", "10.0.0.2", "fd00::3", "10.0.0.4"), []string{"home.arpa", "lan"}); err != nil {
			t.Fatal(err)
		}
	}
	want := "options timeout:2 attempts:2\nnameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver fd00::3\nsearch home.arpa lan\n"
	if got := x.read("/etc/resolv.conf"); got != want {
		t.Errorf("resolv.conf is\n%s", got)
	}
}

// isolate gives the test's thread a network namespace of its own with a pair
// of interfaces. The thread ends with the test, and the namespace with it.
func isolate(t *testing.T) *Host {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread is not used again
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("making a network namespace (the test runs as root): %v", err)
	}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer0"}
	if err := netlink.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
	return New(slog.New(slog.DiscardHandler))
}

func link(t *testing.T, h *Host, name string) Link {
	t.Helper()
	links, err := h.Links()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(links, func(l Link) bool { return l.Name == name })
	if i < 0 {
		t.Fatalf("no link %s in %+v", name, links)
	}
	return links[i]
}

// v4 leaves out what the kernel adds by itself.
func v4(l Link) []netip.Prefix {
	return slices.DeleteFunc(l.Addresses, func(p netip.Prefix) bool { return p.Addr().Is6() })
}

func gateways(t *testing.T) []string {
	t.Helper()
	routes, err := netlink.RouteList(nil, unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, r := range routes {
		if r.Gw != nil {
			out = append(out, r.Gw.String())
		}
	}
	return out
}

func TestLinksUpWithTheirSettings(t *testing.T) {
	h := isolate(t)
	if err := h.SetUp("nosuch", true); err == nil {
		t.Error("a link that is not there came up")
	}
	if l := link(t, h, "eth0"); l.Up || l.Carrier || len(l.MAC) != 6 {
		t.Errorf("before: %+v", l)
	}
	for _, name := range []string{"eth0", "peer0", "lo"} {
		if err := h.SetUp(name, true); err != nil {
			t.Fatal(err)
		}
	}
	if l := link(t, h, "eth0"); !l.Up || !l.Carrier {
		t.Errorf("after: %+v", l)
	}
	for _, s := range LinkSysctls("eth0") {
		if got, err := h.readLine(sysctlPath(s.Key)); (err != nil && s.Must) || (err == nil && got != s.Value) {
			t.Errorf("%s is %q, %v; want %q", s.Key, got, err, s.Value)
		}
	}
	if err := h.SetUp("eth0", false); err != nil || link(t, h, "eth0").Up {
		t.Errorf("still up, %v", err)
	}
	if links, _ := h.Links(); slices.ContainsFunc(links, func(l Link) bool { return l.Name == "lo" }) {
		t.Error("loopback is listed")
	}
}

func TestApply(t *testing.T) {
	h := isolate(t)
	for _, name := range []string{"eth0", "peer0"} {
		if err := h.SetUp(name, true); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Apply(control.NetworkApply{Interface: "lo", Addresses: prefixList("10.0.0.2/24")}); err == nil {
		t.Error("loopback was given an address")
	}
	first := control.NetworkApply{Interface: "eth0", Addresses: prefixList("10.0.0.2/24"), Gateways: addrList("10.0.0.1"), MTU: 1400, Seconds: 3600}
	for range 2 { // renewing is the same again
		if err := h.Apply(first); err != nil {
			t.Fatal(err)
		}
	}
	l := link(t, h, "eth0")
	if !slices.Equal(v4(l), first.Addresses) || l.MTU != 1400 || !slices.Equal(l.Gateways, first.Gateways) || !slices.Equal(gateways(t), []string{"10.0.0.1"}) {
		t.Errorf("after the first: %+v, %v", l, gateways(t))
	}
	if err := h.Apply(control.NetworkApply{Interface: "eth0", Gateways: addrList("10.9.9.9")}); err == nil || len(gateways(t)) != 1 {
		t.Errorf("a refused request: %v, %v", err, gateways(t))
	}
	// A new address in the same net: the old one was first, and the route
	// must not go with it.
	second := control.NetworkApply{Interface: "eth0", Addresses: prefixList("10.0.0.9/24"), Gateways: addrList("10.0.0.1"), Seconds: 1<<32 - 1}
	if err := h.Apply(second); err != nil {
		t.Fatal(err)
	}
	if l := link(t, h, "eth0"); !slices.Equal(v4(l), second.Addresses) || !slices.Equal(gateways(t), []string{"10.0.0.1"}) {
		t.Errorf("after the second: %+v, %v", l, gateways(t))
	}
	if err := h.Apply(control.NetworkApply{Interface: "eth0"}); err != nil {
		t.Fatal(err)
	}
	if l := link(t, h, "eth0"); len(v4(l)) != 0 || len(gateways(t)) != 0 {
		t.Errorf("after nothing: %+v, %v", l, gateways(t))
	}
}

// An MTU that the link cannot have costs a lease nothing else, and is said once.
func TestBOX7_LeaseWithARefusedMTUIsSet(t *testing.T) {
	h := isolate(t)
	var said bytes.Buffer
	h.log = slog.New(slog.NewTextHandler(&said, nil))
	for _, name := range []string{"eth0", "peer0"} {
		if err := h.SetUp(name, true); err != nil {
			t.Fatal(err)
		}
	}
	ip(t, "link", "add", "link", "eth0", "name", "small", "type", "macvlan") // whose MTU is at most that of eth0
	if err := h.SetUp("small", true); err != nil {
		t.Fatal(err)
	}
	lease := control.NetworkApply{Interface: "small", Addresses: prefixList("10.0.0.2/24"), Gateways: addrList("10.0.0.1"), MTU: 9000, Seconds: 3600}
	for range 2 { // renewing is the same again
		if err := h.Apply(lease); err != nil {
			t.Fatal(err)
		}
	}
	if l := link(t, h, "small"); !slices.Equal(v4(l), lease.Addresses) || !slices.Equal(l.Gateways, lease.Gateways) || l.MTU != 1500 {
		t.Errorf("%+v", l)
	}
	if n := strings.Count(said.String(), "mtu=9000"); n != 1 {
		t.Errorf("said %d times: %s", n, &said)
	}
	lease.Addresses = prefixList("10.0.0.3/24")
	if err := h.Apply(lease); err != nil || strings.Count(said.String(), "mtu=9000") != 2 {
		t.Errorf("another lease: %v, said: %s", err, &said)
	}
}

// What others set on a link stays.
func TestApplyTouchesItsOwnAlone(t *testing.T) {
	h := isolate(t)
	if err := h.SetUp("eth0", true); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("ip", "addr", "add", "192.0.2.7/32", "dev", "eth0").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, a := range [][]netip.Prefix{prefixList("10.0.0.2/24"), nil} {
		if err := h.Apply(control.NetworkApply{Interface: "eth0", Addresses: a}); err != nil {
			t.Fatal(err)
		}
	}
	if got := v4(link(t, h, "eth0")); !slices.Equal(got, prefixList("192.0.2.7/32")) {
		t.Errorf("addresses %v", got)
	}
}

// A network role that was taken over must not make PID 1 remember without end
// what calls that fail half-way may have set.
func TestFailedCallsAreMendedNotPiledUp(t *testing.T) {
	h := isolate(t) // eth0 stays down: an address can be set, a route cannot
	for i := range 200 {
		a := netip.AddrFrom4([4]byte{10, byte(i), 0, 2})
		err := h.Apply(control.NetworkApply{Interface: "eth0", Addresses: []netip.Prefix{netip.PrefixFrom(a, 24)}, Gateways: []netip.Addr{a.Next()}})
		if err == nil {
			t.Fatal("a route over a link that is down")
		}
	}
	if ours := h.ours["eth0"]; len(ours.addresses) > 64 || len(ours.gateways) > 64 {
		t.Errorf("%d addresses and %d gateways are remembered", len(ours.addresses), len(ours.gateways))
	}
	if n := len(v4(link(t, h, "eth0"))); n > 64 {
		t.Errorf("%d addresses are set", n)
	}
	if err := h.Apply(control.NetworkApply{Interface: "eth0"}); err != nil || len(v4(link(t, h, "eth0"))) != 0 {
		t.Errorf("after nothing: %v, %v", v4(link(t, h, "eth0")), err)
	}
}
