package boot

import (
	"encoding/binary"
	"encoding/json"
	"html"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"gatehouse/appliance/control"
	"gatehouse/image"
	"gatehouse/image/disk"
	"gatehouse/image/efivar"
	"gatehouse/image/keys"
	"gatehouse/image/qemu"
	"gatehouse/image/uki"
)

// enrolling is a box in whose firmware, in set-up mode, the keys of its image
// were written as its owner asked; then its power was cut.
type enrolling struct {
	stage
	before, after *qemu.Store // the firmware's variables around the writes
	writes        []string    // in their order
}

var enrolment struct {
	sync.Once
	box  enrolling
	done bool
}

// enrols returns the shared box. The first test that asks pays the start. The
// firmware starts the UKI itself, as by an entry of its menu: the third of the
// ways that are approved, beside those of TestACC1_ImageIsClaimedAndComesBack
// and TestBOX5_FirmwareStartsTheSignedImageAlone. Secure Boot is off so far, and
// every face says what that is worth.
func enrols(t testing.TB) enrolling {
	t.Helper()
	enrolment.Do(func() {
		whole, err := os.ReadFile(built(t, image.UKI))
		if err != nil {
			t.Fatal(err)
		}
		b := enrolling{stage: stage{disk: writeDisk(t, disk.File{Path: "EFI/BOOT/BOOTX64.EFI", Content: whole}), state: t.TempDir()}}
		guest := start(t, b.firmware(t))
		if got, want := measured(t, guest, uki.Direct), unowned(t).Replay()[7]; got != want {
			t.Errorf("PCR 7 of a machine without keys is %x, the log leads to %x", got, want)
		}
		b.line = state(t, guest, "unclaimed", "url", "code")
		c := claim(t, guest.Addr(443), b.line["code"])
		state(t, guest, "ready", "url")
		p := visit(t, guest.Addr(443), nil)
		p.signIn()
		b.factor = p.factor()
		p.lends(c)
		graded(t, guest, p, c, "B", "the boot chain is not enforced")
		b.recovery = c.recovery()

		if b.before, err = qemu.OpenStore(b.state); err != nil {
			t.Fatal(err)
		}
		if status, at, body := p.send("/keys/secure-boot"); at != "/system/restart" {
			t.Fatalf("enrolling led to %d %s:\n%s", status, at, body)
		}
		if err := guest.Kill(); err != nil {
			t.Fatal(err)
		}
		if b.after, err = qemu.OpenStore(b.state); err != nil {
			t.Fatal(err)
		}
		if b.writes, err = b.after.Since(b.before); err != nil {
			t.Fatal(err)
		}
		t.Logf("the firmware wrote %q", b.writes)
		order := slices.DeleteFunc(slices.Clone(b.writes), func(name string) bool { return !slices.Contains([]string{"db", "KEK", "PK"}, name) })
		if !slices.Equal(order, []string{"db", "KEK", "PK"}) {
			t.Fatalf("of the keys the firmware wrote %q", order)
		}
		b.stage = b.keep(t, "enrolled")
		enrolment.box, enrolment.done = b, !t.Failed()
	})
	if !enrolment.done {
		t.Fatal("the box that these tests share was not made; the first test that failed says why")
	}
	return enrolment.box
}

// own is a copy for one test, with firmware whose variables are these.
func (b enrolling) own(t testing.TB, vars *qemu.Store) stage {
	t.Helper()
	s := b.stage.own(t)
	if err := vars.Save(s.state); err != nil {
		t.Fatal(err)
	}
	return s
}

// firmware is a machine that has Secure Boot, and whatever keys are in its variables.
func (s stage) firmware(t testing.TB) qemu.Machine {
	t.Helper()
	return reachable(qemu.Machine{Disk: s.disk, State: s.state, Memory: 256, SecureBoot: &qemu.SecureBoot{}})
}

// graded compares what the faces say of the keys: API, page, tool and console.
func graded(t testing.TB, guest *qemu.Guest, p *person, c *tool, grade, words string) {
	t.Helper()
	trust := p.keys().Trust
	if trust.Grade != grade || !strings.Contains(trust.Sentence, words) {
		t.Errorf("the API says grade %s: %s", trust.Grade, trust.Sentence)
	}
	for _, path := range []string{"/", "/keys"} {
		_, _, body := p.open(path)
		text := strings.Join(strings.Fields(html.UnescapeString(body)), " ")
		for _, want := range []string{"Grade " + grade, trust.Sentence, trust.Raise} {
			if !strings.Contains(text, want) {
				t.Errorf("the page %s does not say %q:\n%s", path, want, text)
			}
		}
	}
	if c != nil {
		if text := c.run("keys", "--box", c.box); !strings.Contains(text, "Grade "+grade+". "+trust.Sentence+"\n"+trust.Raise) {
			t.Errorf("the tool says other words than the API, %q:\n%s", trust.Sentence, text)
		}
		var k control.Keys
		if err := json.Unmarshal([]byte(c.run("keys", "--box", c.box, "--json")), &k); err != nil || k.Trust != trust {
			t.Errorf("the tool says %+v (%v), the API %+v", k.Trust, err, trust)
		}
	}
	choose(t, guest, "") // has the block drawn once more
	block(t, guest, trust.Sentence+" (grade "+grade+")")
}

