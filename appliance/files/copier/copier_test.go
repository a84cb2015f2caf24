package copier

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/files"
	"gatehouse/appliance/files/filestest"
)

const allRights = right.FileManager | right.SendFiles | right.ReceiveFiles

type bench struct {
	*Copier
	site       *filestest.Site
	here       *os.Root
	hereDir    string
	there      string
	said       []string
	reconnects int
}

func setup(t testing.TB) *bench {
	t.Helper()
	b := &bench{hereDir: t.TempDir(), there: t.TempDir()}
	b.site = filestest.NewSite(t, allRights, filestest.Target(t, b.there))
	var err error
	if b.here, err = os.OpenRoot(b.hereDir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.here.Close() })
	b.Copier = &Copier{Open: b.site.Open, Say: func(s string) { b.said = append(b.said, s) },
		Pause: func(ctx context.Context, _ int) error { b.reconnects++; return ctx.Err() }}
	return b
}

func same(t testing.TB, a, b string) string {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(x, y) {
		t.Fatalf("%s (%d bytes) and %s (%d bytes) are not the same", a, len(x), b, len(y))
	}
	h := sha256.Sum256(x)
	return hex.EncodeToString(h[:])
}

func empty(t testing.TB, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if len(got) != len(want) {
		t.Errorf("%s holds %q, want %q", dir, got, want)
	}
}

func TestSES4_FilesGoBothWays(t *testing.T) {
	for _, size := range []int64{0, 1, files.MaxContent, files.Chunk - 1, files.Chunk, files.Chunk + 1, 5*files.Chunk + 77} {
		b := setup(t)
		filestest.Random(t, filepath.Join(b.hereDir, "up"), size)
		r, err := b.Put(t.Context(), b.here, "up", ".", "up")
		if err != nil {
			t.Fatal(err)
		}
		if hash := same(t, filepath.Join(b.hereDir, "up"), filepath.Join(b.there, "up")); hash != r.SHA256 || r.Size != size {
			t.Errorf("%+v, want the hash %s", r, hash)
		}
		r, err = b.Get(t.Context(), "up", b.here, "down", false)
		if err != nil {
			t.Fatal(err)
		}
		if hash := same(t, filepath.Join(b.hereDir, "up"), filepath.Join(b.hereDir, "down")); hash != r.SHA256 || r.Size != size {
			t.Errorf("%+v, want the hash %s", r, hash)
		}
		empty(t, b.hereDir, "up", "down")
		empty(t, b.there, "up")
	}
}

func TestSES4_CutsAtRandomPoints(t *testing.T) {
	const size = 6*files.Chunk + 12345
	for n := range 12 {
		random := rand.New(rand.NewPCG(uint64(n), 4))
		b := setup(t)
		filestest.Random(t, filepath.Join(b.hereDir, "up"), size)
		b.site.Cuts = []int64{1 + random.Int64N(size), 1 + random.Int64N(size), 1 + random.Int64N(1000)}
		if _, err := b.Put(t.Context(), b.here, "up", "up", ""); err != nil {
			t.Fatal(err)
		}
		b.site.Cuts = []int64{1 + random.Int64N(size), 1 + random.Int64N(size), 1 + random.Int64N(1000)}
		if _, err := b.Get(t.Context(), "up", b.here, "down", false); err != nil {
			t.Fatal(err)
		}
		same(t, filepath.Join(b.hereDir, "up"), filepath.Join(b.there, "up"))
		same(t, filepath.Join(b.hereDir, "up"), filepath.Join(b.hereDir, "down"))
		if b.reconnects < 3 {
			t.Errorf("round %d: %d cuts were met, want at least 3", n, b.reconnects)
		}
		empty(t, b.hereDir, "up", "down")
		empty(t, b.there, "up")
	}
}
