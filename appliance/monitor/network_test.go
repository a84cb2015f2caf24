package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/netconf"
)

// fakeNetwork stands for the machine's links and the place of kept settings.
type fakeNetwork struct {
	mu      sync.Mutex
	applied []control.NetworkSettings
	kept    control.NetworkSettings
	fail    func(control.NetworkSettings) error
	noPlace error
}

func (f *fakeNetwork) apply(_ context.Context, s control.NetworkSettings) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.applied = append(f.applied, s)
	if f.fail != nil {
		return f.fail(s)
	}
	return nil
}

// address is that of eth0 in effect.
func (f *fakeNetwork) address() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return addressOf(f.applied[len(f.applied)-1])
}

func addressOf(s control.NetworkSettings) string {
	if l := netconf.Of(s, "eth0"); l != nil && len(l.Addresses) > 0 {
		return l.Addresses[0].String()
	}
	return netconf.Mode(s, "eth0")
}

type netBox struct {
	*box
	net *fakeNetwork
	now *atomic.Int64 // CLOCK_BOOTTIME
}

func newNetBox(t *testing.T, kept control.NetworkSettings, within time.Duration) *netBox {
	t.Helper()
	n := &netBox{net: &fakeNetwork{kept: kept}, now: new(atomic.Int64)}
	n.now.Store(1000)
	n.box = newBox(t, func(c *Config) {
		c.KeepWithin, c.Boottime = within, n.now.Load
		c.Network = &Network{
			Kept: kept, Own: func() []control.Link {
				return []control.Link{{Name: "eth0", MAC: "52:54:00:00:00:01"}, {Name: "eth1", MAC: "52:54:00:00:00:02"}}
			},
			Apply: n.net.apply,
			Keep: func(s control.NetworkSettings) error {
				if n.net.noPlace != nil {
					return n.net.noPlace
				}
				n.net.kept = s
				return nil
			},
			Names: func() ([]netip.Addr, []string) { return nil, nil },
		}
	})
	n.vault.claimed = true
	n.ready(t, control.DatabaseClaimed)
	return n
}

