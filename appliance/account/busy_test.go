package account

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/appliance/account/password"
)

// Who is sent away because too many sign in at once is told so.
func TestTooManySignInsAtOnceAreRefusedInWords(t *testing.T) {
	b, _ := claimed(t)
	ctx, leave := context.WithCancel(t.Context())
	var crowd sync.WaitGroup
	defer crowd.Wait()
	defer leave()
	full := make(chan struct{}, 1)
	for range password.MaxWaiting + 50 { // who is served waits again
		crowd.Go(func() {
			for ctx.Err() == nil {
				if _, err := b.hasher.Check(ctx, "guess", "", false); errors.Is(err, password.ErrBusy) {
					select {
					case full <- struct{}{}:
					default:
					}
					time.Sleep(10 * time.Millisecond)
				}
			}
		})
	}
	<-full
	for i := range byte(20) { // one that finds a place among them is only wrong
		o := Origin{Source: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, i}), 32)}
		_, err := b.CheckPassword(ctx, "nobody@example.org", "wrong", "", o)
		var r *Refusal
		if !errors.As(err, &r) {
			t.Fatalf("got %v, want a refusal", err)
		}
		if strings.HasPrefix(r.Text, "Too many people") {
			if r.Wrong {
				t.Error("a try that was not judged counts as wrong")
			}
			return
		}
	}
	t.Error("nobody was sent away: nothing is tested")
}
