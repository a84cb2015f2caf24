// Package host is the only door to the kernel: mounts, modules, links, sysctls, clock, watchdog, power.
//
// It opens no network socket but netlink's, and parses nothing that came from
// a network. Every file is read below one root folder, so that a test gives it
// a tree of its own; system calls that change the machine are listed in one
// small table (calls.go) for the same reason.
package host

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
)

// A Host is this machine.
type Host struct {
	root  string // "/" but for tests
	log   *slog.Logger
	calls Calls
	vars  Variables

	mu         sync.Mutex
	ours       map[string]applied // what Apply set, by interface
	configured configured
	taken      map[string]int // how often that was taken away, by interface
}

// New returns this machine; it touches nothing yet.
func New(log *slog.Logger) *Host { return At("/", log, kernelCalls()) }

// At is a machine whose files are below root and whose system calls are those
// given: for tests, by package hosttest.
func At(root string, log *slog.Logger, calls Calls) *Host {
	return &Host{root: root, log: log, calls: calls, ours: make(map[string]applied)}
}

func (h *Host) path(name string) string { return filepath.Join(h.root, name) }

// readLine reads a short file of /proc or /sys, without its line end. The
// limit keeps a strange file from growing in memory.
func (h *Host) readLine(name string) (string, error) {
	f, err := os.Open(h.path(name))
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", name, err)
	}
	return strings.TrimRight(string(data), "\n\x00"), nil
}

// Parameter gives the value of a kernel parameter; a bare word has the value
// "". The last of several counts, as in the kernel.
func (h *Host) Parameter(name string) (value string, ok bool) {
	line, err := h.readLine("/proc/cmdline")
	if err != nil {
		h.log.Error("reading the kernel's command line", "error", err)
		return "", false
	}
	for _, word := range splitParameters(line) {
		key, v, _ := strings.Cut(word, "=")
		if key == name {
			value, ok = strings.Trim(v, `"`), true
		}
	}
	return value, ok
}

// splitParameters splits at spaces outside double quotes; the kernel knows no
// other quoting (lib/cmdline.c). After "--" come words for init, not for us.
func splitParameters(line string) []string {
	var words []string
	quoted := false
	for _, word := range strings.FieldsFunc(line, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return !quoted && (r == ' ' || r == '\t' || r == '\n')
	}) {
		if word == "--" {
			break
		}
		words = append(words, word)
	}
	return words
}

// Release is the running kernel's release, as in /lib/modules/RELEASE.
func (h *Host) Release() (string, error) {
	return h.readLine("/proc/sys/kernel/osrelease")
}

// Memory reads the machine's memory, in bytes.
func (h *Host) Memory() (control.Memory, error) {
	text, err := h.readLine("/proc/meminfo")
	if err != nil {
		return control.Memory{}, fmt.Errorf("reading memory figures: %w", err)
	}
	var m control.Memory
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 3 || f[2] != "kB" {
			continue
		}
		n, err := strconv.ParseUint(f[1], 10, 54)
		if err != nil {
			continue
		}
		switch f[0] {
		case "MemTotal:":
			m.Total = n << 10
		case "MemAvailable:":
			m.Available = n << 10
		}
	}
	if m.Total == 0 {
		return m, errors.New("reading memory figures: /proc/meminfo has no MemTotal line")
	}
	return m, nil
}

// SerialConsoles are the serial lines that the kernel's console is on, by their
// names in /dev: ttyS0 on PCs, ttyAMA0 on most machines with arm64, or what their
// firmware names (ACPI SPCR). A line that does not exist is none of them.
func (h *Host) SerialConsoles() (names []string) {
	line, err := h.readLine("/sys/class/tty/console/active")
	if err != nil {
		h.log.Error("asking the kernel which consoles it has", "error", err)
		return nil
	}
	for name := range strings.FieldsSeq(line) {
		if strings.Trim(strings.TrimPrefix(name, "tty"), "0123456789") != "" { // tty0 is the screen
			names = append(names, name)
		}
	}
	return names
}

// SetName sets the host name.
func (h *Host) SetName(name string) error {
	if err := h.calls.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("setting the host name to %q: %w", name, err)
	}
	return nil
}

// DMI is what the firmware says of the hardware; a field that it leaves out is
// empty. Values are raw: placeholders are for the reader to reject.
type DMI struct {
	Vendor, Product, UUID, Serial, BoardSerial string
}

// DMI reads the hardware's identity. Boards without DMI (arm64 with a device
// tree) give the tree's serial number and model.
func (h *Host) DMI() DMI {
	read := func(names ...string) string {
		for _, name := range names {
			if v, err := h.readLine(name); err == nil {
				if v = strings.TrimSpace(v); v != "" {
					return v
				}
			}
		}
		return ""
	}
	const dmi, tree = "/sys/class/dmi/id/", "/sys/firmware/devicetree/base/"
	return DMI{
		Vendor:      read(dmi + "sys_vendor"),
		Product:     read(dmi+"product_name", tree+"model"),
		UUID:        read(dmi + "product_uuid"),
		Serial:      read(dmi+"product_serial", tree+"serial-number"),
		BoardSerial: read(dmi + "board_serial"),
	}
}

// CollectCrashes hands every record that the kernel left in pstore to save and
// removes it from pstore once save has returned without error, so that a power
// cut in between gives a record twice, never none. It returns how many were
// saved. Firmware variable storage is small: records left there would in the
// end stop the kernel from writing the next one.
func (h *Host) CollectCrashes(save func(name string, data []byte) error) (int, error) {
	const dir = "/sys/fs/pstore"
	entries, err := os.ReadDir(h.path(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("listing crash records: %w", err)
	}
	saved := 0
	var errs []error
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		name := h.path(filepath.Join(dir, e.Name()))
		data, err := os.ReadFile(name)
		if err == nil {
			err = save(e.Name(), data)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("saving crash record %s (it stays in pstore): %w", e.Name(), err))
			continue
		}
		saved++
		if err := os.Remove(name); err != nil {
			errs = append(errs, fmt.Errorf("removing crash record %s from pstore: %w", e.Name(), err))
		}
	}
	return saved, errors.Join(errs...)
}

// Restart ends the system and starts the machine anew; it only returns if the
// kernel refuses. File systems must be unmounted before: this only syncs.
func (h *Host) Restart() error { return h.end(unix.LINUX_REBOOT_CMD_RESTART, "restarting") }

// PowerOff ends the system and switches the machine off.
func (h *Host) PowerOff() error { return h.end(unix.LINUX_REBOOT_CMD_POWER_OFF, "switching off") }

func (h *Host) end(cmd int, doing string) error {
	h.calls.Sync()
	if err := h.calls.Reboot(cmd); err != nil {
		return fmt.Errorf("%s: the kernel refused: %w", doing, err)
	}
	return nil
}

// NoCtrlAltDel makes Ctrl-Alt-Del a signal (SIGINT) to PID 1 in the place of
// an immediate reset that would skip the orderly shutdown.
func (h *Host) NoCtrlAltDel() error {
	if err := h.calls.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF); err != nil {
		return fmt.Errorf("taking Ctrl-Alt-Del from the kernel: %w", err)
	}
	return nil
}
