package gpt

import (
	"errors"
	"math/rand/v2"
	"os"
	"testing"
)

func writeFile(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// recorder remembers every write and sync.
type recorder struct {
	*memory
	log []operation
}

type operation struct {
	at   int64
	data []byte // nil: a sync
}

func (r *recorder) WriteAt(p []byte, off int64) (int, error) {
	r.log = append(r.log, operation{off, append([]byte{}, p...)})
	return r.memory.WriteAt(p, off)
}

func (r *recorder) Sync() error {
	r.log = append(r.log, operation{})
	return nil
}

// sector writes one sector of an operation, torn after n bytes.
type sectorWrite struct {
	at   int64
	data []byte
}

// pending splits what was written after the last sync before op end into
// sectors: each of them may or may not have reached the medium.
func pending(log []operation) (durable []operation, open []sectorWrite) {
	last := 0
	for i, op := range log {
		if op.data == nil {
			last = i + 1
		}
	}
	for _, op := range log[last:] {
		for off := 0; off < len(op.data); off += 512 {
			open = append(open, sectorWrite{op.at + int64(off), op.data[off : off+512]})
		}
	}
	return log[:last], open
}

func put(t *testing.T, m *memory, at int64, data []byte) {
	t.Helper()
	if _, err := m.WriteAt(data, at); err != nil {
		t.Fatal(err)
	}
}

// judge reads the disk after a cut: it must be the old table or the new one,
// and mending it must leave both copies whole without changing which.
func judge(t *testing.T, what string, m *memory, g Geometry, old, want Table) {
	t.Helper()
	got, _, err := Read(m, g)
	if err != nil {
		t.Fatalf("%s: neither the old nor the new table: %v", what, err)
	}
	// The old table is widened when it is written to its disk again.
	widened := old
	widened.LastUsable = g.lastUsable()
	if got != old && got != want && got != widened {
		t.Fatalf("%s: a mixture", what)
	}
	if _, err := Heal(m, g); err != nil {
		t.Fatalf("%s: mending: %v", what, err)
	}
	healed, health, err := Read(m, g)
	if err != nil || !health.Whole() {
		t.Fatalf("%s: after mending: %+v, %v", what, health, err)
	}
	if healed.Entries != got.Entries {
		t.Fatalf("%s: mending changed the partitions", what)
	}
}

// cuts runs do on a recording disk and judges every power cut in it: after
// each write, with the write torn inside each of its sectors, and with random
// subsets of the sectors that no sync covers, some torn, some turned to noise.
func cuts(t *testing.T, start *memory, g Geometry, old, want Table, do func(Device) error) {
	t.Helper()
	rec := &recorder{memory: start.clone()}
	if err := do(rec); err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	places, subsets, step := []int{0, 1, 16, 20, 92, 255, 256, 511}, 60, 1
	if testing.Short() {
		places, subsets, step = []int{0, 20, 255}, 8, 5 // sectors of the table's 33
	}
	judged := 0
	for end := 0; end <= len(rec.log); end++ {
		durable, open := pending(rec.log[:end])
		base := start.clone()
		for _, op := range durable {
			if op.data != nil {
				put(t, base, op.at, op.data)
			}
		}
		// In order, every sector torn at several places.
		for n := 0; n <= len(open); n += step {
			for _, torn := range places {
				m := base.clone()
				for _, s := range open[:n] {
					put(t, m, s.at, s.data)
				}
				if n < len(open) {
					put(t, m, open[n].at, open[n].data[:torn])
				} else if torn != 0 {
					break
				}
				judge(t, "torn", m, g, old, want)
				judged++
			}
		}
		// Out of order.
		for range subsets {
			m := base.clone()
			for _, s := range open {
				switch random.IntN(6) {
				case 0, 1:
					put(t, m, s.at, s.data)
				case 2:
					put(t, m, s.at, s.data[:random.IntN(512)])
				case 3:
					noise := make([]byte, 512)
					for i := range noise {
						noise[i] = byte(random.Uint32())
					}
					put(t, m, s.at, noise)
				}
			}
			judge(t, "reordered", m, g, old, want)
			judged++
		}
	}
	t.Logf("%d power cuts judged", judged)
}

func TestBOX6_PowerCutWhileGrowing(t *testing.T) {
	const sectors = 150000 // about 73 MiB
	for name, size := range map[string]uint64{"larger disk": sectors, "a little larger, the backups overlap": imageSectors + 7} {
		t.Run(name, func(t *testing.T) {
			m, g := image(t, size)
			old, _, err := Read(m, g)
			if err != nil {
				t.Fatal(err)
			}
			want := old
			if _, err := want.Append(g, typeData, idData, "gatehouse-data", 1<<20); err != nil {
				t.Fatal(err)
			}
			cuts(t, m, g, old, want, func(d Device) error { return Commit(d, g, want) })
		})
	}
}

// A cut during the mending of a cut: the first table is broken and the last
// one is all there is.
func TestBOX6_PowerCutWhileMending(t *testing.T) {
	m, g := image(t, imageSectors)
	old, _, err := Read(m, g)
	if err != nil {
		t.Fatal(err)
	}
	want := old
	want.LastUsable = g.lastUsable()
	for _, at := range []int{512, 1024 + 40} {
		broken := m.clone()
		var b [1]byte
		if _, err := broken.ReadAt(b[:], int64(at)); err != nil {
			t.Fatal(err)
		}
		put(t, broken, int64(at), []byte{b[0] ^ 0xff})
		cuts(t, broken, g, old, want, func(d Device) error {
			healed, err := Heal(d, g)
			if err == nil && !healed {
				return errors.New("nothing was mended")
			}
			return err
		})
	}
}

func TestHealLeavesWholeTablesAlone(t *testing.T) {
	m, g := image(t, imageSectors)
	rec := &recorder{memory: m}
	if healed, err := Heal(rec, g); healed || err != nil || len(rec.log) != 0 {
		t.Errorf("Heal = %v, %v with %d writes", healed, err, len(rec.log))
	}
}

// The test of the test: in the wrong order, cuts must be seen.
func TestJudgeSeesTheWrongOrder(t *testing.T) {
	m, g := image(t, 150000)
	want := grown(t, m, g)
	rec := &recorder{memory: m.clone()}
	if err := writeCopy(rec, g, want, 1); err != nil {
		t.Fatal(err)
	}
	_, open := pending(rec.log[:len(rec.log)-1])
	neither := false
	for n := range open {
		c := m.clone()
		for _, s := range open[:n] {
			put(t, c, s.at, s.data)
		}
		if _, _, err := Read(c, g); err != nil {
			neither = true
		}
	}
	if !neither {
		t.Error("writing the primary first was never seen to leave neither table")
	}
}
