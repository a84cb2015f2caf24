package network

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
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

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/ipv4"

	"gatehouse/appliance/control"
	"gatehouse/appliance/network/mdns"
	"gatehouse/netfilter"
	"gatehouse/netfilter/nft"
	"gatehouse/tests/netns"
)

// handleDiscovery does what the privileged process does: the state is read from
// a file, the kernel's filter follows it, and what the role tells is written.
// Without the file nobody wants to be found.
func handleDiscovery(s *control.Server, args []string, w io.Writer) {
	last, told := "", "-"
	control.Handle(s, control.OpDiscovery, func(_ context.Context, _ control.Role, q control.Discovery) (control.DiscoveryState, error) {
		if len(args) == 1 {
			return control.DiscoveryState{}, nil
		}
		if told != q.Name {
			told = q.Name
			json.NewEncoder(w).Encode(toldOf(q))
		}
		b, err := os.ReadFile(args[1])
		if err != nil {
			return control.DiscoveryState{}, err
		}
		state, on := control.State(strings.TrimSuffix(string(b), "+")), !strings.HasPrefix(string(b), "ready") || strings.HasSuffix(string(b), "+")
		if string(b) != last {
			last = string(b)
			seen, err := segments()
			if err != nil {
				return control.DiscoveryState{}, err
			}
			n := netfilter.State{Phase: state, Lists: netfilter.Lists{Off: true}, Multicast: on}
			for _, s := range seen {
				n.OnLink = append(n.OnLink, s.own...)
			}
			if err := nft.Apply(netfilter.Rules(n)); err != nil {
				return control.DiscoveryState{}, err
			}
		}
		return control.DiscoveryState{On: on, Name: "gatehouse-7f3k", State: state, Version: "0.1.0+abc", Port: 443}, nil
	})
}

func toldOf(q control.Discovery) told { return told{Discovery: &q, At: time.Now()} }

// beaconBox is a box on the switch of a LAN, with its role at work.
type beaconBox struct {
	*netns.Host
	told  <-chan told
	state string // file
}

// lanBed is a switch with boxes, a laptop with the tool, and a host behind a router.
type lanBed struct {
	t       *testing.T
	lan     *netns.Host
	laptop  *netns.Host
	tool    string
	plugged int
}

func newLANBed(t *testing.T) *lanBed {
	t.Helper()
	l := &lanBed{t: t, lan: netns.New(t, "switch"), laptop: netns.New(t, "laptop"), tool: filepath.Join(t.TempDir(), "gatehouse")}
	l.lan.Command(t, "ip", "link", "add", "br0", "type", "bridge")
	l.lan.Up(t, "br0")
	build := exec.Command("go", "build", "-o", l.tool, "gatehouse/cmd/gatehouse")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the tool: %v\n%s", err, out)
	}
	l.plug(l.laptop, "eth0", "192.0.2.9/24", "fe80::9/64")
	return l
}

// plug puts a host on the switch.
func (l *lanBed) plug(h *netns.Host, link string, addresses ...string) {
	l.t.Helper()
	l.plugged++
	port := fmt.Sprintf("port%d", l.plugged)
	netns.Connect(l.t, l.lan, port, h, link)
	l.lan.Command(l.t, "ip", "link", "set", port, "master", "br0")
	l.lan.Up(l.t, port)
	h.Up(l.t, link, addresses...)
}

// box makes one with a cable to the switch for each list of addresses.
func (l *lanBed) box(name string, cables ...[]string) *beaconBox {
	l.t.Helper()
	b := &beaconBox{Host: netns.New(l.t, name)}
	for i, addresses := range cables {
		l.plug(b.Host, fmt.Sprintf("eth%d", i), addresses...)
	}
	dir, err := os.MkdirTemp("", "beacon")
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		l.t.Fatal(err)
	}
	b.state = filepath.Join(dir, "state")
	b.set(l.t, "unclaimed")
	sock := filepath.Join(dir, "control.sock")
	b.told = lines[told](b.Start(l.t, "init", sock, b.state).Stdout())
	<-b.told // the socket is there
	b.Start(l.t, "role", sock)
	return b
}

func (b *beaconBox) set(t *testing.T, state string) {
	t.Helper()
	if err := os.WriteFile(b.state+".new", []byte(state), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(b.state+".new", b.state); err != nil {
		t.Fatal(err)
	}
}

// named waits until the box answers under a name; "" for none.
func (b *beaconBox) named(t *testing.T, what string, ok func(string) bool) string {
	t.Helper()
	return until(t, b.told, what, func(x told) bool { return x.Discovery != nil && ok(x.Discovery.Name) }).Discovery.Name
}

// found is what the tool prints.
type found struct {
	Name, State, Version string
	Addresses            []string
	Port                 int
}

// discover runs the tool on the laptop.
func (l *lanBed) discover() (list []found) {
	l.t.Helper()
	out := l.laptop.Command(l.t, "sh", "-c", l.tool+" discover --timeout 2500ms --json 2>/dev/null; true")
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		l.t.Fatalf("%v: %s", err, out)
	}
	return list
}

