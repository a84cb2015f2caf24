package esptest

import (
	"fmt"
	"io"
)

// Write is one of the writes to a disk, or a flush (no data).
type Write struct {
	At   int64
	Data []byte
}

// A Recorder is a disk that remembers every write. What is under it is not changed.
type Recorder struct {
	*Overlay
	Log []Write
	// Deaf forgets flushes, as a disk or a program does that has none.
	Deaf bool
}

// NewRecorder records over a disk.
func NewRecorder(disk io.ReaderAt) *Recorder { return &Recorder{Overlay: NewOverlay(disk)} }

// WriteAt remembers the write.
func (r *Recorder) WriteAt(b []byte, off int64) (int, error) {
	if len(b)%sectorSize != 0 || off%sectorSize != 0 {
		return 0, fmt.Errorf("%d bytes at %d are not whole sectors", len(b), off)
	}
	r.Log = append(r.Log, Write{off, append([]byte{}, b...)})
	return r.Overlay.WriteAt(b, off)
}

// Sync remembers the flush.
func (r *Recorder) Sync() error {
	if !r.Deaf {
		r.Log = append(r.Log, Write{})
	}
	return nil
}

// Section is a part of the recorded disk: a partition.
func (r *Recorder) Section(at, size int64) *Section { return &Section{r, at, size} }

// Section is a partition of a recorded disk.
type Section struct {
	r        *Recorder
	at, size int64
}

// ReadAt reads, up to its end.
func (s *Section) ReadAt(b []byte, off int64) (int, error) {
	return io.NewSectionReader(s.r, s.at, s.size).ReadAt(b, off)
}

// WriteAt writes, and nothing behind its end.
func (s *Section) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(b)) > s.size {
		return 0, fmt.Errorf("%d bytes at %d are outside of the partition", len(b), off)
	}
	return s.r.WriteAt(b, s.at+off)
}

// Sync flushes the disk.
func (s *Section) Sync() error { return s.r.Sync() }

// An Overlay is a disk with some sectors changed; the disk under it is left as it is.
type Overlay struct {
	base    io.ReaderAt
	sectors map[int64][]byte
}

// NewOverlay has nothing changed.
func NewOverlay(base io.ReaderAt) *Overlay { return &Overlay{base, map[int64][]byte{}} }

// Clone shares what is under it.
func (o *Overlay) Clone() *Overlay {
	c := NewOverlay(o.base)
	for n, s := range o.sectors {
		c.sectors[n] = append([]byte{}, s...)
	}
	return c
}

// ReadAt reads any bytes.
func (o *Overlay) ReadAt(b []byte, off int64) (int, error) {
	n, err := o.base.ReadAt(b, off)
	for at := off / sectorSize; at*sectorSize < off+int64(n); at++ {
		if s, ok := o.sectors[at]; ok {
			from := at*sectorSize - off
			copy(b[max(0, from):n], s[max(0, -from):])
		}
	}
	return n, err
}

// WriteAt writes any bytes: what a torn sector got is less than one.
func (o *Overlay) WriteAt(b []byte, off int64) (int, error) {
	done := 0
	for done < len(b) {
		at := off + int64(done)
		s, ok := o.sectors[at/sectorSize]
		if !ok {
			s = make([]byte, sectorSize)
			if _, err := o.base.ReadAt(s, at/sectorSize*sectorSize); err != nil {
				return done, err
			}
			o.sectors[at/sectorSize] = s
		}
		done += copy(s[at%sectorSize:], b[done:])
	}
	return done, nil
}

// Torn is where the sector tears that the power was cut in: in halves and near the
// ends, always between words of four bytes.
func Torn() []int { return []int{4, 28, 64, 256, 508} }

// Random chooses; *rand.Rand of math/rand/v2 does, always in the same way from one seed.
type Random interface {
	IntN(n int) int
	Perm(n int) []int
}

// Cuts calls judge for the disk as each power cut may leave it: after every sector
// of every write, in order, with the next one torn; and before every flush with a
// random choice of the sectors that no flush covers, in any order. subsets is how
// many of the latter. A judge's error ends it, with what was cut. n is how many
// were judged.
func Cuts(base io.ReaderAt, log []Write, random Random, subsets int, judge func(disk io.ReaderAt) error) (n int, err error) {
	ask := func(o *Overlay, format string, args ...any) error {
		n++
		if err := judge(o); err != nil {
			return fmt.Errorf("power cut %d, "+format+": %w", append(append([]any{n}, args...), err)...)
		}
		return nil
	}
	flushed := NewOverlay(base) // what is sure to be there
	ordered := NewOverlay(base) // what is there if all was written in order
	var open []Write            // sectors since the last flush
	loose := func() error {
		for range subsets {
			o := flushed.Clone()
			for _, i := range random.Perm(len(open)) {
				if random.IntN(2) == 0 {
					put(o, open[i].At, open[i].Data)
				}
			}
			if err := ask(o, "%d sectors in any order", len(open)); err != nil {
				return err
			}
		}
		return nil
	}
	for i, w := range log {
		if w.Data == nil {
			if err := loose(); err != nil {
				return n, err
			}
			for _, s := range open {
				put(flushed, s.At, s.Data)
			}
			open = nil
			continue
		}
		for off := 0; off < len(w.Data); off += sectorSize {
			s := Write{w.At + int64(off), w.Data[off : off+sectorSize]}
			before := make([]byte, sectorSize)
			if _, err := ordered.ReadAt(before, s.At); err != nil {
				return n, err
			}
			for _, torn := range Torn() {
				put(ordered, s.At, s.Data[:torn])
				if err := ask(ordered, "write %d of %d, sector %d torn after %d bytes", i, len(log), off/sectorSize, torn); err != nil {
					return n, err
				}
				put(ordered, s.At, before)
			}
			put(ordered, s.At, s.Data)
			if err := ask(ordered, "write %d of %d, sector %d", i, len(log), off/sectorSize); err != nil {
				return n, err
			}
			open = append(open, s)
		}
	}
	return n, loose()
}

// put writes into an overlay, which fails only where the disk under it ends.
func put(o *Overlay, at int64, b []byte) {
	if _, err := o.WriteAt(b, at); err != nil {
		panic(err)
	}
}
