package uki

import (
	"encoding/hex"
	"strings"
	"testing"

	"gatehouse/tpm/pcr"
)

// parts is a UKI in an order that is not the stub's, with what it does not measure.
func parts() []Section {
	return []Section{
		{".pcrpkey", []byte("key")}, {".initrd", []byte("archive")}, {".uname", []byte("6.1")}, {".cmdline", []byte("console=ttyS0 quiet")},
		{".osrel", []byte("ID=gatehouse\n")}, {".pcrsig", []byte("signatures")}, {".linux", []byte("kernel")},
	}
}

func TestRegistersRefuse(t *testing.T) {
	without := func(name string) (out []Section) {
		for _, s := range parts() {
			if s.Name != name {
				out = append(out, s)
			}
		}
		return out
	}
	line := func(text string) []Section { return append(without(".cmdline"), Section{".cmdline", []byte(text)}) }
	for name, c := range map[string]struct {
		sections []Section
		path     Path
		want     string
	}{
		"no kernel":            {without(".linux"), Direct, ".linux"},
		"no command line":      {without(".cmdline"), Direct, ".cmdline"},
		"another way":          {parts(), "shim", "shim"},
		"no way":               {parts(), "", "started"},
		"two lines":            {line("quiet\n"), Loader, "0x0a"},
		"a NUL":                {line("quiet\x00"), Direct, "0x00"},
		"not ASCII":            {line("quiet ä"), LoaderSecure, "0xc3"},
		"a tab, which is kept": {line("quiet\tgpt"), Loader, "0x09"},
	} {
		if v, err := Registers(c.sections, c.path); err == nil || !strings.Contains(err.Error(), c.want) || v != nil {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// The digests of parts were computed by Python's hashlib, from the rules alone.
func TestKEY10_RegistersOfEachPath(t *testing.T) {
	const system = "df945671a48d76afbf3eef3395c67529c889161914f850c1b4466c40c1f2e8e2"
	zero := strings.Repeat("0", 64)
	for path, given := range map[Path]string{
		Direct:       zero,
		LoaderSecure: "3ef8e1387a88262908b401101b8a8d6b0939f8d10dbaf1e52f05a95b612bae36",
		Loader:       "ba8fcc5d1a046e10889fb36a3ee059a6bf239e5836f5d9cdcf340250d12c40db",
	} {
		check(t, string(path), parts(), path, map[int]string{11: system, 12: given, 13: zero})
	}
	check(t, "kernel and command line alone", []Section{{".linux", []byte("kernel")}, {".cmdline", []byte("console=ttyS0 quiet")}}, Direct,
		map[int]string{11: "219076b3cb97594da99e8c1482e2eed871945bc68365e0ab0ad3eeeca7add4c5", 12: zero, 13: zero})
	if len(Paths()) != 3 {
		t.Errorf("Paths = %v", Paths())
	}
}

// PCR 12 of two starts under OVMF: those of tpm/eventlog/testdata.
func TestKEY10_CommandLineAsOnAMachine(t *testing.T) {
	line := Section{".cmdline", []byte("console=tty0 console=ttyS0,115200 consoleblank=0 gpt panic=10 loglevel=4 lockdown=integrity slab_nomerge rdinit=/init")}
	for path, given := range map[Path]string{
		LoaderSecure: "c4cc7019c57475ad9edfe1b3f1129e0eaa63e3965f5d139e08bb67fdb2696e9f",
		Loader:       "2048f8e2e5045d15b1f6494fc4c84c2406054b2e89778168e5cf7ba025c710e0",
	} {
		check(t, string(path), []Section{line, {".linux", []byte("kernel")}}, path, map[int]string{12: given})
	}
}

func check(t *testing.T, name string, sections []Section, p Path, want map[int]string) {
	t.Helper()
	got, err := Registers(sections, p)
	if err != nil {
		t.Fatal(err)
	}
	if got.Selection() != pcr.Select(11, 12, 13) {
		t.Errorf("%s: PCR %v", name, got.Selection())
	}
	for i, text := range want {
		if v := got[i]; hex.EncodeToString(v[:]) != text {
			t.Errorf("%s: PCR %d is %x, want %s", name, i, v, text)
		}
	}
}
