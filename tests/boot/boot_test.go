// Package boot starts the built image in QEMU and watches what only a boot can show.
package boot

import (
	"encoding/json"
	"strings"
	"testing"

	"gatehouse/image/qemu"
)

// Without disk, so without anything to keep: the console must still come.
func TestBOX12_DirectBootSpeaksOnTheConsole(t *testing.T) {
	guest := start(t, direct(t))
	say(t, guest, `(?i)gatehouse`)
	if text := guest.Serial(); strings.Contains(text, "Kernel panic") {
		t.Errorf("the kernel panicked")
	}
}

// The whole way: firmware, loader, UKI, init, sealed data, address, page.
func TestBOX1_ImageBootsToItsPage(t *testing.T) {
	state1 := t.TempDir()
	machine := qemu.Machine{
		Disk: newDisk(t), State: state1, Memory: 256,
		Forward: map[int]string{443: "127.0.0.1:0"},
	}
	guest := start(t, machine)
	box := state(t, guest, "unclaimed")
	for box["url"] == "" || box["fingerprint"] == "" {
		box = state(t, guest, "unclaimed")
	}
	if box["name"] == "" || box["code"] == "" {
		t.Errorf("the console's line lacks the name or the code: %v", box)
	}
	status, body := get(t, guest, "/api/v1/status")
	var answer map[string]string
	if err := json.Unmarshal([]byte(body), &answer); err != nil || status != 200 {
		t.Fatalf("status page answered %d %q (%v)", status, body, err)
	}
	if answer["state"] != "unclaimed" || answer["name"] != box["name"] || len(answer) != 2 {
		t.Errorf("status page says %v, the console %v", answer, box)
	}
	// The reset button: the same box again, without anyone.
	if err := guest.Reset(); err != nil {
		t.Fatal(err)
	}
	again := state(t, guest, "unclaimed")
	for again["fingerprint"] == "" {
		again = state(t, guest, "unclaimed")
	}
	if again["fingerprint"] != box["fingerprint"] || again["name"] != box["name"] {
		t.Errorf("after a reset the box is %v, was %v", again, box)
	}
	if err := guest.PowerButton(); err != nil {
		t.Fatal(err)
	}
	if err := guest.Wait(); err != nil {
		t.Errorf("the box did not switch off in order: %v", err)
	}
}
