package disks

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func disk(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(bytes.Repeat([]byte("old "), 1<<20)); err != nil {
		t.Fatal(err)
	}
	return f
}

// A disk that does not hold what it was given is found, wherever that is.
func TestBOX3_DiskThatLiesIsFound(t *testing.T) {
	image := bytes.Repeat([]byte("new1"), 3<<17) // 1.5 MiB
	for _, at := range []int64{0, 511, piece - 1, piece, int64(len(image)) - 1} {
		f := disk(t)
		w, err := Write(t.Context(), f, bytes.NewReader(image), int64(len(image)), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Compare(t.Context(), f.Name(), nil); err != nil {
			t.Fatalf("a whole disk: %v", err)
		}
		if _, err := f.WriteAt([]byte{'?'}, at); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Compare(t.Context(), f.Name(), nil); !errors.Is(err, ErrDiffers) {
			t.Errorf("a byte differs at %d: %v", at, err)
		}
	}
}

// Cut off anywhere, the disk has no beginning: nothing starts from half of it.
func TestHalfWrittenDiskHasNoBeginning(t *testing.T) {
	image := bytes.Repeat([]byte("new1"), 3<<18) // 3 MiB
	ctx, cancel := context.WithCancel(t.Context())
	f := disk(t)
	_, err := Write(ctx, f, bytes.NewReader(image), int64(len(image)), nil, func(done int64) {
		if done >= 2*piece {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("%v", err)
	}
	for name, given := range map[string][]byte{"too short": image[:len(image)-1], "too long": append(image[:len(image):len(image)], 1)} {
		f := disk(t)
		if _, err := Write(t.Context(), f, bytes.NewReader(given), int64(len(image)), nil, nil); err == nil {
			t.Errorf("an image that is %s was written", name)
		}
		beginning(t, f)
	}
	beginning(t, f)
}

func beginning(t *testing.T, f *os.File) {
	t.Helper()
	b := make([]byte, piece)
	if _, err := f.ReadAt(b, 0); err != nil || !bytes.Equal(b, make([]byte, piece)) {
		t.Errorf("the beginning of the disk is there (%v)", err)
	}
}
