package exposure

import (
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/control"
)

func TestNET6_ChartShowsTheNewestHour(t *testing.T) {
	start := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	e := control.Exposure{Start: start}
	for i := range uint32(100) {
		e.Admitted, e.Refused = append(e.Admitted, i), append(e.Refused, 0)
	}
	e.Refused[99], e.Refused[10] = 1, 1<<32-1
	c := NewChart(e, 60)
	if len(c.Minutes) != 60 || c.MostAdmitted != 99 || c.MostRefused != 1 || c.SumRefused != 1 || c.SumAdmitted != 60*(40+99)/2 {
		t.Errorf("%d minutes, most %d and %d, sums %d and %d", len(c.Minutes), c.MostAdmitted, c.MostRefused, c.SumAdmitted, c.SumRefused)
	}
	if c.Minutes[0] != (Minute{start.Add(99 * time.Minute), 99, 1}) {
		t.Errorf("the newest is %+v", c.Minutes[0])
	}
	if c.Refused != "M591 50v48h8v-48z" || strings.Count(c.Admitted, "M") != 60 {
		t.Errorf("paths %q, %q", c.Refused, c.Admitted)
	}
	for name, e := range map[string]control.Exposure{
		"nothing": {}, "of two lengths": {Admitted: []uint32{1, 2}, Refused: []uint32{1}}, "zeros": {Admitted: []uint32{0}, Refused: []uint32{0}},
		"the most": {Admitted: []uint32{1<<32 - 1, 1}, Refused: []uint32{1<<32 - 1, 0}},
	} {
		if c := NewChart(e, 60); len(c.Minutes) != min(len(e.Admitted), len(e.Refused)) || strings.Contains(c.Admitted, "v-49") {
			t.Errorf("%s: %+v", name, c)
		}
	}
}
