package boot

import (
	"os"
	"path/filepath"
	"testing"

	"gatehouse/image"
	"gatehouse/image/qemu"
	"gatehouse/image/target"
	"gatehouse/image/uki"
)

// arm is a machine for an arm64 image, emulated as all are here.
func arm(t *testing.T, x target.Target) qemu.Machine {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk.img")
	copyDisk(t, built(t, image.Named(image.Disk, x)), disk)
	if err := os.Truncate(disk, 1<<30); err != nil {
		t.Fatal(err)
	}
	m := reachable(secure(t, disk))
	m.Target = x
	return m
}

// The same image for arm64: Secure Boot starts what we signed, PCR 11 to 13 are
// what was approved, the TPM seals. It is claimed by the tool, and comes back from
// a restart by itself. Its kernel is the one that knows the TPM of QEMU's machines.
func TestBOX1_ArmStartsToTheClaimPage(t *testing.T) {
	if !soak() {
		return // an image for arm64 and three starts cost more than all of a run may take longer
	}
	x := target.ARM64Cloud
	guest := start(t, arm(t, x))
	system := image.Named(image.UKI, x)
	pcr7 := measuredOf(t, guest, system, uki.LoaderSecure)
	box := state(t, guest, "unclaimed", "url", "code")
	block(t, guest, "Sealed to this machine's TPM for releases that we approved; the firmware starts nothing that is not signed.")
	visit(t, guest.Addr(443), nil).expect("unclaimed", box)
	claim(t, guest.Addr(443), box["code"])
	same(t, "after the claim", state(t, guest, "ready", "url"), box)

	choose(t, guest, "3")
	say(t, guest, `Restart now\? Type yes`)
	choose(t, guest, "yes")
	boots.firmware.Add(1)
	// The old life may say its line once more; the new one begins with its registers.
	if again := measuredOf(t, guest, system, uki.LoaderSecure); again != pcr7 {
		t.Errorf("after a restart PCR 7 is %x, was %x", again, pcr7)
	}
	again := state(t, guest, "ready", "url")
	same(t, "after a restart", again, box)
	visit(t, guest.Addr(443), nil).expect("ready", again)
	off(t, guest)
}

// The image for boards has disks and cards of boards, and a kernel that sees no
// TPM in memory: in QEMU it is a box without one, and says so.
func TestBOX1_ArmBoardsStartToTheClaimPage(t *testing.T) {
	if !soak() {
		return
	}
	m := arm(t, target.ARM64)
	m.NVMe = true
	guest := start(t, m)
	box := state(t, guest, "unclaimed", "url", "code")
	block(t, guest, "not hardware-protected")
	visit(t, guest.Addr(443), nil).expect("unclaimed", box)
	off(t, guest)
}
