package herald

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/session/api"
)

func TestSES7_RestartsAreToldBeforeTheyCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var planned *control.Restart
		var failed error
		var notice *api.Notice
		var ended []string
		h := New(Config{
			Planned:  func(context.Context) (*control.Restart, error) { return planned, failed },
			Announce: func(n *api.Notice) { notice = n },
			End: func(_ context.Context, why string) {
				if left := time.Until(planned.At); left > before || left <= 0 {
					t.Errorf("ended %s before the restart", left)
				}
				ended = append(ended, why)
			},
			Now: time.Now, Log: slog.New(slog.DiscardHandler),
		})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- h.Task().Run(ctx) }()
		synctest.Wait()
		if notice != nil || ended != nil {
			t.Fatalf("nothing is planned, and %+v is told", notice)
		}

		planned = &control.Restart{At: time.Now().Add(control.Grace), Version: "1.5.0"}
		h.Look()
		synctest.Wait()
		if notice == nil || notice.Text != "the box restarts into version 1.5.0" || !notice.At.Equal(planned.At) {
			t.Fatalf("told: %+v", notice)
		}
		failed = errors.New("the privileged process does not answer")
		time.Sleep(time.Minute)
		synctest.Wait()
		if notice == nil {
			t.Error("what could not be asked was taken back")
		}
		failed = nil
		planned = nil
		time.Sleep(each)
		synctest.Wait()
		if notice != nil || ended != nil {
			t.Errorf("called off, and still told: %+v, %q", notice, ended)
		}

		planned = &control.Restart{At: time.Now().Add(control.Grace), Off: true}
		time.Sleep(control.Grace - time.Second)
		synctest.Wait()
		if !slices.Equal(ended, []string{"the box is switched off"}) {
			t.Errorf("ended: %q", ended)
		}
		stop()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("the task: %v", err)
		}
	})
}
