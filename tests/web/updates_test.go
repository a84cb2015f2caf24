package web

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"gatehouse/appliance/console"
	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/control"
)

// TestUSE4_UpdatesInEachStage brings releases in, with scripts and without, and
// looks at the page in each stage.
func TestUSE4_UpdatesInEachStage(t *testing.T) {
	b, br := consoletest.Owned(t, console.Run)
	r := consoletest.NewReleaser(t)
	b.GiveSystems(r)
	dir := t.TempDir()
	good := r.Bundle("0.2.0", 3_000_000)
	damaged := append([]byte(nil), good...)
	damaged[len(damaged)-1] ^= 1
	for name, bundle := range map[string][]byte{"new.update": good, "damaged.update": damaged, "half.update": good[:len(good)/2]} {
		if err := os.WriteFile(filepath.Join(dir, name), bundle, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("GATEHOUSE_WEB_RELEASE", filepath.Join(dir, "new.update"))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		endTrials(t, b, filepath.Join(dir, "ends"))
	}()
	runSigned(t, "updates.mjs", b, br)
	<-ended
}

// endTrials ends three trials, each as the script says once it has looked.
func endTrials(t *testing.T, b *consoletest.Box, file string) {
	for n := 0; n < 3; {
		select {
		case <-t.Context().Done():
			return
		case <-time.After(50 * time.Millisecond):
		}
		how, err := os.ReadFile(file)
		if err != nil || b.Systems().Stage != control.UpdateTrial {
			continue
		}
		os.Remove(file)
		switch n++; string(how) {
		case "kept":
			b.EndTrial(true, false, "all is as good as before")
		case "explained":
			b.EndTrial(false, true, "nothing answered on 443")
		default:
			b.EndTrial(false, false, "it ended before it could say anything, as when the power is cut")
		}
	}
}
