package esp_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"gatehouse/appliance/volume/esp"
	"gatehouse/appliance/volume/esp/esptest"
	"gatehouse/firmware"
	"gatehouse/firmware/slot"
	"gatehouse/image/disk"
)

var now = time.Date(2026, 11, 29, 9, 0, 0, 0, time.UTC)

func program(name string, n int) []byte {
	return append([]byte("MZ"), bytes.Repeat([]byte("system "+name+" "), n/(8+len(name))+1)[:n-2]...)
}

func system(minor uint32, b []byte) slot.System {
	return slot.System{Version: firmware.Version{Major: 1, Minor: minor}, Epoch: 1, Size: int64(len(b)), SHA256: sha256.Sum256(b)}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// box is a disk, and what an update of it writes.
type box struct {
	t          testing.TB
	old, new   []byte
	disk       *os.File
	rec        *esptest.Recorder
	part, meta *esptest.Section
	records    []slot.Record
}

func newBox(t testing.TB, size int) *box {
	t.Helper()
	b := &box{t: t, old: program("old", 9000), new: program("new", size)}
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.img"))
	must(t, err)
	t.Cleanup(func() { f.Close() })
	must(t, disk.Write(f, []disk.File{
		{Path: slot.A.Path(), Content: b.old, Reserve: disk.SlotSize},
		{Path: slot.B.Path(), Reserve: disk.SlotSize},
		{Path: slot.ConfigPath, Content: slot.Config(slot.A)},
	}, []byte("test")))
	b.disk, b.rec = f, esptest.NewRecorder(f)
	e, en, m, mn, err := esptest.Places(f, disk.Size)
	must(t, err)
	b.part, b.meta = b.rec.Section(e, en), b.rec.Section(m, mn)
	b.records = []slot.Record{{}}
	return b
}

func (b *box) open(running slot.Slot) *esp.Partition {
	b.t.Helper()
	p, err := esp.Open(b.part, running)
	must(b.t, err)
	return p
}

func (b *box) write(p *esp.Partition) {
	b.t.Helper()
	for at := 0; at < len(b.new); at += 40 << 10 {
		must(b.t, p.Write(slot.B, b.new[at:min(len(b.new), at+40<<10)], int64(at)))
	}
}

func (b *box) remember(r slot.Record) slot.Record {
	b.t.Helper()
	must(b.t, slot.WriteRecord(b.meta, r))
	b.records = append(b.records, r)
	return r
}

// update is the whole of one, as the engine does it: to a kept system.
func (b *box) update() {
	p := b.open(slot.A)
	a, n := system(0, b.old), system(1, b.new)
	r := b.remember(slot.Record{}.With(slot.A, &a))
	must(b.t, p.Clear(slot.B))
	b.write(p)
	must(b.t, p.Complete(slot.B, n))
	r = b.remember(r.With(slot.B, &n))
	r, err := r.Begin(slot.B, false, now)
	must(b.t, err)
	b.remember(r)
	r, action := slot.Judge(r, slot.Evidence{Default: slot.A, Running: slot.B, Selected: slot.B}, now)
	if action.Do != slot.Try {
		b.t.Fatalf("the trial is judged as %+v", action)
	}
	b.remember(r)
	must(b.t, b.open(slot.B).Commit())
	b.remember(r.Keep(now))
}

// judge is of one disk after a cut. More than esptest's: the record is one that
// was written, a trial is of a whole system, and the next start knows what to do.
func (b *box) judge(d io.ReaderAt) error {
	found, err := esptest.Judge(d, disk.Size, sha256.Sum256(b.old), sha256.Sum256(b.new))
	if err != nil {
		return err
	}
	known := false
	for _, r := range b.records {
		known = known || reflect.DeepEqual(r, found.Record)
	}
	if !known {
		return fmt.Errorf("%w: the record is none that was written: %+v", esptest.ErrLost, found.Record)
	}
	for _, s := range []slot.Slot{slot.A, slot.B} {
		if in := found.Record.In(s); in != nil && in.SHA256 != found.In(s) {
			return fmt.Errorf("%w: slot %s does not hold what the record says", esptest.ErrMixed, s)
		}
	}
	_, a := slot.Judge(found.Record, slot.Evidence{Default: found.Default, Running: found.Default, Selected: found.Default}, now)
	want := slot.Proceed
	if found.Default == slot.B && found.Record.Trial != nil {
		want = slot.Finish
	}
	if a.Do != want {
		return fmt.Errorf("the next start does %v, want %v", a.Do, want)
	}
	return nil
}

func TestBOX4_PowerCutAtEveryWrite(t *testing.T) {
	b := newBox(t, 45<<10)
	b.update()
	subsets := 25
	if testing.Short() {
		subsets = 5
	}
	n, err := esptest.Cuts(b.disk, b.rec.Log, rand.New(rand.NewPCG(1, 2)), subsets, b.judge)
	if err != nil {
		t.Fatal(err)
	}
	found, err := esptest.Judge(b.rec, disk.Size, sha256.Sum256(b.old), sha256.Sum256(b.new))
	if err != nil || found.Default != slot.B || found.B != sha256.Sum256(b.new) {
		t.Errorf("in the end: %+v, %v", found, err)
	}
	t.Logf("%d power cuts judged over %d writes and flushes", n, len(b.rec.Log))
}

// Slot A counts as damaged here: it is filled with what runs, from B.
func TestBOX4_PowerCutWhileMending(t *testing.T) {
	b := newBox(t, 20<<10)
	b.update()
	b.rec.Log = nil
	start := b.rec.Overlay.Clone()
	must(t, b.open(slot.B).Copy(slot.B, slot.A, system(1, b.new)))
	n, err := esptest.Cuts(start, b.rec.Log, rand.New(rand.NewPCG(1, 2)), 40, func(d io.ReaderAt) error {
		found, err := esptest.Judge(d, disk.Size, sha256.Sum256(b.old), sha256.Sum256(b.new))
		if err == nil && found.In(found.Default) != sha256.Sum256(b.new) {
			err = errors.New("the kept system does not start")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d power cuts judged", n)
}

// The test of the test: wrong orders have to be seen.
func TestJudgeSeesWrongOrders(t *testing.T) {
	for name, c := range map[string]struct {
		want error
		do   func(b *box)
	}{
		"loader.conf before the system": {esptest.ErrUnbootable, func(b *box) {
			must(b.t, b.open(slot.A).Clear(slot.B))
			must(b.t, b.open(slot.B).Commit())
		}},
		"the length before the bytes": {esptest.ErrMixed, func(b *box) {
			p := b.open(slot.A)
			must(b.t, p.Clear(slot.B))
			b.write(p)
			must(b.t, p.Complete(slot.B, system(1, b.new)))
			log := b.rec.Log
			last := len(log) - 2 // the length, then a flush
			b.rec.Log = append(append([]esptest.Write{}, log[:2]...), append([]esptest.Write{log[last], log[last+1]}, log[2:last]...)...)
		}},
		"no flush before the length": {esptest.ErrMixed, func(b *box) {
			b.rec.Deaf = true
			b.update()
		}},
		"overwritten without Clear": {esptest.ErrMixed, func(b *box) {
			b.update()
			p := b.open(slot.B)
			a := program("third", 9000)
			must(b.t, p.Clear(slot.A))
			n := len(b.rec.Log)
			must(b.t, p.Write(slot.A, a, 0))
			must(b.t, p.Complete(slot.A, system(2, a)))
			// Without the two of Clear, on a disk where the first update is done.
			b.rec.Log = append(append([]esptest.Write{}, b.rec.Log[:n-2]...), b.rec.Log[n:]...)
		}},
		"both copies of the record at once": {esptest.ErrLost, func(b *box) {
			must(b.t, slot.WriteRecord(b.meta, slot.Record{}))
			must(b.t, slot.WriteRecord(b.meta, slot.Record{}))
			for _, w := range append([]esptest.Write{}, b.rec.Log...) {
				if w.Data != nil {
					b.rec.Log = append(b.rec.Log, esptest.Write{At: w.At, Data: bytes.Repeat([]byte{7}, 512)})
				}
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, 20<<10)
			c.do(b)
			_, err := esptest.Cuts(b.disk, b.rec.Log, rand.New(rand.NewPCG(1, 2)), 40, func(d io.ReaderAt) error {
				_, err := esptest.Judge(d, disk.Size, sha256.Sum256(b.old), sha256.Sum256(b.new))
				return err
			})
			if !errors.Is(err, c.want) {
				t.Errorf("judged as %v, want %v", err, c.want)
			}
		})
	}
}
