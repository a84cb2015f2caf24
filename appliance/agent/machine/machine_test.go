package machine

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"gatehouse/appliance/enroll"
	"gatehouse/appliance/enroll/report"
)

var at = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func files(m map[string]string) fstest.MapFS {
	out := make(fstest.MapFS)
	for name, text := range m {
		out[name] = &fstest.MapFile{Data: []byte(text), Mode: 0o444}
	}
	return out
}

// nas is a small NAS as its kernel shows it.
var nas = map[string]string{
	"proc/sys/kernel/osrelease":                "6.1.0-40-amd64\n",
	"proc/uptime":                              "3600.25 14000.11\n",
	"proc/loadavg":                             "0.15 0.20 0.25 1/210 4321\n",
	"proc/stat":                                "cpu  1 2 3\nintr " + strings.Repeat("0 ", 40000) + "\nctxt 5\nbtime 1795345200\nprocesses 7\n",
	"proc/meminfo":                             "MemTotal:        8000000 kB\nMemFree:         100 kB\nMemAvailable:    6000000 kB\nSwapTotal:       0 kB\nSwapFree:        0 kB\n",
	"proc/cpuinfo":                             "processor\t: 0\nmodel name\t: Intel(R) N100\n\nprocessor\t: 1\nmodel name\t: Intel(R) N100\n",
	"sys/class/dmi/id/sys_vendor":              "Example  Corp.\n",
	"sys/class/dmi/id/product_name":            "NAS\u00a02 \x1b[31m\n",
	"sys/class/dmi/id/board_name":              "B1\n",
	"sys/class/dmi/id/bios_vendor":             "AMI\n",
	"sys/class/dmi/id/bios_version":            "1.2\n",
	"sys/class/dmi/id/bios_date":               "01/02/2024\n",
	"sys/block/nvme0n1/size":                   "1953525168\n",
	"sys/block/nvme0n1/device/model":           "Samsung SSD 980                         \n",
	"sys/block/nvme0n1/device/serial":          "S64ANJ0R\n",
	"sys/block/nvme0n1/queue/rotational":       "0\n",
	"sys/block/nvme0n1/removable":              "0\n",
	"sys/block/sda/size":                       "7814037168\n",
	"sys/block/sda/device/model":               "WDC WD40\n",
	"sys/block/sda/queue/rotational":           "1\n",
	"sys/block/sdb/size":                       "0\n",
	"sys/block/sdb/device/model":               "empty reader\n",
	"sys/block/loop0/size":                     "8\n",
	"sys/block/dm-0/size":                      "800\n",
	"sys/block/vda/size":                       "2048\n",
	"sys/block/vda/device/vendor":              "0x1af4\n",
	"sys/block/vda/serial":                     "VIRT1\n",
	"sys/class/net/lo/address":                 "00:00:00:00:00:00\n",
	"sys/class/net/lo/type":                    "772\n",
	"sys/class/net/eth0/address":               "52:54:00:12:34:56\n",
	"sys/class/net/eth0/type":                  "1\n",
	"sys/class/net/eth0/operstate":             "up\n",
	"sys/class/net/eth0/speed":                 "2500\n",
	"sys/class/net/eth0/device/uevent":         "DRIVER=igc\nPCI_CLASS=20000\n",
	"sys/class/net/eth1/address":               "52:54:00:12:34:57\n",
	"sys/class/net/eth1/operstate":             "down\n",
	"sys/class/net/eth1/speed":                 "-1\n",
	"sys/class/net/eth1/device/uevent":         "DRIVER=r8169\n",
	"sys/class/net/veth1/address":              "52:54:00:00:00:01\n",
	"sys/class/net/tun0/address":               "0.0.0.0\n",
	"sys/class/hwmon/hwmon0/name":              "coretemp\n",
	"sys/class/hwmon/hwmon0/temp1_input":       "41500\n",
	"sys/class/hwmon/hwmon0/temp1_label":       "Package id 0\n",
	"sys/class/hwmon/hwmon0/temp2_input":       "-274000\n",
	"sys/class/hwmon/hwmon0/in0_input":         "12000\n",
	"sys/class/hwmon/hwmon1/name":              "nvme\n",
	"sys/class/hwmon/hwmon1/temp1_input":       "38850\n",
	"sys/class/hwmon/hwmon1/temp3_input":       "nonsense\n",
	"sys/class/thermal/thermal_zone0/type":     "acpitz\n",
	"sys/class/thermal/thermal_zone0/temp":     "27800\n",
	"sys/class/thermal/cooling_device0/temp":   "1\n",
	"sys/class/dmi/id/product_serial":          "SECRET-SERIAL\n",
	"sys/class/dmi/id/product_uuid":            "SECRET-UUID\n",
	"sys/class/net/eth0/device/not_looked_at":  "\n",
	"sys/class/hwmon/hwmon1/temp1_crit":        "84850\n",
	"sys/class/hwmon/hwmon1/temp1_input_extra": "1\n",
}

