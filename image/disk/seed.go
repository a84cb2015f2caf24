package disk

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/google/uuid"

	"gatehouse/appliance/seed"
	seedfs "gatehouse/appliance/seed/fat"
	"gatehouse/appliance/volume/gpt"
)

// SeedType is the type of the partition with the seed. The box finds it by the
// label of the file system in it, as it finds a stick; the type keeps others
// from taking it for a place to put files.
var SeedType = uuid.MustParse("5b1f6d0a-94c2-4d0e-8f3b-2c7e51a9d6e4")

const seedSize = 1 * mebibyte

// SetSeed puts a seed onto a disk of ours, in the place of one that is there. A
// disk without room for its partition is made longer if it is a file. Loader
// and systems are not touched: what was signed stays as it was signed.
func SetSeed(f *os.File, s seed.Seed) error {
	text, err := s.Encode()
	if err != nil {
		return err
	}
	content, err := seedfs.Format(seedSize, seed.Label, seed.File, text)
	if err != nil {
		return err
	}
	at, err := seedPartition(f)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(content, at); err != nil {
		return fmt.Errorf("writing the seed: %w", err)
	}
	return f.Sync()
}

// HasSeed says whether a disk or medium has the partition that SetSeed makes.
func HasSeed(f *os.File) bool {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return false
	}
	t, _, err := gpt.Read(f, gpt.Geometry{SectorSize: sectorSize, Sectors: uint64(size / sectorSize)})
	if err != nil {
		return false
	}
	_, _, ok := t.Find(SeedType)
	return ok
}

// seedPartition finds or makes the partition, and returns its first byte.
func seedPartition(f *os.File) (int64, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	g := gpt.Geometry{SectorSize: sectorSize, Sectors: uint64(size / sectorSize)}
	t, _, err := gpt.Read(f, g)
	if err != nil {
		return 0, fmt.Errorf("reading the partition table: %w", err)
	}
	if _, p, ok := t.Find(SeedType); ok {
		if (p.Last-p.First+1)*sectorSize < seedSize {
			return 0, errors.New("the SEED partition of the disk is too small: start from the image as it was built")
		}
		return int64(p.First) * sectorSize, nil
	}
	end := int64(0)
	for _, p := range t.Entries {
		end = max(end, int64(p.Last+1)*sectorSize)
	}
	// Behind the last partition, as long as needed, whatever room there is.
	least := align(end, mebibyte) + seedSize + mebibyte
	if size < least {
		if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
			return 0, fmt.Errorf("the disk has no room for a partition of %d bytes", seedSize)
		}
		if err := f.Truncate(least); err != nil {
			return 0, fmt.Errorf("making the image longer: %w", err)
		}
		g.Sectors = uint64(least / sectorSize)
	}
	sum := sha256.Sum256(append([]byte("gatehouse seed\x00"), t.Disk[:]...))
	id := uuid.MustParse(derive(sum, "seed"))
	number, err := t.Append(gpt.Geometry{SectorSize: sectorSize, Sectors: uint64(least / sectorSize)}, SeedType, id, "gatehouse-seed", seedSize)
	if err != nil {
		return 0, err
	}
	if err := gpt.Commit(f, g, t); err != nil {
		return 0, err
	}
	return int64(t.Entries[number-1].First) * sectorSize, nil
}
