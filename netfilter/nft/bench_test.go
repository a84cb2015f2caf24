package nft_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/netfilter"
	"gatehouse/netfilter/allowlist"
	"gatehouse/netfilter/nft"
	"gatehouse/tests/netns"
)

// sizes of lists; the last takes nft a quarter of a minute.
func sizes() []int {
	if os.Getenv("GATEHOUSE_SOAK") == "1" {
		return []int{1000, 10_000, 100_000, 1_000_000}
	}
	return []int{1000, 10_000, 100_000}
}

func one(n int, v6 bool) allowlist.Policy {
	return allowlist.Policy{Enabled: true, Lists: []allowlist.List{{Name: "office", Enabled: true, Ranges: ranges(n, v6)}}}
}

// timed fills and swaps as the program does, and prints the milliseconds of
// both and the most memory that it ever held, in MB.
func timed(args []string, w io.Writer) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	p := one(n, args[1] == "true")
	runtime.GC()
	lists, sets := netfilter.Sets(p, 2)
	begin := time.Now()
	if err := nft.Fill(sets); err != nil {
		return err
	}
	filled := time.Now()
	if err := nft.Apply(netfilter.Rules(netfilter.State{Phase: control.StateReady, Lists: lists})); err != nil {
		return err
	}
	swapped := time.Now()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	var peak int
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			fmt.Sscan(rest, &peak)
		}
	}
	_, err = fmt.Fprintln(w, filled.Sub(begin).Microseconds(), swapped.Sub(filled).Microseconds(), peak)
	return err
}

// BenchmarkNET8_Load loads a list of each size over an older one of the same
// size, beside nft -f with the same ranges.
func BenchmarkNET8_Load(b *testing.B) {
	for _, v6 := range []bool{false, true} {
		for _, n := range sizes() {
			b.Run(fmt.Sprintf("ranges=%d/v6=%t", n, v6), func(b *testing.B) {
				var fill, swap, peak, theirs float64
				for b.Loop() {
					h := netns.New(b, "box")
					h.Do(b, func() error { return install(one(n, v6), 1) })
					var f, s, kb float64
					if _, err := fmt.Sscan(h.Run(b, "timed", strconv.Itoa(n), strconv.FormatBool(v6)), &f, &s, &kb); err != nil {
						b.Fatal(err)
					}
					fill, swap, peak = fill+f/1000, swap+s/1000, max(peak, kb/1024)
					_, sets := netfilter.Sets(one(n, v6), 3)
					file := writeScript(b, sets[map[bool]int{true: 1}[v6]])
					h.Do(b, func() error {
						begin := time.Now()
						out, err := exec.Command("nft", "-f", file).CombinedOutput()
						theirs += float64(time.Since(begin).Microseconds()) / 1000
						if err != nil {
							return fmt.Errorf("nft -f: %w: %s", err, out)
						}
						return nil
					})
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(fill/float64(b.N), "fill-ms")
				b.ReportMetric(swap/float64(b.N), "swap-ms")
				b.ReportMetric(theirs/float64(b.N), "nft-f-ms")
				b.ReportMetric(theirs/(fill+swap), "times-faster")
				b.ReportMetric(peak, "peak-MB")
			})
		}
	}
}
