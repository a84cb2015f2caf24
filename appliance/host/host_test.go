package host

import (
	"bytes"
	"context"
	"encoding/binary"
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
	"unicode/utf16"

	"github.com/google/uuid"
	"github.com/u-root/u-root/pkg/efivarfs"
	"golang.org/x/sys/unix"
)

// tree is a Host over files of the test's own, whose system calls are remembered.
type tree struct {
	*Host
	t    *testing.T
	mu   sync.Mutex
	did  []string
	fail map[string]error
	logs bytes.Buffer
}

func newTree(t *testing.T, files map[string]string) *tree {
	t.Helper()
	x := &tree{t: t, fail: map[string]error{}}
	x.Host = At(t.TempDir(), slog.New(slog.NewTextHandler(&x.logs, nil)), Calls{})
	for name, text := range files {
		x.write(name, text)
	}
	do := func(call string) error {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.did = append(x.did, call)
		return x.fail[call]
	}
	x.calls = Calls{
		Mount: func(_, path, fsType, data string, _ uintptr) error {
			return do("mount " + fsType + " " + strings.TrimPrefix(path, x.root))
		},
		LoadModule:  func(path, _ string) error { return do("load " + strings.TrimSuffix(filepath.Base(path), ".ko")) },
		InMemory:    func(path string) (bool, error) { _, err := os.Stat(path); return x.fail["ram"] == nil, err },
		Sethostname: func(b []byte) error { return do("name " + string(b)) },
		Settime:     func(tm time.Time) error { return do("time " + tm.UTC().Format(time.RFC3339)) },
		SetRTC:      func(time.Time) error { return do("rtc") },
		ReadRTC:     func() (time.Time, error) { return time.Unix(1, 0), do("read rtc") },
		Getrandom:   func([]byte, int) (int, error) { return 1, do("random") },
		Sync:        func() { _ = do("sync") },
		Reboot: func(cmd int) error {
			return do(map[int]string{unix.LINUX_REBOOT_CMD_RESTART: "restart", unix.LINUX_REBOOT_CMD_POWER_OFF: "off", unix.LINUX_REBOOT_CMD_CAD_OFF: "cad"}[cmd])
		},
	}
	return x
}

func (x *tree) write(name, text string) {
	x.t.Helper()
	path := x.path(name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		x.t.Fatal(err)
	}
}

func (x *tree) read(name string) string {
	x.t.Helper()
	data, err := os.ReadFile(x.path(name))
	if err != nil {
		x.t.Fatal(err)
	}
	return string(data)
}

func (x *tree) expect(want ...string) {
	x.t.Helper()
	if !slices.Equal(x.did, want) {
		x.t.Errorf("did %q, want %q", x.did, want)
	}
	x.did = nil
}

func TestParameter(t *testing.T) {
	x := newTree(t, map[string]string{"proc/cmdline": "quiet console=tty0 console=ttyS0 a=\"b c\" \"d=e f\" ro -- init=word last=1\n"})
	for name, want := range map[string]string{"quiet": "", "console": "ttyS0", "a": "b c", "ro": ""} {
		if v, ok := x.Parameter(name); !ok || v != want {
			t.Errorf("Parameter(%s) = %q, %v", name, v, ok)
		}
	}
	for _, name := range []string{"last", "init", "console=tty0", "", "c"} {
		if v, ok := x.Parameter(name); ok {
			t.Errorf("Parameter(%q) = %q, is not there", name, v)
		}
	}
	if _, ok := newTree(t, nil).Parameter("quiet"); ok {
		t.Error("a parameter without a command line")
	}
}

func TestMemory(t *testing.T) {
	for _, text := range []string{"", "MemTotal: x kB\n", "MemTotal: 99999999999999999999 kB\n", "MemFree: 5 kB\n"} {
		if m, err := newTree(t, map[string]string{"proc/meminfo": text}).Memory(); err == nil {
			t.Errorf("%q: %+v", text, m)
		}
	}
	m, err := newTree(t, map[string]string{"proc/meminfo": "MemTotal:  1000 kB\nMemFree: 5 kB\nMemAvailable: 600 kB\nHugePages_Total: 0\n"}).Memory()
	if err != nil || m.Total != 1000<<10 || m.Available != 600<<10 {
		t.Errorf("Memory = %+v, %v", m, err)
	}
	if m, err := New(slog.New(slog.DiscardHandler)).Memory(); err != nil || m.Available == 0 || m.Available > m.Total {
		t.Errorf("the real one: %+v, %v", m, err)
	}
}

