package boot

import (
	"math/rand/v2"
	"testing"
	"time"
)

// The reset button in the middle of the first start, at work and during later
// starts: the box comes back by itself every time, its keys sealed and opened
// by a TPM that never heard of a shutdown and counts no failure.
func TestBOX2_HardResets(t *testing.T) {
	t.Parallel()
	count := 5
	if soak() {
		count = 33
	}
	box := stage{disk: newDisk(t), state: t.TempDir()}
	guest := start(t, box.machine(t))
	reset := func() {
		t.Helper()
		boots.resets.Add(1)
		if err := guest.Reset(); err != nil {
			t.Fatal(err)
		}
	}
	sometime := func() {
		d := time.Duration(rand.Int64N(int64(15 * time.Second)))
		t.Logf("reset %v into a start", d.Round(time.Millisecond))
		time.Sleep(d)
	}
	sometime()
	reset() // in the first start, where keys and volume may be half made
	box.line = state(t, guest, "unclaimed", "url", "code")
	claim(t, guest.Addr(443), box.line["code"])
	state(t, guest, "ready", "url")
	for i := range count {
		reset()
		if i%2 == 1 {
			sometime()
			reset()
		}
		say(t, guest, `gatehouse: state=starting`)
		again := state(t, guest, "ready", "url")
		same(t, "after a reset", again, box.line)
	}
	p := visit(t, guest.Addr(443), nil)
	p.expect("ready", box.line)
	p.signIn()
	if err := guest.Kill(); err != nil {
		t.Fatal(err)
	}
	if n := box.lockout(t); n != 0 {
		t.Errorf("the TPM counts %d failed authorisations after the resets, want none", n)
	}
}
