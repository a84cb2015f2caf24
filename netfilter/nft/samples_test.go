package nft_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/netfilter"
	"gatehouse/netfilter/nft"
	"gatehouse/tests/netns"
)

// knock tries to connect, once, and takes any answer.
func knock(args []string, _ io.Writer) error {
	c, err := net.DialTimeout("tcp", args[0], 200*time.Millisecond)
	if err == nil {
		err = c.Close()
	}
	var late net.Error
	if errors.Is(err, syscall.ECONNREFUSED) || errors.As(err, &late) && late.Timeout() {
		return nil
	}
	return err
}

// hold connects and stays.
func hold(args []string, w io.Writer) error {
	c, err := net.DialTimeout("tcp", args[0], 5*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	fmt.Fprintln(w, "connected")
	select {}
}

// cable joins a box and a peer, each with an address of either family.
func cable(t *testing.T) (box, peer *netns.Host) {
	t.Helper()
	box, peer = netns.New(t, "box"), netns.New(t, "peer")
	netns.Connect(t, box, "eth0", peer, "eth0")
	box.Up(t, "eth0", "192.0.2.5/24", "2001:db8:1::5/64")
	peer.Up(t, "eth0", "192.0.2.1/24", "2001:db8:1::1/64")
	return box, peer
}

func TestNET6_RefusedPacketsAreSampled(t *testing.T) {
	box, peer := cable(t)
	var file *os.File
	box.Do(t, func() (err error) { file, err = nft.OpenSamples(); return err })
	defer file.Close()
	box.Do(t, func() error {
		if f, err := nft.OpenSamples(); !errors.Is(err, syscall.EPERM) || !strings.Contains(err.Error(), "another program") {
			return fmt.Errorf("a second reader: %v, %v, want EPERM", f, err)
		}
		return nil
	})
	states := map[netfilter.Reason]netfilter.State{
		netfilter.ReasonNoList:   {Phase: control.StateReady},
		netfilter.ReasonOffLink:  {Phase: control.StateLocked},
		netfilter.ReasonStarting: {Phase: control.StateStarting, Form: netfilter.Hosted, Ports: netfilter.Ports{HTTPS: 443}},
	}
	for reason, s := range states {
		box.Do(t, func() error { return nft.Apply(netfilter.Rules(s)) })
		for _, from := range []string{"192.0.2.1", "2001:db8:1::1"} {
			to := "192.0.2.5:443"
			if strings.Contains(from, ":") {
				to = "[2001:db8:1::5]:443"
			}
			begin := time.Now()
			peer.Run(t, "knock", to)
			if err := file.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 64<<10)
			n, err := file.Read(b)
			if err != nil {
				t.Fatalf("%s: reading a sample: %v", reason, err)
			}
			got, err := netfilter.DecodeSamples(b[:n], time.Now())
			if err != nil || len(got) != 1 {
				t.Fatalf("%s: %d samples, %v", reason, len(got), err)
			}
			g := got[0]
			if g.Source != netip.MustParseAddr(from) || g.Port != 443 || g.SourcePort < 1024 || g.Proto != netfilter.TCP || g.Reason != reason || g.Link == 0 {
				t.Errorf("sample %+v, want %s to 443, %s", g, from, reason)
			}
			if g.At.Before(begin.Add(-time.Second)) || g.At.After(time.Now().Add(time.Second)) {
				t.Errorf("sample of %v, taken about %v", g.At, begin)
			}
		}
	}
}

// TestNET4_ForgetCutsTheRight shows that only connections to our ports, of
// sources that are not kept, are forgotten.
func TestNET4_ForgetCutsTheRight(t *testing.T) {
	box, peer := cable(t)
	box.Do(t, func() error {
		return nft.Apply(netfilter.Rules(netfilter.State{Phase: control.StateReady, Lists: netfilter.Lists{Off: true}}))
	})
	for _, port := range []string{"443", "80"} {
		box.Do(t, func() error {
			l, err := net.Listen("tcp", ":"+port)
			if err == nil {
				t.Cleanup(func() { l.Close() })
			}
			return err
		})
	}
	for _, to := range []string{"192.0.2.5:443", "[2001:db8:1::5]:443", "192.0.2.5:80"} {
		p := peer.Start(t, "hold", to)
		if line, err := bufio.NewReader(p.Stdout()).ReadString('\n'); err != nil {
			t.Fatalf("connecting to %s: %v %q", to, err, line)
		}
	}
	forget := func(ports netfilter.Ports, keep func(netip.Addr) bool) (n int) {
		box.Do(t, func() (err error) { n, err = nft.Forget(ports, keep); return err })
		return n
	}
	all, none := func(netip.Addr) bool { return true }, func(netip.Addr) bool { return false }
	v4 := func(a netip.Addr) bool { return a == netip.MustParseAddr("192.0.2.1") }
	ours := netfilter.Ports{HTTP: 80, HTTPS: 443}
	for _, step := range []struct {
		what  string
		ports netfilter.Ports
		keep  func(netip.Addr) bool
		want  int
	}{
		{"all sources kept", ours, all, 0},
		{"other ports", netfilter.Ports{HTTP: 8080}, none, 0},
		{"no ports", netfilter.Ports{}, none, 0},
		{"IPv4 kept", ours, v4, 1},
		{"IPv4 kept, again", ours, v4, 0},
		{"80 alone", netfilter.Ports{HTTP: 80}, none, 1},
		{"nobody kept", ours, none, 1},
	} {
		if got := forget(step.ports, step.keep); got != step.want {
			t.Errorf("%s: %d forgotten, want %d", step.what, got, step.want)
		}
	}
}
