package boot

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatehouse/appliance/vault"
	"gatehouse/image/qemu"
	"gatehouse/tpm/hostid"
)

// A claimed box's disk in another machine, then without a TPM, then a header that
// says host id in the right one: locked, nothing opened, nothing changed. The
// recovery key opens it in either of the first two, and makes it the other
// machine's, which needs nobody from then on, but nothing weaker. Put back: as before.
func TestKEY6_MovedDiskAndForgedHeaderStayLocked(t *testing.T) {
	t.Parallel()
	_, owned := lives(t)
	box := owned.own(t)
	before := box.hash(t)

	moved := owned.own(t)
	moved.state = t.TempDir()
	locked := moved.locked(t, moved.machine(t), "The TPM here is not the one that the data is sealed to")
	if moved.hash(t) != before {
		t.Error("the other machine wrote to the disk")
	}
	recovers(t, locked, owned)
	off(t, locked)
	guest := start(t, moved.machine(t))
	same(t, "recovered in the other machine", state(t, guest, "ready", "url"), owned.line)
	p := visit(t, guest.Addr(443), nil)
	p.returns(owned.factor)
	if k := p.keys(); len(tpmSlots(k)) != 1 || k.Trust.Mechanism != "tpm" || k.Trust.Grade != "B" || len(k.Notes) > 0 {
		t.Errorf("recovered in the other machine the keys are %+v", k)
	}
	off(t, guest)

	without := owned.own(t)
	m := without.machine(t)
	m.NoTPM = true
	locked = without.locked(t, m, "The data is sealed to a TPM, and this machine has none.")
	if without.hash(t) != before {
		t.Error("a machine without a TPM wrote to the disk")
	}
	recovers(t, locked, owned)
	p = visit(t, locked.Addr(443), nil)
	p.returns(owned.factor)
	if k := p.keys(); k.Trust.Mechanism != "tpm" || k.Trust.Grade != "B" || len(k.Notes) != 1 || !strings.Contains(k.Notes[0], "It is needed again at the next start.") {
		t.Errorf("recovered without a TPM the keys are %+v", k)
	}
	off(t, locked)

	meta := box.partition(t, metaType)
	kept := make([]byte, meta.size)
	if _, err := meta.ReadAt(kept, 0); err != nil {
		t.Fatal(err)
	}
	forge(t, meta, box.uuid(t))
	forged := box.hash(t)
	off(t, box.locked(t, box.machine(t), "The TPM says that this machine is sealed to it, and the header says host-id"))
	if box.hash(t) != forged {
		t.Error("something was written to the disk under a forged header")
	}

	// Back in its own machine opens the disk that was without a TPM, too.
	guest = start(t, without.machine(t))
	again := state(t, guest, "ready", "url")
	same(t, "put back", again, owned.line)
	p = visit(t, guest.Addr(443), nil)
	p.expect("ready", again)
	p.returns(owned.factor)
	if k := p.keys(); len(k.Notes) > 0 {
		t.Errorf("put back the keys are %+v", k)
	}
	off(t, guest)
}

// locked starts a machine and hears on every face why it is locked.
func (s stage) locked(t testing.TB, m qemu.Machine, why string) *qemu.Guest {
	t.Helper()
	guest := start(t, m)
	got := state(t, guest, "locked", "url")
	if got["fingerprint"] == s.line["fingerprint"] {
		t.Error("locked, and the page has the certificate of the open box")
	}
	block(t, guest, why)
	visit(t, guest.Addr(443), nil).locked(got, why)
	if strings.Contains(guest.Serial(), "box of:") {
		t.Error("locked, and the console names an owner")
	}
	return guest
}

// forge writes a header of somebody's own making, whole and valid: a data key
// that he knows, kept under the machine's identifier.
func forge(t testing.TB, meta part, uuid string) {
	t.Helper()
	blank := make([]byte, meta.size)
	if _, err := meta.WriteAt(blank, 0); err != nil {
		t.Fatal(err)
	}
	id := hostid.ID{{Name: "dmi-uuid", Value: uuid}}
	v, err := vault.Create(t.Context(), vault.Config{Meta: meta, HostID: func() (hostid.ID, error) { return id, nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Wipe()
	if err := v.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 8)
	if _, err := meta.ReadAt(head, 0); err != nil || bytes.Equal(head, blank[:8]) {
		t.Fatalf("there is no forged header (%v)", err)
	}
}

// uuid is the machine's board identifier, as QEMU is told it.
func (s stage) uuid(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.state, "machine-id"))
	if err != nil {
		t.Fatal(err)
	}
	id := strings.TrimSpace(string(text))
	return strings.Join([]string{id[:8], id[8:12], id[12:16], id[16:20], id[20:]}, "-")
}

// A machine that never had a TPM says so on every face, and works.
func TestKEY3_WithoutTPMTheGradeIsC(t *testing.T) {
	t.Parallel()
	box := stage{disk: newDisk(t), state: t.TempDir()}
	m := box.machine(t)
	m.NoTPM = true
	guest := start(t, m)
	got := state(t, guest, "unclaimed", "url", "code")
	block(t, guest, "not hardware-protected")
	block(t, guest, "(grade C)")
	p := visit(t, guest.Addr(443), nil)
	p.own(got["code"])
	owned := state(t, guest, "ready", "url")
	same(t, "after the claim", owned, got)
	if _, at, body := p.open("/"); !strings.Contains(body, "Grade C") || !strings.Contains(body, "not hardware-protected") {
		t.Errorf("the status page at %s does not say grade C:\n%s", at, body)
	}
	off(t, guest)

	// The claim is in the header here: it must survive, and open by itself.
	guest = start(t, m)
	again := state(t, guest, "ready", "url")
	same(t, "after switching off and on", again, owned)
	block(t, guest, "(grade C)")
	off(t, guest)
}

// The disk put back to a copy from before the claim, into the machine that
// remembers the claim: nobody can claim it again, and its console can erase it.
func TestACC1_DiskFromBeforeTheClaim(t *testing.T) {
	t.Parallel()
	fresh, owned := lives(t)
	box := owned.own(t)
	copyDisk(t, fresh.disk, box.disk)
	guest := start(t, box.machine(t))
	got := state(t, guest, "locked", "url")
	const why = "this box has an owner, but its data is from before that"
	block(t, guest, why)
	visit(t, guest.Addr(443), nil).locked(got, why)

	choose(t, guest, "5")
	block(t, guest, "Type the name of the box")
	choose(t, guest, "yes")
	block(t, guest, "Nothing was done.")
	choose(t, guest, "5")
	block(t, guest, "Type the name of the box")
	choose(t, guest, got["name"])
	block(t, guest, "Once more:")
	boots.resets.Add(1)
	choose(t, guest, got["name"])
	say(t, guest, `gatehouse: state=starting`)
	anew := state(t, guest, "unclaimed", "url", "code")
	if anew["name"] == owned.line["name"] || anew["fingerprint"] == owned.line["fingerprint"] {
		t.Errorf("erased, and it is still the old box: %v", anew)
	}
	claim(t, guest.Addr(443), anew["code"])
	state(t, guest, "ready", "url")
	off(t, guest)
}
