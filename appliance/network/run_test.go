package network

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
	"gatehouse/appliance/supervise"
	"gatehouse/netfilter"
	"gatehouse/netfilter/nft"
	"gatehouse/tests/netns"
)

func TestMain(m *testing.M) {
	netns.Main(m, map[string]func([]string, io.Writer) error{"lan": lan, "role": rolePart, "confined": confinedPart, "init": initPart, "program": programPart, "resolve": resolvePart})
}

// roleUID is the network role's own.
const roleUID = 60901

// rolePart starts the role as it is on a box: a user of its own with
// CAP_NET_RAW, nothing else, confined.
func rolePart(args []string, _ io.Writer) error {
	cmd := exec.Command("/proc/self/exe", args...) // by this name, since the user may not see the test's folder
	cmd.Env = []string{"GATEHOUSE_NETNS_PART=confined"}
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe() // closed with this process
	if err != nil {
		return err
	}
	defer stdin.Close()
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: roleUID, Gid: roleUID},
		AmbientCaps: []uintptr{unix.CAP_NET_RAW},
	}
	return cmd.Run()
}

// confinedPart puts on itself what the supervisor's table says, as the program does.
func confinedPart(args []string, _ io.Writer) error {
	specs := supervise.Table(supervise.Paths{}, supervise.Options{Privileged: true, Locked: true})
	i := slices.IndexFunc(specs, func(s supervise.Spec) bool { return s.Role == control.Network })
	b, err := json.Marshal(specs[i].Confine)
	if err != nil {
		return err
	}
	if err := os.Setenv("GATEHOUSE_CONFINEMENT", string(b)); err != nil {
		return err
	}
	if _, err := supervise.Confine(control.Network); err != nil {
		return err
	}
	c, err := control.Dial(args[0])
	if err != nil {
		return err
	}
	return Run(context.Background(), control.Environment{}, c, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})))
}

// told is what the role asks of the privileged process.
type told struct {
	Apply     *control.NetworkApply
	Clock     *control.ClockSet
	Discovery *control.Discovery
	At        time.Time
}

// initPart does what the privileged process does for the role: it closes the
// box, answers the control socket, and sets addresses and routes.
func initPart(args []string, w io.Writer) error {
	if err := nft.Apply(netfilter.Rules(netfilter.State{Phase: control.StateReady, Lists: netfilter.Lists{Off: true}})); err != nil {
		return err
	}
	s := control.NewServer(slog.New(slog.DiscardHandler), func(_ int, uid uint32) (control.Role, bool) { return control.Network, uid == roleUID })
	control.Handle(s, control.OpAlive, func(context.Context, control.Role, control.None) (control.None, error) { return control.None{}, nil })
	control.Handle(s, control.OpStatus, func(context.Context, control.Role, control.None) (control.Status, error) {
		return control.Status{Name: "gatehouse-7f3k"}, nil
	})
	control.Handle(s, control.OpNetwork, func(context.Context, control.Role, control.None) (n control.NetworkState, err error) {
		text, err := os.ReadFile(args[0] + ".settings") // what the person set; the test changes it
		if errors.Is(err, os.ErrNotExist) {
			return n, nil // nothing
		}
		if err == nil {
			err = json.Unmarshal(text, &n.Settings)
		}
		return n, err
	})
	control.Handle(s, control.OpNetworkApply, func(_ context.Context, _ control.Role, r control.NetworkApply) (control.None, error) {
		var err error
		if len(args) == 1 { // or the test gives addresses by hand
			err = set(r)
		}
		json.NewEncoder(w).Encode(told{Apply: &r, At: time.Now()})
		return control.None{}, err
	})
	control.Handle(s, control.OpClockSet, func(_ context.Context, _ control.Role, r control.ClockSet) (control.Clock, error) {
		json.NewEncoder(w).Encode(told{Clock: &r, At: time.Now()})
		return control.Clock{}, nil
	})
	handleDiscovery(s, args, w)
	ln, err := net.Listen("unix", args[0])
	if err != nil {
		return err
	}
	if err := os.Chmod(args[0], 0o666); err != nil {
		return err
	}
	fmt.Fprintln(w, "{}")
	return s.Serve(context.Background(), ln)
}

// set replaces the IPv4 addresses of a link.
func set(r control.NetworkApply) error {
	link, err := netlink.LinkByName(r.Interface)
	if err != nil {
		return err
	}
	old, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	for _, a := range old {
		if !slices.ContainsFunc(r.Addresses, func(p netip.Prefix) bool { return p.String() == a.IPNet.String() }) {
			if err := netlink.AddrDel(link, &a); err != nil {
				return err
			}
		}
	}
	for _, p := range r.Addresses {
		if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}); err != nil {
			return err
		}
	}
	return nil
}