func TestDMI(t *testing.T) {
	if d := newTree(t, nil).DMI(); d != (DMI{}) {
		t.Errorf("a board that says nothing: %+v", d)
	}
	d := newTree(t, map[string]string{
		"sys/class/dmi/id/sys_vendor": "QEMU\n", "sys/class/dmi/id/product_uuid": "  \n", "sys/class/dmi/id/product_serial": "\n",
		"sys/firmware/devicetree/base/serial-number": "1000abcd\x00", "sys/firmware/devicetree/base/model": "Board\x00",
	}).DMI()
	if d != (DMI{Vendor: "QEMU", Product: "Board", Serial: "1000abcd"}) {
		t.Errorf("DMI = %+v", d)
	}
}

// A record leaves pstore only after it was saved.
func TestBOX12_CollectCrashes(t *testing.T) {
	if n, err := newTree(t, nil).CollectCrashes(nil); n != 0 || err != nil {
		t.Errorf("no pstore: %d, %v", n, err)
	}
	x := newTree(t, map[string]string{"sys/fs/pstore/dmesg-efi-1": "panic 1", "sys/fs/pstore/dmesg-efi-2": "panic 2"})
	full := errors.New("full")
	n, err := x.CollectCrashes(func(name string, data []byte) error {
		if name == "dmesg-efi-1" {
			return full
		}
		if string(data) != "panic 2" {
			t.Errorf("saved %q", data)
		}
		return nil
	})
	if n != 1 || !errors.Is(err, full) {
		t.Errorf("CollectCrashes = %d, %v", n, err)
	}
	x.read("sys/fs/pstore/dmesg-efi-1")
	if _, err := os.Stat(x.path("sys/fs/pstore/dmesg-efi-2")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the saved record is still there")
	}
}

func TestEnds(t *testing.T) {
	x := newTree(t, nil)
	x.fail["restart"] = unix.EPERM
	if err := x.Restart(); !errors.Is(err, unix.EPERM) {
		t.Errorf("Restart = %v", err)
	}
	if err := errors.Join(x.PowerOff(), x.NoCtrlAltDel(), x.SetName("gatehouse-7f3k")); err != nil {
		t.Error(err)
	}
	x.expect("sync", "restart", "sync", "off", "cad", "name gatehouse-7f3k")
}

func TestMountEarly(t *testing.T) {
	x := newTree(t, nil)
	x.fail["mount sysfs /sys"] = unix.EPERM
	if err := x.MountEarly(); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "/sys") {
		t.Errorf("sysfs refused: %v", err)
	}
	x = newTree(t, nil)
	x.fail["mount pstore /sys/fs/pstore"] = unix.ENODEV
	x.fail["mount devtmpfs /dev"] = unix.EBUSY
	if err := x.MountEarly(); err != nil {
		t.Error(err)
	}
	x.expect("mount proc /proc", "mount sysfs /sys", "mount devtmpfs /dev", "mount devpts /dev/pts", "mount tmpfs /run",
		"mount securityfs /sys/kernel/security", "mount pstore /sys/fs/pstore", "mount bpf /sys/fs/bpf")
	for _, m := range earlyMounts() {
		if m.flags&unix.MS_NOSUID == 0 || m.flags&unix.MS_NOEXEC == 0 {
			t.Errorf("%s: programs of it could run", m.path)
		}
		if m.flags&unix.MS_NODEV == 0 && !strings.HasPrefix(m.path, "/dev") {
			t.Errorf("%s: devices could be made on it", m.path)
		}
	}
}

func TestMountEFIVariables(t *testing.T) {
	x := newTree(t, nil)
	if ok, err := x.MountEFIVariables(); ok || err != nil {
		t.Errorf("without UEFI: %v, %v", ok, err)
	}
	x.expect()
	x.write("sys/firmware/efi/runtime", "")
	if ok, err := x.MountEFIVariables(); !ok || err != nil {
		t.Errorf("with UEFI: %v, %v", ok, err)
	}
	x.expect("mount efivarfs /sys/firmware/efi/efivars")
}

// firmware is a set of variables.
type firmware map[string][]byte

