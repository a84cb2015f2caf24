package bench

import (
	"os"
	"testing"

	"gatehouse/image"
)

// BenchmarkImage has nothing to repeat: it is the size of what was built.
func BenchmarkImage(b *testing.B) {
	for b.Loop() {
	}
	only(b)
	for unit, name := range map[string]string{
		"image-gz-MB": image.DiskGzip, "uki-MB": image.UKI, "kernel-MB": image.Kernel,
		"initramfs-MB": image.Initramfs, "gatehoused-MB": "gatehoused",
	} {
		info, err := os.Stat(built(b, name))
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(info.Size())/1e6, unit)
	}
}
