// Package task runs long-lived tasks together until one of them fails or the context ends.
package task

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
)

// A Task is one long-lived piece of a program. Run returns when ctx ends or
// when the task cannot go on; String names it in errors and logs.
type Task interface {
	Run(ctx context.Context) error
	String() string
}

type named struct {
	name string
	run  func(context.Context) error
}

func (n named) Run(ctx context.Context) error { return n.run(ctx) }
func (n named) String() string                { return n.name }

// Func makes a Task of a function.
func Func(name string, run func(context.Context) error) Task { return named{name, run} }

// guarded makes an error of a panic: in PID 1 a panic would end the machine,
// where an error ends and renews the tasks. A goroutine that a task starts by
// itself is beyond its reach.
func guarded(ctx context.Context, t Task) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return t.Run(ctx)
}

// Run runs all tasks and waits for every one of them. The first that returns,
// with or without an error, ends the context of the others: a role lives as a
// whole or not at all, so that its supervisor sees half-dead ones. The result
// joins all errors except those that only repeat the end of the context.
func Run(ctx context.Context, tasks ...Task) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	for _, t := range tasks {
		wg.Go(func() {
			defer cancel()
			err := guarded(ctx, t)
			if err == nil || (ctx.Err() != nil && errors.Is(err, ctx.Err())) {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, fmt.Errorf("%s: %w", t, err))
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
