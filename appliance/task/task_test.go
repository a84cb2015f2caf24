package task

import (
	"context"
	"errors"
	"strings"
	"testing"
)

func TestRunEndsAllWhenOneFails(t *testing.T) {
	boom := errors.New("boom")
	stopped := false
	err := Run(t.Context(),
		Func("bad", func(context.Context) error { return boom }),
		Func("good", func(ctx context.Context) error { <-ctx.Done(); stopped = true; return ctx.Err() }))
	if !errors.Is(err, boom) || !strings.HasPrefix(err.Error(), "bad: ") {
		t.Errorf("Run = %v, want the failure named by its task", err)
	}
	if !stopped {
		t.Error("the other task was not ended")
	}
}

func TestPanicIsAnError(t *testing.T) {
	var nobody *struct{ n int }
	ended := false
	err := Run(t.Context(),
		Func("broken", func(context.Context) error { nobody.n++; return nil }),
		Func("good", func(ctx context.Context) error { <-ctx.Done(); ended = true; return ctx.Err() }))
	if err == nil || !strings.Contains(err.Error(), "broken: panic") || !strings.Contains(err.Error(), "task_test.go") {
		t.Errorf("Run = %v, want the panic with its place", err)
	}
	if !ended {
		t.Error("the other task was not ended")
	}
}

func TestRunEndOfContextIsNoError(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Run(ctx, Func("a", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })); err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
}