func (f firmware) Get(d efivarfs.VariableDescriptor) (efivarfs.VariableAttributes, []byte, error) {
	data, ok := f[d.Name+"-"+d.GUID.String()]
	if !ok {
		return 0, nil, efivarfs.ErrVarNotExist
	}
	return 7, data, nil
}

// Set takes what is signed with a time, without looking at the signature; PK
// ends set-up mode, as UEFI 2.10, 32.3, has it.
func (f firmware) Set(d efivarfs.VariableDescriptor, a efivarfs.VariableAttributes, data []byte) error {
	const setup = "SetupMode-8be4df61-93ca-11d2-aa0d-00e098032b8c"
	if a == 7 && len(data) > 0 { // an ordinary one
		f[d.Name+"-"+d.GUID.String()] = bytes.Clone(data)
		return nil
	}
	if a != 0x27 || len(data) == 0 || !bytes.Equal(f[setup], []byte{1}) {
		return os.ErrPermission
	}
	f[d.Name+"-"+d.GUID.String()] = data
	if d.Name == "PK" {
		f[setup] = []byte{0}
	}
	return nil
}

func (f firmware) Remove(d efivarfs.VariableDescriptor) error {
	if _, ok := f[d.Name+"-"+d.GUID.String()]; !ok {
		return efivarfs.ErrVarNotExist
	}
	delete(f, d.Name+"-"+d.GUID.String())
	return nil
}

func (f firmware) List() (out []efivarfs.VariableDescriptor, err error) {
	for k := range f {
		at := len(k) - 37
		out = append(out, efivarfs.VariableDescriptor{Name: k[:at], GUID: uuid.MustParse(k[at+1:])})
	}
	return out, nil
}

func TestBOX5_EnrolRefuses(t *testing.T) {
	const guid = "-8be4df61-93ca-11d2-aa0d-00e098032b8c"
	x := newTree(t, nil)
	if err := x.EnrolSecureBoot("db", []byte("change")); err == nil {
		t.Error("enrolled without a firmware")
	}
	f := firmware{"SecureBoot" + guid: {0}, "SetupMode" + guid: {0}}
	x.vars = f
	if err := x.EnrolSecureBoot("db", []byte("change")); err == nil || !strings.Contains(err.Error(), "enrolling db") || !strings.Contains(err.Error(), "is not in set-up mode") {
		t.Errorf("outside set-up mode: %v", err)
	}
	f["SetupMode"+guid] = []byte{2}
	if err := x.EnrolSecureBoot("db", []byte("change")); err == nil {
		t.Error("enrolled into a firmware that does not know its mode")
	}
	f["SetupMode"+guid] = []byte{1}
	if err := x.EnrolSecureBoot("KEK", nil); !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "enrolling KEK") {
		t.Errorf("refused by the firmware: %v", err)
	}
	for _, name := range []string{"SecureBoot", "MokList", ""} {
		if err := x.EnrolSecureBoot(name, []byte("change")); err == nil {
			t.Errorf("%q was written", name)
		}
		if _, err := x.SecureBootKeys(name); err == nil {
			t.Errorf("%q was read", name)
		}
	}
	if len(f) != 2 {
		t.Errorf("a refusal left %d variables", len(f)-2)
	}
}

func TestBOX5_EnrolEndsSetupMode(t *testing.T) {
	const guid = "-8be4df61-93ca-11d2-aa0d-00e098032b8c"
	x := newTree(t, nil)
	x.vars = firmware{"SecureBoot" + guid: {0}, "SetupMode" + guid: {1}}
	for _, name := range []string{"db", "KEK", "PK"} {
		if keys, err := x.SecureBootKeys(name); err != nil || keys != nil {
			t.Errorf("%s before: %q, %v", name, keys, err)
		}
		if err := x.EnrolSecureBoot(name, []byte("change of "+name)); err != nil {
			t.Fatal(err)
		}
		if keys, err := x.SecureBootKeys(name); err != nil || string(keys) != "change of "+name {
			t.Errorf("%s: %q, %v", name, keys, err)
		}
	}
	if err := x.EnrolSecureBoot("db", []byte("another")); err == nil {
		t.Error("enrolled after PK")
	}
}

