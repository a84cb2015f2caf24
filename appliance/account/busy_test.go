package account

import (
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"gatehouse/appliance/account/password"
)

// Who is sent away because too many sign in at once is told so.
func TestTooManySignInsAtOnceAreRefusedInWords(t *testing.T) {
	b, _ := claimed(t)
	var wg sync.WaitGroup
	errs := make(chan error, 3*password.MaxWaiting)
	for i := range cap(errs) {
		wg.Go(func() {
			o := Origin{Source: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 32)}
			_, err := b.CheckPassword(t.Context(), "nobody@example.org", "wrong", "", o)
			errs <- err
		})
	}
	wg.Wait()
	close(errs)
	away := 0
	for err := range errs {
		var r *Refusal
		if !errors.As(err, &r) {
			t.Fatalf("got %v, want a refusal", err)
		}
		if strings.HasPrefix(r.Text, "Too many people") {
			away++
			if r.Wrong {
				t.Error("a try that was not judged counts as wrong")
			}
		}
	}
	if away == 0 {
		t.Error("nobody was sent away: nothing is tested")
	}
}
