package monitor

import (
	"testing"
	"time"

	"gatehouse/appliance/control"
)

// A liar was believed for two days, and the floor crept past the true time.
// Honest servers then bring the clock back as far as the floor lets them: it
// must not stay years ahead because the truth is now below the floor.
func TestBOX8_HonestServersBringThePushedClockBack(t *testing.T) {
	truth := built.Add(100 * 24 * time.Hour)
	clock := truth
	b := newBox(t, func(c *Config) {
		c.Now = func() time.Time { return clock }
		c.Clock = NewClock(built, truth, "rtc", nil)
		c.Machine.SetClock = func(to time.Time) error { clock = to; return nil }
	})
	hour := func(lie time.Duration) error {
		_, err := b.clockSet(t.Context(), control.Network, control.ClockSet{Time: truth.Add(lie), Servers: 3})
		truth, clock = truth.Add(time.Hour), clock.Add(time.Hour)
		if e := b.cfg.Clock.Keep(clock); e != nil {
			t.Fatal(e)
		}
		return err
	}
	const hours, lie = 48, 9 * 365 * 24 * time.Hour
	for range hours {
		if err := hour(lie); err != nil {
			t.Fatal(err)
		}
	}
	if clock.Sub(truth) < lie/2 || !truth.Before(b.Status().Clock.Floor) {
		t.Fatal("the lie was not believed, or the floor is below the truth: this test shows nothing")
	}
	if err := hour(0); err != nil {
		t.Fatalf("honest servers are refused: %v", err)
	}
	s := b.Status().Clock
	if off := clock.Sub(truth); off > (hours+1)*floorStep || s.Trusted || s.Source != "floor" {
		t.Errorf("the clock is %v off: %+v", off, s)
	}
	// A clock near its floor is not set back to it: that lie is refused whole.
	honest := newBox(t, nil)
	if _, err := honest.clockSet(t.Context(), control.Network, control.ClockSet{Time: built.Add(-time.Second), Servers: 3}); !control.IsCode(err, control.CodeInvalid) {
		t.Errorf("below the floor: %v", err)
	}
}
