package report

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/enroll"
)

func sample() Report {
	at := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	return Report{
		Version: enroll.Version,
		Inventory: &Inventory{
			At: at, Host: "gatehouse-7f3k", Version: "0.1.0", Kernel: "6.1.0-40-amd64", System: "linux/amd64",
			Machine: Machine{Vendor: "Example", Product: "NAS 2", Board: "B1", BIOS: "AMI 1.0 2024"},
			CPU:     CPU{Model: "Intel N100", Count: 4}, Memory: 8 << 30,
			Disks:    []Disk{{Name: "nvme0n1", Model: "Disk", Serial: "S1", Size: 1 << 40}},
			Links:    []Link{{Name: "eth0", MAC: "52:54:00:12:34:56", Driver: "igc", Speed: 2500, Up: true}},
			BootedAt: at.Add(-time.Hour),
		},
		Health: &Health{
			At: at, Uptime: 3600.5, Load: [3]float64{0.1, 0.2, 0.3},
			Memory: Usage{8 << 30, 6 << 30}, Volumes: []Volume{{"data", Usage{1 << 40, 1 << 39}}},
			Temperatures: []Temperature{{"coretemp Package id 0", 41.5}},
		},
	}
}

func TestParseRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Report)
		want   error
	}{
		"another version":        {func(r *Report) { r.Version = 2 }, enroll.ErrVersion},
		"nothing":                {func(r *Report) { r.Inventory, r.Health = nil, nil }, enroll.ErrMalformed},
		"a name with a line end": {func(r *Report) { r.Inventory.Host = "a\r\nb" }, enroll.ErrMalformed},
		"a terminal's escape":    {func(r *Report) { r.Inventory.Machine.Vendor = "\x1b[2J" }, enroll.ErrMalformed},
		"a disk with a NUL":      {func(r *Report) { r.Inventory.Disks[0].Serial = "\x00" }, enroll.ErrMalformed},
		"a long model":           {func(r *Report) { r.Inventory.CPU.Model = strings.Repeat("x", 129) }, enroll.ErrMalformed},
		"a MAC that is none":     {func(r *Report) { r.Inventory.Links[0].MAC = "<b>" }, enroll.ErrMalformed},
		"too many disks":         {func(r *Report) { r.Inventory.Disks = make([]Disk, maxList+1) }, enroll.ErrMalformed},
		"too many links":         {func(r *Report) { r.Inventory.Links = make([]Link, maxList+1) }, enroll.ErrMalformed},
		"too many sensors":       {func(r *Report) { r.Health.Temperatures = make([]Temperature, maxList+1) }, enroll.ErrMalformed},
		"negative processors":    {func(r *Report) { r.Inventory.CPU.Count = -1 }, enroll.ErrMalformed},
		"negative uptime":        {func(r *Report) { r.Health.Uptime = -1 }, enroll.ErrMalformed},
		"a huge load":            {func(r *Report) { r.Health.Load[2] = 1e300 }, enroll.ErrMalformed},
		"more free than there":   {func(r *Report) { r.Health.Volumes[0].Available = 1 << 41 }, enroll.ErrMalformed},
		"a sun":                  {func(r *Report) { r.Health.Temperatures[0].Celsius = 5500 }, enroll.ErrMalformed},
		"a sensor of markup":     {func(r *Report) { r.Health.Temperatures[0].Sensor = "\u202e" }, enroll.ErrMalformed},
	} {
		r := sample()
		c.change(&r)
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(b); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	for _, b := range []string{"", "null", "{}", "[]", `{"version":1,"health":{},"shell":"sh"}`, `{"version":1,"health":{}} x`,
		`{"version":1,"health":{"uptime":1e999}}`, `{"version":1,"inventory":{"memory":-1}}`, strings.Repeat(" ", MaxReport+1)} {
		if _, err := Parse([]byte(b)); err == nil {
			t.Errorf("%.40q is taken", b)
		}
	}
}

func TestParseRoundTrip(t *testing.T) {
	want := sample()
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(b)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzParse(f *testing.F) {
	b, err := json.Marshal(sample())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1,"health":{"load":[1,2,3,4]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Parse(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatalf("what was taken cannot be written: %v", err)
		}
		if len(again) <= MaxReport {
			if _, err := Parse(again); err != nil {
				t.Fatalf("what was taken is refused when written anew: %v", err)
			}
		}
	})
}
