package boot

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"gatehouse/appliance/volume/gpt"
	"gatehouse/image/qemu"
	"gatehouse/tpm/tpmtest"

	"github.com/google/uuid"
)

// A stage is a box at a moment of its life, switched off in order: its disk,
// the state of its machine, and what it said of itself.
type stage struct {
	disk, state string
	line
	factor   []byte // secret of its owner's second factor
	recovery string // recovery key
}

// life is that of one box, which most tests here begin with a copy of.
var life struct {
	sync.Once
	fresh, owned stage
	lived        bool
}

// lives returns the shared box before and after its claim. The first test that
// asks pays the two boots.
func lives(t testing.TB) (fresh, owned stage) {
	t.Helper()
	life.Do(func() {
		now := stage{disk: newDisk(t), state: t.TempDir()}
		guest := start(t, now.machine(t))
		now.line = state(t, guest, "unclaimed", "url", "code")
		off(t, guest)
		life.fresh = now.keep(t, "fresh")

		guest = start(t, now.machine(t))
		again := state(t, guest, "unclaimed", "url", "code")
		same(t, "after switching off and on", again, now.line)
		c := claim(t, guest.Addr(443), again["code"])
		now.line = state(t, guest, "ready", "url")
		p := visit(t, guest.Addr(443), nil)
		p.signIn()
		now.factor = p.factor()
		p.lends(c)
		now.recovery = c.recovery()
		off(t, guest)
		life.owned = now.keep(t, "owned")
		life.lived = !t.Failed()
	})
	if !life.lived {
		t.Fatal("the box that these tests share was not made; the first test that failed says why")
	}
	return life.fresh, life.owned
}

// machine is the one that the box lives in, started without firmware.
func (s stage) machine(t testing.TB) qemu.Machine {
	t.Helper()
	m := reachable(direct(t))
	m.Disk, m.State = s.disk, s.state
	return m
}

// keep copies the stage for other tests, own for one.
func (s stage) keep(t testing.TB, name string) stage { return s.into(t, filepath.Join(shared, name)) }
func (s stage) own(t testing.TB) stage               { return s.into(t, filepath.Join(t.TempDir(), "box")) }

func (s stage) into(t testing.TB, dir string) stage {
	t.Helper()
	to := stage{disk: filepath.Join(dir, "disk.img"), state: filepath.Join(dir, "state"), line: s.line, factor: s.factor, recovery: s.recovery}
	if err := os.CopyFS(to.state, os.DirFS(s.state)); err != nil {
		t.Fatal(err)
	}
	copyDisk(t, s.disk, to.disk)
	return to
}

// lockout is the TPM's count of failed authorisations, asked as the next start
// of the machine would: a power cut that counts as one shows then.
func (s stage) lockout(t testing.TB) uint32 {
	t.Helper()
	chip := tpmtest.Open(t, filepath.Join(s.state, "tpm")).TPM()
	root, err := chip.Root()
	if err != nil {
		t.Fatal(err)
	}
	count, err := chip.Lockout(root)
	if err != nil {
		t.Fatal(err)
	}
	return count
}

// A locked box notes in META what happened, and which slot started
// (docs/architecture.md): two places, which are nobody's data.
const (
	notedAt   = 448 << 10
	notedPast = 640 << 10
)

// hash is that of the whole disk but those two places.
func (s stage) hash(t testing.TB) string {
	t.Helper()
	meta := s.partition(t, metaType)
	h := sha256.New()
	for _, part := range []*io.SectionReader{
		io.NewSectionReader(meta.file, 0, meta.at+notedAt),
		io.NewSectionReader(meta.file, meta.at+notedPast, math.MaxInt64-meta.at-notedPast),
	} {
		if _, err := io.Copy(h, part); err != nil {
			t.Fatal(err)
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// Partition types of docs/architecture.md.
var (
	metaType = uuid.MustParse("6b1d2c4e-5f0a-4c9e-9d5b-2f6f0a7e4d11")
	dataType = uuid.MustParse("0e7a7f3c-9a4b-4f5e-8a55-7d1c3b2e9f20")
)

const sector = 512

// part is a partition of a disk image.
type part struct {
	file     *os.File
	at, size int64
	id       uuid.UUID
}

func (p part) ReadAt(b []byte, at int64) (int, error) {
	return io.NewSectionReader(p.file, p.at, p.size).ReadAt(b, at)
}
func (p part) WriteAt(b []byte, at int64) (int, error) { return p.file.WriteAt(b, p.at+at) }
func (p part) Sync() error                             { return p.file.Sync() }

// partition opens one of the box's own partitions.
func (s stage) partition(t testing.TB, kind uuid.UUID) part {
	t.Helper()
	f, err := os.OpenFile(s.disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	table, _, err := gpt.Read(f, geometry(t, f))
	if err != nil {
		t.Fatal(err)
	}
	_, p, ok := table.Find(kind)
	if !ok {
		t.Fatalf("the disk has no partition of type %s", kind)
	}
	return part{f, int64(p.First) * sector, int64(p.Last-p.First+1) * sector, p.ID}
}

func geometry(t testing.TB, f *os.File) gpt.Geometry {
	t.Helper()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return gpt.Geometry{SectorSize: sector, Sectors: uint64(info.Size()) / sector}
}
