package monitor

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"gatehouse/appliance/control"
)

func TestSES7_ARestartThatLeavesGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBox(t, func(c *Config) { c.Now = time.Now })
		b.ready(t, control.DatabaseUnclaimed)
		ask := func(action string, later bool) error {
			return b.power(t.Context(), control.Power{Action: action, Actor: "ann@example.com", Later: later})
		}
		if err := ask("stay", false); !control.IsCode(err, control.CodeState) {
			t.Errorf("taken back, and nothing was to come: %v", err)
		}
		if err := ask("later", true); !control.IsCode(err, control.CodeInvalid) {
			t.Errorf("an action that there is not: %v", err)
		}
		b.audit.err = errors.New("the disk is full")
		if err := ask("restart", true); err == nil || b.Status().Restart != nil {
			t.Errorf("not in the audit log, and planned: %v", err)
		}
		b.audit.err = nil

		if err := ask("restart", true); err != nil {
			t.Fatal(err)
		}
		if r := b.Status().Restart; r == nil || r.Off || time.Until(r.At) > control.Grace || time.Until(r.At) < control.Grace-time.Second {
			t.Errorf("it is told as %+v", r)
		}
		time.Sleep(control.Grace - time.Second)
		synctest.Wait()
		if len(b.powers) != 0 {
			t.Fatal("before its time")
		}
		if err := ask("stay", false); err != nil || b.Status().Restart != nil {
			t.Errorf("taken back: %v, %+v", err, b.Status().Restart)
		}
		time.Sleep(control.Grace)
		synctest.Wait()
		if len(b.powers) != 0 {
			t.Fatal("it was taken back, and came")
		}

		// The later word counts; at once is at once.
		if err := errors.Join(ask("restart", true), ask("off", true)); err != nil || !b.Status().Restart.Off {
			t.Errorf("switching off: %v, %+v", err, b.Status().Restart)
		}
		time.Sleep(control.Grace + time.Second)
		synctest.Wait()
		if !slices.Equal(b.powers, []string{"off"}) {
			t.Errorf("the machine was told %q", b.powers)
		}
		if err := ask("stay", false); !control.IsCode(err, control.CodeState) {
			t.Errorf("taken back while it came: %v", err)
		}
	})
}
