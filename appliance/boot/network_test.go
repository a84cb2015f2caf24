package boot

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
	"gatehouse/appliance/host"
	"gatehouse/appliance/host/hosttest"
	"gatehouse/appliance/netconf"
	"gatehouse/appliance/vault"
)

func byHand(t *testing.T, address string) control.NetworkSettings {
	t.Helper()
	var s control.NetworkSettings
	if err := json.Unmarshal([]byte(`{"links":[{"name":"eth0","mode":"static","addresses":["`+address+`"]}],"resolvers":["192.0.2.53"],"search":["example.net"]}`), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func newStore(t *testing.T) netStore {
	t.Helper()
	dir := t.TempDir()
	meta, err := vault.OpenFile(filepath.Join(dir, "meta"))
	if err != nil {
		t.Fatal(err)
	}
	return netStore{file: filepath.Join(dir, networkFile), meta: meta, log: slog.New(slog.DiscardHandler)}
}

func (s netStore) locked() netStore { s.file = ""; return s }

// A restart brings what was kept, and so does one that cannot open the data.
func TestNET3_KeptNetworkOnDisk(t *testing.T) {
	s := newStore(t)
	for _, one := range []netStore{s, s.locked()} {
		if got := one.load(); !netconf.Equal(got, control.NetworkSettings{}) {
			t.Errorf("a new box has %+v", got)
		}
	}
	if b, _ := vault.ReadNetwork(s.meta); b != nil {
		t.Error("META was written although nothing was ever set")
	}
	for _, a := range []string{"192.0.2.7/24", "198.51.100.7/24"} {
		want := byHand(t, a)
		if err := s.keep(want); err != nil {
			t.Fatal(err)
		}
		if got, copied := s.load(), s.locked().load(); !netconf.Equal(got, want) || !netconf.Equal(copied, want) {
			t.Errorf("kept %s, read %+v, and locked %+v", a, got, copied)
		}
	}
	// Cut between the file and the copy, and a change at the console while locked: the file counts.
	if err := s.locked().keep(byHand(t, "203.0.113.7/24")); err != nil {
		t.Fatal(err)
	}
	if got := s.locked().load(); got.Links[0].Addresses[0].String() != "203.0.113.7/24" {
		t.Errorf("locked, set at the console: %+v", got)
	}
	if got := s.load(); got.Links[0].Addresses[0].String() != "198.51.100.7/24" {
		t.Errorf("opened again: %+v", got)
	}
	if got := s.locked().load(); got.Links[0].Addresses[0].String() != "198.51.100.7/24" {
		t.Errorf("the copy was not mended: %+v", got)
	}
	if err := s.keep(control.NetworkSettings{}); err != nil || !netconf.Equal(s.locked().load(), control.NetworkSettings{}) {
		t.Errorf("all automatic again: %v, locked %+v", err, s.locked().load())
	}
	if err := (netStore{log: s.log}).keep(byHand(t, "192.0.2.7/24")); err == nil {
		t.Error("kept without a disk")
	}
}

// What somebody wrote there that is not ours is as if nothing was set, and said.
func TestNET3_StrangeKeptNetworkIsAutomatic(t *testing.T) {
	var said bytes.Buffer
	s := newStore(t)
	s.log = slog.New(slog.NewTextHandler(&said, nil))
	for _, text := range []string{"", "{}", `{"version":1,"settings":{"links":[{"name":"../x","mode":"off"}]}}` + "\n", strings.Repeat("x", 1<<20)} {
		if err := os.WriteFile(s.file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		said.Reset()
		if got := s.load(); !netconf.Equal(got, control.NetworkSettings{}) || !strings.Contains(said.String(), "cannot be used") {
			t.Errorf("%.40q gives %+v, and %q is said", text, got, said.String())
		}
	}
	if err := vault.WriteNetwork(s.meta, []byte(`{"version":1,"settings":{"links":[{"name":"eth0","mode":"static","addresses":["127.0.0.1/8"]}]}}`+"\n")); err != nil {
		t.Fatal(err)
	}
	said.Reset()
	if got := s.locked().load(); !netconf.Equal(got, control.NetworkSettings{}) || !strings.Contains(said.String(), "127.0.0.1") {
		t.Errorf("META gives %+v, and %q is said", got, said.String())
	}
}

// PID 1 sets kept addresses by itself, with no role, and the kernel has them.
func TestBOX7_StaticAddressWithoutARole(t *testing.T) {
	runtime.LockOSThread() // never unlocked: the namespace ends with the thread
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("making a network namespace (the test runs as root): %v", err)
	}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer0"}); err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	if err := s.keep(byHand(t, "192.0.2.7/24")); err != nil {
		t.Fatal(err)
	}
	b := &box{log: s.log, machine: host.New(s.log)}
	b.filtered = errors.New("no filter")
	if err := b.configure(t.Context(), s.load()); err == nil {
		t.Error("links came up without the filter")
	}
	b.filtered = nil
	b.written = learnt{addrs("192.0.2.53"), []string{"example.net"}} // this machine's resolv.conf is not the test's
	if err := b.configure(t.Context(), s.locked().load()); err != nil {
		t.Fatal(err)
	}
	got := b.links()
	if i := slices.IndexFunc(got, func(l control.Link) bool { return l.Name == "eth0" }); i < 0 || got[i].Source != "static" ||
		!slices.Contains(got[i].Addresses, netip.MustParsePrefix("192.0.2.7/24")) {
		t.Errorf("%+v", got)
	}
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// A change that failed and was put back leaves the resolvers that were learnt.
func TestBOX7_FailedChangeKeepsLearntResolvers(t *testing.T) {
	runtime.LockOSThread() // never unlocked: the namespace ends with the thread
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("making a network namespace (the test runs as root): %v", err)
	}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer0"}); err != nil {
		t.Fatal(err)
	}
	m := hosttest.New(t, nil) // without the settings of that link: it cannot be set
	b := &box{log: slog.New(slog.DiscardHandler), machine: m.Host, learnt: map[string]learnt{"eth0": {resolvers: addrs("198.51.100.1")}}}
	if err := b.configure(t.Context(), byHand(t, "192.0.2.7/24")); err == nil {
		t.Fatal("no failure")
	}
	if got, _ := b.names(); !slices.Equal(got, addrs("192.0.2.53")) {
		t.Errorf("of a link by hand: %v", got)
	}
	if err := b.configure(t.Context(), control.NetworkSettings{}); err == nil {
		t.Fatal("no failure")
	}
	if got, _ := b.names(); !slices.Equal(got, addrs("198.51.100.1")) {
		t.Errorf("put back: %v", got)
	}
}