func static(t *testing.T, address string) control.NetworkSettings {
	t.Helper()
	var s control.NetworkSettings
	if err := json.Unmarshal([]byte(`{"links":[{"name":"eth0","mode":"static","addresses":["`+address+`"]}]}`), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

var askersLocal = netip.MustParseAddr("192.0.2.7") // which eth0 has in newBox

func (n *netBox) tryIt(t *testing.T, s control.NetworkSettings) control.NetworkReport {
	t.Helper()
	r, err := n.tryNetwork(t.Context(), control.Console, control.NetworkTry{Settings: s, Actor: "ann"})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestNET3_AnswerBeforeTheAddressGoes: the one who is cut off is told first.
func TestNET3_AnswerBeforeTheAddressGoes(t *testing.T) {
	n := newNetBox(t, static(t, "192.0.2.7/24"), time.Hour)
	ask := control.NetworkTry{Settings: static(t, "198.51.100.7/24"), Actor: "ann", Local: askersLocal}
	r, err := n.tryNetwork(t.Context(), control.Console, ask)
	if err != nil || r.Candidate == nil || !r.SelfCut || n.net.address() != "192.0.2.7/24" {
		t.Fatalf("%+v, %v, %s in effect", r, err, n.net.address())
	}
	keep := control.Keep{ID: r.Candidate.ID, Accepted: 1001, Actor: "ann"}
	if _, err := n.keep(t.Context(), control.Console, keep); err == nil {
		t.Error("kept before it was in effect")
	}
	soon := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal(what)
			}
		}
	}
	soon("it is not in effect", func() bool { return n.candidate(control.AboutNetwork).Applied == 1000 })
	if _, err := n.keep(t.Context(), control.Console, keep); err != nil || n.net.address() != "198.51.100.7/24" {
		t.Fatalf("%v, %s in effect", err, n.net.address())
	}
	// One that cannot be set is over, and one that is taken back meanwhile never comes.
	n.net.mu.Lock()
	n.net.fail = func(s control.NetworkSettings) error {
		if addressOf(s) == "192.0.2.99/24" {
			return errors.New("no such device")
		}
		return nil
	}
	n.net.mu.Unlock()
	n.cfg.Machine.Links = func() []control.Link {
		return []control.Link{{Name: "eth0", Addresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.7/24")}}}
	}
	ask.Local = netip.MustParseAddr("198.51.100.7")
	ask.Settings = static(t, "192.0.2.99/24")
	if r, err := n.tryNetwork(t.Context(), control.Console, ask); err != nil || r.Candidate == nil {
		t.Fatalf("%+v, %v", r, err)
	}
	soon("it still waits", func() bool { return len(n.Candidates()) == 0 })
	if n.net.address() != "198.51.100.7/24" {
		t.Errorf("%s is in effect", n.net.address())
	}
	ask.Settings = static(t, "192.0.2.8/24")
	if _, err := n.tryNetwork(t.Context(), control.Console, ask); err != nil {
		t.Fatal(err)
	}
	if err := n.RevertAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * answerTime)
	if n.net.address() != "198.51.100.7/24" {
		t.Errorf("taken back, and %s is in effect", n.net.address())
	}
}

func TestBOX7_LinkThatComesLaterIsSet(t *testing.T) {
	n := newNetBox(t, static(t, "192.0.2.7/24"), time.Hour)
	count := func() int { n.net.mu.Lock(); defer n.net.mu.Unlock(); return len(n.net.applied) }
	before := count()
	n.lookAtLinks()
	if count() != before {
		t.Error("set again although nothing changed")
	}
	n.cfg.Network.Own = func() []control.Link { return []control.Link{{Name: "eth0"}, {Name: "eth1"}, {Name: "usb0"}} }
	n.lookAtLinks()
	n.lookAtLinks()
	if count() != before+1 || n.net.address() != "192.0.2.7/24" {
		t.Errorf("set %d times, %s", count()-before, n.net.address())
	}
}

// A card that was replaced holds up a change neither at the page nor at the console.
func TestBOX7_ReplacedCardHoldsUpNobody(t *testing.T) {
	kept := static(t, "192.0.2.7/24")
	kept.Links[0].MAC = "52:54:00:00:00:99" // eth0 is another now
	n := newNetBox(t, kept, time.Hour)
	s := netconf.Named(kept, n.cfg.Network.Own())
	s.Links = append(s.Links, static(t, "198.51.100.7/24").Links...)
	r := n.tryIt(t, s)
	if r.Candidate == nil || len(r.Summary) != 1 || !strings.HasPrefix(r.Summary[0], "eth0: 198.51.100.7/24") {
		t.Errorf("%+v", r)
	}
	if err := n.RevertAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.SetNetwork(t.Context(), s); err != nil || n.net.address() != "198.51.100.7/24" {
		t.Errorf("at the console: %v, %s", err, n.net.address())
	}
}

// A card that went and came between two looks has its name and address again,
// and is down; what could not be set is tried until it can.
func TestBOX7_LinkThatCameAgainIsSet(t *testing.T) {
	n := newNetBox(t, static(t, "192.0.2.7/24"), time.Hour)
	index, fails := 2, false
	n.cfg.Network.Own = func() []control.Link { return []control.Link{{Index: index, Name: "eth0", MAC: "52:54:00:00:00:01"}} }
	n.net.fail = func(control.NetworkSettings) error {
		if fails {
			return errors.New("no such device")
		}
		return nil
	}
	looks := func(times, want int, what string) {
		t.Helper()
		before := len(n.net.applied)
		for range times {
			n.lookAtLinks()
		}
		if got := len(n.net.applied) - before; got != want {
			t.Errorf("%s: set %d times, want %d", what, got, want)
		}
	}
	n.lookAtLinks()
	looks(3, 0, "nothing happened")
	index = 3
	looks(3, 1, "it went and came")
	index, fails = 4, true
	looks(3, 3, "it cannot be set")
	fails = false
	looks(3, 1, "it can")
}

// What was kept counts again, though a card of it was pulled meanwhile: all of
// it that can be is set, and the change that nobody kept is over.
func TestNET3_NotKeptGoesBackThoughNotAllOfItCan(t *testing.T) {
	kept := static(t, "192.0.2.7/24")
	kept.VLANs = []control.VLAN{{Name: "cams", On: "eth1", ID: 5}}
	n := newNetBox(t, kept, time.Hour)
	pulled := true
	n.net.fail = func(s control.NetworkSettings) error {
		if len(s.VLANs) > 0 && pulled {
			return errors.New("making the link cams: no such device")
		}
		return nil
	}
	if r := n.tryIt(t, static(t, "198.51.100.7/24")); r.Candidate == nil {
		t.Fatalf("%+v", r)
	}
	if err := n.RevertAll(t.Context()); err != nil {
		t.Error(err)
	}
	if n.net.address() != "192.0.2.7/24" || addressOf(n.Network().Settings) != "192.0.2.7/24" || len(n.Candidates()) > 0 {
		t.Errorf("%s in effect, waiting %v", n.net.address(), n.Candidates())
	}
	before := len(n.net.applied)
	n.lookAtLinks()
	pulled = false
	n.lookAtLinks()
	n.lookAtLinks()
	if got := len(n.net.applied) - before; got != 2 {
		t.Errorf("what could not be set was tried %d times more, want 2", got)
	}
}

func TestNET3_StaticAddressIsTriedAndKept(t *testing.T) {
	n := newNetBox(t, control.NetworkSettings{}, time.Hour)
	dry, err := n.tryNetwork(t.Context(), control.Console, control.NetworkTry{Settings: static(t, "198.51.100.7/24"), DryRun: true, Local: askersLocal})
	if err != nil || !dry.SelfCut || dry.Candidate != nil || len(dry.Summary) != 1 || !strings.Contains(dry.Summary[0], "198.51.100.7/24") || n.net.address() != "automatic" {
		t.Fatalf("a dry run: %+v, %v, %s in effect", dry, err, n.net.address())
	}
	r := n.tryIt(t, static(t, "198.51.100.7/24"))
	if r.Candidate == nil || r.SelfCut || n.net.address() != "198.51.100.7/24" {
		t.Fatalf("not in effect: %+v", r)
	}
	if s := n.Network(); s.Candidate == nil || addressOf(s.Settings) != "198.51.100.7/24" || addressOf(s.Kept) != "automatic" {
		t.Errorf("shown: %+v", s)
	}
	for _, accepted := range []int64{0, 999, 1000} {
		if _, err := n.keep(t.Context(), control.Console, control.Keep{ID: r.Candidate.ID, Accepted: accepted, Actor: "ann"}); err == nil || !strings.Contains(err.Error(), "older than the change") {
			t.Errorf("a connection of %d keeps a change of 1000: %v", accepted, err)
		}
	}
	if addressOf(n.net.kept) != "automatic" {
		t.Fatal("kept although refused")
	}
	if _, err := n.keep(t.Context(), control.Console, control.Keep{ID: r.Candidate.ID, Accepted: 1001, Actor: "ann"}); err != nil {
		t.Fatal(err)
	}
	if s := n.Network(); s.Candidate != nil || addressOf(s.Kept) != "198.51.100.7/24" || addressOf(n.net.kept) != "198.51.100.7/24" {
		t.Errorf("after keeping: %+v", s)
	}
}

func TestNET3_StaticAddressNotKeptGoesBackByItself(t *testing.T) {
	n := newNetBox(t, static(t, "192.0.2.7/24"), 20*time.Millisecond)
	refuse := errors.New("the link is busy")
	tries := 0
	n.net.fail = func(s control.NetworkSettings) error {
		// The way back fails once: it is tried again.
		if tries++; addressOf(s) == "192.0.2.7/24" && tries == 2 {
			return refuse
		}
		return nil
	}
	n.tryIt(t, static(t, "198.51.100.7/24"))
	for deadline := time.Now().Add(20 * time.Second); len(n.Candidates()) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the change is still in effect")
		}
	}
	if n.net.address() != "192.0.2.7/24" || addressOf(n.Network().Settings) != "192.0.2.7/24" || addressOf(n.net.kept) != "192.0.2.7/24" {
		t.Errorf("%s is in effect", n.net.address())
	}
	n.audit.mu.Lock()
	defer n.audit.mu.Unlock()
	if !slices.ContainsFunc(n.audit.events, func(e control.Event) bool {
		return e.Action == "revert network" && e.Detail["reason"] == "not kept in time"
	}) {
		t.Errorf("not in the audit log: %+v", n.audit.events)
	}
}

