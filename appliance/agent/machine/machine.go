// Package machine reads what the kernel tells everyone about the machine, from /proc and /sys.
//
// It takes a file system, so that a test hands it the files of a machine. A
// file that is missing leaves its field empty: containers hide many, and an
// inventory with holes is worth more than none.
package machine

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"path"
	"strconv"
	"strings"
	"time"
	"unicode"

	"gatehouse/appliance/enroll/report"
)

const (
	maxText    = 128     // bytes, as report allows
	maxEntries = 64      // disks, links, sensors
	maxFile    = 4 << 20 // bytes; /proc/cpuinfo of a large server has 1 MiB
	sector     = 512     // bytes: /sys/block/*/size counts these whatever the disk has (block/genhd.c)
)

// Inventory reads what changes seldom. Host and Version are the caller's to fill.
func Inventory(fsys fs.FS, now time.Time) report.Inventory {
	r := reader{fsys}
	dmi := func(name string) string { return r.line("sys/class/dmi/id/" + name) }
	mem := r.fields("proc/meminfo")
	i := report.Inventory{
		At:     now.UTC(),
		Kernel: r.line("proc/sys/kernel/osrelease"),
		Machine: report.Machine{
			Vendor: dmi("sys_vendor"), Product: dmi("product_name"), Board: dmi("board_name"),
			BIOS: clean(strings.Join([]string{dmi("bios_vendor"), dmi("bios_version"), dmi("bios_date")}, " ")),
		},
		CPU:    r.cpu(),
		Memory: kibibytes(mem["MemTotal"]),
		Disks:  r.disks(),
		Links:  r.links(),
	}
	if t, err := strconv.ParseInt(r.stat("btime"), 10, 64); err == nil {
		i.BootedAt = time.Unix(t, 0).UTC()
	}
	return i
}

// Health reads what changes all the time. Volumes are the caller's to fill. An
// error means that /proc is not there or not what it should be.
func Health(fsys fs.FS, now time.Time) (report.Health, error) {
	r := reader{fsys}
	h := report.Health{At: now.UTC(), Volumes: []report.Volume{}, Temperatures: r.temperatures()}
	up := strings.Fields(r.line("proc/uptime"))
	load := strings.Fields(r.line("proc/loadavg"))
	mem := r.fields("proc/meminfo")
	if len(up) < 1 || len(load) < 3 || mem["MemTotal"] == "" {
		return h, errors.New("reading the health of the machine: /proc/uptime, loadavg or meminfo cannot be read")
	}
	var err error
	if h.Uptime, err = number(up[0], 1e10); err != nil {
		return h, fmt.Errorf("reading /proc/uptime: %w", err)
	}
	for i := range h.Load {
		if h.Load[i], err = number(load[i], 1e7); err != nil {
			return h, fmt.Errorf("reading /proc/loadavg: %w", err)
		}
	}
	h.Memory = usage(mem["MemTotal"], mem["MemAvailable"])
	h.Swap = usage(mem["SwapTotal"], mem["SwapFree"])
	return h, nil
}

// number reads a count that a report may carry: ParseFloat also takes NaN and Inf.
func number(s string, most float64) (float64, error) {
	f, err := strconv.ParseFloat(s, 64)
	if err == nil && !(f >= 0 && f <= most) {
		err = fmt.Errorf("%s is not between 0 and %g", s, most)
	}
	return f, err
}

func usage(total, available string) report.Usage {
	t := kibibytes(total)
	return report.Usage{Total: t, Available: min(kibibytes(available), t)}
}

// kibibytes reads "1024 kB" as bytes; 0 if it is anything else.
func kibibytes(s string) uint64 {
	n, err := strconv.ParseUint(strings.TrimSuffix(s, " kB"), 10, 54)
	if err != nil {
		return 0
	}
	return n << 10
}

type reader struct{ fsys fs.FS }

func (r reader) read(name string) []byte {
	f, err := r.fsys.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil // drivers give EINVAL for a value they do not have, as the speed of a link that is down
	}
	return b
}

// line is a file's first line, fit for a report.
func (r reader) line(name string) string {
	b, _, _ := bytes.Cut(r.read(name), []byte("\n"))
	return clean(string(b))
}

// clean makes a text that a report may carry: what people put into firmware is
// anything.
func clean(s string) string {
	s = strings.Map(func(c rune) rune {
		if unicode.IsPrint(c) && c != unicode.ReplacementChar {
			return c
		}
		return ' '
	}, strings.ToValidUTF8(s, " "))
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > maxText {
		s = strings.TrimSpace(strings.ToValidUTF8(s[:maxText], ""))
	}
	return s
}

// fields reads "name: value" lines.
func (r reader) fields(name string) map[string]string {
	m := make(map[string]string)
	s := bufio.NewScanner(bytes.NewReader(r.read(name)))
	for s.Scan() {
		if k, v, ok := strings.Cut(s.Text(), ":"); ok {
			m[strings.TrimSpace(k)] = strings.TrimSpace(v)
		}
	}
	return m
}