func TestInventory(t *testing.T) {
	got := Inventory(files(nas), at)
	want := report.Inventory{
		At: at, Kernel: "6.1.0-40-amd64",
		Machine: report.Machine{Vendor: "Example Corp.", Product: "NAS 2 [31m", Board: "B1", BIOS: "AMI 1.2 01/02/2024"},
		CPU:     report.CPU{Model: "Intel(R) N100", Count: 2}, Memory: 8000000 << 10,
		Disks: []report.Disk{
			{Name: "nvme0n1", Model: "Samsung SSD 980", Serial: "S64ANJ0R", Size: 1953525168 * 512},
			{Name: "sda", Model: "WDC WD40", Size: 7814037168 * 512, Rotational: true},
			{Name: "vda", Serial: "VIRT1", Size: 2048 * 512},
		},
		Links: []report.Link{
			{Name: "eth0", MAC: "52:54:00:12:34:56", Driver: "igc", Speed: 2500, Up: true},
			{Name: "eth1", MAC: "52:54:00:12:34:57", Driver: "r8169"},
		},
		BootedAt: time.Unix(1795345200, 0).UTC(),
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if s := fmt.Sprintf("%+v", got); strings.Contains(s, "SECRET") {
		t.Error("the inventory has the machine's serial number or UUID")
	}
}

func TestHealth(t *testing.T) {
	got, err := Health(files(nas), at)
	want := report.Health{
		At: at, Uptime: 3600.25, Load: [3]float64{0.15, 0.20, 0.25},
		Memory:       report.Usage{Total: 8000000 << 10, Available: 6000000 << 10},
		Volumes:      []report.Volume{},
		Temperatures: []report.Temperature{{Sensor: "coretemp Package id 0", Celsius: 41.5}, {Sensor: "nvme temp1", Celsius: 38.85}},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
}

func TestThermalZonesWhereThereIsNoHwmon(t *testing.T) {
	m := maps.Clone(nas)
	for name := range m {
		if strings.Contains(name, "hwmon") {
			delete(m, name)
		}
	}
	h, err := Health(files(m), at)
	if err != nil || len(h.Temperatures) != 1 || h.Temperatures[0] != (report.Temperature{Sensor: "acpitz", Celsius: 27.8}) {
		t.Errorf("%+v, %v", h.Temperatures, err)
	}
}

func TestContainerLinks(t *testing.T) {
	i := Inventory(files(map[string]string{
		"sys/class/net/eth0/address": "52:54:00:12:34:56\n",
		"sys/class/net/eth0/type":    "1\n",
		"sys/class/net/lo/address":   "00:00:00:00:00:00\n",
		"sys/class/net/lo/type":      "772\n",
	}), at)
	if len(i.Links) != 1 || i.Links[0].Name != "eth0" {
		t.Errorf("%+v", i.Links)
	}
}

// TestHostileFiles gives each file of the machine each of these contents: what
// comes of it is always a report that a hub takes.
func TestHostileFiles(t *testing.T) {
	names := slices.Sorted(maps.Keys(nas))
	step := 1
	if testing.Short() {
		step = 5 // each content in some files, each file with some contents
	}
	for i, content := range []string{"", "\n", "\x00\x01\xff\xfe", strings.Repeat("é", 200), strings.Repeat("9", 400), "-1", "1e999", "NaN", "Inf",
		"MemTotal: 18446744073709551615 kB\nMemAvailable: 99999999999999 kB", "a: b: c\n:::\n", "\u202e\u2028", "0.1", "0.1 x y z"} {
		for at := i % step; at < len(names); at += step {
			name, m := names[at], maps.Clone(nas)
			m[name] = content
			judge(t, fmt.Sprintf("%s = %.20q", name, content), files(m))
		}
	}
	judge(t, "nothing at all", fstest.MapFS{})
	if _, err := Health(fstest.MapFS{}, at); err == nil {
		t.Error("a machine without /proc has a health")
	}
}

func judge(t *testing.T, name string, f fs.FS) {
	t.Helper()
	i := Inventory(f, at)
	r := report.Report{Version: enroll.Version, Inventory: &i}
	if h, err := Health(f, at); err == nil {
		r.Health = &h
	}
	if err := r.Validate(); err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

func TestManyOfEverythingIsBounded(t *testing.T) {
	m := maps.Clone(nas)
	for i := range 1000 {
		m[fmt.Sprintf("sys/block/sd%d/size", i)] = "8"
		m[fmt.Sprintf("sys/block/sd%d/device/model", i)] = "x"
		m[fmt.Sprintf("sys/class/net/e%d/address", i)] = "52:54:00:12:34:56"
		m[fmt.Sprintf("sys/class/net/e%d/device/uevent", i)] = ""
		m[fmt.Sprintf("sys/class/hwmon/hwmon0/temp%d_input", i+5)] = "1000"
	}
	judge(t, "a thousand of each", files(m))
}

// TestThisMachine reads the real files: drivers answer in ways no fixture has.
func TestThisMachine(t *testing.T) {
	root := os.DirFS("/")
	judge(t, "this machine", root)
	if h, err := Health(root, at); err != nil || h.Memory.Total == 0 || h.Uptime == 0 {
		t.Errorf("%+v, %v", h, err)
	}
	if i := Inventory(root, at); i.CPU.Count == 0 || i.Kernel == "" || i.Memory == 0 {
		t.Errorf("%+v", i)
	}
}