func TestNET3_RestartBringsTheKeptNetwork(t *testing.T) {
	n := newNetBox(t, static(t, "192.0.2.7/24"), time.Hour)
	n.tryIt(t, static(t, "198.51.100.7/24"))
	again := newNetBox(t, n.net.kept, time.Hour)
	if again.net.address() != "192.0.2.7/24" || len(again.Candidates()) != 0 {
		t.Errorf("after a restart %s is in effect", again.net.address())
	}
}

func TestNET3_ConsoleUndoesTheNetwork(t *testing.T) {
	n := newNetBox(t, static(t, "192.0.2.7/24"), time.Hour)
	n.tryIt(t, static(t, "198.51.100.7/24"))
	if err := n.RevertAll(t.Context()); err != nil || n.net.address() != "192.0.2.7/24" || len(n.Candidates()) != 0 {
		t.Fatalf("undo: %v, %s in effect", err, n.net.address())
	}
	// What the console sets counts at once, and ends what waits.
	n.tryIt(t, static(t, "198.51.100.7/24"))
	if err := n.SetNetwork(t.Context(), static(t, "203.0.113.7/24")); err != nil {
		t.Fatal(err)
	}
	if len(n.Candidates()) != 0 || n.net.address() != "203.0.113.7/24" || addressOf(n.net.kept) != "203.0.113.7/24" {
		t.Errorf("%s in effect, %s kept, %v waits", n.net.address(), addressOf(n.net.kept), n.Candidates())
	}
	if e := n.audit.events[len(n.audit.events)-1]; e.Actor != "console" || e.Action != "set network" {
		t.Errorf("the audit log says %+v", e)
	}
	if err := n.SetNetwork(t.Context(), static(t, "127.0.0.1/8")); !control.IsCode(err, control.CodeInvalid) || !strings.Contains(err.Error(), "127.0.0.1") {
		t.Errorf("nonsense at the console: %v", err)
	}
	n.net.noPlace = errors.New("disk full")
	if err := n.SetNetwork(t.Context(), static(t, "198.51.100.7/24")); err == nil || n.net.address() != "203.0.113.7/24" {
		t.Errorf("what cannot be kept is in effect: %v, %s", err, n.net.address())
	}
}

