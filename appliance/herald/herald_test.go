package herald

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/session/api"
)

func TestSES7_RestartsAreToldBeforeTheyCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // a sleep orders nothing for the race detector
		var plan *control.Restart
		var failed error
		var told *api.Notice
		var ends []string
		h := New(Config{
			Planned: func(context.Context) (*control.Restart, error) {
				mu.Lock()
				defer mu.Unlock()
				return plan, failed
			},
			Announce: func(n *api.Notice) {
				mu.Lock()
				defer mu.Unlock()
				told = n
			},
			End: func(_ context.Context, why string) {
				mu.Lock()
				defer mu.Unlock()
				if left := time.Until(plan.At); left > before || left <= 0 {
					t.Errorf("ended %s before the restart", left)
				}
				ends = append(ends, why)
			},
			Now: time.Now, Log: slog.New(slog.DiscardHandler),
		})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- h.Task().Run(ctx) }()
		set := func(r *control.Restart, err error) {
			mu.Lock()
			defer mu.Unlock()
			plan, failed = r, err
		}
		heard := func() (*api.Notice, []string) {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return told, ends
		}
		if notice, ended := heard(); notice != nil || ended != nil {
			t.Fatalf("nothing is planned, and %+v is told", notice)
		}

		planned := &control.Restart{At: time.Now().Add(control.Grace), Version: "1.5.0"}
		set(planned, nil)
		h.Look()
		notice, _ := heard()
		if notice == nil || notice.Text != "the box restarts into version 1.5.0" || !notice.At.Equal(planned.At) {
			t.Fatalf("told: %+v", notice)
		}
		set(planned, errors.New("the privileged process does not answer"))
		time.Sleep(time.Minute)
		if notice, _ := heard(); notice == nil {
			t.Error("what could not be asked was taken back")
		}
		set(nil, nil)
		time.Sleep(each)
		if notice, ended := heard(); notice != nil || ended != nil {
			t.Errorf("called off, and still told: %+v, %q", notice, ended)
		}

		set(&control.Restart{At: time.Now().Add(control.Grace), Off: true}, nil)
		time.Sleep(control.Grace - time.Second)
		if _, ended := heard(); !slices.Equal(ended, []string{"the box is switched off"}) {
			t.Errorf("ended: %q", ended)
		}
		stop()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("the task: %v", err)
		}
	})
}
