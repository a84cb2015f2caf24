package boot

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/firmware"
	"gatehouse/image/qemu"
	"gatehouse/image/uki"
)

// post asks the API of a box.
func (p *person) post(path, kind string, body []byte) (int, string) {
	p.t.Helper()
	status, _, answer := p.page(p.Post(p.base+path, kind, bytes.NewReader(body)))
	return status, answer
}

// systems is what the box says of its two.
func (p *person) systems() (u control.Update) {
	p.t.Helper()
	status, _, body := p.open("/api/v1/update")
	if err := json.Unmarshal([]byte(body), &u); err != nil || status != http.StatusOK {
		p.t.Fatalf("the systems: %d %.500s (%v)", status, body, err)
	}
	return u
}

// bring sends a release to a box, and has it started.
func (p *person) bring(n *next) {
	p.t.Helper()
	p.Timeout = patience
	began := time.Now()
	if status, body := p.post("/api/v1/update", "application/octet-stream", n.bundle(p.t)); status != http.StatusOK {
		p.t.Fatalf("the bundle was answered %d:\n%.1000s", status, body)
	}
	p.t.Logf("%d bytes were sent and read back in %v", len(n.bytes), time.Since(began).Round(time.Second))
	if u := p.systems(); u.Stage != control.UpdateReceived || u.Transfer == nil || u.Transfer.Received != int64(len(n.bytes)) {
		p.t.Fatalf("after the bundle: %+v", u)
	}
	if status, body := p.post("/api/v1/update/start", "application/json", []byte(`{"wait":false}`)); status != http.StatusOK {
		p.t.Fatalf("the start was answered %d:\n%.1000s", status, body)
	}
}

// owned is a box that was just claimed on its page, and its owner.
func owned(t *testing.T, guest *qemu.Guest) (*person, line) {
	t.Helper()
	box := state(t, guest, "unclaimed", "url", "code")
	claim(t, guest.Addr(443), box["code"])
	state(t, guest, "ready", "url")
	p := visit(t, guest.Addr(443), nil)
	p.signIn()
	p.factor()
	return p, box
}

// A release under Secure Boot and with a TPM, from the page to the first start that
// needs nobody: sent, verified, tried, kept, and started from then on.
func TestBOX4_UpdateIsKept(t *testing.T) {
	n := next{version: firmware.Version{Minor: 1, Patch: 1}, program: "cmd/gatehoused"}
	n.make(t)
	guest := start(t, reachable(secure(t, newDisk(t))))
	p, box := owned(t, guest)
	p.bring(&n)

	boots.firmware.Add(1)
	say(t, guest, `gatehouse: systems: version 0\.1\.1 is tried`)
	again := state(t, guest, "ready", "url")
	same(t, "in the trial", again, box)
	say(t, guest, `gatehouse: systems: version 0\.1\.1 is kept`)
	if err := guest.Reset(); err != nil {
		t.Fatal(err)
	}
	boots.firmware.Add(1)
	registers := say(t, guest, `gatehouse: measured path=(\S+) epoch=(\S+)`)
	if registers[1] != string(uki.LoaderSecure) {
		t.Errorf("started by %s", registers[1])
	}
	same(t, "once it was kept", state(t, guest, "ready", "url"), box)
	if strings.Contains(guest.Serial()[strings.LastIndex(guest.Serial(), "gatehouse: measured"):], "is tried") {
		t.Error("it is tried again")
	}
	off(t, guest)
}

// A release whose PID 1 ends at once: the kernel panics, restarts by itself, and
// the loader starts the system before, which says why and takes it no more.
func TestBOX4_SickSystemGoesBack(t *testing.T) {
	n := next{version: firmware.Version{Minor: 1, Patch: 2}, program: "tests/boot/testdata/exits"}
	n.make(t)
	guest := startSick(t, reachable(secure(t, newDisk(t))))
	p, box := owned(t, guest)
	p.bring(&n)

	boots.firmware.Add(1)
	say(t, guest, "Kernel panic - not syncing: Attempted to kill init!")
	boots.firmware.Add(1)
	say(t, guest, `gatehouse: systems: it crashed: Kernel panic - not syncing: Attempted to kill init!`)
	same(t, "after the sick one", state(t, guest, "ready", "url"), box)
	block(t, guest, "(grade A)")
	back := visit(t, guest.Addr(443), nil)
	back.key = p.key
	p = back
	p.enter()
	u := p.systems()
	if u.Stage != control.UpdateIdle || u.Last == nil || u.Last.Kept || !u.Last.Explained || !strings.Contains(u.Last.Reason, "Attempted to kill init") || u.Running.Slot != "a" {
		t.Errorf("the page says %+v, last %+v", u, u.Last)
	}
	if status, body := p.post("/api/v1/update", "application/octet-stream", n.bundle(t)); status == http.StatusOK || !strings.Contains(body, "failed here before") {
		t.Errorf("taken again: %d %.500s", status, body)
	}
	off(t, guest)
}