func TestNET3_NetworkTryRefuses(t *testing.T) {
	n := newNetBox(t, control.NetworkSettings{}, time.Hour)
	if r := n.tryIt(t, static(t, "192.0.2.255/24")); len(r.Problems) != 1 || r.Candidate != nil || n.net.address() != "automatic" {
		t.Errorf("an address of all: %+v", r)
	}
	if r := n.tryIt(t, control.NetworkSettings{Links: []control.LinkSettings{{Name: "eth9", Mode: "off"}}}); len(r.Problems) != 1 || !strings.Contains(r.Problems[0].Reason, "eth0, eth1") {
		t.Errorf("a link that is not there: %+v", r)
	}
	if r := n.tryIt(t, control.NetworkSettings{}); r.Candidate != nil || !slices.Equal(r.Summary, []string{"nothing changes"}) {
		t.Errorf("nothing new: %+v", r)
	}
	n.audit.err = errors.New("disk full")
	if _, err := n.tryNetwork(t.Context(), control.Console, control.NetworkTry{Settings: static(t, "198.51.100.7/24")}); err == nil || n.net.address() != "automatic" {
		t.Errorf("changed without an audit entry: %v", err)
	}
	if err := n.SetNetwork(t.Context(), static(t, "198.51.100.7/24")); err == nil || n.net.address() != "automatic" {
		t.Errorf("changed at the console without an audit entry: %v", err)
	}
	n.audit.err = nil
	n.net.fail = func(s control.NetworkSettings) error {
		if addressOf(s) == "198.51.100.7/24" {
			return errors.New("no such device")
		}
		return nil
	}
	if _, err := n.tryNetwork(t.Context(), control.Console, control.NetworkTry{Settings: static(t, "198.51.100.7/24")}); err == nil ||
		!strings.Contains(err.Error(), "stays as it was: no such device") || n.net.address() != "automatic" || len(n.Candidates()) != 0 {
		t.Errorf("half a change: %v, %s in effect", err, n.net.address())
	}
	n.net.fail = nil
	if r := n.tryIt(t, static(t, "192.0.2.7/24")); r.Candidate == nil || r.SelfCut {
		t.Errorf("the same address by hand: %+v", r)
	}
	if _, err := n.tryNetwork(t.Context(), control.Console, control.NetworkTry{Settings: static(t, "198.51.100.7/24")}); err == nil || !strings.Contains(err.Error(), "waits to be kept") {
		t.Errorf("a second change while one waits: %v", err)
	}
	unclaimed := newBox(t, func(c *Config) { c.Network = n.cfg.Network })
	unclaimed.ready(t, control.DatabaseUnclaimed)
	if _, err := unclaimed.tryNetwork(t.Context(), control.Console, control.NetworkTry{}); err == nil || !strings.Contains(err.Error(), "unclaimed") {
		t.Errorf("changed before the claim: %v", err)
	}
}

func TestBOX7_HostedNetworkIsTheHosts(t *testing.T) {
	b := newBox(t, nil)
	if _, err := b.tryNetwork(t.Context(), control.Console, control.NetworkTry{}); !control.IsCode(err, control.CodeState) || !strings.Contains(err.Error(), "runs on a host of yours") {
		t.Errorf("%v", err)
	}
	if err := b.SetNetwork(t.Context(), control.NetworkSettings{}); err == nil {
		t.Error("set")
	}
}

