package firmware

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"io"
	"testing"
	"time"
)

// BenchmarkVerify is what it costs to know that a release is the right one, beside
// SHA-256 of its bytes alone: the same 32 MiB in turn, through the same buffer.
func BenchmarkVerify(b *testing.B) {
	h := newHouse(b)
	content := make([]byte, 32<<20)
	if _, err := rand.Read(content); err != nil {
		b.Fatal(err)
	}
	h.release.Systems[0].Size, h.release.Systems[0].SHA256 = int64(len(content)), sha256.Sum256(content)
	whole := bundle(b, h.sign(b, h.release, 0, 1), content)
	buffer := make([]byte, 64<<10)
	b.SetBytes(int64(len(content)))
	var verified, alone time.Duration
	for b.Loop() {
		began := time.Now()
		n, r, err := ReadBundle(bytes.NewReader(whole))
		if err != nil {
			b.Fatal(err)
		}
		m, err := h.trust.Open(n)
		if err != nil {
			b.Fatal(err)
		}
		s, err := m.System("amd64")
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.CopyBuffer(writer{io.Discard}, s.Content(r), buffer); err != nil {
			b.Fatal(err)
		}
		verified += time.Since(began)

		began = time.Now()
		sum := sha256.New()
		if _, err := io.CopyBuffer(writer{sum}, reader{bytes.NewReader(content)}, buffer); err != nil {
			b.Fatal(err)
		}
		alone += time.Since(began)
	}
	b.ReportMetric(float64(verified)/float64(alone), "ratio")
	b.ReportMetric(float64(verified.Milliseconds())/float64(b.N), "ms/release")
}

// writer and reader hide what else a writer or a reader can, so that both ways go
// through the buffer.
type (
	writer struct{ io.Writer }
	reader struct{ io.Reader }
)
