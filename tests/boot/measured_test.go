package boot

import (
	"debug/pe"
	"encoding/hex"
	"os"
	"slices"
	"testing"

	"gatehouse/image"
	"gatehouse/image/efivar"
	"gatehouse/image/keys"
	"gatehouse/image/qemu"
	"gatehouse/image/uki"
	"gatehouse/tpm/eventlog"
	"gatehouse/tpm/pcr"
)

// measured waits for the box's line of its registers, and compares those of the
// system with what is foreseen for a way of starting. It returns PCR 7.
func measured(t testing.TB, guest *qemu.Guest, way uki.Path) (pcr7 [pcr.Size]byte) {
	t.Helper()
	return measuredOf(t, guest, image.UKI, way)
}

// measuredOf is the same of another system than the usual one.
func measuredOf(t testing.TB, guest *qemu.Guest, system string, way uki.Path) (pcr7 [pcr.Size]byte) {
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
	want, err := uki.Registers(sectionsOf(t, system), way)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range pcr.Changes(want, values) {
		t.Errorf("started as %s: foreseen for PCR %d was %x, and it is %x", way, c.Index, c.Old, c.New)
	}
	return values[7]
}

// sections are those of the built UKI, as its file holds them.
func sections(t testing.TB) []uki.Section {
	t.Helper()
	return sectionsOf(t, image.UKI)
}

func sectionsOf(t testing.TB, system string) (out []uki.Section) {
	t.Helper()
	f, err := pe.Open(built(t, system))
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
func unowned(t testing.TB) *eventlog.Log {
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

// foreseen is PCR 7 of a machine with the keys of the build, or with some of
// them, computed from the log of one without any.
func foreseen(t testing.TB, some ...keys.Role) [pcr.Size]byte {
	t.Helper()
	set, err := keys.Load(built(t, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	list := func(r keys.Role) []byte {
		if len(some) > 0 && !slices.Contains(some, r) {
			return nil
		}
		return efivar.SignatureList(set[r].Certificate)
	}
	const listHeader = 28 // of EFI_SIGNATURE_LIST; an entry follows
	want := eventlog.State{PK: list(keys.Platform), KEK: list(keys.Exchange), DB: list(keys.Programs)}
	if want.Enabled = want.PK != nil; want.Enabled { // who vouches is measured only where it counts
		want.Authority = want.DB[listHeader:]
	}
	v, err := eventlog.PredictSecureBoot(unowned(t), want)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
