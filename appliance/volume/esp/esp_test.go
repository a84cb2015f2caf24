package esp

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gatehouse/firmware/slot"
	"gatehouse/image/disk"
)

const (
	espStart = 1 << 20 // of image/disk
	espSize  = 160 << 20
)

// program is a system of n bytes that no other resembles.
func program(name string, n int) []byte {
	return bytes.Repeat([]byte("system "+name+" "), n/(8+len(name))+1)[:n]
}

func system(b []byte) slot.System {
	return slot.System{Size: int64(len(b)), SHA256: sha256.Sum256(b)}
}

// image is a disk as it is written to a box, with a small system in slot A.
func image(t testing.TB, a []byte) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := disk.Write(f, []disk.File{
		{Path: "EFI/BOOT/BOOTX64.EFI", Content: program("loader", 100000)},
		{Path: slot.A.Path(), Content: a, Reserve: disk.SlotSize},
		{Path: slot.B.Path(), Reserve: disk.SlotSize},
		{Path: slot.ConfigPath, Content: slot.Config(slot.A)},
	}, []byte("test")); err != nil {
		t.Fatal(err)
	}
	return f
}

// partition is the EFI system partition of a disk. It refuses what a device that
// goes past the page cache refuses, and counts.
type partition struct {
	f      *os.File
	writes [][2]int64
	lies   bool // takes writes and forgets them
	broken [2]int64
}

func (p *partition) check(b []byte, off int64) error {
	switch {
	case len(b)%sectorSize != 0 || off%sectorSize != 0:
		return errors.New("not whole sectors")
	case off+int64(len(b)) > espSize:
		return io.EOF
	}
	return nil
}

func (p *partition) ReadAt(b []byte, off int64) (int, error) {
	if err := p.check(b, off); err != nil {
		return 0, err
	}
	if off < p.broken[1] && off+int64(len(b)) > p.broken[0] {
		return 0, errors.New("input/output error")
	}
	return p.f.ReadAt(b, espStart+off)
}

func (p *partition) WriteAt(b []byte, off int64) (int, error) {
	if err := p.check(b, off); err != nil {
		return 0, err
	}
	p.writes = append(p.writes, [2]int64{off, off + int64(len(b))})
	if p.lies {
		return len(b), nil
	}
	return p.f.WriteAt(b, espStart+off)
}

func (p *partition) Sync() error { return nil }

func open(t testing.TB, f *os.File, running slot.Slot) (*Partition, *partition) {
	t.Helper()
	dev := &partition{f: f}
	p, err := Open(dev, running)
	if err != nil {
		t.Fatal(err)
	}
	return p, dev
}

// fill writes a system as an update does, in pieces of an odd length.
func fill(t testing.TB, p *Partition, s slot.Slot, b []byte) {
	t.Helper()
	must(t, p.Clear(s))
	for at := 0; at < len(b); at += 40001 {
		must(t, p.Write(s, b[at:min(len(b), at+40001)], int64(at)))
	}
	must(t, p.Complete(s, system(b)))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// sound has mtools and fsck.fat, which share no code with us, judge.
func sound(t *testing.T, f *os.File, a, b []byte, config slot.Slot) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "esp.img")
	w, err := os.Create(out)
	must(t, err)
	defer w.Close()
	_, err = io.Copy(w, io.NewSectionReader(f, espStart, espSize))
	must(t, err)
	for path, want := range map[string][]byte{
		slot.A.Path(): a, slot.B.Path(): b, slot.ConfigPath: slot.Config(config), "EFI/BOOT/BOOTX64.EFI": program("loader", 100000),
	} {
		got, err := exec.Command("mtype", "-i", out, "::"+path).Output()
		if err != nil {
			t.Fatalf("mtype %s (install package mtools): %v", path, err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s has %d bytes, want %d", path, len(got), len(want))
		}
	}
	// Its one remark is that slots have more clusters than they are long, which is
	// what they are for. With lengths that agree there is none.
	l, err := find(&partition{f: f})
	must(t, err)
	for _, e := range []*file{&l.a, &l.b} {
		_, err := w.WriteAt(binary.LittleEndian.AppendUint32(nil, slot.Size), e.entry+lengthAt)
		must(t, err)
	}
	text, err := exec.Command("fsck.fat", "-n", out).CombinedOutput()
	if len(text) == 0 {
		t.Fatalf("fsck.fat said nothing (install package dosfstools): %v", err)
	}
	if err != nil || strings.Count(string(text), "\n") != 2 || !strings.Contains(string(text), "files,") {
		t.Errorf("fsck.fat complains (%v):\n%s", err, text)
	}
}