func TestSecureBoot(t *testing.T) {
	const guid = "-8be4df61-93ca-11d2-aa0d-00e098032b8c"
	x := newTree(t, nil)
	if s, err := x.SecureBoot(); err != nil || s.Known {
		t.Errorf("no firmware: %+v, %v", s, err)
	}
	for _, bad := range [][]byte{nil, {2}, {1, 0}} {
		x.vars = firmware{"SecureBoot" + guid: bad}
		if s, err := x.SecureBoot(); err == nil || s.Enabled {
			t.Errorf("% x: %+v, %v", bad, s, err)
		}
	}
	for want, f := range map[SecureBoot]firmware{
		{Known: true, Enabled: true}:   {"SecureBoot" + guid: {1}, "SetupMode" + guid: {0}},
		{Known: true}:                  {"SecureBoot" + guid: {0}},
		{Known: true, SetupMode: true}: {"SecureBoot" + guid: {0}, "SetupMode" + guid: {1}},
	} {
		x.vars = f
		if s, err := x.SecureBoot(); err != nil || s != want {
			t.Errorf("%v: %+v, %v", f, s, err)
		}
	}
}

func wide(s string) []byte {
	var out []byte
	for _, u := range utf16.Encode([]rune(s)) {
		out = binary.LittleEndian.AppendUint16(out, u)
	}
	return out
}

func TestLoaderPartition(t *testing.T) {
	const id = "11111111-2222-4333-8444-ABCDEFABCDEF"
	x := newTree(t, nil)
	if _, err := x.LoaderPartition(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no firmware: %v", err)
	}
	x.vars = firmware{}
	if _, err := x.LoaderPartition(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no variable: %v", err)
	}
	for _, bad := range [][]byte{{}, {0}, wide("x"), wide("{" + id + "}"), wide("urn:uuid:" + id), wide(strings.Repeat(id, 5)), []byte(id)} {
		if got, err := parseLoaderPartition(bad); err == nil {
			t.Errorf("%q is %s", bad, got)
		}
	}
	x.vars = firmware{"LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f": wide(id + "\x00")}
	if got, err := x.LoaderPartition(); err != nil || got != strings.ToLower(id) {
		t.Errorf("LoaderPartition = %s, %v", got, err)
	}
}

func FuzzLoaderPartition(f *testing.F) {
	f.Add(wide("11111111-2222-4333-8444-555555555555\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if id, err := parseLoaderPartition(data); err == nil {
			if u, err := uuid.Parse(id); err != nil || u.String() != id {
				t.Errorf("%q is %q", data, id)
			}
		}
	})
}

func TestClock(t *testing.T) {
	x := newTree(t, nil)
	for _, year := range []int{1970, 2023, 2101, 9999} {
		if err := x.SetClock(time.Date(year, 5, 1, 0, 0, 0, 0, time.UTC)); err == nil {
			t.Errorf("the clock was set to %d", year)
		}
	}
	x.expect()
	x.fail["rtc"] = errors.New("no chip")
	if err := x.SetClock(time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)); err != nil {
		t.Errorf("without a clock chip: %v", err)
	}
	x.expect("time 2026-05-01T00:00:00Z", "rtc")
	x.fail["read rtc"] = fs.ErrNotExist
	if _, err := x.ReadRTC(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadRTC = %v", err)
	}
}

func TestWaitEntropy(t *testing.T) {
	x := newTree(t, nil)
	if err := x.WaitEntropy(t.Context()); err != nil {
		t.Error(err)
	}
	x.fail["random"] = unix.ENOSYS
	if err := x.WaitEntropy(t.Context()); !errors.Is(err, unix.ENOSYS) {
		t.Errorf("a kernel that cannot: %v", err)
	}
	x.fail["random"] = unix.EAGAIN
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := x.WaitEntropy(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "virtio-rng") {
		t.Errorf("never seeded: %v", err)
	}
}

// The screen is no serial line, and what the kernel does not name is none.
func TestBOX1_SerialConsolesAreTheKernels(t *testing.T) {
	if got := newTree(t, nil).SerialConsoles(); got != nil {
		t.Errorf("without sysfs: %v", got)
	}
	for active, want := range map[string][]string{
		"tty0\n": nil, "\n": nil, "tty0 ttyS0\n": {"ttyS0"}, "ttyAMA0 tty0\n": {"ttyAMA0"}, "tty0 tty1 ttyS0 ttyAMA0 hvc0\n": {"ttyS0", "ttyAMA0", "hvc0"},
	} {
		if got := newTree(t, map[string]string{"sys/class/tty/console/active": active}).SerialConsoles(); !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", active, got, want)
		}
	}
}
