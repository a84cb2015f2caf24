package boot

import (
	"bytes"
	"debug/pe"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"

	"gatehouse/image"
	"gatehouse/image/disk"
	"gatehouse/image/efivar"
	"gatehouse/image/keys"
	"gatehouse/image/qemu"
	"gatehouse/image/uki"
	"gatehouse/tpm/eventlog"
	"gatehouse/tpm/pcr"
)

// measured waits for the box's line of its registers, and compares those of the
// system with what is foreseen for a way of starting. It returns PCR 7.
func measured(t *testing.T, guest *qemu.Guest, way uki.Path) (pcr7 [pcr.Size]byte) {
	t.Helper()
	line := say(t, guest, `gatehouse: measured path=(\S+) epoch=(\S+) pcr7=([0-9a-f]{64}) pcr11=([0-9a-f]{64}) pcr12=([0-9a-f]{64}) pcr13=([0-9a-f]{64})`)
	values := make(pcr.Values)
	for i, text := range map[int]string{7: line[3], 11: line[4], 12: line[5], 13: line[6]} {
		b, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		values[i] = [pcr.Size]byte(b)
		t.Logf("started as %s: PCR %d is %s", way, i, text)
	}
	if line[1] != string(way) || line[2] != "1" {
		t.Errorf("started as %s of epoch 1, the box says %s of epoch %s", way, line[1], line[2])
	}
	want, err := uki.Registers(sections(t), way)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range pcr.Changes(want, values) {
		t.Errorf("started as %s: foreseen for PCR %d was %x, and it is %x", way, c.Index, c.Old, c.New)
	}
	return values[7]
}

// sections are those of the built UKI, as its file holds them.
func sections(t *testing.T) (out []uki.Section) {
	t.Helper()
	f, err := pe.Open(built(t, image.UKI))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, s := range f.Sections {
		b, err := s.Data()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, uki.Section{Name: s.Name, Content: b[:min(len(b), int(s.VirtualSize))]})
	}
	return out
}

// unowned is the log of a start of this firmware that has no keys.
func unowned(t *testing.T) *eventlog.Log {
	t.Helper()
	b, err := os.ReadFile("../../tpm/eventlog/testdata/ovmf-setup.log")
	if err != nil {
		t.Fatal(err)
	}
	l, err := eventlog.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// foreseen is PCR 7 of a machine with the keys of the build, computed from the
// log of one without any.
func foreseen(t *testing.T) [pcr.Size]byte {
	t.Helper()
	set, err := keys.Load(built(t, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	list := func(r keys.Role) []byte { return efivar.SignatureList(set[r].Certificate) }
	const listHeader = 28 // of EFI_SIGNATURE_LIST; an entry follows
	v, err := eventlog.PredictSecureBoot(unowned(t), eventlog.State{Enabled: true, PK: list(keys.Platform), KEK: list(keys.Exchange),
		DB: list(keys.Programs), Authority: list(keys.Programs)[listHeader:]})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// The UKI started by the firmware itself, as by an entry of the boot menu: the
// third of the ways that are approved. The other two are those of
// TestACC1_ImageIsClaimedAndComesBack and TestBOX5_SignedImageStarts. The machine
// is in set-up mode; its owner has the box enrol the keys of its image, and from
// the next start on the firmware starts nothing else, the data open by the slot
// that was made for it, and the grade is A.
func TestBOX5_BoxEnrolsTheKeysOfItsImage(t *testing.T) {
	whole, err := os.ReadFile(built(t, image.UKI))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := disk.Write(f, []disk.File{{Path: "EFI/BOOT/BOOTX64.EFI", Content: whole}}, bytes.Repeat([]byte{7}, 32)); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(1 << 30); err != nil {
		t.Fatal(err)
	}
	guest := start(t, reachable(qemu.Machine{Disk: path, State: t.TempDir(), Memory: 256, SecureBoot: &qemu.SecureBoot{}}))
	if got, want := measured(t, guest, uki.Direct), unowned(t).Replay()[7]; got != want {
		t.Errorf("PCR 7 of a machine without keys is %x, the log leads to %x", got, want)
	}
	box := state(t, guest, "unclaimed", "url", "code")
	claim(t, guest.Addr(443), box["code"])
	state(t, guest, "ready", "url")
	p := visit(t, guest.Addr(443), nil)
	p.signIn()
	p.factor()
	if status, at, body := p.send("/keys/secure-boot"); at != "/system/restart" {
		t.Fatalf("enrolling led to %d %s:\n%s", status, at, body)
	}

	choose(t, guest, "3")
	say(t, guest, `Restart now\? Type yes`)
	choose(t, guest, "yes")
	boots.firmware.Add(1)
	say(t, guest, "UEFI Secure Boot is enabled")
	if got, want := measured(t, guest, uki.Direct), foreseen(t); got != want {
		t.Errorf("PCR 7 with the keys that the box enrolled was foreseen as %x, and is %x", want, got)
	}
	again := state(t, guest, "ready", "url")
	same(t, "with Secure Boot on", again, box)
	block(t, guest, "(grade A)")
	off(t, guest)
}
