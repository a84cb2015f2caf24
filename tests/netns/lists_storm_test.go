package netns

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"gatehouse/netfilter"
	"gatehouse/netfilter/allowlist"
)

// TestNET1_OnlyTwoPortsInAReloadStorm shows that while lists change as fast as
// they can, a source that is always in them finds 80 and 443/tcp and nothing
// else, and one that never is finds nothing.
func TestNET1_OnlyTwoPortsInAReloadStorm(t *testing.T) {
	l := newLab(t)
	l.listen(t)
	single := func(s string) allowlist.Range { a := netip.MustParseAddr(s); return allowlist.Range{First: a, Last: a} }
	policy := func(generation uint64) allowlist.Policy {
		p := allowlist.Policy{Enabled: true, Lists: []allowlist.List{{Name: "near", Enabled: true, Ranges: []allowlist.Range{single(nearV4), single(nearV6)}}}}
		// Other lists come and go. Theirs are addresses above 204.0.0.0, where
		// neither of the two is: the ends of the ranges are random.
		for i := range generation % 5 {
			p.Lists = append(p.Lists, allowlist.List{Name: fmt.Sprintf("other-%d", i), Enabled: true, Ranges: newCrowd(200, i%2 == 0).list()[160:]})
		}
		return p
	}
	l.box.Do(t, func() error { return installLists(policy(1), 1) })
	stop, ended := make(chan struct{}), make(chan error, 1)
	reloaded := uint64(1)
	go func() {
		for {
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
			reloaded++
			if err := l.box.do(func() error { return installLists(policy(reloaded), reloaded) }); err != nil {
				ended <- err
				return
			}
		}
	}()
	for _, from := range []*Host{l.near, l.far} {
		for _, v6 := range []bool{false, true} {
			for _, proto := range []string{"tcp", "udp"} {
				before := arrived(l.counters(t))
				got := l.scan(t, from, proto, v6)
				want := ""
				if from == l.near && proto == "tcp" {
					want = "syn-ack: [80 443]"
				}
				if got.text() != want {
					t.Errorf("in the storm, from %s, %s %s: answered %q, want %q", from.Name, proto, family(v6), got.text(), want)
				}
				if arrived(l.counters(t))-before < 60_000 {
					t.Errorf("in the storm, from %s, %s %s: the scan did not reach the rules", from.Name, proto, family(v6))
				}
			}
		}
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if reloaded < 20 {
		t.Errorf("only %d reloads: no storm", reloaded)
	}
	t.Logf("%d reloads", reloaded)
	if n := l.counters(t)[netfilter.ListCounter("near")]; n < 4 {
		t.Errorf("the list counted %d packets", n)
	}
}

// TestNET4_RevokedSourceIsCut shows that an open connection ends with the list
// that let it in: its very next packet is dropped.
func TestNET4_RevokedSourceIsCut(t *testing.T) {
	l := newLab(t)
	l.listen(t)
	single := func(s string) allowlist.Range { a := netip.MustParseAddr(s); return allowlist.Range{First: a, Last: a} }
	lists := func(r ...allowlist.Range) allowlist.Policy {
		return allowlist.Policy{Enabled: true, Lists: []allowlist.List{{Name: "office", Enabled: true, Ranges: r}}}
	}
	both := lists(single(farV4), single(nearV4))
	l.box.Do(t, func() error { return installLists(both, 1) })
	for _, from := range []*Host{l.far, l.near} {
		if got := from.Run(t, "fetch", boxV4+":443"); got != fmt.Sprint(bulk) {
			t.Fatalf("%s in the list: %s bytes, want %d", from.Name, got, bulk)
		}
	}
	slow := l.far.Start(t, "slow", boxV4+":443")
	waitLine(t, slow) // it has the first bytes, and is slow to take the rest
	l.box.Do(t, func() error { return installLists(lists(single(nearV4)), 2) })
	before := l.counters(t)
	time.Sleep(1500 * time.Millisecond)
	if after := l.counters(t); after[netfilter.WebRefused] <= before[netfilter.WebRefused] {
		t.Error("no packet of the open connection was refused")
	}
	if got := l.near.Run(t, "fetch", boxV4+":443"); got != fmt.Sprint(bulk) {
		t.Errorf("who stays in the list: %s bytes, want %d", got, bulk)
	}
	if err := slow.cmd.Wait(); err == nil {
		t.Error("the connection of a source that was taken off went on to its end")
	}
}
