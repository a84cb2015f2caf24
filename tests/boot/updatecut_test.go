package boot

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatehouse/appliance/volume/esp/esptest"
	"gatehouse/firmware"
	"gatehouse/firmware/slot"
	"gatehouse/image"
	"gatehouse/image/authenticode"
	"gatehouse/image/qemu"
)

// cuts are the places where the power could be cut in a log of a box's writes.
type cuts struct {
	blank   string
	machine qemu.Machine
	tpm     momentsOf
	log     []request
	old     slot.Digest
	well    *next

	// Requests by which the log came so far: a system failed and the one before was
	// back, the good one was written in part, its trial began, loader.conf named it.
	back, half, trial, commit int
}

func newCuts(t testing.TB, blank string, m qemu.Machine, chip momentsOf, well *next) *cuts {
	t.Helper()
	c := &cuts{blank: blank, machine: m, tpm: chip, log: readLog(t, m.WriteLog), well: well}
	b, err := os.ReadFile(built(t, image.UKI))
	if err != nil {
		t.Fatal(err)
	}
	c.old = sha256.Sum256(b)
	return c
}

// digests are what a slot may hold as a whole.
func (c *cuts) digests() []slot.Digest {
	return []slot.Digest{c.old, sha256.Sum256(c.well.bytes)}
}

// judge replays the log. After each request that touches the folders of the EFI
// system partition, loader.conf or the record, and after samples of the others, the
// disk has to be one that starts a whole system; the first are also torn within each
// of their sectors.
func (c *cuts) judge(t testing.TB) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "judged.img")
	copyDisk(t, c.blank, name)
	disk, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	info, err := disk.Stat()
	if err != nil {
		t.Fatal(err)
	}
	espAt, espSize, metaAt, _, err := esptest.Places(disk, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	judged, every := 0, max(1, len(c.log)/200)
	if soak() {
		every = max(1, len(c.log)/2000)
	}
	sum := sha256.Sum256(c.well.bytes)
	look := func(at int, what string) esptest.Found {
		judged++
		found, err := esptest.Judge(disk, info.Size(), append(c.digests(), c.well.before...)...)
		if err != nil {
			t.Fatalf("a power cut at request %d of %d, %s: %v", at, len(c.log), what, err)
		}
		return found
	}
	var written int64
	for i, r := range c.log {
		inESP := r.touches(espAt, espAt+espSize)
		if inESP && r.at > espAt && len(r.data) > sector {
			written += int64(len(r.data))
		}
		small := len(r.data) > 0 && len(r.data) <= 16*sector && (inESP || r.touches(metaAt+512<<10, metaAt+640<<10))
		if small && bytes.HasPrefix(r.data, []byte("GHSLOTS1")) || small && inESP {
			before := make([]byte, len(r.data))
			if _, err := disk.ReadAt(before, r.at); err != nil {
				t.Fatal(err)
			}
			for _, torn := range esptest.Torn() {
				last := (len(r.data)/sector - 1) * sector
				r.replay(t, disk, last+torn)
				look(i, "torn")
				if _, err := disk.WriteAt(before, r.at); err != nil {
					t.Fatal(err)
				}
			}
		}
		r.replay(t, disk, len(r.data))
		if !small && i%every != 0 {
			continue
		}
		found := look(i, "whole")
		tr := found.Record.Trial
		switch {
		case tr != nil && tr.System.SHA256 == sum && c.trial == 0:
			c.trial = i
		case found.Default == slot.B && c.commit == 0:
			c.commit = i
		}
		if len(found.Record.Verdicts) > 0 && c.back == 0 {
			c.back = i
		}
		if found.Record.B == nil && c.trial == 0 {
			c.half = i // the last one before the slot was whole: near the end of the write
		}
	}
	t.Logf("%d requests, %d disks judged; the trial begins at request %d, the commit is %d", len(c.log), judged, c.trial, c.commit)
	if c.trial == 0 || c.commit <= c.trial || c.half == 0 || c.half >= c.trial {
		t.Fatalf("the log does not show an update: %+v", []int{c.half, c.trial, c.commit})
	}
}

// cutAt is one that is truly started.
type cutAt struct {
	name string
	upTo int
	slot string // that runs after it
}

func (c *cuts) moments() []cutAt {
	out := []cutAt{
		{"while it was written", c.half, "a"},
		{"in the trial", (c.trial + c.commit) / 2, "a"},
		{"right after the commit", c.commit + 1, "b"},
	}
	if !soak() {
		return out
	}
	const many = 200
	for i := range many - len(out) {
		at := cutAt{upTo: c.back + 1 + i*(len(c.log)-c.back-2)/many, slot: "a"}
		if at.upTo > c.commit {
			at.slot = "b"
		}
		at.name = fmt.Sprintf("at request %d", at.upTo)
		out = append(out, at)
	}
	return out
}

// start starts the disk of a moment, with the TPM of then, and firmware that forgot
// all variables but its keys.
func (c *cuts) start(t testing.TB, at cutAt, box line) {
	t.Helper()
	s := stage{disk: filepath.Join(t.TempDir(), "disk.img"), state: t.TempDir()}
	copyDisk(t, c.blank, s.disk)
	s.upTo(t, c.log[:at.upTo])
	m := reachable(secure(t, s.disk))
	m.State = s.state
	c.tpm.before(c.log[at.upTo].logged).restore(t, c.machine.State, s.state)
	guest := start(t, m)
	same(t, "after the cut", state(t, guest, "ready", "url"), box)
	if want := map[string]string{"a": "0.1.0", "b": c.well.version.String()}[at.slot]; want == "" {
		t.Error(at.slot)
	} else {
		block(t, guest, want)
	}
}

