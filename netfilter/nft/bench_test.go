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

// timed fills, swaps and takes away again as the program does, and prints the
// microseconds of each and the most memory that it ever held, in KB.
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
	if err := nft.Apply(netfilter.Rules(netfilter.State{Phase: control.StateReady})); err != nil {
		return err
	}
	deleted := time.Now()
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
	_, err = fmt.Fprintln(w, filled.Sub(begin).Microseconds(), swapped.Sub(filled).Microseconds(), deleted.Sub(swapped).Microseconds(), peak)
	return err
}

// BenchmarkNET8_Load loads a list of each size over a small one, takes it away,
// and loads the same with nft -f.
func BenchmarkNET8_Load(b *testing.B) {
	for _, v6 := range []bool{false, true} {
		for _, n := range sizes() {
			b.Run(fmt.Sprintf("ranges=%d/v6=%t", n, v6), func(b *testing.B) {
				var fill, swap, drop, peak, theirs float64
				for b.Loop() {
					h := netns.New(b, "box")
					h.Do(b, func() error { return install(one(10, v6), 1) })
					var f, s, d, kb float64
					if _, err := fmt.Sscan(h.Run(b, "timed", strconv.Itoa(n), strconv.FormatBool(v6)), &f, &s, &d, &kb); err != nil {
						b.Fatal(err)
					}
					fill, swap, drop, peak = fill+f/1000, swap+s/1000, drop+d/1000, max(peak, kb/1024)
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
				b.ReportMetric(drop/float64(b.N), "delete-ms")
				b.ReportMetric(theirs/float64(b.N), "nft-f-ms")
				b.ReportMetric(theirs/(fill+swap), "times-faster")
				b.ReportMetric(peak, "peak-MB")
			})
		}
	}
}
