// Package netns makes small networks of namespaces and virtual cables for tests, and runs parts of the test in them.
//
// Everything lives as long as the test: a namespace is held by a descriptor
// alone, a process ends when its standard input does, so nothing stays behind
// when a test is killed. It needs root.
package netns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// envPart names the part that a re-executed test binary plays.
const envPart = "GATEHOUSE_NETNS_PART"

// Longest is the time after which a process of a Host is ended, whatever it does.
const Longest = 2 * time.Minute

// A Host is a network namespace with its own loopback, which is up.
type Host struct {
	Name string
	ns   netns.NsHandle
	nl   *netlink.Handle
}

// New makes a host for the time of the test.
func New(t testing.TB, name string) *Host {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("network namespaces need root: run the tests as root")
	}
	h := &Host{Name: name}
	var err error
	onThread(func() { // the thread goes back to where it was, or dies
		var old netns.NsHandle
		if old, err = netns.Get(); err != nil {
			return
		}
		defer old.Close()
		if h.ns, err = netns.New(); err != nil { // creates and enters
			return
		}
		err = netns.Set(old)
	})
	if err != nil {
		t.Fatalf("making the network namespace of %s: %v", name, err)
	}
	t.Cleanup(func() { h.ns.Close() })
	if h.nl, err = netlink.NewHandleAt(h.ns, unix.NETLINK_ROUTE); err != nil {
		t.Fatalf("opening netlink in %s: %v", name, err)
	}
	t.Cleanup(h.nl.Close)
	h.Up(t, "lo")
	return h
}

// onThread runs f on a thread that runs nothing else meanwhile.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
		runtime.UnlockOSThread()
	}()
	<-done
}

// Do runs f on a thread inside the namespace. What f opens stays inside; a
// goroutine that f starts does not run there.
func (h *Host) Do(t testing.TB, f func() error) {
	t.Helper()
	if err := h.do(f); err != nil {
		t.Fatalf("%s: %v", h.Name, err)
	}
}

func (h *Host) do(f func() error) (err error) {
	onThread(func() {
		var old netns.NsHandle
		if old, err = netns.Get(); err != nil {
			return
		}
		defer old.Close()
		if err = netns.Set(h.ns); err != nil {
			return
		}
		err = errors.Join(f(), netns.Set(old))
	})
	return err
}

// Connect joins two hosts by a virtual cable; both ends are down.
func Connect(t testing.TB, a *Host, linkA string, b *Host, linkB string) {
	t.Helper()
	err := a.nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: linkA, MTU: 1500}, PeerName: linkB, PeerNamespace: netlink.NsFd(b.ns)})
	if err != nil {
		t.Fatalf("joining %s and %s: %v", a.Name, b.Name, err)
	}
}

// Tap makes the end of a cable whose other end is the file, for an emulated
// machine's network card: frames are read and written there. The link is gone
// when the file is closed everywhere.
func (h *Host) Tap(t testing.TB, name string) *os.File {
	t.Helper()
	var fd int
	h.Do(t, func() (err error) {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			return fmt.Errorf("opening /dev/net/tun: %w", err)
		}
		request, err := unix.NewIfreq(name)
		if err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
			return errors.Join(fmt.Errorf("making the link %s: %w", name, err), unix.Close(fd))
		}
		return nil
	})
	file := os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { file.Close() })
	// An emulated machine is slow to read: what waits for it is kept, not dropped.
	if err := h.nl.LinkSetTxQLen(h.link(t, name), 1<<17); err != nil {
		t.Fatalf("%s: queue of %s: %v", h.Name, name, err)
	}
	return file
}

// Dropped is how many packets a link could not send.
func (h *Host) Dropped(t testing.TB, name string) uint64 {
	t.Helper()
	return h.link(t, name).Attrs().Statistics.TxDropped
}

// Neighbour says who has an address, so that nobody is asked.
func (h *Host) Neighbour(t testing.TB, name, address, mac string) {
	t.Helper()
	hw, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	n := netlink.Neigh{LinkIndex: h.link(t, name).Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(address), HardwareAddr: hw}
	if err := h.nl.NeighSet(&n); err != nil {
		t.Fatalf("%s: neighbour %s on %s: %v", h.Name, address, name, err)
	}
}

func (h *Host) link(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := h.nl.LinkByName(name)
	if err != nil {
		t.Fatalf("%s: link %s: %v", h.Name, name, err)
	}
	return l
}

// Up brings a link up, with the addresses given ("192.0.2.1/24"), without waiting for duplicates.
func (h *Host) Up(t testing.TB, name string, addresses ...string) {
	t.Helper()
	l := h.link(t, name)
	if name != "lo" { // or link-local addresses would take a second to be usable
		h.Sysctl(t, "net/ipv6/conf/"+name+"/accept_dad", "0")
	}
	if err := h.nl.LinkSetUp(l); err != nil {
		t.Fatalf("%s: bringing %s up: %v", h.Name, name, err)
	}
	for _, s := range addresses {
		a, err := netlink.ParseAddr(s)
		if err != nil {
			t.Fatal(err)
		}
		a.Flags = unix.IFA_F_NODAD
		if err := h.nl.AddrAdd(l, a); err != nil {
			t.Fatalf("%s: address %s on %s: %v", h.Name, s, name, err)
		}
	}
}

