package monitor

import (
	"context"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/netfilter"
)

// TestBOX10_MulticastFollowsTheState: found while nobody owns the box; then only
// when switched on. Hosted never. The kernel is told with the state itself.
func TestBOX10_MulticastFollowsTheState(t *testing.T) {
	for _, c := range []struct {
		name         string
		hosted       bool
		wanted       bool
		before, then bool
	}{
		{"switched off", false, false, true, false},
		{"switched on", false, true, true, true},
		{"hosted", true, true, false, false},
	} {
		var last netfilter.State
		b := newBox(t, func(k *Config) {
			k.Hosted = c.hosted
			k.Network = &Network{
				Kept: control.NetworkSettings{Multicast: c.wanted}, Own: func() []control.Link { return nil },
				Apply: func(context.Context, control.NetworkSettings) error { return nil },
			}
			k.Filter = func(s netfilter.State) error { last = s; return nil }
		})
		if last.Multicast {
			t.Errorf("%s: mDNS while starting", c.name)
		}
		ask := func() control.DiscoveryState {
			s, err := b.discovery(context.Background(), control.Network, control.Discovery{})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		if ask().On {
			t.Errorf("%s: the role is told to answer while starting", c.name)
		}
		b.setState(control.StateUnclaimed, "")
		if s := ask(); s.On != c.before || last.Multicast != c.before || s.State != control.StateUnclaimed || s.Name != "gatehouse-test" {
			t.Errorf("%s, unclaimed: %+v, kernel %v, want %v", c.name, s, last.Multicast, c.before)
		}
		if got := strings.Contains(b.Status().Firewall.Sentence, "mDNS"); got != c.before {
			t.Errorf("%s, unclaimed: the exception is named: %v", c.name, got)
		}
		b.setState(control.StateReady, "")
		if s := ask(); s.On != c.then || last.Multicast != c.then {
			t.Errorf("%s, claimed: %+v, kernel %v, want %v", c.name, s, last.Multicast, c.then)
		}
		b.setState(control.StateLocked, "")
		if s := ask(); s.On != c.then || last.Multicast != c.then {
			t.Errorf("%s, locked: %+v, kernel %v, want %v", c.name, s, last.Multicast, c.then)
		}
	}
}

// TestBOX10_NameInUseIsShown: what the network role tells is shown while it
// tells it, and nothing that is not a name of this box.
func TestBOX10_NameInUseIsShown(t *testing.T) {
	now := built.Add(time.Hour)
	b := newBox(t, func(c *Config) { c.Now = func() time.Time { return now } })
	b.setState(control.StateUnclaimed, "")
	tell := func(name string) error {
		_, err := b.discovery(context.Background(), control.Network, control.Discovery{Name: name})
		return err
	}
	for _, bad := range []string{"other", "gatehouse-tes", "gatehouse-test-", "gatehouse-test-1", "gatehouse-test-02", "gatehouse-test-+3", "gatehouse-test2", "gatehouse-test-2-3", "gatehouse-test-99999", "gatehouse-test-2\x1b[31m", "Gatehouse-test"} {
		if err := tell(bad); !control.IsCode(err, control.CodeInvalid) {
			t.Errorf("%q: %v, want a refusal", bad, err)
		}
	}
	if s := b.Status(); s.Local != "" {
		t.Errorf("%q is shown, and nothing was told", s.Local)
	}
	for _, good := range []string{"gatehouse-test", "gatehouse-test-2", "gatehouse-test-17"} {
		if err := tell(good); err != nil {
			t.Fatal(err)
		}
		if s := b.Status(); s.Local != good+".local" {
			t.Errorf("%q is shown, want %s.local", s.Local, good)
		}
	}
	now = now.Add(localFor + time.Second)
	if s := b.Status(); s.Local != "" {
		t.Errorf("%q is shown, and the role has been silent since", s.Local)
	}
	if err := tell("gatehouse-test"); err != nil {
		t.Fatal(err)
	}
	b.setState(control.StateReady, "")
	if s := b.Status(); s.Local != "" {
		t.Errorf("%q is shown after the claim", s.Local)
	}
}

// TestBOX10_SwitchedOnToBeKept: the switch is a network setting like others: the
// kernel follows while it is tried, and goes back with it.
func TestBOX10_SwitchedOnToBeKept(t *testing.T) {
	n := newNetBox(t, control.NetworkSettings{}, time.Minute)
	now := func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.filtered.multicast
	}
	if now() {
		t.Fatal("mDNS after the claim, and nobody switched it on")
	}
	r := n.tryIt(t, control.NetworkSettings{Multicast: true})
	if !now() || r.Candidate == nil {
		t.Fatalf("switched on to be kept: the kernel lets mDNS in: %v; %+v", now(), r)
	}
	if err := n.RevertAll(t.Context()); err != nil || now() {
		t.Errorf("taken back (%v): the kernel lets mDNS in: %v", err, now())
	}
}
