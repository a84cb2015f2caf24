package boot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/google/uuid"

	"gatehouse/appliance/host"
	"gatehouse/appliance/host/hosttest"
	"gatehouse/appliance/update"
	"gatehouse/appliance/volume/esp"
	"gatehouse/firmware"
	"gatehouse/firmware/bootentry"
	"gatehouse/firmware/slot"
)

const (
	globalGUID = "-8be4df61-93ca-11d2-aa0d-00e098032b8c"
	loaderGUID = "-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
)

func wideText(s string) (out []byte) {
	for _, u := range append(utf16.Encode([]rune(s)), 0) {
		out = binary.LittleEndian.AppendUint16(out, u)
	}
	return out
}

var espPlace = bootentry.Partition{Number: 1, First: 2048, Sectors: 327680, ID: uuid.MustParse("01234567-89ab-4def-8123-456789abcdef")}

func directEntry(file string) []byte {
	return bootentry.Option{Active: true, Description: "x", Partition: espPlace, File: file}.Encode()
}

// twoSlots is a disk with both slots whole, unless it is said otherwise.
type twoSlots struct {
	update.Disk
	first   slot.Slot
	running slot.Slot
	damaged map[slot.Slot]bool
	commits int
	fail    error
}

func (d *twoSlots) Default() (slot.Slot, error) {
	if d.first == 0 {
		return 0, errors.New("it is not one that this box writes")
	}
	return d.first, nil
}

func (d *twoSlots) Check(s slot.Slot, _ slot.System) error {
	if d.damaged[s] {
		return fmt.Errorf("slot %s: %w", s, esp.ErrDamaged)
	}
	return nil
}

func (d *twoSlots) Commit() error {
	if d.fail != nil {
		return d.fail
	}
	d.commits++
	d.first = d.running
	return nil
}

// metaBytes is META in memory.
type metaBytes []byte

func (m metaBytes) ReadAt(p []byte, off int64) (int, error)  { return copy(p, m[off:]), nil }
func (m metaBytes) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }
func (m metaBytes) Sync() error                              { return nil }

var (
	systemA = slot.System{Version: firmware.Version{Minor: 1}, Epoch: 1, Size: 1000, SHA256: slot.Digest{1}}
	systemB = slot.System{Version: firmware.Version{Minor: 1, Patch: 1}, Epoch: 1, Size: 1000, SHA256: slot.Digest{2}}
)

// startOf is a box at the moment when it judges, with what the firmware says.
func startOf(t *testing.T, d *twoSlots, r slot.Record, v hosttest.Variables) (*box, *hosttest.Machine) {
	t.Helper()
	m := hosttest.New(t, nil)
	m.Firmware(v)
	b := &box{machine: m.Host, log: slog.New(slog.DiscardHandler), release: Release{Version: "0.1.1"}}
	b.end = func() {}
	s := &b.systems
	s.place, s.disk, s.variable = espPlace, d, true
	started, err := b.machine.Started()
	if err != nil {
		t.Fatal(err)
	}
	s.running, _ = runningSlot(started)
	d.running = s.running
	t.Cleanup(func() {
		if s.overdue != nil {
			s.overdue.Stop()
		}
	})
	meta := make(metaBytes, 1<<20)
	if err := slot.WriteRecord(meta, r); err != nil {
		t.Fatal(err)
	}
	b.undoChoice()
	if err := b.decide(meta, r, time.Now()); err != nil {
		t.Fatal(err)
	}
	return b, m
}

// deafMeta takes no writes.
type deafMeta struct{ metaBytes }

func (deafMeta) WriteAt([]byte, int64) (int, error) { return 0, errors.New("input/output error") }

