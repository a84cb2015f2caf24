package hosted

import (
	"os/exec"
	"testing"

	"gatehouse/tests/web"
)

// TestACC1_ClaimedInABrowser owns a whole running Gatehouse from Chromium:
// code, password, clock, second factor, recovery codes, sign-in, every page.
func TestACC1_ClaimedInABrowser(t *testing.T) {
	b := newBox(t)
	s := b.start("unclaimed")
	web.OwnBox(t, "https://127.0.0.1", s.code, func(c *exec.Cmd) (err error) {
		b.host.Do(t, c.Start)
		return nil
	})
	b.await("ready")
}