// at is a copy of the box's disk as it was after so many requests, and of its TPM as it is.
func (c *cuts) at(t testing.TB, requests int) stage {
	t.Helper()
	s := stage{disk: filepath.Join(t.TempDir(), "disk.img"), state: filepath.Join(t.TempDir(), "state")}
	copyDisk(t, c.blank, s.disk)
	s.upTo(t, c.log[:requests])
	if err := os.CopyFS(s.state, os.DirFS(c.machine.State)); err != nil {
		t.Fatal(err)
	}
	return s
}

// older is the disk of before the update, in the machine whose TPM has seen the raised
// epoch: nothing opens.
func (c *cuts) older(t *testing.T, box line) {
	t.Helper()
	s := c.at(t, c.half)
	s.line = box
	m := reachable(secure(t, s.disk))
	m.State = s.state
	off(t, s.locked(t, m, "older"))
}

// olderHeader is the new system with the header of the keys of before.
func (c *cuts) olderHeader(t *testing.T, box line) {
	t.Helper()
	before, s := c.at(t, c.half).partition(t, metaType), c.at(t, len(c.log))
	header := make([]byte, 128<<10)
	if _, err := before.ReadAt(header, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.partition(t, metaType).WriteAt(header, 0); err != nil {
		t.Fatal(err)
	}
	s.line = box
	m := reachable(secure(t, s.disk))
	m.State = s.state
	off(t, s.locked(t, m, "older"))
}

// another is the release after the rotation, by the successors alone. It has the firmware
// refuse the first system, by a list that KEK signed.
func (c *cuts) another(t *testing.T, p *person, box line, after successors) *next {
	t.Helper()
	m := c.machine
	m.WriteLog = ""
	m.Forward = map[int]string{443: p.tool.box} // by which the tool knows it
	guest := start(t, m)
	same(t, "switched on", state(t, guest, "ready", "url"), box)
	n := next{version: firmware.Version{Minor: 3}, program: "cmd/gatehoused"}
	after.release(&n)
	first, err := os.ReadFile(built(t, image.UKI))
	if err == nil {
		first, err = authenticode.Unsigned(first)
	}
	if err != nil {
		t.Fatal(err)
	}
	sum, err := authenticode.Digest(first)
	if err != nil {
		t.Fatal(err)
	}
	n.revoked = [][32]byte{sum}
	n.make(t)
	p.again()
	p.isKept(guest, box, &n, slot.A)
	say(t, guest, `gatehouse: systems: slot b was filled anew`) // before one of the two is refused
	say(t, guest, `gatehouse: keys: the firmware refuses what version 0\.3\.0 revokes: 1`)
	off(t, guest)
	return &n
}

// damaged is the box with a sector of the slot that starts changed. The loader comes back
// from it without having started anything, the firmware goes on to its next entries,
// and the system of the other slot, the same by now, fills the damaged one anew.
func (c *cuts) damaged(t *testing.T, box line, starts *next) {
	t.Helper()
	m := c.machine
	m.WriteLog = ""
	disk, err := os.OpenFile(m.Disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	at := find(t, disk, starts.bytes[:sector]) + int64(len(starts.bytes))/2
	if _, err := disk.WriteAt(bytes.Repeat([]byte{0xA5}, sector), at); err != nil {
		t.Fatal(err)
	}
	if err := disk.Close(); err != nil {
		t.Fatal(err)
	}
	guest := start(t, m)
	say(t, guest, `gatehouse: systems: the firmware would not load slot a, and started slot b`)
	same(t, "from the other slot", state(t, guest, "ready", "url"), box)
	say(t, guest, `gatehouse: systems: slot a was filled anew`)
	off(t, guest)
	if disk, err = os.Open(m.Disk); err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	info, err := disk.Stat()
	if err != nil {
		t.Fatal(err)
	}
	found, err := esptest.Judge(disk, info.Size(), sha256.Sum256(starts.bytes))
	if err != nil || found.Default != slot.B || found.A != found.B {
		t.Errorf("on the disk: %+v, %v", found, err)
	}
}

// revoked is the disk of before the update once more, in front of the firmware that was told.
func (c *cuts) revoked(t *testing.T) {
	t.Helper()
	s := c.at(t, c.half)
	m := reachable(secure(t, s.disk))
	m.State = s.state
	guest := start(t, m)
	say(t, guest, `(?i)access denied|security violation`)
	if err := guest.Kill(); err != nil {
		t.Error(err)
	}
	if strings.Contains(guest.Serial(), "EFI stub") {
		t.Error("the revoked system was started")
	}
}

// find is where bytes stand on a disk, from the beginning of a sector.
func find(t testing.TB, disk *os.File, want []byte) int64 {
	t.Helper()
	buf := make([]byte, 1<<20)
	for off := int64(0); ; off += int64(len(buf)) {
		n, err := disk.ReadAt(buf, off)
		for at := 0; at+len(want) <= n; at += sector {
			if bytes.Equal(buf[at:at+len(want)], want) && !bytes.Equal(buf[at:at+len(want)], make([]byte, len(want))) {
				return off + int64(at)
			}
		}
		if err != nil {
			t.Fatal("it is not on the disk")
		}
	}
}