// A trial of which nothing can be written down has its end all the same, and settles nothing.
func TestBOX4_TrialThatCannotBeRecordedIsOne(t *testing.T) {
	armed, err := slot.Record{A: &systemA, B: &systemB}.Begin(slot.B, false, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	b, _ := startOf(t, &twoSlots{first: slot.A}, slot.Record{A: &systemA, B: &systemB}, selectedIs(slot.B))
	if b.systems.overdue != nil {
		t.Fatal("it is on trial before it is said to be")
	}
	if err := b.decide(deafMeta{make(metaBytes, 1<<20)}, armed, time.Now()); err == nil {
		t.Error("nothing is said")
	}
	if s := &b.systems; !s.trial.Load() || s.overdue == nil || s.stands.Load() {
		t.Errorf("trial %v, its end %v, stands %v", s.trial.Load(), s.overdue, s.stands.Load())
	}
}

func selectedIs(s slot.Slot) hosttest.Variables {
	return hosttest.Variables{"LoaderEntrySelected" + loaderGUID: wideText(s.Entry())}
}

func TestBOX4_WhichSlotRuns(t *testing.T) {
	for name, c := range map[string]struct {
		started           host.Started
		running, selected slot.Slot
	}{
		"nothing is said":              {host.Started{}, 0, 0},
		"by the loader":                {host.Started{Selected: "gatehouse-b.efi", Current: directEntry(loaderFile)}, slot.B, slot.B},
		"by the firmware":              {host.Started{Current: directEntry(`\EFI\Linux\gatehouse-a.efi`)}, slot.A, 0},
		"by the firmware, in capitals": {host.Started{Current: directEntry(`\EFI\LINUX\GATEHOUSE-A.EFI`)}, slot.A, 0},
		"after the loader came back":   {host.Started{Selected: "gatehouse-b.efi", Current: directEntry(`\EFI\Linux\gatehouse-a.efi`)}, slot.A, slot.B},
		"another entry":                {host.Started{Selected: "windows.efi", Current: []byte("what the firmware made")}, 0, 0},
	} {
		if running, selected := runningSlot(c.started); running != c.running || selected != c.selected {
			t.Errorf("%s: %q runs, %q was selected", name, running, selected)
		}
	}
}

func TestBOX4_StartDecides(t *testing.T) {
	both := slot.Record{A: &systemA, B: &systemB}
	armed, err := both.Begin(slot.B, false, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	failed, _ := slot.Judge(armed, slot.Evidence{Default: slot.A, Running: slot.A, Selected: slot.A}, time.Now())
	direct := func(s slot.Slot, selected slot.Slot) hosttest.Variables {
		v := hosttest.Variables{"BootCurrent" + globalGUID: {3, 0}, "Boot0003" + globalGUID: directEntry(entryFile(s))}
		if selected != 0 {
			v["LoaderEntrySelected"+loaderGUID] = wideText(selected.Entry())
		}
		return v
	}
	for name, c := range map[string]struct {
		disk   twoSlots
		r      slot.Record
		v      hosttest.Variables
		trial  bool
		stands bool      // keys, counter and firmware follow what runs
		first  slot.Slot // that starts from now on
		mend   slot.Slot
		ended  string // part of why
	}{
		"an ordinary one":                {twoSlots{first: slot.A}, both, selectedIs(slot.A), false, true, slot.A, 0, ""},
		"a trial":                        {twoSlots{first: slot.A}, armed, selectedIs(slot.B), true, false, slot.A, 0, ""},
		"kept, and the power cut":        {twoSlots{first: slot.B}, armed, selectedIs(slot.B), false, true, slot.B, 0, ""},
		"the one after a trial":          {twoSlots{first: slot.A}, armed, selectedIs(slot.A), false, true, slot.A, 0, "ended before its first program ran"},
		"the firmware refused it":        {twoSlots{first: slot.A}, armed, direct(slot.A, slot.B), false, true, slot.A, 0, "would not load it"},
		"it was damaged":                 {twoSlots{first: slot.A, damaged: map[slot.Slot]bool{slot.B: true}}, armed, direct(slot.A, slot.B), false, true, slot.A, 0, "damaged"},
		"the first is damaged":           {twoSlots{first: slot.A, damaged: map[slot.Slot]bool{slot.A: true}}, both, direct(slot.B, slot.A), false, true, slot.B, slot.A, ""},
		"the firmware refuses the first": {twoSlots{first: slot.A}, both, direct(slot.B, slot.A), false, true, slot.B, slot.A, ""},
		"somebody chose the other":       {twoSlots{first: slot.A}, both, direct(slot.B, 0), false, false, slot.A, 0, ""},
		"somebody chose what failed":     {twoSlots{first: slot.A}, failed, selectedIs(slot.B), false, false, slot.A, 0, ""},
		"no loader.conf of ours":         {twoSlots{}, both, selectedIs(slot.B), false, true, slot.B, 0, ""},
		"no loader started it":           {twoSlots{first: slot.A}, both, nil, false, true, slot.A, 0, ""},
		"a trial, and no loader":         {twoSlots{first: slot.A}, armed, nil, false, false, slot.A, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			b, _ := startOf(t, &c.disk, c.r, c.v)
			s := &b.systems
			if s.trial.Load() != c.trial || s.stands.Load() != c.stands || c.disk.first != c.first || s.mend != c.mend {
				t.Errorf("trial %v, stands %v, %q starts, %q is mended; notes %q", s.trial.Load(), s.stands.Load(), c.disk.first, s.mend, s.notes)
			}
			switch {
			case c.ended == "" && s.ended != nil, c.ended != "" && (s.ended == nil || !strings.Contains(s.ended.Reason, c.ended)):
				t.Errorf("ended: %+v, want %q", s.ended, c.ended)
			}
		})
	}
}

// What a key at the boot menu chose for good is undone, and what no loader read is
// not left for the next one.
func TestBOX4_ChoicesAtTheMenuAreUndone(t *testing.T) {
	v := selectedIs(slot.A)
	v["LoaderEntryDefault"+loaderGUID], v["LoaderEntryOneShot"+loaderGUID] = wideText("gatehouse-b.efi"), wideText("gatehouse-b.efi")
	b, _ := startOf(t, &twoSlots{first: slot.A}, slot.Record{}, v)
	if len(v) != 1 || len(b.systems.notes) != 1 {
		t.Errorf("left: %q; notes %q", v, b.systems.notes)
	}
}

// A trial that does not open the data leaves at once, and says so to the next start.
func TestBOX4_TrialThatDoesNotOpenGoesBack(t *testing.T) {
	armed, err := slot.Record{A: &systemA, B: &systemB}.Begin(slot.B, false, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	b, _ := startOf(t, &twoSlots{first: slot.A}, armed, selectedIs(slot.B))
	b.locked = "PCR 7 is another"
	if !b.leaveTrial() || b.ending != "restart" {
		t.Error("it stays")
	}
	if e := b.systems.book.Record().Trial.End; e == nil || !e.Explained || !strings.Contains(e.Reason, "PCR 7 is another") {
		t.Errorf("recorded: %+v", e)
	}
	// A restart that follows does not make it a person's.
	b.power("off")
	if e := b.systems.book.Record().Trial.End; e == nil || !e.Explained {
		t.Errorf("recorded: %+v", e)
	}
	b, _ = startOf(t, &twoSlots{first: slot.A}, slot.Record{}, selectedIs(slot.A))
	if b.leaveTrial() {
		t.Error("an ordinary start of a locked box leaves")
	}
}

// Whoever restarts the box in a trial says nothing against the new system.
func TestBOX4_RestartInATrialExplainsNothing(t *testing.T) {
	armed, err := slot.Record{A: &systemA, B: &systemB}.Begin(slot.B, false, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	b, _ := startOf(t, &twoSlots{first: slot.A}, armed, selectedIs(slot.B))
	b.power("restart")
	if e := b.systems.book.Record().Trial.End; e == nil || e.Explained {
		t.Errorf("recorded: %+v", e)
	}
}

func TestBOX4_EntriesOfTheFirmware(t *testing.T) {
	v := selectedIs(slot.A)
	b, m := startOf(t, &twoSlots{first: slot.A}, slot.Record{}, v)
	b.setEntries([]slot.Slot{slot.B, slot.A})
	menu, err := m.BootMenu()
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, n := range menu.Order {
		o, err := bootentry.Decode(menu.Entries[n])
		if err != nil || o.Partition != espPlace || !o.Active {
			t.Errorf("%+v, %v", o, err)
		}
		files = append(files, o.File)
	}
	if !slices.Equal(files, []string{loaderFile, `\EFI\Linux\gatehouse-b.efi`, `\EFI\Linux\gatehouse-a.efi`}) {
		t.Errorf("%q", files)
	}
	b.setEntries([]slot.Slot{slot.A})
	if menu, _ = m.BootMenu(); len(menu.Entries) != 2 || len(menu.Order) != 2 {
		t.Errorf("%d entries, %v", len(menu.Entries), menu.Order)
	}
}

// A disk without slots has no other system to leave room for, unless one is on trial.
func TestBOX4_DiskWithoutSlotsSettles(t *testing.T) {
	armed, err := slot.Record{A: &systemA, B: &systemB}.Begin(slot.B, false, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		r      slot.Record
		v      hosttest.Variables
		stands bool
	}{
		"none at all":            {slot.Record{}, nil, true},
		"a trial":                {armed, nil, false},
		"the loader started one": {slot.Record{}, selectedIs(slot.B), false},
	} {
		meta, err := os.Create(filepath.Join(t.TempDir(), "meta"))
		if err != nil {
			t.Fatal(err)
		}
		defer meta.Close()
		if err := errors.Join(meta.Truncate(1<<20), slot.WriteRecord(meta, c.r)); err != nil {
			t.Fatal(err)
		}
		m := hosttest.New(t, nil)
		m.Firmware(c.v)
		b := &box{machine: m.Host, log: slog.New(slog.DiscardHandler), meta: meta}
		if err := b.judgeSystems(t.Context()); err == nil || b.systems.problem == "" || b.systems.stands.Load() != c.stands {
			t.Errorf("%s: stands %v, %q, %v", name, b.systems.stands.Load(), b.systems.problem, err)
		}
	}
}