func TestBOX4_RunningSlotIsNeverWritten(t *testing.T) {
	a := program("one", 70001)
	f := image(t, a)
	for _, c := range []struct {
		name    string
		running slot.Slot
		target  slot.Slot
		why     string
	}{
		{"the one that runs", slot.A, slot.A, "runs from it"},
		{"the one that starts next, during a trial", slot.B, slot.A, "starts next"},
		{"the one that runs, during a trial", slot.B, slot.B, "runs from it"},
		{"any, when nobody knows what runs", 0, slot.B, "cannot be told"},
		{"a third one", slot.A, 'c', "no such slot"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, dev := open(t, f, c.running)
			for what, err := range map[string]error{
				"Clear":    p.Clear(c.target),
				"Write":    p.Write(c.target, []byte("x"), 0),
				"Complete": p.Complete(c.target, system(a)),
				"Copy":     p.Copy(slot.A, c.target, system(a)),
			} {
				if use := new(InUse); !errors.As(err, &use) || !strings.Contains(use.Why, c.why) {
					t.Errorf("%s: %v", what, err)
				}
			}
			if len(dev.writes) != 0 {
				t.Errorf("it wrote all the same: %v", dev.writes)
			}
		})
	}
	t.Run("any, when loader.conf is broken", func(t *testing.T) {
		f := image(t, a)
		p, _ := open(t, f, slot.A)
		_, err := f.WriteAt(make([]byte, 100), espStart+p.layout.config.start)
		must(t, err)
		if use := new(InUse); !errors.As(p.Clear(slot.B), &use) {
			t.Error("slot B was cleared")
		}
		must(t, p.Commit())
		must(t, p.Clear(slot.B))
	})
}

func TestBOX4_WriteRefuses(t *testing.T) {
	f := image(t, program("one", 70001))
	p, dev := open(t, f, slot.A)
	b := program("two", 5000)
	if err := p.Write(slot.B, b, 0); !errors.Is(err, errWhole) {
		t.Errorf("wrote into a slot that was not cleared: %v", err)
	}
	must(t, p.Clear(slot.B))
	for _, off := range []int64{-1, slot.Size - 4999, slot.Size + 1, 1 << 62} {
		if err := p.Write(slot.B, b, off); err == nil {
			t.Errorf("wrote 5000 bytes at %d", off)
		}
	}
	must(t, p.Write(slot.B, b[:4000], 0))
	if err := p.Complete(slot.B, system(b)); !errors.Is(err, ErrContent) {
		t.Errorf("completed half a system: %v", err)
	}
	if n, err := p.Length(slot.B); n != 0 || err != nil {
		t.Errorf("half a system has length %d (%v)", n, err)
	}
	for _, n := range []int64{0, -1, slot.Size + 1} {
		if err := p.Complete(slot.B, slot.System{Size: n}); err == nil {
			t.Errorf("completed a system of %d bytes", n)
		}
	}
	must(t, p.Write(slot.B, b[4000:], 4000))
	must(t, p.Complete(slot.B, system(b)))
	must(t, p.Complete(slot.B, system(b))) // again, as after a power cut
	if err := p.Complete(slot.B, system(program("three", 5000))); !errors.Is(err, ErrDamaged) {
		t.Errorf("another system counts as complete: %v", err)
	}
	if _, err := Open(&partition{f: f}, slot.A); err != nil {
		t.Error(err)
	}
	if p, err := Open(dev, 0); err != nil || p.Commit() == nil {
		t.Errorf("loader.conf was rewritten by who does not know what runs (%v)", err)
	}
	dev.lies = true
	if err := p.Clear(slot.B); !errors.Is(err, errForgets) {
		t.Errorf("a disk that forgets: %v", err)
	}
	trial, dev := open(t, f, slot.B)
	dev.lies = true
	if err := trial.Commit(); !errors.Is(err, errForgets) {
		t.Errorf("a disk that forgets loader.conf: %v", err)
	}
}