// bed is a box with the role on a cable, and what is at its other end.
type bed struct {
	t        *testing.T
	box, lan *netns.Host
	settings string // the file of what a person set
	asked    <-chan seen
	told     <-chan told
}

func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{t: t, box: netns.New(t, "box"), lan: netns.New(t, "lan")}
	netns.Connect(t, b.box, "eth0", b.lan, "lan")
	b.lan.Up(t, "lan", "192.0.2.1/24", "192.0.2.2/24", "192.0.2.3/24", "192.0.2.4/24", "fe80::1/64")
	dir, err := os.MkdirTemp("", "network")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(dir, "control.sock")
	b.settings = sock + ".settings"
	b.set(`{}`)
	p1 := b.box.Start(t, "init", sock)
	told := lines[told](p1.Stdout())
	<-told // the socket is there
	b.told = told
	b.box.Start(t, "role", sock)
	return b
}

// set is what a person decides, from now on.
func (b *bed) set(text string) {
	b.t.Helper()
	if err := os.WriteFile(b.settings+".new", []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Rename(b.settings+".new", b.settings); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) serve(c lanConfig) {
	b.t.Helper()
	j, err := json.Marshal(c)
	if err != nil {
		b.t.Fatal(err)
	}
	asked := lines[seen](b.lan.Start(b.t, "lan", string(j)).Stdout())
	if s := <-asked; s.Kind != "ready" {
		b.t.Fatalf("the other end is not ready: %+v", s)
	}
	b.asked = asked
}

// lines decodes what a part writes.
func lines[T any](r io.Reader) <-chan T {
	ch := make(chan T, 1000)
	go func() {
		defer close(ch)
		for s := bufio.NewScanner(r); s.Scan(); {
			var v T
			if json.Unmarshal(s.Bytes(), &v) == nil {
				ch <- v
			}
		}
	}()
	return ch
}

// until reads from ch until ok says so; the patience is for a loaded machine.
func until[T any](t *testing.T, ch <-chan T, what string, ok func(T) bool) T {
	t.Helper()
	patience := time.After(100 * time.Second)
	var had []string
	for {
		select {
		case v, open := <-ch:
			if !open {
				t.Fatalf("%s: the process ended; before: %s", what, strings.Join(had, "\n"))
			}
			if ok(v) {
				return v
			}
			j, _ := json.Marshal(v)
			had = append(had, string(j))
		case <-patience:
			t.Fatalf("%s did not come; what came: %s", what, strings.Join(had, "\n"))
		}
	}
}

func applied(prefix string) func(told) bool {
	return func(x told) bool {
		if x.Apply == nil {
			return false
		}
		if prefix == "" {
			return len(x.Apply.Addresses) == 0
		}
		return len(x.Apply.Addresses) > 0 && strings.HasPrefix(x.Apply.Addresses[0].String(), prefix)
	}
}

// TestOnACable runs the role on cables of its own, in real time: most of it is
// waiting, so all at once. The short tests take the first, which has the most.
func TestOnACable(t *testing.T) {
	cables := []struct {
		name string
		run  func(*testing.T)
	}{
		{"lease, clock and cable", leaseClockAndCable},
		{"refused renewal", refusedRenewal},
		{"alone", aloneOnTheCable},
		{"managed IPv6", managedIPv6},
		{"set by hand", setByHand},
	}
	if testing.Short() {
		cables = cables[:1]
	}
	for _, c := range cables {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.run(t)
		})
	}
}

// leaseClockAndCable runs the role behind the closed filter: a hostile offer
// is passed over, the lease is renewed, two honest clocks and a third outvote a
// liar, and the address goes with the cable.
func leaseClockAndCable(t *testing.T) {
	b := newBed(t)
	const off = 3 * time.Hour
	b.serve(lanConfig{Lease: 20 * time.Second, Clocks: map[string]time.Duration{
		"192.0.2.1": off, "192.0.2.2": off + 20*time.Millisecond, "192.0.2.3": off - 20*time.Millisecond, "192.0.2.4": 10 * 365 * 24 * time.Hour}})
	b.box.Up(t, "eth0")

	first := until(t, b.told, "a lease", applied("192.0.2.77/24"))
	if r := first.Apply; len(r.Gateways) != 1 || r.Gateways[0].String() != "192.0.2.1" || r.Source != "dhcp" || r.Seconds == 0 || r.Seconds > 20 {
		t.Errorf("applied %+v", r)
	}
	if s := until(t, b.asked, "a discovery", func(s seen) bool { return s.Kind == "DISCOVER" }); s.Host != "gatehouse-7f3k" {
		t.Errorf("the box calls itself %q in its discovery", s.Host)
	}
	clock := until(t, b.told, "the time", func(x told) bool { return x.Clock != nil })
	if d := clock.Clock.Time.Sub(clock.At); (d-off).Abs() > time.Second || clock.Clock.Servers != 3 || clock.Clock.Source != "ntp" {
		t.Errorf("the clock is to be set %v ahead by %d servers (%s), want %v by 3", d, clock.Clock.Servers, clock.Clock.Source, off)
	}
	renewed := until(t, b.told, "a renewal", applied("192.0.2.77/24"))
	if d := renewed.At.Sub(first.At); d < 9*time.Second {
		t.Errorf("renewed after %v, want half of 20 s", d)
	}
	if s := until(t, b.asked, "a renewal", func(s seen) bool { return s.Kind == "REQUEST" && s.Client != "0.0.0.0" }); s.Client != "192.0.2.77" {
		t.Errorf("renewed %+v", s)
	}

	b.lan.Down(t, "lan")
	until(t, b.told, "taking back", applied(""))
	b.lan.Up(t, "lan") // its IPv4 addresses outlived the pull
	until(t, b.told, "a lease after the cable came back", applied("192.0.2.77/24"))
}

