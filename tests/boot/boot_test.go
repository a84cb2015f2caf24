// Package boot starts the built image in QEMU and watches what only a boot can show.
package boot

import (
	"os/exec"
	"strings"
	"testing"

	"gatehouse/image/qemu"
	"gatehouse/image/uki"
	"gatehouse/tests/web"
)

// Without disk, so without anything to keep: the console must still come, say
// what is wrong, and the page where there is an address.
func TestBOX12_NoDiskIsSaid(t *testing.T) {
	t.Parallel()
	guest := start(t, reachable(direct(t)))
	box := state(t, guest, "locked", "url")
	block(t, guest, "this system was not started from a disk of its own")
	visit(t, guest.Addr(443), nil).locked(box, "this system was not started from a disk of its own")
	off(t, guest)
}

// The whole way: firmware, loader, UKI, init, sealed data, address, page, the
// claim, and a restart from which the box comes back by itself.
func TestACC1_ImageIsClaimedAndComesBack(t *testing.T) {
	guest := start(t, reachable(qemu.Machine{Disk: newDisk(t), State: t.TempDir(), Memory: 256}))
	measured(t, guest, uki.Loader)
	box := state(t, guest, "unclaimed", "url", "code")
	if !strings.HasPrefix(box["url"], "https://") {
		t.Errorf("the address to open is %q", box["url"])
	}
	visit(t, guest.Addr(443), nil).expect("unclaimed", box)
	web.OwnBox(t, "https://"+guest.Addr(443), box["code"], (*exec.Cmd).Start)
	owned := state(t, guest, "ready", "url")
	same(t, "after the claim", owned, box)
	if owned["code"] != "" {
		t.Errorf("claimed, and the console still shows a code: %v", owned)
	}
	block(t, guest, "box of: "+email)

	choose(t, guest, "3")
	say(t, guest, `Restart now\? Type yes`)
	choose(t, guest, "yes")
	boots.firmware.Add(1)
	// The old life may say its line once more; the new one begins with this.
	say(t, guest, `gatehouse: state=starting`)
	again := state(t, guest, "ready", "url")
	same(t, "after a restart", again, box)
	p := visit(t, guest.Addr(443), nil)
	p.expect("ready", again)
	if status, at, body := p.send("/sign-in", "email", email, "password", password); at != "/sign-in/code" {
		t.Errorf("after the restart the password led to %d %s:\n%s", status, at, body)
	}
	off(t, guest)
}