// keys is what the API says of the keys.
func (p *person) keys() (k control.Keys) {
	p.t.Helper()
	status, _, body := p.open("/api/v1/keys")
	if err := json.Unmarshal([]byte(body), &k); err != nil || status != 200 {
		p.t.Fatalf("the API answers %d %q (%v)", status, body, err)
	}
	return k
}

// The power is cut after the last of the keys. From then on the firmware starts
// nothing that is not ours, the data open by the slot that was made for it, and
// the grade is A on every face. Somebody had the firmware's menu give a command
// line of his: it is not what the kernel is started with.
func TestBOX5_BoxEnrolsTheKeysOfItsImage(t *testing.T) {
	t.Parallel()
	b := enrols(t)
	box := b.own(t, b.after)
	box.bootFrom(t, menuEntry{name: "ours, with a foreign command line", file: "EFI/BOOT/BOOTX64.EFI", options: foreignLine})
	guest := start(t, box.firmware(t))
	say(t, guest, `BdsDxe: starting Boot[0-9A-F]{4} "ours, with a foreign command line"`)
	say(t, guest, "UEFI Secure Boot is enabled")
	if got, want := measured(t, guest, uki.Direct), foreseen(t); got != want {
		t.Errorf("PCR 7 with the keys that the box enrolled was foreseen as %x, and is %x", want, got)
	}
	again := state(t, guest, "ready", "url")
	same(t, "with Secure Boot on", again, b.line)
	p := visit(t, guest.Addr(443), nil)
	p.returns(b.factor)
	graded(t, guest, p, nil, "A", "the firmware starts nothing that is not signed")
	if k := p.keys(); len(tpmSlots(k)) != 1 || !k.SecureBoot.Ours || k.SecureBoot.CanEnrol {
		t.Errorf("after the start that was foreseen the keys are %+v", k)
	}
	off(t, guest)
	if strings.Contains(guest.Serial(), foreignKernel) {
		t.Error("the kernel was started with a foreign command line")
	}
}

func tpmSlots(k control.Keys) []control.KeySlot {
	return slices.DeleteFunc(k.Slots, func(s control.KeySlot) bool { return s.Kind != "tpm" })
}

// A power cut while the keys are enrolled, in the firmware's own log of its
// variables: after each write and in the middle of each. The next start opens by
// itself. In the sample, db is written and KEK is torn; asked again, the box
// writes what is missing. The whole is booted in the soak, and the start
// after that, too.
func TestBOX5_PowerCutWhileKeysAreEnrolled(t *testing.T) {
	t.Parallel()
	b := enrols(t)
	type cut struct {
		after int
		torn  bool
	}
	sample := cut{slices.Index(b.writes, "KEK"), true}
	cuts := []cut{sample}
	if soak() {
		cuts = nil
		for n := range b.writes {
			cuts = append(cuts, cut{n, false}, cut{n, true})
		}
	}
	for _, c := range cuts {
		vars, err := b.after.Cut(b.before, c.after, c.torn)
		if err != nil {
			t.Fatal(err)
		}
		box := b.own(t, vars)
		t.Logf("the power is cut after %q, in the middle of the next one: %v", b.writes[:c.after], c.torn)
		guest := start(t, box.firmware(t))
		got := measured(t, guest, uki.Direct)
		if want := foreseen(t, keys.Programs); c == sample && got != want {
			t.Errorf("PCR 7 with db alone was foreseen as %x, and is %x", want, got)
		}
		same(t, "after the cut", state(t, guest, "ready", "url"), b.line)
		written := b.writes[:c.after]
		on := strings.Contains(guest.Serial(), "UEFI Secure Boot is enabled")
		if on != slices.Contains(written, "PK") {
			t.Errorf("after %q it is %v that Secure Boot is on", written, on)
		}
		if on {
			off(t, guest)
			continue
		}
		p := visit(t, guest.Addr(443), nil)
		p.returns(b.factor)
		if status, at, body := p.send("/keys/secure-boot"); at != "/system/restart" {
			t.Fatalf("asked again, enrolling led to %d %s:\n%s", status, at, body)
		}
		if err := guest.Kill(); err != nil {
			t.Fatal(err)
		}
		now, err := qemu.OpenStore(box.state)
		if err != nil {
			t.Fatal(err)
		}
		wrote, err := now.Since(vars)
		if err != nil || slices.Contains(wrote, "db") == slices.Contains(written, "db") || !slices.Contains(wrote, "PK") {
			t.Errorf("asked again, the box wrote %q (%v)", wrote, err)
		}
		if !soak() {
			continue
		}
		guest = start(t, box.firmware(t))
		if got, want := measured(t, guest, uki.Direct), foreseen(t); got != want {
			t.Errorf("PCR 7 with the keys that the box enrolled was foreseen as %x, and is %x", want, got)
		}
		state(t, guest, "ready", "url")
		block(t, guest, "(grade A)")
		off(t, guest)
	}
}

