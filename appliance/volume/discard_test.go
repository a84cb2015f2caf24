package volume

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// erasable is a machine whose data partition is a file of 8 MiB, and whose
// kernel does to it what the test says.
func erasable(t *testing.T, kernel func(part *os.File, m means, from, length uint64) error) (Disk, string) {
	t.Helper()
	m := newMachine(t)
	m.disk("vda", 80)
	d := m.mustFind(asked{loaderErr: fs.ErrNotExist, parameter: "/dev/vda"})
	dev, err := d.EnsureData()
	if err != nil {
		t.Fatal(err)
	}
	path := d.path(dev)
	if err := os.WriteFile(path, bytes.Repeat([]byte("old data"), 73<<17), 0o600); err != nil {
		t.Fatal(err)
	}
	d.block.erase = kernel
	return d, path
}

// punch makes a hole, as a device does that takes a discard.
func punch(part *os.File, from, length uint64) error {
	return unix.Fallocate(int(part.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(from), int64(length))
}

func TestBOX13_DiscardSaysWhatTheDeviceDid(t *testing.T) {
	for name, c := range map[string]struct {
		kernel func(part *os.File, m means, from, length uint64) error
		want   Discarded
		words  string
		gone   bool
	}{
		"no way at all": {
			kernel: func(*os.File, means, uint64, uint64) error { return unix.EOPNOTSUPP },
			words:  "73 MiB stay as they are.",
		},
		"a discard that does nothing, and no other": {
			kernel: func(_ *os.File, m means, _, _ uint64) error {
				if m == discard {
					return nil
				}
				return unix.EOPNOTSUPP
			},
			want:  Discarded{Ignored: true},
			words: "went on showing the old blocks",
		},
		"a discard that does nothing": {
			kernel: func(part *os.File, m means, from, length uint64) error {
				if m == zeroes {
					return punch(part, from, length)
				}
				return nil
			},
			want:  Discarded{Ignored: true, Zeroed: 73 << 20},
			words: "73 MiB were written over with zeroes",
			gone:  true,
		},
		"zeroes alone": {
			kernel: func(part *os.File, m means, from, length uint64) error {
				if m != zeroes {
					return unix.EOPNOTSUPP
				}
				return punch(part, from, length)
			},
			want:  Discarded{Zeroed: 73 << 20},
			words: "The disk refused: secure discard: operation not supported; discard: operation not supported.",
			gone:  true,
		},
		"discard": {
			kernel: func(part *os.File, m means, from, length uint64) error {
				if m == secureDiscard {
					return unix.EOPNOTSUPP
				}
				return punch(part, from, length)
			},
			want:  Discarded{Means: "discard", Done: 73 << 20},
			words: "Flash may keep old blocks",
			gone:  true,
		},
		"secure discard": {
			kernel: func(part *os.File, _ means, from, length uint64) error { return punch(part, from, length) },
			want:   Discarded{Means: "secure discard", Done: 73 << 20},
			words:  "the copies it made itself went, too",
			gone:   true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			d, path := erasable(t, c.kernel)
			got, err := d.Discard(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			t.Log(got)
			if got.Size != 73<<20 || got.Held == 0 || got.Means != c.want.Means || got.Done != c.want.Done || got.Zeroed != c.want.Zeroed || got.Ignored != c.want.Ignored {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
			if words := got.String(); !strings.Contains(words, c.words) {
				t.Errorf("it says %q, want something of %q", words, c.words)
			}
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if left := bytes.Contains(content, []byte("old data")); left == c.gone {
				t.Errorf("old data on the device: %v", left)
			}
			if (got.Kept == 0) != c.gone {
				t.Errorf("%d places are said to show what they held", got.Kept)
			}
			if !strings.Contains(got.String(), "the key is gone") {
				t.Error("it does not say what the rest is worth")
			}
		})
	}
}

// The time is over in the middle: what was reached is said, and what was not.
func TestBOX13_DiscardIsBounded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	d, _ := erasable(t, func(part *os.File, m means, from, length uint64) error {
		if m != zeroes {
			return unix.EOPNOTSUPP
		}
		if calls++; calls == 3 { // two for the ends
			cancel()
		}
		return punch(part, from, length)
	})
	got, err := d.Discard(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if got.Zeroed != zeroStep || got.Kept == 0 || !strings.Contains(got.String(), "41 MiB stay as they are.") {
		t.Errorf("got %+v: %s", got, got)
	}
}

// A disk that was never started has nothing to discard; one with a foreign
// table is not touched.
func TestBOX13_DiscardLeavesOthersAlone(t *testing.T) {
	touched := func(*os.File, means, uint64, uint64) error { t.Error("something was erased"); return nil }
	m := newMachine(t)
	m.disk("vda", 80)
	d := m.mustFind(asked{loaderErr: fs.ErrNotExist, parameter: "/dev/vda"})
	d.block.erase = touched
	got, err := d.Discard(t.Context())
	if err != nil || got.Size != 0 || got.String() != "There was no data volume to discard." {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := os.WriteFile(d.path(d.Device), make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Discard(t.Context()); err == nil {
		t.Error("a disk without a partition table was erased")
	}
}