func (l *lanBed) names() (names []string) {
	l.t.Helper()
	for _, f := range l.discover() {
		names = append(names, f.Name+" "+f.State)
	}
	return names
}

// TestBOX10_FoundOnTheNetwork runs boxes on switches of their own, in real time:
// most of it is waiting, so all at once. The short tests take the first, which
// needs no foreign program.
func TestBOX10_FoundOnTheNetwork(t *testing.T) {
	switches := []struct {
		name string
		run  func(*testing.T)
	}{
		{"two boxes of one name", twoBoxesOfOneName},
		{"two cables in one network", twoCables},
		{"beside Avahi", besideAvahi},
	}
	if testing.Short() {
		switches = switches[:1]
	}
	for _, s := range switches {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			s.run(t)
		})
	}
}

// twoBoxesOfOneName runs two boxes that were given the same name, as their role
// runs on a box: one keeps it, the other finds one; the tool finds both; and
// what was claimed is silent unless it is switched on.
func twoBoxesOfOneName(t *testing.T) {
	l := newLANBed(t)
	some := func(s string) bool { return s != "" }
	one := l.box("one", []string{"192.0.2.40/24", "fe80::40/64", "2001:db8:1::40/64"})
	if got := one.named(t, "the name of the first box", some); got != "gatehouse-7f3k" {
		t.Fatalf("alone on the network it calls itself %q", got)
	}
	two := l.box("two", []string{"192.0.2.41/24", "fe80::41/64"})
	if got := two.named(t, "the name of the second box", some); got != "gatehouse-7f3k-2" {
		t.Errorf("the second box calls itself %q, want gatehouse-7f3k-2", got)
	}
	list := l.discover()
	if len(list) != 2 || list[0].Name != "gatehouse-7f3k.local" || list[1].Name != "gatehouse-7f3k-2.local" {
		t.Fatalf("found %+v, want both boxes", list)
	}
	if got := list[0]; got.Addresses[0] != "192.0.2.40" || !slices.Contains(got.Addresses, "2001:db8:1::40") || !slices.Contains(got.Addresses, "fe80::40%eth0") || got.State != "unclaimed" || got.Version != "0.1.0+abc" || got.Port != 443 {
		t.Errorf("the first box is told as %+v", got)
	}
	if got := list[1].Addresses[0]; got != "192.0.2.41" {
		t.Errorf("the second box is told at %s", got)
	}

	one.set(t, "ready")
	two.set(t, "ready+")
	one.named(t, "silence", func(s string) bool { return s == "" })
	if got := l.names(); !slices.Equal(got, []string{"gatehouse-7f3k-2.local ready"}) {
		t.Errorf("after the claims %v, want the box alone that is switched on", got)
	}
	// The name is free now, but nobody gives up one that people know.
	one.set(t, "ready+")
	one.named(t, "the name again", func(s string) bool { return s == "gatehouse-7f3k" })
	if got := l.names(); !slices.Equal(got, []string{"gatehouse-7f3k.local ready", "gatehouse-7f3k-2.local ready"}) {
		t.Errorf("switched on again: %v", got)
	}
	// A cable pulled and put back: asked and told anew.
	one.Down(t, "eth0")
	one.named(t, "silence without a cable", func(s string) bool { return s == "" })
	one.Up(t, "eth0")
	one.named(t, "the name with the cable", func(s string) bool { return s == "gatehouse-7f3k" })
}

// TestBOX10_WhoTakesEveryNameIsTriedSlowly: a host that answers for each name
// the box could have costs it one try in five seconds, and no memory; and once
// it is gone the box is not slow for ever.
func TestBOX10_WhoTakesEveryNameIsTriedSlowly(t *testing.T) {
	b := &beacon{}
	now := time.Unix(1_800_000_000, 0)
	tries := 0
	for end := now.Add(2 * time.Hour); now.Before(end); now = now.Add(300 * time.Millisecond) {
		if b.resting(now) {
			continue
		}
		b.next(now)
		tries++
		if len(b.conflicts) > mostConflicts || b.number > mostNumber || b.number == 1 {
			t.Fatalf("number %d after %d conflicts", b.number, len(b.conflicts))
		}
	}
	if most := 2*60*60/5 + 2*mostConflicts; tries > most {
		t.Errorf("%d tries in two hours, want at most %d", tries, most)
	}
	if tries < 1000 {
		t.Errorf("%d tries in two hours: the box gave up", tries)
	}
	for range 3 {
		if now = now.Add(time.Minute); b.resting(now) {
			t.Error("a minute later the box still waits")
		}
		b.next(now)
	}
}