// The firmware forbids a program, as an update of its dbx does. PCR 7 is another
// one then, and no slot fits: locked, and the register is named. The recovery
// key, typed on the serial line, opens the box without a restart, and seals anew
// for the firmware as it is: the next start, by the reset button, needs nobody,
// and the grade is what it was.
func TestKEY8_ChangedKeysOfTheFirmware(t *testing.T) {
	t.Parallel()
	b := enrols(t)
	box := b.own(t, b.after)
	vars, err := qemu.OpenStore(box.state)
	if err != nil {
		t.Fatal(err)
	}
	if err := vars.Add(qemu.Variable{Name: "dbx", Vendor: efivar.ImageSecurity, Attributes: efivar.Attributes, Data: forbidden()}); err != nil {
		t.Fatal(err)
	}
	if err := vars.Save(box.state); err != nil {
		t.Fatal(err)
	}
	guest := start(t, box.firmware(t))
	say(t, guest, "UEFI Secure Boot is enabled")
	if measured(t, guest, uki.Direct) == foreseen(t) {
		t.Error("PCR 7 is the same with a program in dbx")
	}
	got := state(t, guest, "locked", "url")
	const why = "PCR 7 changed since the data was sealed: Secure Boot was switched, or its keys were changed."
	block(t, guest, why)
	visit(t, guest.Addr(443), nil).locked(got, why)
	recovers(t, guest, b.stage)
	block(t, guest, "(grade A)")

	boots.firmware.Add(1)
	if err := guest.Reset(); err != nil {
		t.Fatal(err)
	}
	say(t, guest, `gatehouse: measured path=direct`)
	same(t, "at the start after the recovery", state(t, guest, "ready", "url"), b.line)
	p := visit(t, guest.Addr(443), nil)
	p.returns(b.factor)
	graded(t, guest, p, nil, "A", "the firmware starts nothing that is not signed")
	k := p.keys()
	if s := tpmSlots(k); len(s) != 1 || !s[0].InUse || k.Recovery != "confirmed" || len(k.Notes) > 0 {
		t.Errorf("after the recovery the keys are %+v", k)
	}
	off(t, guest)
}

// With Secure Boot off the loader's part of the UKI does take a command line from
// the firmware's menu: the kernel is started with it, and PCR 12 says so. What is
// sealed to approved systems stays closed.
func TestKEY10_ForeignCommandLineOpensNothing(t *testing.T) {
	t.Parallel()
	b := enrols(t)
	box := b.own(t, b.before)
	box.bootFrom(t, menuEntry{name: "ours, with a foreign command line", file: "EFI/BOOT/BOOTX64.EFI", options: foreignLine})
	guest := start(t, box.firmware(t))
	say(t, guest, regexp.QuoteMeta(foreignKernel))
	say(t, guest, `gatehouse: measured path=- epoch=1 pcr7=`)
	got := state(t, guest, "locked", "url")
	const why = "The system that was started (PCR 11, 12, 13) is not one that our release key approves for this box."
	block(t, guest, why)
	visit(t, guest.Addr(443), nil).locked(got, why)
}

// recovers types the recovery key at the console of a locked box, a wrong one
// first. The box goes on without a restart, as the one it was.
func recovers(t testing.TB, guest *qemu.Guest, was stage) {
	t.Helper()
	starts := strings.Count(guest.Serial(), "gatehouse: measured")
	const question = "The recovery key of this box, eight groups of seven characters"
	choose(t, guest, "9")
	block(t, guest, question)
	choose(t, guest, was.recovery[:len(was.recovery)-7]+"0000000")
	block(t, guest, "It did not work:")
	choose(t, guest, "9")
	block(t, guest, question)
	choose(t, guest, was.recovery)
	same(t, "recovered", state(t, guest, "ready", "url"), was.line)
	if n := strings.Count(guest.Serial(), "gatehouse: measured"); n != starts {
		t.Error("the box was started anew to be recovered")
	}
}

// forbidden is a signature list with the SHA-256 of one program that is none of
// ours (UEFI 2.10, 32.4.1: EFI_CERT_SHA256_GUID).
func forbidden() []byte {
	le := binary.LittleEndian
	b := []byte{0x26, 0x16, 0xc4, 0xc1, 0x4c, 0x50, 0x92, 0x40, 0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28}
	b = le.AppendUint32(b, 28+16+32)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint32(b, 16+32)
	b = append(b, efivar.Global[:]...)
	return append(b, make([]byte, 32)...)
}
