package boot

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/update"
	"gatehouse/firmware"
	"gatehouse/firmware/slot"
	"gatehouse/image/keys"
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

// bring sends a release to a box on its page, and has it started there.
func (p *person) bring(n *next) {
	p.t.Helper()
	p.Timeout = patience
	began := time.Now()
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	file, err := w.CreateFormFile("bundle", "gatehouse-"+n.version.String()+"-amd64.update")
	if err == nil {
		_, err = file.Write(n.bundle(p.t))
	}
	if err := errors.Join(err, w.Close()); err != nil {
		p.t.Fatal(err)
	}
	resp, err := p.Post(p.base+"/system/updates/bring", w.FormDataContentType(), &form)
	status, at, body := p.page(resp, err)
	if status != http.StatusOK || at != "/system/updates" || !strings.Contains(body, n.version.String()) {
		p.t.Fatalf("the bundle was answered %d at %s:\n%s", status, at, body)
	}
	p.t.Logf("%d bytes were sent and read back in %v", len(n.bytes), time.Since(began).Round(time.Second))
	if u := p.systems(); u.Stage != control.UpdateReceived || u.Transfer == nil || u.Transfer.Received != int64(len(n.bytes)) {
		p.t.Fatalf("after the bundle: %+v", u)
	}
	if status, _, body := p.open("/system/updates/start"); status != http.StatusOK || !strings.Contains(body, "Restart into it now") {
		p.t.Fatalf("what starts it is answered %d:\n%s", status, body)
	}
	// The box restarts half a second after its answer, which a loaded machine may
	// lose; what counts is the trial.
	resp, err = p.PostForm(p.base+"/system/updates/start", url.Values{"when": {"now"}})
	if err != nil {
		p.t.Logf("starting: %v", err)
		return
	}
	if status, _, body := p.page(resp, nil); status != http.StatusOK {
		p.t.Fatalf("the start was answered %d:\n%s", status, body)
	}
}

// sends brings a release with the tool, and has it started and watched to its end, of which
// the tool's last words tell.
func (p *person) sends(n *next) (ended func() string) {
	p.t.Helper()
	c := p.tool
	file := filepath.Join(p.t.TempDir(), "gatehouse-"+n.version.String()+"-amd64.update")
	if err := os.WriteFile(file, n.bundle(p.t), 0o600); err != nil {
		p.t.Fatal(err)
	}
	p.signsIn(c)
	p.t.Logf("gatehouse update send: %s", c.run("update", "send", file, "--box", c.box))
	cmd := c.command("update", "start", "--yes", "--follow", "--box", c.box)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	return func() string {
		err := cmd.Wait()
		p.t.Logf("gatehouse update start: %s%s", said.Bytes(), out.Bytes())
		if err != nil {
			p.t.Errorf("gatehouse update start: %v", err)
		}
		return out.String()
	}
}

// refuses sees a release refused that is signed and built well, for its reason, with
// nothing written.
func (p *person) refuses(n next, reason string) {
	p.t.Helper()
	n.sign(p.t)
	before := p.systems()
	if status, body := p.post("/api/v1/update", "application/octet-stream", n.bundle(p.t)); status == http.StatusOK || !strings.Contains(body, reason) {
		p.t.Errorf("want %q, and it is answered %d %.500s", reason, status, body)
	}
	if now := p.systems(); now.Stage != before.Stage || now.Other == nil || *now.Other != *before.Other {
		p.t.Errorf("after a refusal: %+v, other %+v", now, now.Other)
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
	p.tool = c
	p.signIn()
	p.factor()
	return p, box
}

// sick are releases that must not be kept, the cheapest first: it is booted always,
// the others by `make soak` (TestBOX4_SickOnesGoBack).
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

// A box under Secure Boot and with a TPM takes releases: sick ones first, on its page, which
// go back by themselves, each for its reason, and are taken no more; then one by the tool
// that is kept, hands over to other keys and shuts out what was before it. Every write of
// all that is judged as a place where the power could be cut, and three such disks are
// started.
func TestBOX4_UpdateIsKept(t *testing.T) {
	t.Parallel()
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
	bad := p.goesBack(guest, box, 0)
	after := newSuccessors(t)
	well := next{version: firmware.Version{Minor: 2}, program: "cmd/gatehoused", before: []slot.Digest{sha256.Sum256(bad.bytes)}}
	after.rotation(t, &well)
	well.make(t)
	p.isKept(guest, box, &well, slot.B)
	p.onlyNewer(guest, &well, after)
	off(t, guest)

	cuts := newCuts(t, blank, m, chip(), &well)
	cuts.judge(t)
	if soak() {
		t.Run("older disk", func(t *testing.T) { cuts.older(t, box) })
		t.Run("older header", func(t *testing.T) { cuts.olderHeader(t, box) })
		last := cuts.another(t, p, box, after)
		t.Run("revoked", func(t *testing.T) { cuts.revoked(t) })
		t.Run("damaged", func(t *testing.T) { cuts.damaged(t, box, last) })
	}
	for _, c := range cuts.moments() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cuts.start(t, c, box)
		})
	}
}

