package host

import (
	"errors"
	"io/fs"
	"maps"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/efivarfs"

	"gatehouse/firmware/bootentry"
)

const (
	globalGUID = "-8be4df61-93ca-11d2-aa0d-00e098032b8c"
	loaderGUID = "-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
)

func TestBOX4_HowItWasStartedIsRead(t *testing.T) {
	x := newTree(t, nil)
	if s, err := x.Started(); err != nil || s.Selected != "" || s.Current != nil {
		t.Errorf("without variables: %+v, %v", s, err)
	}
	x.vars = firmware{
		"LoaderEntrySelected" + loaderGUID: wide("gatehouse-b.efi\x00"), "LoaderImageIdentifier" + loaderGUID: wide(`\EFI\BOOT\BOOTX64.EFI` + "\x00"),
		"BootCurrent" + globalGUID: {3, 0}, "Boot0003" + globalGUID: []byte("an entry"),
	}
	s, err := x.Started()
	if err != nil || s.Selected != "gatehouse-b.efi" || s.Image != `\EFI\BOOT\BOOTX64.EFI` || string(s.Current) != "an entry" {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []firmware{{"BootCurrent" + globalGUID: {3}}, {"LoaderEntrySelected" + loaderGUID: {1}}, {"LoaderEntrySelected" + loaderGUID: wide(strings.Repeat("x", 600))}} {
		x.vars = bad
		if s, err := x.Started(); err == nil {
			t.Errorf("%v: %+v", bad, s)
		}
	}
	x.vars = firmware{"BootCurrent" + globalGUID: {3, 0}}
	if s, err := x.Started(); err != nil || s.Current != nil {
		t.Errorf("an entry that is gone: %+v, %v", s, err)
	}
}

// forgetful takes a variable and does not keep it.
type forgetful struct{ firmware }

func (forgetful) Set(efivarfs.VariableDescriptor, efivarfs.VariableAttributes, []byte) error {
	return nil
}

func TestBOX4_OneStartIsArmed(t *testing.T) {
	x := newTree(t, nil)
	if err := x.ArmOneShot("gatehouse-b.efi"); err == nil {
		t.Error("armed without variables")
	}
	x.vars = forgetful{firmware{}}
	if err := x.ArmOneShot("gatehouse-b.efi"); err == nil {
		t.Error("armed with a firmware that forgets")
	}
	f := firmware{}
	x.vars = f
	if there, err := x.DisarmOneShot(); there || err != nil {
		t.Errorf("disarmed what was not: %v, %v", there, err)
	}
	if err := x.ArmOneShot("gatehouse-b.efi"); err != nil || string(f["LoaderEntryOneShot"+loaderGUID]) != string(wide("gatehouse-b.efi\x00")) {
		t.Errorf("%v: %q", err, f)
	}
	if there, err := x.DisarmOneShot(); !there || err != nil || len(f) != 0 {
		t.Errorf("%v, %v: %q", there, err, f)
	}
	f["LoaderEntryDefault"+loaderGUID] = wide("x\x00")
	if there, err := x.ForgetDefault(); !there || err != nil || len(f) != 0 {
		t.Errorf("%v, %v: %q", there, err, f)
	}
}

func TestBOX4_BootMenuIsReadAndChanged(t *testing.T) {
	x := newTree(t, nil)
	if _, err := x.BootMenu(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without variables: %v", err)
	}
	f := firmware{
		"Boot0001" + globalGUID: []byte("one"), "Boot00AB" + globalGUID: []byte("two"), "BootOrder" + globalGUID: {0xab, 0, 1, 0},
		"BootCurrent" + globalGUID: {1, 0}, "Boot0002" + loaderGUID: []byte("another vendor's"),
	}
	x.vars = f
	m, err := x.BootMenu()
	if err != nil || len(m.Entries) != 2 || string(m.Entries[0xab]) != "two" || len(m.Order) != 2 || m.Order[0] != 0xab {
		t.Fatalf("%+v, %v", m, err)
	}
	was := maps.Clone(f)
	if err := x.ChangeBootMenu(bootentry.Change{Write: map[uint16][]byte{2: []byte("three")}, Order: []uint16{2, 1}, Remove: []uint16{0xab, 9}}); err != nil {
		t.Fatal(err)
	}
	was["Boot0002"+globalGUID], was["BootOrder"+globalGUID] = []byte("three"), []byte{2, 0, 1, 0}
	delete(was, "Boot00AB"+globalGUID)
	if !maps.EqualFunc(f, was, func(a, b []byte) bool { return string(a) == string(b) }) {
		t.Errorf("%q, want %q", f, was)
	}
	next := uint16(2)
	if err := x.ChangeBootMenu(bootentry.Change{Next: &next}); err != nil || string(f["BootNext"+globalGUID]) != "\x02\x00" {
		t.Errorf("the next start: %q, %v", f["BootNext"+globalGUID], err)
	}
	f["BootOrder"+globalGUID] = []byte{1}
	if _, err := x.BootMenu(); err == nil {
		t.Error("half an entry in the order was read")
	}
}

func TestBOX4_PanicIsFound(t *testing.T) {
	x := newTree(t, nil)
	if p := x.Panic(); p != "" {
		t.Errorf("without pstore: %q", p)
	}
	x.write("sys/fs/pstore/dmesg-efi-1", "<6>[ 1.0] all is well\n")
	if p := x.Panic(); !strings.Contains(p, "record of a crash") {
		t.Errorf("a record without a reason: %q", p)
	}
	x.write("sys/fs/pstore/dmesg-efi-2", "Panic#1 Part2\n<0>[ 3.1] Kernel panic - not syncing: Attempted to kill init!\x07 exitcode=0x00000100\n<0>[ 3.2] CPU: 0\n")
	if p := x.Panic(); !strings.HasPrefix(p, "Kernel panic - not syncing: Attempted to kill init!") || strings.Contains(p, "\x07") {
		t.Errorf("%q", p)
	}
}