// Two updates in turn: after each step other programs find what they should.
func TestBOX4_UpdatesLeaveASoundFileSystem(t *testing.T) {
	one, two, three := program("one", 70001), program("two", 300000), program("three", 4096)
	f := image(t, one)
	p, dev := open(t, f, slot.A)
	must(t, p.Clear(slot.B))
	sound(t, f, one, nil, slot.A)
	must(t, p.Write(slot.B, two[:100000], 0))
	sound(t, f, one, nil, slot.A)
	fill(t, p, slot.B, two)
	sound(t, f, one, two, slot.A)
	// The trial runs from B.
	trial, _ := open(t, f, slot.B)
	must(t, trial.Commit())
	sound(t, f, one, two, slot.B)
	fill(t, trial, slot.A, three)
	sound(t, f, three, two, slot.B)
	for s, want := range map[slot.Slot][]byte{slot.A: three, slot.B: two} {
		must(t, trial.Check(s, system(want)))
		r, err := trial.Content(s)
		must(t, err)
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("slot %s reads as %d bytes (%v)", s, len(got), err)
		}
		part := make([]byte, 700)
		if _, err := trial.Room(s).ReadAt(part, 1001); err != nil || !bytes.Equal(part, want[1001:1701]) {
			t.Errorf("a part of slot %s is another (%v)", s, err)
		}
	}
	// Nothing but the slot, its directory sector and loader.conf.
	for _, w := range dev.writes {
		l := p.layout
		inSlot := w[0] >= l.b.start && w[1] <= l.b.start+slot.Size
		folder := w[0] == l.b.entry/sectorSize*sectorSize && w[1] == w[0]+sectorSize
		if !inSlot && !folder {
			t.Errorf("bytes %d to %d of the partition were written", w[0], w[1])
		}
	}
}

func TestBOX4_DamageIsFoundAndMended(t *testing.T) {
	one, two := program("one", 70001), program("two", 150000)
	for name, damage := range map[string]func(t *testing.T, p *Partition, dev *partition){
		"a bit": func(t *testing.T, p *Partition, dev *partition) {
			_, err := dev.f.WriteAt([]byte{two[77777] ^ 1}, espStart+p.layout.b.start+77777)
			must(t, err)
		},
		"its length": func(t *testing.T, p *Partition, dev *partition) {
			_, err := dev.f.WriteAt([]byte{1, 0}, espStart+p.layout.b.entry+lengthAt)
			must(t, err)
		},
		"a length longer than the slot": func(t *testing.T, p *Partition, dev *partition) {
			_, err := dev.f.WriteAt([]byte{0xff}, espStart+p.layout.b.entry+lengthAt+3)
			must(t, err)
		},
		"cleared": func(t *testing.T, p *Partition, _ *partition) { must(t, p.Clear(slot.B)) },
		"a sector that cannot be read": func(t *testing.T, p *Partition, dev *partition) {
			dev.broken = [2]int64{p.layout.b.start + 512, p.layout.b.start + 1024}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := image(t, one)
			p, dev := open(t, f, slot.A)
			fill(t, p, slot.B, two)
			must(t, p.Check(slot.B, system(two)))
			damage(t, p, dev)
			if err := p.Check(slot.B, system(two)); !errors.Is(err, ErrDamaged) {
				t.Errorf("the damage is not seen: %v", err)
			}
			must(t, p.Check(slot.A, system(one)))
			dev.broken = [2]int64{} // writing has the disk take another sector
			must(t, p.Copy(slot.A, slot.B, system(one)))
			must(t, p.Check(slot.B, system(one)))
			sound(t, f, one, one, slot.A)
		})
	}
}