// Down takes a link down, as pulling its cable does for the other end.
func (h *Host) Down(t testing.TB, name string) {
	t.Helper()
	if err := h.nl.LinkSetDown(h.link(t, name)); err != nil {
		t.Fatalf("%s: taking %s down: %v", h.Name, name, err)
	}
}

// MTU sets the longest packet of a link.
func (h *Host) MTU(t testing.TB, name string, mtu int) {
	t.Helper()
	if err := h.nl.LinkSetMTU(h.link(t, name), mtu); err != nil {
		t.Fatalf("%s: MTU of %s: %v", h.Name, name, err)
	}
}

// Route adds a route; mss is what TCP announces over it (0: by the link).
func (h *Host) Route(t testing.TB, to, via string, mss int) {
	t.Helper()
	_, dst, err := net.ParseCIDR(to)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.nl.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(via), AdvMSS: mss}); err != nil {
		t.Fatalf("%s: route to %s via %s: %v", h.Name, to, via, err)
	}
}

// FlushNeighbours forgets all neighbours, so that they have to be found anew.
func (h *Host) FlushNeighbours(t testing.TB, name string) {
	t.Helper()
	l := h.link(t, name)
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		all, err := h.nl.NeighList(l.Attrs().Index, family)
		if err != nil {
			t.Fatalf("%s: neighbours: %v", h.Name, err)
		}
		for _, n := range all {
			if err := h.nl.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
				t.Fatalf("%s: forgetting a neighbour: %v", h.Name, err)
			}
		}
	}
}

// Addresses are those of a link, with their prefix lengths.
func (h *Host) Addresses(t testing.TB, name string) []netip.Prefix {
	t.Helper()
	all, err := h.nl.AddrList(h.link(t, name), netlink.FAMILY_ALL)
	if err != nil {
		t.Fatalf("%s: addresses of %s: %v", h.Name, name, err)
	}
	var out []netip.Prefix
	for _, a := range all {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			bits, _ := a.Mask.Size()
			out = append(out, netip.PrefixFrom(ip.Unmap(), bits))
		}
	}
	return out
}

// Sysctl sets a value below /proc/sys.
func (h *Host) Sysctl(t testing.TB, key, value string) {
	t.Helper()
	h.Do(t, func() error {
		// Opened on this thread, so that the namespace's own value is meant.
		return os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0)
	})
}

// Forward makes the host a router.
func (h *Host) Forward(t testing.TB) {
	t.Helper()
	h.Sysctl(t, "net/ipv4/ip_forward", "1")
	h.Sysctl(t, "net/ipv6/conf/all/forwarding", "1")
}

// Main lets the test binary play parts: call it from TestMain.
func Main(m *testing.M, parts map[string]func(args []string, stdout io.Writer) error) {
	name := os.Getenv(envPart)
	if name == "" {
		os.Exit(m.Run())
	}
	part, ok := parts[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "no part %q\n", name)
		os.Exit(2)
	}
	go func() { // ends with the process: when the test dies, so do its parts
		io.Copy(io.Discard, os.Stdin)
		os.Exit(3)
	}()
	if err := part(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, name+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A Process is a part of the test that runs in a host.
type Process struct {
	cmd    *exec.Cmd
	name   string
	stdin  io.Closer
	stdout io.Reader
	stderr bytes.Buffer
	cancel context.CancelFunc
}

// Start runs a part in the host; it ends with the test.
func (h *Host) Start(t testing.TB, part string, args ...string) *Process {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Longest)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &Process{cmd: exec.CommandContext(ctx, exe, args...), name: h.Name + "/" + part, cancel: cancel}
	p.cmd.Env = append(os.Environ(), envPart+"="+part)
	p.cmd.Stderr = &p.stderr
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if p.stdout, err = p.cmd.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	h.Do(t, p.cmd.Start) // a process begins in the namespace of the thread that starts it
	t.Cleanup(func() {
		p.stdin.Close()
		cancel()
		p.cmd.Wait()
		if t.Failed() && p.stderr.Len() > 0 {
			t.Logf("%s wrote:\n%s", p.name, p.stderr.String())
		}
	})
	return p
}

// Stop ends the process before the test does, as a power cut would.
func (p *Process) Stop() {
	p.cancel()
	p.cmd.Wait() // it was killed, which is an error
}

// PID is that of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Stdout is what the part writes.
func (p *Process) Stdout() io.Reader { return p.stdout }

// Run runs a part to its end and returns what it wrote.
func (h *Host) Run(t testing.TB, part string, args ...string) string {
	t.Helper()
	p := h.Start(t, part, args...)
	out, err := io.ReadAll(p.stdout)
	if werr := p.cmd.Wait(); err == nil {
		err = werr
	}
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", p.name, strings.Join(args, " "), err, p.stderr.String())
	}
	return string(out)
}

// Command runs a program of the system in the host and returns all it wrote.
func (h *Host) Command(t testing.TB, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Longest)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	h.Do(t, cmd.Start)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s: %s %s: %v\n%s", h.Name, name, strings.Join(args, " "), err, out.String())
	}
	return out.String()
}
