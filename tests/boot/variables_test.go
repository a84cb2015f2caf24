package boot

import (
	"bytes"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/volume/esp"
	"gatehouse/firmware/bootentry"
	"gatehouse/firmware/slot"
	"gatehouse/image/efivar"
	"gatehouse/image/qemu"
)

// loaderVendor is whose the variables of the boot loader are (systemd's
// BOOT_LOADER_INTERFACE.md), as firmware stores a GUID.
var loaderVendor = efivar.GUID{0x82, 0xb0, 0x67, 0x4a, 0x4c, 0x0a, 0xcf, 0x41, 0xb6, 0xc7, 0x44, 0x0b, 0x29, 0xbb, 0x8c, 0x4f}

const defaultVariable = "LoaderEntryDefault"

// slots is the EFI system partition of a machine that is off, of which the system
// of one slot ran last.
func (s stage) slots(t *testing.T, ran slot.Slot) (*esp.Partition, part) {
	t.Helper()
	p := s.partition(t, espType)
	e, err := esp.Open(p, ran)
	if err != nil {
		t.Fatal(err)
	}
	return e, p
}

// double fills slot B with the system of slot A, as mending does.
func (s stage) double(t *testing.T) {
	t.Helper()
	e, _ := s.slots(t, slot.A)
	in, err := e.Content(slot.A)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := io.ReadAll(in)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Copy(slot.A, slot.B, slot.System{Size: int64(len(whole)), SHA256: sha256.Sum256(whole)}); err != nil {
		t.Fatal(err)
	}
}

// spoil overwrites a sector of a slot.
func (s stage) spoil(t *testing.T, where slot.Slot, at int64) {
	t.Helper()
	e, p := s.slots(t, 0)
	_, from, _ := e.Room(where).Outer()
	if _, err := p.WriteAt(bytes.Repeat([]byte{0xa5}, sector), from+at); err != nil {
		t.Fatal(err)
	}
}

// forgets is a machine that lost what is in its firmware's variables.
func forgets(t *testing.T, m qemu.Machine) {
	t.Helper()
	if err := os.Remove(filepath.Join(m.State, "uefi-vars.fd")); err != nil {
		t.Fatal(err)
	}
}

// variables are those that count in a machine, which may run.
func variables(t *testing.T, m qemu.Machine) []qemu.Variable {
	t.Helper()
	for late := time.Now().Add(patience); ; time.Sleep(time.Second) {
		var all []qemu.Variable
		store, err := qemu.OpenStore(m.State)
		if err == nil {
			all, err = store.Valid()
		}
		if err == nil {
			return all
		}
		if time.Now().After(late) { // else the firmware is writing
			t.Fatal(err)
		}
	}
}