// What loader.conf names is damaged, and the firmware started the other.
func TestBOX4_DamagedDefaultIsMended(t *testing.T) {
	one, two := program("one", 70001), program("two", 150000)
	f := image(t, one)
	p, _ := open(t, f, slot.A)
	fill(t, p, slot.B, two)
	_, err := f.WriteAt([]byte("x"), espStart+p.layout.a.start+70000)
	must(t, err)
	now, _ := open(t, f, slot.B)
	if use := new(InUse); !errors.As(now.Copy(slot.B, slot.A, system(two)), &use) {
		t.Error("the slot that starts next was overwritten")
	}
	must(t, now.Commit())
	if err := now.Copy(slot.B, slot.A, system(one)); !errors.Is(err, ErrDamaged) {
		t.Errorf("copied a system that is not the one asked for: %v", err)
	}
	must(t, now.Copy(slot.B, slot.A, system(two)))
	sound(t, f, two, two, slot.B)
}

// The boot loader is read as it lies, and only if it lies in one piece.
func TestKEY10_TheBootLoaderIsRead(t *testing.T) {
	f := image(t, program("one", 5000))
	p, _ := open(t, f, 0)
	const path = "EFI/BOOT/BOOTX64.EFI"
	r, err := p.Program(path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, program("loader", 100000)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	for _, path := range []string{"EFI/BOOT/BOOTAA64.EFI", "EFI/BOOT", "EFI", ""} {
		if _, err := p.Program(path); !errors.Is(err, ErrLayout) {
			t.Errorf("%q: %v", path, err)
		}
	}
	l, err := openVolume(p.dev)
	if err != nil {
		t.Fatal(err)
	}
	file, err := l.lookup(path)
	if err != nil {
		t.Fatal(err)
	}
	entry, link := int64(espStart)+file.entry, int64(espStart)+reservedSectors*sectorSize+4*int64(file.first+1)
	for name, c := range map[string]struct {
		at  int64
		raw uint32
	}{
		"a cluster elsewhere": {link, file.first + 9}, "an end too early": {link, endOfChain}, "a length of nothing": {entry + lengthAt, 0},
		"longer than its clusters": {entry + lengthAt, 200000}, "longer than a slot": {entry + lengthAt, slot.Size + 1},
	} {
		was := make([]byte, 4)
		if _, err := f.ReadAt(was, c.at); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(binary.LittleEndian.AppendUint32(nil, c.raw), c.at); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Program(path); !errors.Is(err, ErrLayout) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := f.WriteAt(was, c.at); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.Program(path); err != nil {
		t.Errorf("set right again: %v", err)
	}
}

func TestOpenRefusesOtherLayouts(t *testing.T) {
	le := binary.LittleEndian
	clean := image(t, program("one", 70001))
	p, _ := open(t, clean, slot.A)
	l := p.layout
	fat := func(cluster uint32) int64 { return reservedSectors*sectorSize + 4*int64(cluster) }
	short := func(v uint16) []byte { return le.AppendUint16(nil, v) }
	word := func(v uint32) []byte { return le.AppendUint32(nil, v) }
	// cluster is the first cluster in an entry, with the time and day between its halves.
	cluster := func(n uint32) []byte { return append(short(uint16(n>>16)), 0, 0, 0x21, 0, byte(n), byte(n>>8)) }
	for _, c := range []struct {
		name string
		at   int64
		b    []byte
		want string
	}{
		{"no boot sector", 510, short(0), "last two bytes"},
		{"larger sectors", 11, short(4096), "bytes a sector"},
		{"larger clusters", 13, []byte{8}, "sectors a cluster"},
		{"other reserved sectors", 14, short(34), "reserved"},
		{"one table", 16, []byte{1}, "tables"},
		{"FAT16", 22, short(100), "FAT16"},
		{"the second table in use", 40, short(0x81), "flags"},
		{"another root", 44, word(3), "root"},
		{"few sectors", 32, word(1000), "1000 sectors"},
		{"more sectors than the tables hold", 32, word(1 << 30), "sectors with tables"},
		{"longer tables", 36, word(10000), "is no"},
		{"no slot B", l.b.entry, []byte{0xe5}, "there is no"},
		{"a short name that its long name does not fit", l.b.entry, []byte("X"), "belongs to no file"},
		{"a long name with a part missing", l.b.entry - entrySize, []byte{0x02}, "part missing"},
		{"a slot twice", l.b.entry + entrySize, append([]byte("GATEHO~1EFI"), 0x20), "first"},
		{"a folder for a slot", l.b.entry + 11, []byte{attrDirectory}, "folder in the place"},
		{"a slot without clusters", l.b.entry + 26, make([]byte, 2), "cluster"},
		{"a slot out of the partition", l.b.entry + 20, short(0x0fff), "cluster"},
		{"a slot in two runs", fat(l.b.first + 777), word(l.b.first + 10), "one run"},
		{"a shorter slot", fat(l.b.first + 100), word(clusterMask), "one run"},
		{"a longer slot", fat(l.b.first + runClusters - 1), word(5), "one run"},
		{"one slot over the other", l.b.entry + 20, cluster(l.a.first), "over one another"},
		{"a longer loader.conf", l.config.entry + lengthAt, word(513), "513"},
		{"loader.conf in a slot", l.config.entry + 20, cluster(l.a.first + 5), "lies in a slot"},
		{"a root of two clusters", fat(rootCluster), word(9), "more than one cluster"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dev := &overlay{base: &partition{f: clean}, at: c.at, b: c.b}
			_, err := Open(dev, slot.A)
			if c.name == "a slot twice" { // named by its short name: nobody's
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, ErrLayout) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want a refusal about %q", err, c.want)
			}
		})
	}
	if _, err := Open(&partition{f: image(t, nil), broken: [2]int64{0, 512}}, slot.A); err == nil {
		t.Error("opened what cannot be read")
	}
}

