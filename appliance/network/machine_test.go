package network

import (
	"testing"
	"time"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func hourLease() lease {
	l := lease{}
	if err := l.setTimes(time.Hour, 0, 0); err != nil {
		panic(err)
	}
	return l
}

// expect asks the machine and compares.
func expect(t *testing.T, m *machine, at time.Duration, todo deed, when time.Duration) {
	t.Helper()
	d, w := m.next(epoch.Add(at))
	if d != todo || w.Sub(epoch) != when {
		t.Errorf("at %v: %v at %v, want %v at %v", at, d, w.Sub(epoch), todo, when)
	}
}

func TestSilenceIsMetWithPatience(t *testing.T) {
	m := &machine{}
	at := time.Duration(0)
	expect(t, m, at, discover, 0)
	for _, wait := range []time.Duration{2, 4, 8, 16, 32, 32, 32, 32, 32, 32, 32, 32, 32} {
		m.unanswered(epoch.Add(at))
		expect(t, m, at, discover, at+wait*time.Second)
		at += wait * time.Second
	}
	m.attempts = 1 << 30
	m.unanswered(epoch.Add(at))
	expect(t, m, at, discover, at+lastRetry)
}

func TestLifeOfALease(t *testing.T) {
	m := &machine{}
	m.granted(hourLease(), epoch)
	t1, t2, end := 30*time.Minute, 52*time.Minute+30*time.Second, time.Hour
	expect(t, m, 0, rest, t1)
	expect(t, m, t1, renew, t1)
	m.unanswered(epoch.Add(t1)) // half of what remains until T2
	expect(t, m, t1, rest, t1+(t2-t1)/2)
	expect(t, m, t1+(t2-t1)/2, renew, t1+(t2-t1)/2)
	m.unanswered(epoch.Add(t2 - 90*time.Second)) // not more often than each minute
	expect(t, m, t2-90*time.Second, rest, t2-30*time.Second)
	m.unanswered(epoch.Add(t2 - 30*time.Second)) // but not past T2
	expect(t, m, t2-30*time.Second, rest, t2)
	expect(t, m, t2, rebind, t2)
	m.unanswered(epoch.Add(t2))
	expect(t, m, t2, rest, t2+(end-t2)/2)
	m.unanswered(epoch.Add(end - 30*time.Second))
	expect(t, m, end-30*time.Second, rest, end)
	expect(t, m, end, drop, end)
	m.ended(epoch.Add(end))
	expect(t, m, end, discover, end+firstRetry)
}

func TestRenewalStartsTheLeaseAnew(t *testing.T) {
	m := &machine{}
	m.granted(hourLease(), epoch)
	m.unanswered(epoch.Add(40 * time.Minute))
	m.granted(hourLease(), epoch.Add(45*time.Minute))
	expect(t, m, 45*time.Minute, rest, 75*time.Minute)
	if got := m.end().Sub(epoch); got != 105*time.Minute {
		t.Errorf("the lease ends after %v", got)
	}
}

// TestRefusalIsNoLoop shows that a server which says no to everything is asked
// more and more seldom.
func TestRefusalIsNoLoop(t *testing.T) {
	m := &machine{}
	at := time.Duration(0)
	m.granted(hourLease(), epoch)
	for range 6 {
		m.ended(epoch.Add(at))
		_, when := m.next(epoch.Add(at))
		if wait := when.Sub(epoch) - at; wait < firstRetry {
			t.Fatalf("asked again after %v", wait)
		}
		at = when.Sub(epoch)
	}
	if at < time.Minute {
		t.Errorf("six refusals took %v only", at)
	}
}

// TestAClockThatJumpsEndsNoLease shows that times are compared by the monotonic
// clock where there is one: the role itself has the wall clock set.
func TestAClockThatJumpsEndsNoLease(t *testing.T) {
	now := time.Now()
	m := &machine{}
	m.granted(hourLease(), now)
	if d, _ := m.next(now.Add(time.Second)); d != rest {
		t.Errorf("after a second: %v", d)
	}
	if now.Round(0) == now {
		t.Error("the times of the machine lost their monotonic reading")
	}
}
