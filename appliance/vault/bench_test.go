package vault

import (
	"runtime"
	"testing"

	"gatehouse/tpm"
	"gatehouse/tpm/tpmtest"
)

// BenchmarkOpen is what a service on a host waits for; package tpm has the
// unsealing alone beside the same raw commands.
func BenchmarkOpen(b *testing.B) {
	c := box(tpmtest.Start(b), newDisk())
	c.Form = Host
	mustCreate(b, c)
	for b.Loop() {
		v, err := Open(b.Context(), c)
		if err != nil {
			b.Fatal(err)
		}
		v.Wipe()
	}
}

// BenchmarkOpenMeasured is what a start of the box waits for: a release that is
// approved, the counter, the cap, claimed bit and latch.
func BenchmarkOpenMeasured(b *testing.B) {
	s := tpmtest.Start(b)
	c := measuredBox(b, s, releaseKey(b), 1)
	mustCreate(b, c)
	commands := &tpmtest.Fault{To: s.Transport()}
	c.TPM = tpm.New(commands)
	opened := 0
	for b.Loop() {
		b.StopTimer()
		s.PowerCut(b)
		b.StartTimer()
		v, err := Open(b.Context(), c)
		if err != nil {
			b.Fatal(err)
		}
		v.Wipe()
		opened++
	}
	b.ReportMetric(float64(commands.N)/float64(opened), "commands")
}

// BenchmarkVouch is the attestation key's word for the two others.
func BenchmarkVouch(b *testing.B) {
	v := mustCreate(b, box(tpmtest.Start(b), newDisk()))
	for b.Loop() {
		v.vouched = vouched{}
		if _, keys, err := v.vouch(); err != nil || len(keys) != 2 {
			b.Fatal(keys, err)
		}
	}
}

// BenchmarkMemory is what an open vault keeps on the heap; besides it has one
// page of the keys' own.
func BenchmarkMemory(b *testing.B) {
	c := box(tpmtest.Start(b), newDisk())
	c.Form = Host
	mustCreate(b, c)
	const many = 64
	var kept [many]*Vault
	for b.Loop() {
		before := heap()
		for i := range kept {
			v, err := Open(b.Context(), c)
			if err != nil {
				b.Fatal(err)
			}
			kept[i] = v
		}
		after := heap()
		for _, v := range kept {
			v.Wipe()
		}
		b.ReportMetric(0, "ns/op")
		b.ReportMetric((after-before)/many/1024, "KiB/vault")
		clear(kept[:])
	}
}

// heap is what is in use, in bytes.
func heap() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}