// chooses has the boot loader start a slot from now on, as a key at its menu does.
func chooses(t *testing.T, m qemu.Machine, s slot.Slot) {
	t.Helper()
	store, err := qemu.OpenStore(m.State)
	if err == nil {
		err = store.Add(qemu.Variable{Name: defaultVariable, Vendor: loaderVendor, Attributes: 1 | 2 | 4, Data: wide(s.Entry())})
	}
	if err == nil {
		err = store.Save(m.State)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// undone sees that the box took that choice back.
func undone(t *testing.T, m qemu.Machine) {
	t.Helper()
	if slices.ContainsFunc(variables(t, m), func(v qemu.Variable) bool { return v.Name == defaultVariable }) {
		t.Error("what a key at the boot menu chose is still there")
	}
}

// menu is what the firmware's boot menu has of entries that the box makes, in order.
func menu(t *testing.T, m qemu.Machine) (names []string) {
	t.Helper()
	entries := make(map[uint16]string)
	var order []uint16
	for _, v := range variables(t, m) {
		if n, ok := bootentry.Number(v.Name); ok {
			if o, err := bootentry.Decode(v.Data); err == nil {
				entries[n] = o.Description
			}
		}
		if v.Name == "BootOrder" {
			var err error
			if order, err = bootentry.Order(v.Data); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, n := range order {
		if entries[n] != "" {
			names = append(names, entries[n])
		}
	}
	return names
}

// entered waits until the box has made its entries, which it does beside its start.
func entered(t *testing.T, m qemu.Machine, want ...string) {
	t.Helper()
	var got []string
	for late := time.Now().Add(patience); time.Now().Before(late); time.Sleep(time.Second) {
		if got = menu(t, m); slices.Equal(got, want) {
			return
		}
	}
	t.Errorf("the firmware's boot menu has %q of the box, want %q", got, want)
}

// A box under Secure Boot and with a TPM loses what its firmware kept, as the
// table of docs/firmware.md has it: the entries; the choice of a person at the
// boot menu takes their place; then the slot that starts is no program any more;
// then the keys. At last the one thing that stops: no entries, and a damaged
// system that the boot loader takes for one.
func TestBOX4_LostVariables(t *testing.T) {
	if !soak() {
		return // six boots through firmware; which slot starts and why is in firmware/slot in every run
	}
	t.Parallel()
	m := reachable(secure(t, newDisk(t)))
	box := stage{disk: m.Disk, state: m.State}
	box.double(t)
	guest := start(t, m)
	line := state(t, guest, "unclaimed", "url", "code")
	entered(t, m, "Gatehouse", "Gatehouse, slot a")
	off(t, guest)
	const other = "gatehouse: systems: the boot loader started slot b in the place of slot a: it did not find that, or somebody chose"

	forgets(t, m)
	guest = start(t, m)
	same(t, "without entries", state(t, guest, "unclaimed", "url", "code"), line)
	entered(t, m, "Gatehouse", "Gatehouse, slot a")
	off(t, guest)
	if strings.Contains(guest.Serial(), "gatehouse: systems:") {
		t.Error("without entries another slot was started than loader.conf names")
	}

	chooses(t, m, slot.B)
	guest = start(t, m)
	say(t, guest, other)
	same(t, "with another default of the boot menu", state(t, guest, "unclaimed", "url", "code"), line)
	entered(t, m, "Gatehouse", "Gatehouse, slot a", "Gatehouse, slot b")
	off(t, guest)
	undone(t, m)
	e, _ := box.slots(t, 0)
	if named, err := e.Default(); err != nil || named != slot.A {
		t.Errorf("loader.conf names %v (%v), want slot a", named, err)
	}

	forgets(t, m)
	box.spoil(t, slot.A, 0)
	guest = start(t, m)
	say(t, guest, other)
	same(t, "from the other slot", state(t, guest, "unclaimed", "url", "code"), line)
	say(t, guest, `gatehouse: systems: slot a was filled anew`)
	off(t, guest)
	e, _ = box.slots(t, 0)
	named, err := e.Default()
	a, _, errA := e.Digest(slot.A)
	b, _, errB := e.Digest(slot.B)
	if err != nil || errA != nil || errB != nil || named != slot.B || a != b {
		t.Errorf("loader.conf names %v (%v), the slots hold %x (%v) and %x (%v)", named, err, a, errA, b, errB)
	}

	keyless := m
	keyless.SecureBoot = &qemu.SecureBoot{}
	forgets(t, keyless)
	guest = start(t, keyless)
	state(t, guest, "locked", "url")
	block(t, guest, "PCR 7 changed since the data was sealed: Secure Boot was switched, or its keys were changed.")
	off(t, guest)

	forgets(t, m)
	box.spoil(t, slot.B, 1<<20)
	guest = start(t, m)
	say(t, guest, `(?i)Security Violation|Access Denied|Error loading`)
	say(t, guest, `BdsDxe: failed to start Boot[0-9A-F]{4}`)
	say(t, guest, `BdsDxe: No bootable option or device was found|UEFI Interactive Shell|Press any key`)
	if err := guest.Kill(); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(guest.Serial(), "gatehouse: ") {
		t.Error("a damaged system was started")
	}
}