// refusedRenewal shows that an address the server takes back is given up,
// and asked for anew.
func refusedRenewal(t *testing.T) {
	b := newBed(t)
	b.serve(lanConfig{Lease: 20 * time.Second, NakFrom: 1})
	b.box.Up(t, "eth0")
	until(t, b.told, "a lease", applied("192.0.2.77/24"))
	until(t, b.told, "giving up", applied(""))
	until(t, b.told, "a new lease", applied("192.0.2.77/24"))
}

// aloneOnTheCable shows the fallback without a server, and that a server
// that comes later is found.
func aloneOnTheCable(t *testing.T) {
	b := newBed(t)
	b.box.Up(t, "eth0")
	x := until(t, b.told, "a link-local address", applied("169.254."))
	if x.Apply.Source != "link-local" || x.Apply.Seconds != 0 || x.Apply.Addresses[0].Bits() != 16 {
		t.Errorf("applied %+v", x.Apply)
	}
	b.serve(lanConfig{Lease: time.Minute})
	until(t, b.told, "a lease", applied("192.0.2.77/24"))
}

// managedIPv6 shows that a router's M flag leads to an address by DHCPv6,
// which is renewed.
func managedIPv6(t *testing.T) {
	b := newBed(t)
	b.serve(lanConfig{Lease: time.Minute, Managed: true})
	b.box.Up(t, "eth0")
	with6 := func(x told) bool {
		return x.Apply != nil && slices.ContainsFunc(x.Apply.Addresses, func(p netip.Prefix) bool { return p.String() == "2001:db8:1::77/128" })
	}
	x := until(t, b.told, "an address by DHCPv6", with6)
	if len(x.Apply.Resolvers) == 0 || x.Apply.Resolvers[0].String() != "2001:db8:1::53" || x.Apply.Seconds > 20 {
		t.Errorf("applied %+v", x.Apply)
	}
	until(t, b.told, "names by router advertisement, after those of DHCPv6", func(x told) bool {
		return x.Apply != nil && fmt.Sprint(x.Apply.Resolvers) == "[2001:db8:1::53 2001:db8:1::54]" && fmt.Sprint(x.Apply.Search) == "[lan.example]"
	})
	if s := until(t, b.asked, "a renewal", func(s seen) bool { return s.Kind == "RENEW" }); s.Host != "gatehouse-7f3k" {
		t.Errorf("the box calls itself %q in its renewal by DHCPv6", s.Host)
	}
	until(t, b.told, "the renewed address", with6)
}

// setByHand shows that nothing is asked on a link that a person set, that what
// was learnt is taken back, that servers of his are asked for the time, and that
// it all comes back.
func setByHand(t *testing.T) {
	b := newBed(t)
	const byHand = `{"links":[{"name":"eth0","mode":"static","addresses":["192.0.2.99/24"]}],"time":["192.0.2.2"]}`
	b.set(byHand)
	b.serve(lanConfig{Lease: time.Minute, Clocks: map[string]time.Duration{"192.0.2.1": 0, "192.0.2.2": 5 * time.Hour, "192.0.2.3": 0, "192.0.2.4": 0}})
	b.box.Up(t, "eth0", "192.0.2.99/24")
	clock := until(t, b.told, "the time of the one server that was named", func(x told) bool {
		if x.Apply != nil {
			t.Errorf("something was learnt for a link that is set by hand: %+v", x.Apply)
		}
		return x.Clock != nil
	})
	if d := clock.Clock.Time.Sub(clock.At); (d-5*time.Hour).Abs() > time.Second || clock.Clock.Servers != 1 {
		t.Errorf("%v ahead by %d servers", d, clock.Clock.Servers)
	}
	select {
	case s := <-b.asked:
		t.Errorf("asked %+v", s)
	default:
	}
	b.set(`{}`)
	until(t, b.told, "a lease", applied("192.0.2.77/24"))
	b.set(byHand)
	until(t, b.told, "taking back", applied(""))
}
