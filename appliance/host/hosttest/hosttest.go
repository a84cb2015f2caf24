// Package hosttest is a machine for tests: real files below a folder, and system calls that are only remembered.
package hosttest

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/u-root/u-root/pkg/efivarfs"
	"golang.org/x/sys/unix"

	"gatehouse/appliance/host"
)

// A Machine is a host.Host that changes nothing outside its folder. Its
// contract is that of the kernel as far as callers see it: a call that is not
// told to fail succeeds, its clock starts at Now and is what was last set,
// and Restart and PowerOff return, which the real ones do not.
type Machine struct {
	*host.Host
	Root string

	mu    sync.Mutex
	calls []string
	fail  map[string]error
	now   time.Time
	vars  Variables
}

// Variables are those of a firmware, by NAME-GUID, in memory. None: the machine has
// no firmware that keeps any.
type Variables map[string][]byte

func variable(d efivarfs.VariableDescriptor) string { return d.Name + "-" + d.GUID.String() }

// Get reads one.
func (v Variables) Get(d efivarfs.VariableDescriptor) (efivarfs.VariableAttributes, []byte, error) {
	data, ok := v[variable(d)]
	if !ok {
		return 0, nil, efivarfs.ErrVarNotExist
	}
	return efivarfs.AttributeNonVolatile | efivarfs.AttributeBootserviceAccess | efivarfs.AttributeRuntimeAccess, slices.Clone(data), nil
}

// Set writes one.
func (v Variables) Set(d efivarfs.VariableDescriptor, _ efivarfs.VariableAttributes, data []byte) error {
	v[variable(d)] = slices.Clone(data)
	return nil
}

// Remove removes one.
func (v Variables) Remove(d efivarfs.VariableDescriptor) error {
	if _, ok := v[variable(d)]; !ok {
		return efivarfs.ErrVarNotExist
	}
	delete(v, variable(d))
	return nil
}

// List lists them.
func (v Variables) List() (out []efivarfs.VariableDescriptor, err error) {
	for k := range v {
		at := len(k) - 37
		id, err := uuid.Parse(k[at+1:])
		if err != nil {
			return nil, err
		}
		out = append(out, efivarfs.VariableDescriptor{Name: k[:at], GUID: id})
	}
	return out, nil
}

// Firmware gives the machine a firmware that keeps variables.
func (m *Machine) Firmware(v Variables) { m.vars = v }

// Now is the time that a new Machine's clock chip shows.
func Now() time.Time { return time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC) }

// New makes a machine with the given files, by path; what a kernel always has
// and is not given gets a plain content.
func New(t testing.TB, files map[string]string) *Machine {
	t.Helper()
	m := &Machine{Root: t.TempDir(), fail: make(map[string]error), now: Now()}
	m.Host = host.At(m.Root, slog.New(slog.DiscardHandler), host.Calls{
		Mount: func(_, path, fsType, _ string, _ uintptr) error {
			return m.do("mount " + fsType + " " + strings.TrimPrefix(path, m.Root))
		},
		LoadModule: func(path, _ string) error {
			return m.do("load " + strings.TrimSuffix(filepath.Base(path), ".ko"))
		},
		InMemory: func(path string) (bool, error) {
			_, err := os.Stat(path)
			return err == nil, err
		},
		Sethostname: func(name []byte) error { return m.do("name " + string(name)) },
		Settime:     m.set,
		ReadRTC:     m.read,
		SetRTC:      func(time.Time) error { return m.do("set clock chip") },
		Getrandom:   func(b []byte, _ int) (int, error) { return len(b), m.do("random") },
		Sync:        func() { _ = m.do("sync") },
		Variables: func(string) (host.Variables, error) {
			if m.vars == nil {
				return nil, fs.ErrNotExist
			}
			return m.vars, nil
		},
		Reboot: func(cmd int) error {
			return m.do(map[int]string{
				unix.LINUX_REBOOT_CMD_RESTART:   "restart",
				unix.LINUX_REBOOT_CMD_POWER_OFF: "power off",
				unix.LINUX_REBOOT_CMD_CAD_OFF:   "no ctrl-alt-del",
			}[cmd])
		},
	})
	for name, text := range map[string]string{
		"proc/cmdline":              "quiet\n",
		"proc/meminfo":              "MemTotal: 262144 kB\nMemAvailable: 196608 kB\n",
		"proc/sys/kernel/osrelease": "6.1.0-test\n",
		"sys/bus/.keep":             "",
		"sys/class/block/.keep":     "",
		"dev/.keep":                 "",
	} {
		m.Write(t, name, text)
	}
	for _, s := range slices.Concat(host.Sysctls(), host.LinkSysctls("all"), host.LinkSysctls("default")) {
		m.Write(t, filepath.Join("proc/sys", strings.ReplaceAll(s.Key, ".", "/")), "0\n")
	}
	for name, text := range files {
		m.Write(t, name, text)
	}
	return m
}

// Write makes a file of the machine.
func (m *Machine) Write(t testing.TB, name, text string) {
	t.Helper()
	path := filepath.Join(m.Root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// Fail makes a call fail from now on, named as Calls names it; nil ends that.
func (m *Machine) Fail(call string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail[call] = err
}

// Calls are the system calls made so far: "mount proc /proc", "load ext4",
// "name gatehouse-7f3k", "set clock", "random", "sync", "power off".
func (m *Machine) Calls() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.calls)
}

func (m *Machine) do(call string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls = append(m.calls, call)
	return m.fail[call]
}

func (m *Machine) set(t time.Time) error {
	err := m.do("set clock")
	if err == nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.now = t
	}
	return err
}

func (m *Machine) read() (time.Time, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.fail["read clock chip"]; err != nil {
		return time.Time{}, err
	}
	return m.now, nil
}
