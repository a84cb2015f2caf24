package boot

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatehouse/appliance/seed"
	"gatehouse/appliance/seed/fat"
	"gatehouse/image"
	"gatehouse/image/disk"
	"gatehouse/image/qemu"
	"gatehouse/image/target"
)

// foreignDisk is one that holds somebody's data.
func foreignDisk(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, bytes.Repeat([]byte("old "), 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<30); err != nil {
		t.Fatal(err)
	}
	return path
}

// serial is the serial number that a machine's disk has.
func (s stage) serial(t *testing.T) string {
	t.Helper()
	if err := (qemu.Machine{State: s.state, Kernel: "none"}).Prepare(); err != nil {
		t.Fatal(err)
	}
	id, err := os.ReadFile(filepath.Join(s.state, "machine-id"))
	if err != nil {
		t.Fatal(err)
	}
	return string(id[:20])
}

// seedStick is a USB stick with a seed and nothing else on it, as a person makes one.
func seedStick(t *testing.T, s seed.Seed) string {
	t.Helper()
	text, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	b, err := fat.Format(1<<20, seed.Label, seed.File, text)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "stick.img")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// installer is the medium that installs, in a machine started without firmware.
func (s stage) installer(t *testing.T, stick string) qemu.Machine {
	t.Helper()
	m := direct(t)
	m.Append = image.CommandLine(target.AMD64)
	m.Disk, m.State, m.CD, m.Stick = s.disk, s.state, built(t, image.DiskISO), stick
	return m
}

// refuses sees that a medium writes nothing to the disk, and says why.
func (s stage) refuses(t *testing.T, m qemu.Machine, why string) {
	t.Helper()
	before, err := os.ReadFile(s.disk)
	if err != nil {
		t.Fatal(err)
	}
	guest := start(t, m)
	state(t, guest, "locked")
	choose(t, guest, "") // has the block drawn once more
	block(t, guest, "this is the medium that installs")
	block(t, guest, why)
	if err := guest.Kill(); err != nil {
		t.Fatal(err)
	}
	if now, err := os.ReadFile(s.disk); err != nil || !bytes.Equal(now, before) {
		t.Errorf("the disk was written to (%v)", err)
	}
}

// A seed on a stick beside the CD that installs names the disk. One that names
// none that is there has nothing written, and neither has one whose disk holds a
// box. Else nobody is asked: the disk is written, and started although firmware
// would begin with the CD, and the box belongs to whom the seed names.
func TestBOX3_SeedInstalls(t *testing.T) {
	if !soak() {
		return // TestBOX3_MediumInstalls installs in every run
	}
	t.Parallel()
	box := stage{disk: foreignDisk(t), state: t.TempDir()}
	wants := func(serial string) seed.Seed {
		return seed.Seed{Owner: &seed.Owner{Name: owner, Email: email, Password: hashed(t)}, HostName: "attic", Install: &seed.Install{Serial: serial}}
	}
	serial := box.serial(t)
	box.refuses(t, box.installer(t, seedStick(t, wants(serial[1:]))), "no disk has the serial number "+serial[1:])

	stick := seedStick(t, wants(serial))
	boots.firmware.Add(1) // the machine restarts by itself
	guest := start(t, reachable(qemu.Machine{Disk: box.disk, State: box.state, CD: built(t, image.DiskISO), Stick: stick, Memory: 256}))
	say(t, guest, "Installing, as the seed says, to vda")
	say(t, guest, "Installed to vda, and compared")
	box.line = state(t, guest, "ready", "url")
	if box.line["name"] != "attic" {
		t.Errorf("the box is %s, want attic", box.line["name"])
	}
	box.isOwned(t, guest)
	off(t, guest)
	if text, err := os.ReadFile(stick); err != nil || bytes.Contains(text, []byte("argon2")) || !bytes.Contains(text, []byte(`"used"`)) {
		t.Errorf("the seed is still on its stick (%v)", err)
	}

	box.refuses(t, box.installer(t, seedStick(t, wants(serial))), "vda holds a Gatehouse already")
	guest = start(t, reachable(qemu.Machine{Disk: box.disk, State: box.state, Memory: 256}))
	same(t, "after the medium was tried again", state(t, guest, "ready", "url"), box.line)
	off(t, guest)
}

// The same medium written to a USB stick, with the seed on it, and a SATA disk.
// Firmware finds nothing on the disk and takes the stick, which stays in: later
// starts are the disk's.
func TestBOX3_StickInstallsBySeed(t *testing.T) {
	if !soak() {
		return
	}
	t.Parallel()
	box := stage{disk: foreignDisk(t), state: t.TempDir()}
	stick := filepath.Join(t.TempDir(), "stick.img")
	copyDisk(t, built(t, image.DiskISO), stick)
	f, err := os.OpenFile(stick, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = disk.SetSeed(f, seed.Seed{Owner: &seed.Owner{Name: owner, Email: email, Password: hashed(t)}, Install: &seed.Install{Serial: box.serial(t)}})
	if err != nil {
		t.Fatal(err)
	}
	m := reachable(qemu.Machine{Disk: box.disk, SATA: true, State: box.state, Stick: stick, Memory: 256})
	boots.firmware.Add(1) // the machine restarts by itself
	guest := start(t, m)
	to := say(t, guest, `Installing, as the seed says, to (sd[ab])`)[1]
	say(t, guest, "Installed to "+to+", and compared")
	box.line = state(t, guest, "ready", "url")
	box.isOwned(t, guest)
	off(t, guest)

	guest = start(t, m)
	same(t, "with the stick still in", state(t, guest, "ready", "url"), box.line)
	off(t, guest)
	if text := guest.Serial(); strings.Contains(text, "the medium that installs") {
		t.Error("the stick was started once more")
	}
}

// isOwned signs in as whom the seed names, and sees that nobody was shown a code.
func (s stage) isOwned(t *testing.T, guest *qemu.Guest) {
	t.Helper()
	if strings.Contains(guest.Serial(), "state=unclaimed") {
		t.Error("on the way the box could be claimed by a code")
	}
	p := visit(t, guest.Addr(443), nil)
	p.expect("ready", s.line)
	p.signIn()
	p.factor()
}