// overlay is a partition with some bytes changed.
type overlay struct {
	base *partition
	at   int64
	b    []byte
}

func (o *overlay) ReadAt(b []byte, off int64) (int, error) {
	n, err := o.base.ReadAt(b, off)
	for i, c := range o.b {
		if at := o.at + int64(i) - off; at >= 0 && at < int64(n) {
			b[at] = c
		}
	}
	return n, err
}

func (o *overlay) WriteAt([]byte, int64) (int, error) { return 0, errors.New("only read") }
func (o *overlay) Sync() error                        { return nil }

func TestEntryOfRefusesTwoOfOneName(t *testing.T) {
	p, _ := open(t, image(t, program("one", 100)), slot.A)
	folder := make([]byte, clusterSize)
	_, err := p.dev.ReadAt(folder, p.layout.a.entry/clusterSize*clusterSize)
	must(t, err)
	a := int(p.layout.a.entry % clusterSize)
	end := int(p.layout.b.entry%clusterSize) + entrySize
	copy(folder[end:], folder[a-2*entrySize:a+entrySize]) // a long name of two parts
	if at, err := entryOf(folder, slot.B.Entry()); err != nil || at != end-entrySize {
		t.Errorf("slot B is at %d, %v", at, err)
	}
	if at, err := entryOf(folder, slot.A.Entry()); !errors.Is(err, ErrLayout) || !strings.Contains(err.Error(), "twice") {
		t.Errorf("slot A is at %d, %v", at, err)
	}
}

// Whatever a folder holds, looking into it ends, and in bounds.
func FuzzEntryOf(f *testing.F) {
	p, _ := open(f, image(f, program("one", 100)), slot.A)
	folder := make([]byte, clusterSize)
	if _, err := p.dev.ReadAt(folder, p.layout.a.entry/clusterSize*clusterSize); err != nil {
		f.Fatal(err)
	}
	f.Add(folder)
	f.Add(folder[:96])
	f.Fuzz(func(t *testing.T, b []byte) {
		b = b[:len(b)/entrySize*entrySize]
		at, err := entryOf(b, slot.A.Entry())
		if err == nil && (at < 0 || at+entrySize > len(b) || b[at+11]&attrVolume != 0) {
			t.Errorf("found the slot at %d", at)
		}
	})
}

func TestSizesAreTheImages(t *testing.T) {
	if slot.Size != disk.SlotSize {
		t.Errorf("a slot has %d bytes here and %d in the image", slot.Size, disk.SlotSize)
	}
}