func TestBOX7_ResolversSetThenLearnt(t *testing.T) {
	m := hosttest.New(t, nil)
	b := &box{log: slog.New(slog.DiscardHandler), machine: m.Host, wanted: byHand(t, "192.0.2.7/24")}
	b.learnt = map[string]learnt{"eth2": {addrs("198.51.100.2", "192.0.2.53"), []string{"two.example"}}, "eth1": {addrs("198.51.100.1"), []string{"example.net"}}}
	resolvers, search := b.names()
	if !slices.Equal(resolvers, addrs("192.0.2.53", "198.51.100.1", "198.51.100.2")) || !slices.Equal(search, []string{"example.net", "two.example"}) {
		t.Errorf("%v, %v", resolvers, search)
	}
	if err := b.writeResolvers(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(m.Root, "etc/resolv.conf"))
	if err != nil || !strings.Contains(string(text), "nameserver 192.0.2.53\nnameserver 198.51.100.1\n") {
		t.Errorf("%s, %v", text, err)
	}
	delete(b.learnt, "eth1")
	delete(b.learnt, "eth2")
	b.wanted = control.NetworkSettings{}
	if err := b.writeResolvers(); err != nil {
		t.Fatal(err)
	}
	if text, _ = os.ReadFile(filepath.Join(m.Root, "etc/resolv.conf")); strings.Contains(string(text), "nameserver") {
		t.Errorf("resolvers that nobody named any more: %s", text)
	}
}