// The sick ones that TestBOX4_UpdateIsKept leaves out go back as well, one after the other
// on one box.
func TestBOX4_SickOnesGoBack(t *testing.T) {
	t.Parallel()
	if !soak() {
		return
	}
	guest := startSick(t, reachable(secure(t, newDisk(t))))
	p, box := owned(t, guest)
	for i := range sick[1:] {
		p.goesBack(guest, box, i+1)
	}
	off(t, guest)
}

// goesBack brings a sick release, and sees the system before back by itself.
func (p *person) goesBack(guest *qemu.Guest, box line, which int) *next {
	t := p.t
	t.Helper()
	n, sign, reason := new(sick[which].release), sick[which].sign, sick[which].reason
	n.version = firmware.Version{Minor: 1, Patch: uint32(which) + 1}
	n.make(t)
	p.bring(n)
	boots.firmware.Add(2)
	say(t, guest, sign)
	// A trial has ten minutes to prove itself.
	if _, err := guest.WaitSerial(regexp.MustCompile(`gatehouse: systems: [^\r\n]*`+regexp.QuoteMeta(reason)), update.Patience+patience); err != nil {
		t.Fatal(err)
	}
	same(t, "after the sick one", state(t, guest, "ready", "url"), box)
	p.again()
	u := p.systems()
	if u.Stage != control.UpdateIdle || u.Last == nil || u.Last.Kept || !u.Last.Explained || !strings.Contains(u.Last.Reason, reason) || u.Running.Slot != "a" {
		t.Errorf("the page says %+v, last %+v", u, u.Last)
	}
	if status, body := p.post("/api/v1/update", "application/octet-stream", n.bundle(t)); status == http.StatusOK || !strings.Contains(body, "failed here before") {
		t.Errorf("taken again: %d %.500s", status, body)
	}
	return n
}

// isKept brings a release, and sees it kept: the same box, one restart, nobody asked.
func (p *person) isKept(guest *qemu.Guest, box line, n *next, in slot.Slot) {
	t := p.t
	t.Helper()
	ended := p.sends(n)
	boots.firmware.Add(1)
	version := regexp.QuoteMeta(n.version.String())
	say(t, guest, `gatehouse: systems: version `+version+` is tried`)
	same(t, "in the trial", state(t, guest, "ready", "url"), box)
	say(t, guest, `gatehouse: systems: version `+version+` is kept`)
	if words := ended(); !strings.Contains(words, n.version.String()+", ") || !strings.Contains(words, ", kept") {
		t.Errorf("the tool says %q", words)
	}
	p.again()
	var u control.Update
	for range 60 {
		if u = p.systems(); u.Stage == control.UpdateIdle && u.Newest == n.version.String() && len(u.Signers) == len(n.keys.Keys) {
			break
		}
		time.Sleep(time.Second)
	}
	if u.Running.Version != n.version.String() || u.Running.Slot != string(rune(in)) || u.Running.Epoch != n.epoch || u.Newest != n.version.String() || u.Last == nil || !u.Last.Kept || u.Other == nil {
		t.Errorf("the page says %+v, last %+v, other %+v", u, u.Last, u.Other)
	}
	if !slices.Equal(u.Signers, names(n.keys)) || u.Needed != n.keys.Threshold {
		t.Errorf("the next release is signed by %d of %v", u.Needed, u.Signers)
	}
	_, _, body := p.open("/api/v1/details")
	if !strings.Contains(body, `"grade":"A"`) {
		t.Errorf("after the update the grade is another: %.500s", body)
	}
	_, _, body = p.open("/audit")
	for _, want := range []string{"update offered", "update started", "restart for an update", "update kept", email, n.version.String()} {
		if !strings.Contains(body, want) {
			t.Errorf("the audit log has no %q:\n%s", want, body)
		}
	}
}

func names(k firmware.Keys) []string {
	var out []string
	for _, key := range k.Keys {
		out = append(out, keys.SignerName(key))
	}
	return out
}

// onlyNewer is a box that a release of the successors was kept on: it takes nothing of the
// keys before them, nothing older, and nothing of the epoch before; the system before,
// which opens nothing now, makes room for a second copy of the new one.
func (p *person) onlyNewer(guest *qemu.Guest, n *next, after successors) {
	t := p.t
	t.Helper()
	say(t, guest, `gatehouse: systems: slot a was filled anew`)
	if u := p.systems(); u.Other == nil || u.Other.State != "ready" || u.Other.Version != n.version.String() {
		t.Errorf("in the place of the system before is %+v", u.Other)
	}
	old := *n
	old.version, old.signers = firmware.Version{Minor: 3}, nil
	p.refuses(old, firmware.ErrSignatures.Error())
	one := *n
	one.version, one.signers = firmware.Version{Minor: 3}, n.signers[len(n.signers)-1:]
	p.refuses(one, firmware.ErrSignatures.Error())
	older := *n
	older.version, older.signers = firmware.Version{Minor: 1, Patch: 99}, after.All(after.Keys)
	p.refuses(older, firmware.ErrOlder.Error())
	before := *n
	before.version, before.signers, before.epoch = firmware.Version{Minor: 3}, after.All(after.Keys), n.epoch-1
	p.refuses(before, "the box has reached 2")
}
