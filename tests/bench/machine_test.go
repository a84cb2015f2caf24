package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/image"
	"gatehouse/image/qemu"
	"gatehouse/image/target"
)

// newDisk copies the built image, sparse, and grows it.
func newDisk(b *testing.B) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "disk.img")
	if out, err := exec.Command("cp", "--sparse=always", built(b, image.Disk), path).CombinedOutput(); err != nil {
		b.Fatalf("copying the disk: %v: %s", err, out)
	}
	if err := os.Truncate(path, 1<<30); err != nil {
		b.Fatal(err)
	}
	return path
}

// say waits for a line on the machine's console.
func say(b *testing.B, g *qemu.Guest, pattern *regexp.Regexp) []string {
	b.Helper()
	m, err := g.WaitSerial(pattern, patience)
	if err != nil {
		b.Fatal(err)
	}
	return m
}

// off presses the power button and waits for the end.
func off(b *testing.B, g *qemu.Guest) {
	b.Helper()
	if err := g.PowerButton(); err != nil {
		b.Fatal(err)
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
}

// start starts a machine. A benchmark that ends early takes its machine along.
func start(b *testing.B, m qemu.Machine) *qemu.Guest {
	b.Helper()
	g, err := m.Start(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = g.Kill() })
	return g
}

// rounds is how often each kind of start is measured; the median counts.
const rounds = 3

// BenchmarkStart measures from QEMU's start to an answer on 443, beside a PID 1
// that prints one line, in the same machine, with the same kernel and modules,
// in turn. Firmware would add the same seconds to both.
func BenchmarkStart(b *testing.B) {
	bare := bareImage(b)
	var line, first, later []time.Duration
	for b.Loop() {
		for range rounds {
			m := qemu.Machine{
				Memory: 256, Append: image.CommandLine(target.AMD64) + " gatehouse.disk=/dev/vda", Disk: newDisk(b), State: b.TempDir(),
				Kernel: filepath.Join(bare, image.Kernel), Initramfs: filepath.Join(bare, image.Initramfs),
				Forward: map[int]string{443: "127.0.0.1:0"},
			}
			began := time.Now()
			g := start(b, m)
			say(b, g, regexp.MustCompile(`init: unset`))
			line = append(line, time.Since(began))
			_ = g.Kill()
			m.Kernel, m.Initramfs = built(b, image.Kernel), built(b, image.Initramfs)
			first = append(first, answer(b, m))
			later = append(later, answer(b, m))
		}
	}
	only(b)
	l, f, a := percentile(line, 50), percentile(first, 50), percentile(later, 50)
	b.ReportMetric(l.Seconds(), "bare-line-s")
	b.ReportMetric(f.Seconds(), "first-start-s")
	b.ReportMetric(a.Seconds(), "start-s")
	b.ReportMetric(f.Seconds()/l.Seconds(), "first-ratio")
	b.ReportMetric(a.Seconds()/l.Seconds(), "ratio")
}

// addressed is the box's line once it has an IPv4 address, in any state.
var addressed = regexp.MustCompile(`(?m)^gatehouse: state=\S+ .*url=https://[0-9]`)

// answer starts a machine, returns when 443 answered first, and ends it.
func answer(b *testing.B, m qemu.Machine) time.Duration {
	b.Helper()
	began := time.Now()
	g := start(b, m)
	say(b, g, addressed)
	// QEMU accepts for the guest, and repeats what the guest's filter still
	// drops only after seconds. So a try begins every 100 ms, whatever became
	// of those before.
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	answered := make(chan time.Duration, 1)
	for ctx.Err() == nil && len(answered) == 0 {
		go func() {
			v := newVisitor(b, "https://"+g.Addr(443), nil)
			v.Timeout = 5 * time.Second
			defer v.CloseIdleConnections()
			if _, err := v.get("/api/v1/status"); err == nil {
				select {
				case answered <- time.Since(began):
				default:
				}
			}
		}()
		time.Sleep(100 * time.Millisecond)
	}
	cancel()
	select {
	case took := <-answered:
		off(b, g)
		return took
	default:
		b.Fatalf("443 does not answer:\n%s", g.Serial())
		return 0
	}
}

// bareImage builds kernel and initramfs around the smallest PID 1.
func bareImage(b *testing.B) string {
	b.Helper()
	dir := b.TempDir()
	cache, err := filepath.Abs(filepath.Join(output, "cache"))
	if err != nil {
		b.Fatal(err)
	}
	if err := os.Symlink(cache, filepath.Join(dir, "cache")); err != nil {
		b.Fatal(err)
	}
	source, err := filepath.Abs("../..")
	if err != nil {
		b.Fatal(err)
	}
	build := image.Build{
		Source: source, Program: "image/initramfs/testdata/init", Output: dir, Lock: built(b, image.LockFile),
		Version: "bench", Built: "2026-11-01T00:00:00Z", Log: slog.New(slog.DiscardHandler),
	}
	if err := build.Run(b.Context()); err != nil {
		b.Fatal(err)
	}
	return dir
}

// BenchmarkMemory measures as docs/performance.md defines it: MemTotal less
// MemAvailable in a machine of 256 MB that an owner has claimed and restarted,
// 60 s after it is ready, with no visitor but the one who asks, signed in
// before the restart.
func BenchmarkMemory(b *testing.B) {
	var m control.Memory
	for b.Loop() {
		machine := qemu.Machine{Disk: newDisk(b), State: b.TempDir(), Memory: 256, Forward: map[int]string{443: "127.0.0.1:0"}}
		g := start(b, machine)
		code := fields(say(b, g, statusLine("unclaimed"))[1])["code"]
		v := newVisitor(b, "https://"+g.Addr(443), nil)
		if err := v.own(code); err != nil {
			b.Fatal(err)
		}
		off(b, g)
		g = start(b, machine)
		say(b, g, statusLine("ready"))
		time.Sleep(time.Minute)
		v.base = "https://" + g.Addr(443)
		v.CloseIdleConnections()
		var err error
		if m, err = memory(v); err != nil {
			b.Fatal(err)
		}
		off(b, g)
	}
	only(b)
	b.ReportMetric(float64(m.Total)/1e6, "total-MB")
	b.ReportMetric(float64(m.Total-m.Available)/1e6, "used-MB")
}

func memory(v *visitor) (m control.Memory, err error) {
	text, err := v.get("/api/v1/details")
	if err != nil {
		return m, err
	}
	var details control.Status
	if err := json.Unmarshal([]byte(text), &details); err != nil {
		return m, fmt.Errorf("reading the details: %w", err)
	}
	if details.Memory.Total == 0 {
		return m, fmt.Errorf("the details have no memory: %.300s", text)
	}
	return details.Memory, nil
}