// The lists' candidate and the network's do not hold each other up.
func TestNET3_NetworkAndListsWaitBesideEachOther(t *testing.T) {
	n := newNetBox(t, control.NetworkSettings{}, time.Hour)
	n.try(control.AboutLists, "bob", nil, func(context.Context) error { return nil }, func(context.Context) error { return nil })
	if r := n.tryIt(t, static(t, "198.51.100.7/24")); r.Candidate == nil || len(n.Candidates()) != 2 {
		t.Errorf("%+v, %v", r, n.Candidates())
	}
}

// TestBOX8_LyingTimeServer lets servers lie by ten years both ways for as long
// as it takes: the floor is never below the build nor above its bound, the
// owner gets the true time back, and what was pushed is shown.
func TestBOX8_LyingTimeServer(t *testing.T) {
	const year = 365 * 24 * time.Hour
	truth := built.Add(30 * 24 * time.Hour)
	now := truth
	var saved time.Time
	b := newBox(t, func(c *Config) {
		c.Now = func() time.Time { return now }
		c.Clock = NewClock(built, time.Time{}, "rtc", func(t time.Time) error { saved = t; return nil })
		c.Machine.SetClock = func(t time.Time) error { now = t; return nil }
	})
	lie := func(by time.Duration) error {
		_, err := b.clockSet(t.Context(), control.Network, control.ClockSet{Time: truth.Add(by), Servers: 3})
		return err
	}
	for _, by := range []time.Duration{-10 * year, 10 * year} { // the latter is a month above ten years after the build
		if err := lie(by); !control.IsCode(err, control.CodeInvalid) {
			t.Errorf("a lie of %v: %v", by, err)
		}
	}
	if err := lie(9 * year); err != nil {
		t.Fatalf("within the bound: %v", err) // nobody can tell it from a box that lay in a shop for nine years
	}
	for range 24 { // a day of belief
		if err := b.cfg.Clock.Keep(now); err != nil {
			t.Fatal(err)
		}
	}
	if s := b.Status().Clock; s.Floor.After(built.Add(24*floorStep)) || !s.Time.Equal(truth.Add(9*year)) {
		t.Errorf("after a day of lies: %+v", s)
	}
	// Half a year of belief: the floor stops, and so does the ceiling.
	for range 10 * 365 * 24 {
		if err := b.cfg.Clock.Keep(built.Add(100 * year)); err != nil {
			t.Fatal(err)
		}
	}
	if f := b.Status().Clock.Floor; f.After(built.Add(ceiling)) {
		t.Errorf("the floor is carried to %s", f)
	}
	if NewClock(built, built.Add(100*year), "rtc", nil).Status(now).Floor.After(built.Add(ceiling)) {
		t.Error("a kept floor is believed without end")
	}
	if _, err := b.clockSet(t.Context(), control.Console, control.ClockSet{Time: truth, Actor: "ann"}); err == nil {
		t.Fatal("the clock went below its floor")
	}
	// The owner is in all the same, and resets it.
	b.audit.err = errors.New("disk full")
	if _, err := b.clockFloor(t.Context(), control.Console, control.ClockFloor{Actor: "ann"}); err == nil || !saved.After(built) {
		t.Errorf("reset without an audit entry: %v", err)
	}
	b.audit.err = nil
	c, err := b.clockFloor(t.Context(), control.Console, control.ClockFloor{Actor: "ann", From: "192.0.2.9"})
	if err != nil || !c.Floor.Equal(built) || c.Trusted || !saved.Equal(built) {
		t.Errorf("reset: %+v, %v, kept %s", c, err, saved)
	}
	if e := b.audit.events[len(b.audit.events)-1]; e.Action != "reset clock floor" || e.Actor != "ann" {
		t.Errorf("the audit log says %+v", e)
	}
	c, err = b.clockSet(t.Context(), control.Console, control.ClockSet{Time: truth, Actor: "ann"})
	if err != nil || !now.Equal(truth) || !c.Trusted {
		t.Errorf("the true time: %+v, %v", c, err)
	}
	hosted := newBox(t, func(c *Config) { c.Machine.SetClock = nil })
	if _, err := hosted.clockFloor(t.Context(), control.Console, control.ClockFloor{Actor: "ann"}); !control.IsCode(err, control.CodeState) {
		t.Errorf("hosted: %v", err)
	}
}
