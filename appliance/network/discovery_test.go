package network

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/control"
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

func (l *lanBed) box(name string, addresses ...string) *beaconBox {
	l.t.Helper()
	b := &beaconBox{Host: netns.New(l.t, name)}
	l.plug(b.Host, "eth0", addresses...)
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

// TestBOX10_TwoBoxesOfOneName runs two boxes that were given the same name, as
// their role runs on a box: one keeps it, the other finds one; the tool finds
// both; and what was claimed is silent unless it is switched on.
func TestBOX10_TwoBoxesOfOneName(t *testing.T) {
	l := newLANBed(t)
	some := func(s string) bool { return s != "" }
	one := l.box("one", "192.0.2.40/24", "fe80::40/64", "2001:db8:1::40/64")
	if got := one.named(t, "the name of the first box", some); got != "gatehouse-7f3k" {
		t.Fatalf("alone on the network it calls itself %q", got)
	}
	two := l.box("two", "192.0.2.41/24", "fe80::41/64")
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
