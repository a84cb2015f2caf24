package hosted

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// cuts are how long the cable before the box is pulled, once each during a copy:
// TCP sits the first one out, and the second is longer than a path may be silent.
var cuts = []time.Duration{3 * time.Second, 9 * time.Second}

// TestSES4_CopyThroughTheWholeBoxOverACutNetwork copies a file to a machine
// behind the box and back, with the tool, while the technician's cable is pulled
// twice each way.
func TestSES4_CopyThroughTheWholeBoxOverACutNetwork(t *testing.T) {
	size := int64(64 << 20)
	if os.Getenv("GATEHOUSE_SOAK") != "" {
		size = 1 << 30
	}
	b := targeted(t, "allowed")
	here, there, back := filepath.Join(b.home, "big"), filepath.Join(b.TempDir(), "big"), filepath.Join(b.home, "back")
	want := noise(t, here, size)
	began := time.Now()
	// As people do it, and by the gateway alone.
	b.copied(size, there, "cp", here, "nas:"+there)
	b.copied(size, back, "cp", "--no-direct", "nas:"+there, back)
	t.Logf("%d MiB there and back in %s, %d cuts of %v each way among it", size>>20, time.Since(began).Round(time.Second/10), len(cuts), cuts)
	for _, path := range []string{there, back} {
		if got, n := sum(t, path); got != want || n != size {
			t.Errorf("%s came as another: %d bytes of %d", path, n, size)
		}
	}
}

// copied runs a copy that is cut on its way, and sees that it was.
func (b *behind) copied(size int64, to string, args ...string) {
	b.Helper()
	cmd := b.before(b.Context(), b.toolPath(), args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	began := time.Now()
	b.machine.Do(b.T, cmd.Start)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	part := filepath.Join(filepath.Dir(to), "."+filepath.Base(to)+".gatehouse-part")
	for i, at := range []int64{size / 10, size / 2} {
		for arrived := int64(0); arrived < at; time.Sleep(time.Millisecond) {
			if st, err := os.Stat(part); err == nil {
				arrived = st.Size()
			}
			select {
			case err := <-ended:
				b.Fatalf("gatehouse %s ended before cut %d: %v\n%s\n%s", strings.Join(args, " "), i+1, err, &out, b.output())
			default:
			}
			if time.Since(began) > 5*patience {
				b.Fatalf("gatehouse %s: %d of %d bytes\n%s", strings.Join(args, " "), arrived, size, b.output())
			}
		}
		ways := b.ways()
		b.machine.Down(b.T, "lan0")
		time.Sleep(cuts[i])
		// What was on its way has arrived by now, and the rest cannot.
		if st, err := os.Stat(part); err != nil || st.Size() >= size {
			b.Errorf("cut %d was too late to cut anything (%v)", i+1, err)
		}
		left := b.ways()
		if len(ways) == 0 || i == 1 && slices.ContainsFunc(left, func(w string) bool { return slices.Contains(ways, w) }) {
			b.Errorf("cut %d: the copy went over %q, of which %q outlived it", i+1, ways, left)
		}
		b.machine.Up(b.T, "lan0")
	}
	select {
	case err := <-ended:
		if err != nil {
			b.Fatalf("gatehouse %s: %v\n%s\n%s", strings.Join(args, " "), err, &out, b.output())
		}
	case <-time.After(5 * patience):
		cmd.Process.Kill()
		b.Fatalf("gatehouse %s does not end\n%s\n%s", strings.Join(args, " "), <-ended, b.output())
	}
	b.Logf("gatehouse %s %s: %s\n%s", args[0], args[1], time.Since(began).Round(time.Second/10), &out)
}

// ways are the technician's ends of connections to the box that carry a file:
// a mebibyte has gone through them, as does not through the console's.
func (b *behind) ways() (ends []string) {
	b.Helper()
	var end string
	for line := range strings.Lines(b.machine.Command(b.T, "ss", "-Htin", "state", "established")) {
		f := strings.Fields(line)
		if !strings.HasPrefix(line, "\t") && len(f) > 3 {
			end = f[2]
			continue
		}
		for _, word := range f {
			name, value, _ := strings.Cut(word, ":")
			if n, err := strconv.Atoi(value); err == nil && n > 1<<20 && (name == "bytes_sent" || name == "bytes_received") {
				ends = append(ends, end)
			}
		}
	}
	return ends
}

// noise writes a file that nothing makes smaller, and gives its hash.
func noise(t *testing.T, path string, size int64) string {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(f, h), rand.NewChaCha8([32]byte{}), size); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

func sum(t *testing.T, path string) (string, int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil)), n
}