// twoCables: a box hears itself on its other link, and is no stranger to itself.
func twoCables(t *testing.T) {
	l := newLANBed(t)
	box := l.box("box", []string{"192.0.2.40/24", "fe80::40/64"}, []string{"192.0.2.41/24", "fe80::41/64"})
	if got := box.named(t, "a name on two cables", func(s string) bool { return s != "" }); got != "gatehouse-7f3k" {
		t.Errorf("the box calls itself %q: it took its own answers for another's", got)
	}
	box.Down(t, "eth1") // what it told there is taken back, nothing else
	for range 3 {
		if got := l.names(); !slices.Equal(got, []string{"gatehouse-7f3k.local unclaimed"}) {
			t.Errorf("with one cable less: %v", got)
		}
	}
	box.Up(t, "eth1")
	if got := l.names(); !slices.Equal(got, []string{"gatehouse-7f3k.local unclaimed"}) {
		t.Errorf("with both cables again: %v", got)
	}
}

// avahi runs another implementation of mDNS on a host of the switch, under a
// name of our choice and without any of the system's services.
func (l *lanBed) avahi(name, address string) *netns.Host {
	l.t.Helper()
	h := netns.New(l.t, "avahi")
	l.plug(h, "eth0", address)
	file := filepath.Join(l.t.TempDir(), "avahi.conf")
	text := "[server]\nhost-name=" + name + "\nenable-dbus=no\nallow-interfaces=eth0\n[rlimits]\n"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		l.t.Fatal(err)
	}
	// Its process file is in a /run of its own: there are several of them, and maybe the machine's.
	h.Start(l.t, "program", "unshare", "--mount", "sh", "-c",
		"mount -t tmpfs none /run && exec avahi-daemon --no-drop-root --no-chroot --no-rlimits --no-proc-title --file "+file)
	return h
}

// programPart runs a program of the system for as long as the test does.
func programPart(args []string, _ io.Writer) error {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd.Run()
}

// resolvePart asks the group for the address of a name from a port of its own,
// as a resolver does that is none of mDNS, and writes what comes first.
func resolvePart(args []string, w io.Writer) error {
	name, err := dnsmessage.NewName(args[0])
	if err != nil {
		return err
	}
	question := dnsmessage.Message{Header: dnsmessage.Header{ID: 4711}, Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	b, err := question.Pack()
	if err != nil {
		return err
	}
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{})
	if err != nil {
		return err
	}
	link, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	if err := ipv4.NewPacketConn(conn).SetMulticastInterface(link); err != nil {
		return err
	}
	for range 20 {
		if _, err := conn.WriteToUDPAddrPort(b, mdns.Group4); err != nil {
			return err
		}
		if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		answer := make([]byte, mdns.MaxPacket)
		n, from, err := conn.ReadFromUDPAddrPort(answer)
		if err != nil {
			continue // nobody yet
		}
		var m dnsmessage.Message
		if err := m.Unpack(answer[:n]); err != nil || m.ID != 4711 || len(m.Answers) == 0 {
			return fmt.Errorf("%v answers %+v, %v", from, m, err)
		}
		a, ok := m.Answers[0].Body.(*dnsmessage.AResource)
		if !ok {
			return fmt.Errorf("%v answers %+v", from, m)
		}
		fmt.Fprintf(w, "%v from %v", netip.AddrFrom4(a.A), from)
		return nil
	}
	return nil
}

func (l *lanBed) resolve(name string) string {
	l.t.Helper()
	return l.laptop.Run(l.t, "resolve", name+".local.")
}

// besideAvahi puts a box beside another implementation, which wants the same
// name: whoever is first keeps it, and each hears the other.
func besideAvahi(t *testing.T) {
	l := newLANBed(t)
	l.avahi("gatehouse-7f3k", "192.0.2.50/24")
	if got := l.resolve("gatehouse-7f3k"); got != "192.0.2.50 from 192.0.2.50:5353" {
		t.Fatalf("Avahi alone: %q", got)
	}
	box := l.box("box", []string{"192.0.2.40/24", "fe80::40/64"})
	if got := box.named(t, "a name beside Avahi", func(s string) bool { return s != "" }); got != "gatehouse-7f3k-2" {
		t.Errorf("after Avahi the box calls itself %q, want gatehouse-7f3k-2", got)
	}
	// One who comes later and wants the box's name gets another.
	l.avahi("gatehouse-7f3k-2", "192.0.2.51/24")
	for name, want := range map[string]string{"gatehouse-7f3k": "192.0.2.50", "gatehouse-7f3k-2": "192.0.2.40", "gatehouse-7f3k-3": "192.0.2.51"} {
		if got := l.resolve(name); got != want+" from "+want+":5353" {
			t.Errorf("%s.local is %q, want %s", name, got, want)
		}
	}
}
