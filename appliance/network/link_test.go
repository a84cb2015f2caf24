package network

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gatehouse/appliance/control"
)

// A lease that could not be set is tried again within seconds, then less
// often, and no more once it is set.
func TestBOX7_FailedApplyIsTriedAgainSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said strings.Builder
		begin, refuse := time.Now(), true
		var tries []time.Duration
		var last control.NetworkApply
		w := newWorker(&net.Interface{Name: "eth0"}, "gatehouse-test", func(_ context.Context, r control.NetworkApply) error {
			tries, last = append(tries, time.Since(begin)), r
			if refuse {
				return errors.New("no buffer space")
			}
			return nil
		}, func(string, learnt) {}, slog.New(slog.NewTextHandler(&said, nil)))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- w.again(ctx) }()
		l := lease{Address: netip.MustParsePrefix("192.0.2.7/24")}
		w.learn(ctx, true, func(k *learnt) { k.v4, k.end4 = &l, begin.Add(24*time.Hour) })
		// after is a look at what the worker did, which it does with its lock held.
		after := func(d time.Duration, look func()) {
			time.Sleep(d)
			synctest.Wait()
			w.mu.Lock()
			defer w.mu.Unlock()
			look()
		}
		after(8*time.Second, func() {
			if len(tries) != 4 || tries[1] != time.Second || tries[2] != 3*time.Second || tries[3] != 7*time.Second {
				t.Errorf("tried after %v", tries)
			}
		})
		after(time.Hour, func() {
			if n := len(tries); n < 60 || n > 70 || tries[n-1]-tries[n-2] != time.Minute {
				t.Errorf("%d tries in an hour", n)
			}
			if n := strings.Count(said.String(), "no buffer space"); n != 1 {
				t.Errorf("said %d times", n)
			}
			refuse = false
		})
		done := 0
		after(2*time.Minute, func() {
			done = len(tries)
			if len(last.Addresses) != 1 || last.Addresses[0] != l.Address {
				t.Errorf("set: %+v", last)
			}
		})
		after(time.Hour, func() {
			if len(tries) != done {
				t.Errorf("%d tries after it was set", len(tries)-done)
			}
		})
		cancel()
		<-ended
	})
}
