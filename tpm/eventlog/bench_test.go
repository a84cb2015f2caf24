package eventlog

import (
	"os"
	"runtime"
	"testing"
)

// BenchmarkExplain is what a start does with the firmware's log: read, put
// together again, held against the registers, said in words.
func BenchmarkExplain(b *testing.B) {
	raw, err := os.ReadFile("testdata/ovmf-secure.log")
	if err != nil {
		b.Fatal(err)
	}
	s := good(b)
	for b.Loop() {
		if s.Log, err = Parse(raw); err != nil {
			b.Fatal(err)
		}
		if rungs := Explain(s); states(rungs) != "UCCCC" {
			b.Fatal(states(rungs))
		}
	}
}

// BenchmarkLogMemory is what of the log stays on the heap for the page.
func BenchmarkLogMemory(b *testing.B) {
	raw, err := os.ReadFile("testdata/ovmf-secure.log")
	if err != nil {
		b.Fatal(err)
	}
	heap := func() float64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	const many = 64
	var kept [many]*Log
	for b.Loop() {
		before := heap()
		for i := range kept {
			if kept[i], err = Parse(append([]byte(nil), raw...)); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(0, "ns/op")
		b.ReportMetric((heap()-before)/many/1024, "KiB/log")
		clear(kept[:])
	}
}
