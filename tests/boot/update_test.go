package boot

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/firmware"
	"gatehouse/firmware/slot"
	"gatehouse/image/qemu"
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
	// The box restarts half a second after its answer, which a loaded machine may
	// lose; what counts is the trial.
	resp, err := p.Post(p.base+"/api/v1/update/start", "application/json", strings.NewReader(`{"wait":false}`))
	if err != nil {
		p.t.Logf("starting: %v", err)
		return
	}
	if status, _, body := p.page(resp, nil); status != http.StatusOK {
		p.t.Fatalf("the start was answered %d:\n%.1000s", status, body)
	}
}

// owned is a box that was just claimed, and its owner.
func owned(t testing.TB, guest *qemu.Guest) (*person, line) {
	t.Helper()
	box := state(t, guest, "unclaimed", "url", "code")
	c := newTool(t, guest.Addr(443))
	late := time.Now().Add(patience)
	for {
		out, err := c.command(c.setup(box["code"])...).CombinedOutput()
		// On a loaded machine the answer may be lost, and the claim was made.
		if err == nil || strings.Contains(string(out), "This box is ready") {
			break
		}
		if time.Now().After(late) {
			t.Fatalf("gatehouse setup: %v\n%s", err, out)
		}
	}
	state(t, guest, "ready", "url")
	p := visit(t, guest.Addr(443), nil)
	p.signIn()
	p.factor()
	return p, box
}

// sick are releases that must not be kept, the cheapest first: it is booted always,
// the others by `make soak`.
var sick = []struct {
	name    string
	release next
	sign    string // what its start says on the console
	reason  string // which the system before gives
}{
	{"PID 1 ends", next{program: "tests/boot/testdata/exits"}, "Kernel panic - not syncing: Attempted to kill init!", "it crashed: Kernel panic - not syncing: Attempted to kill init!"},
	{"the kernel panics", next{program: "cmd/gatehoused", sick: change{"appliance/boot/steps.go", "return errors.Join(b.machine.SetSysctls(), b.machine.LoopbackUp())",
		`return errors.Join(b.machine.SetSysctls(), b.machine.LoopbackUp(), os.WriteFile("/proc/sys/kernel/sysrq", []byte("1"), 0), os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0))`}},
		"Kernel panic", "it crashed: "},
	{"it hangs", next{program: "cmd/gatehoused", sick: change{"appliance/boot/steps.go", "go b.kick(ctx) // ends with ctx", "select {} // nobody kicks"}},
		"EFI stub", "hung"},
	{"no 443", next{program: "cmd/gatehoused", sick: change{"appliance/gateway/gateway.go", "sender, err := handover.NewSender(env.Files[control.FileConsole])",
		"<-ctx.Done()\n\tsender, err := handover.NewSender(env.Files[control.FileConsole])"}},
		"is tried", "https: "},
	{"the data stay closed", next{program: "cmd/gatehoused", closed: true}, "systems: going back: It does not open the data", "It does not open the data"},
}

// A box under Secure Boot and with a TPM takes releases: sick ones first, which go
// back by themselves, each for its reason, and are taken no more; then one that is
// kept. Every write of all that is judged as a place where the power could be cut,
// and three such disks are started.
func TestBOX4_UpdateIsKept(t *testing.T) {
	count := 1
	if soak() {
		count = len(sick)
	}
	blank := newDisk(t)
	m := reachable(secure(t, filepath.Join(t.TempDir(), "disk.img")))
	copyDisk(t, blank, m.Disk)
	m.WriteLog = filepath.Join(t.TempDir(), "writes")
	if err := os.WriteFile(m.WriteLog, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	chip := watchTPM(t, m.State, m.WriteLog)
	guest := startSick(t, m)
	p, box := owned(t, guest)
	var before []slot.Digest
	for i, c := range sick[:count] {
		n := c.release
		n.version = firmware.Version{Minor: 1, Patch: uint32(i) + 1}
		n.make(t)
		p.goesBack(guest, box, &n, c.sign, c.reason)
		before = append(before, sha256.Sum256(n.bytes))
	}
	well := next{version: firmware.Version{Minor: 2}, program: "cmd/gatehoused", before: before}
	well.make(t)
	p.isKept(guest, box, &well)
	off(t, guest)

	cuts := newCuts(t, blank, m, chip(), &well)
	cuts.judge(t)
	if soak() {
		t.Run("damaged", func(t *testing.T) { cuts.damaged(t, box) })
	}
	for _, c := range cuts.moments() {
		t.Run(c.name, func(t *testing.T) { cuts.start(t, c, box) })
	}
}

// goesBack brings a sick release, and sees the system before back by itself.
func (p *person) goesBack(guest *qemu.Guest, box line, n *next, sign, reason string) {
	t := p.t
	t.Helper()
	p.bring(n)
	boots.firmware.Add(2)
	say(t, guest, sign)
	say(t, guest, `gatehouse: systems: [^\r\n]*`+regexp.QuoteMeta(reason))
	same(t, "after the sick one", state(t, guest, "ready", "url"), box)
	p.again()
	u := p.systems()
	if u.Stage != control.UpdateIdle || u.Last == nil || u.Last.Kept || !u.Last.Explained || !strings.Contains(u.Last.Reason, reason) || u.Running.Slot != "a" {
		t.Errorf("the page says %+v, last %+v", u, u.Last)
	}
	if status, body := p.post("/api/v1/update", "application/octet-stream", n.bundle(t)); status == http.StatusOK || !strings.Contains(body, "failed here before") {
		t.Errorf("taken again: %d %.500s", status, body)
	}
}

// isKept brings a release, and sees it kept: the same box, one restart, nobody asked.
func (p *person) isKept(guest *qemu.Guest, box line, n *next) {
	t := p.t
	t.Helper()
	p.bring(n)
	boots.firmware.Add(1)
	version := regexp.QuoteMeta(n.version.String())
	say(t, guest, `gatehouse: systems: version `+version+` is tried`)
	same(t, "in the trial", state(t, guest, "ready", "url"), box)
	say(t, guest, `gatehouse: systems: version `+version+` is kept`)
	p.again()
	var u control.Update
	for range 60 {
		if u = p.systems(); u.Stage == control.UpdateIdle && u.Newest == n.version.String() {
			break
		}
		time.Sleep(time.Second)
	}
	if u.Running.Version != n.version.String() || u.Running.Slot != "b" || u.Newest != n.version.String() || u.Last == nil || !u.Last.Kept || u.Other == nil || u.Other.State != "ready" {
		t.Errorf("the page says %+v, last %+v, other %+v", u, u.Last, u.Other)
	}
	_, _, body := p.open("/api/v1/details")
	if !strings.Contains(body, `"grade":"A"`) {
		t.Errorf("after the update the grade is another: %.500s", body)
	}
}
