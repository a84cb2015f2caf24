package boot

import (
	"context"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"

	hashing "gatehouse/appliance/account/password"
	"gatehouse/appliance/control"
	"gatehouse/appliance/seed"
	"gatehouse/appliance/seed/fat"
	"gatehouse/image/disk"
	"gatehouse/image/uki"
)

// seeded is a new disk with a seed on it.
func seeded(t testing.TB, s seed.Seed) stage {
	t.Helper()
	box := stage{disk: newDisk(t), state: t.TempDir()}
	f, err := os.OpenFile(box.disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := disk.SetSeed(f, s); err != nil {
		t.Fatal(err)
	}
	return box
}

// seedFile is the file of the seed as it lies on the disk.
func (s stage) seedFile(t testing.TB) (part, fat.File) {
	t.Helper()
	p := s.partition(t, disk.SeedType)
	v, err := fat.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	f, err := v.Find(seed.File, seed.Size)
	if err != nil {
		t.Fatal(err)
	}
	return p, f
}

func (s stage) seedText(t testing.TB) string {
	t.Helper()
	p, f := s.seedFile(t)
	text, err := f.Read(p)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func fixedAddress() *control.NetworkSettings {
	return &control.NetworkSettings{Links: []control.LinkSettings{{
		Name: "eth0", Mode: "static", // the second address is where the machine's forwarded port leads
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.2.77/24"), netip.MustParsePrefix("10.0.2.15/24")},
		Gateways:  []netip.Addr{netip.MustParseAddr("10.0.2.2")},
	}}}
}

// hashed is the owner's password as a seed has it.
func hashed(t *testing.T) string {
	t.Helper()
	hash, err := hashing.NewHasher().Make(context.Background(), password)
	if err != nil {
		t.Fatal(err)
	}
	return hash
}

// An image with a seed is a box with an owner: at the address that was given,
// under the name that was given, and nobody is ever shown a code.
func TestBOX11_SeededBoxIsOwnedFromItsFirstStart(t *testing.T) {
	t.Parallel()
	hash := hashed(t)
	box := seeded(t, seed.Seed{Owner: &seed.Owner{Name: owner, Email: email, Password: hash}, HostName: "attic", Network: fixedAddress()})
	if !strings.Contains(box.seedText(t), hash) {
		t.Fatal("the seed is not where this test looks for it")
	}
	guest := start(t, box.machine(t))
	got := state(t, guest, "ready", "url")
	if got["name"] != "attic" || got["url"] != "https://10.0.2.77/" {
		t.Errorf("the box is %s at %s, want attic at https://10.0.2.77/", got["name"], got["url"])
	}
	if shown := regexp.MustCompile(`state=unclaimed|code=[^-\s]`).FindString(guest.Serial()); shown != "" {
		t.Errorf("on the way the console said %q", shown)
	}
	block(t, guest, "box of: "+email)
	p := visit(t, guest.Addr(443), nil)
	p.expect("ready", got)
	if status, at, body := p.send("/sign-in", "email", email, "password", password+"x"); at != "/sign-in" {
		t.Errorf("a wrong password led to %d %s:\n%s", status, at, body)
	}
	p.signIn()
	p.factor()
	off(t, guest)
	if text := box.seedText(t); strings.Contains(text, "argon2") || strings.Contains(text, email) || !strings.Contains(text, "used") {
		t.Errorf("after the claim the seed is still there:\n%s", text)
	}

	guest = start(t, box.machine(t))
	same(t, "after switching off and on", state(t, guest, "ready", "url"), got)
	off(t, guest)
}

// Nothing of a bad seed counts, and the console says why. Who then claims the
// box with the code owns it; the seed is overwritten at its next start.
func TestBOX11_BadSeedIsRefusedWithTheReason(t *testing.T) {
	t.Parallel()
	box := seeded(t, seed.Seed{HostName: "attic", Network: fixedAddress()})
	p, f := box.seedFile(t)
	bad := strings.Replace(box.seedText(t), `"host_name": "attic"`, `"lists": "open them"`, 1)
	if err := f.Overwrite(p, []byte(bad)); err != nil {
		t.Fatal(err)
	}
	guest := start(t, box.machine(t))
	got := state(t, guest, "unclaimed", "url", "code")
	block(t, guest, `unknown field "lists"`)
	if got["url"] == "https://10.0.2.77/" || got["name"] == "attic" {
		t.Errorf("something of the bad seed counts: %v", got)
	}
	claim(t, guest.Addr(443), got["code"])
	owned := state(t, guest, "ready", "url")
	off(t, guest)

	guest = start(t, box.machine(t))
	same(t, "after switching off and on", state(t, guest, "ready", "url"), owned)
	off(t, guest)
	if text := box.seedText(t); !strings.Contains(text, "used") || strings.Contains(text, "lists") {
		t.Errorf("the refused seed is still there:\n%s", text)
	}
}

// A seed that asks for Secure Boot leads to it without anybody's hand: firmware in
// set-up mode gets the keys of the image once the box has its owner, and the restart
// that follows opens what is sealed to a TPM, by the slot that was made before.
func TestBOX5_SeedTurnsSecureBootOn(t *testing.T) {
	if !soak() {
		return // two boots through firmware; TestBOX5_BoxEnrolsTheKeysOfItsImage enrols in every run
	}
	t.Parallel()
	box := seeded(t, seed.Seed{Owner: &seed.Owner{Name: owner, Email: email, Password: hashed(t)}, SecureBoot: seed.Enrol})
	boots.firmware.Add(1) // the box restarts by itself
	guest := start(t, box.firmware(t))
	if got, want := measured(t, guest, uki.Loader), unowned(t).Replay()[7]; got != want {
		t.Errorf("PCR 7 of a machine without keys is %x, the log leads to %x", got, want)
	}
	box.line = state(t, guest, "ready", "url")
	say(t, guest, "UEFI Secure Boot is enabled")
	if got, want := measured(t, guest, uki.LoaderSecure), foreseen(t); got != want {
		t.Errorf("PCR 7 with the keys that the seed asked for was foreseen as %x, and is %x", want, got)
	}
	same(t, "with Secure Boot on", state(t, guest, "ready", "url"), box.line)
	for _, bad := range []string{"state=unclaimed", "state=locked"} {
		if strings.Contains(guest.Serial(), bad) {
			t.Errorf("on the way the console said %s", bad)
		}
	}
	p := visit(t, guest.Addr(443), nil)
	p.signIn()
	p.factor()
	graded(t, guest, p, nil, "A", "the firmware starts nothing that is not signed")
	if k := p.keys(); len(tpmSlots(k)) != 1 || !k.SecureBoot.Ours || k.SecureBoot.CanEnrol || len(k.Notes) > 0 {
		t.Errorf("after the start that was foreseen the keys are %+v", k)
	}
	off(t, guest)
	if text := box.seedText(t); !strings.Contains(text, "used") {
		t.Errorf("the seed is still there:\n%s", text)
	}
}