func (r reader) stat(key string) string {
	s := bufio.NewScanner(bytes.NewReader(r.read("proc/stat")))
	s.Buffer(nil, maxFile) // the line of interrupts is long
	for s.Scan() {
		if f := strings.Fields(s.Text()); len(f) == 2 && f[0] == key {
			return f[1]
		}
	}
	return ""
}

func (r reader) cpu() report.CPU {
	var c report.CPU
	s := bufio.NewScanner(bytes.NewReader(r.read("proc/cpuinfo")))
	for s.Scan() {
		k, v, _ := strings.Cut(s.Text(), ":")
		switch strings.TrimSpace(k) {
		case "processor":
			c.Count++
		case "model name", "Model": // amd64, arm64 boards
			if c.Model == "" {
				c.Model = clean(v)
			}
		}
	}
	return c
}

func (r reader) entries(dir string) []string {
	list, err := fs.ReadDir(r.fsys, dir)
	if err != nil {
		return nil
	}
	names := make([]string, 0, len(list))
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func (r reader) exists(name string) bool {
	_, err := fs.Stat(r.fsys, name)
	return err == nil
}

// disks are the block devices with a device behind them: no loop, RAM or
// mapper devices.
func (r reader) disks() []report.Disk {
	out := []report.Disk{}
	for _, name := range r.entries("sys/block") {
		dir := path.Join("sys/block", name)
		if !r.exists(path.Join(dir, "device")) || len(out) == maxEntries {
			continue
		}
		n, err := strconv.ParseUint(r.line(path.Join(dir, "size")), 10, 54)
		if err != nil || n == 0 {
			continue // an empty card reader or tray
		}
		d := report.Disk{
			Name: clean(name), Size: n * sector, Model: r.line(path.Join(dir, "device/model")),
			Serial:     r.line(path.Join(dir, "device/serial")),
			Rotational: r.line(path.Join(dir, "queue/rotational")) == "1",
			Removable:  r.line(path.Join(dir, "removable")) == "1",
		}
		if d.Serial == "" {
			d.Serial = r.line(path.Join(dir, "serial")) // virtio
		}
		out = append(out, d)
	}
	return out
}

// links are the interfaces with a device behind them; where none has (a
// container), all but the loopback.
func (r reader) links() []report.Link {
	hardware, other := []report.Link{}, []report.Link{}
	for _, name := range r.entries("sys/class/net") {
		dir := path.Join("sys/class/net", name)
		mac := r.line(path.Join(dir, "address"))
		if _, err := net.ParseMAC(mac); err != nil || len(hardware)+len(other) == maxEntries {
			continue // tunnels have an IP address there, or nothing
		}
		if r.line(path.Join(dir, "type")) == "772" { // ARPHRD_LOOPBACK
			continue
		}
		l := report.Link{Name: clean(name), MAC: mac, Up: r.line(path.Join(dir, "operstate")) == "up"}
		if n, err := strconv.Atoi(r.line(path.Join(dir, "speed"))); err == nil && n > 0 {
			l.Speed = n
		}
		if !r.exists(path.Join(dir, "device")) {
			other = append(other, l)
			continue
		}
		for line := range strings.Lines(string(r.read(path.Join(dir, "device/uevent")))) {
			if d, ok := strings.CutPrefix(line, "DRIVER="); ok {
				l.Driver = clean(d)
			}
		}
		hardware = append(hardware, l)
	}
	if len(hardware) == 0 {
		return other
	}
	return hardware
}

// temperatures reads hwmon (Documentation/hwmon/sysfs-interface.rst), and
// thermal zones where there is none.
func (r reader) temperatures() []report.Temperature {
	out := []report.Temperature{}
	add := func(sensor, file string) {
		n, err := strconv.ParseInt(r.line(file), 10, 32)
		if err != nil || n < -100_000 || n > 300_000 || len(out) == maxEntries {
			return // a sensor that is not connected
		}
		out = append(out, report.Temperature{Sensor: clean(sensor), Celsius: float64(n) / 1000})
	}
	for _, chip := range r.entries("sys/class/hwmon") {
		dir := path.Join("sys/class/hwmon", chip)
		for _, f := range r.entries(dir) {
			channel, ok := strings.CutSuffix(f, "_input")
			if !ok || !strings.HasPrefix(channel, "temp") {
				continue
			}
			label := r.line(path.Join(dir, channel+"_label"))
			if label == "" {
				label = channel
			}
			add(r.line(path.Join(dir, "name"))+" "+label, path.Join(dir, f))
		}
	}
	if len(out) > 0 {
		return out
	}
	for _, zone := range r.entries("sys/class/thermal") {
		if strings.HasPrefix(zone, "thermal_zone") {
			dir := path.Join("sys/class/thermal", zone)
			add(r.line(path.Join(dir, "type")), path.Join(dir, "temp"))
		}
	}
	return out
}
