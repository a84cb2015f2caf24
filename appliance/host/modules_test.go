package host

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const lib = "lib/modules/6.1.0/"

func moduleTree(t *testing.T) *tree {
	return newTree(t, map[string]string{
		"proc/sys/kernel/osrelease":                 "6.1.0\n",
		lib + "modules.dep":                         "k/virtio.ko:\nk/virtio_net.ko: k/virtio.ko\nk/virtio_pci.ko: k/virtio.ko\nk/broken.ko:\nk/nft.ko: k/crc.ko\nk/crc.ko:\nk/other.ko:\n",
		lib + "modules.alias":                       "alias pci:v1AF4* virtio_pci\nalias virtio:d1* virtio_net\nalias pci:v1AF4* broken\nalias crc32c other\n",
		lib + "modules.softdep":                     "softdep nft pre: crc32c\n",
		"sys/bus/pci/devices/0000:00:01.0/modalias": "pci:v1AF4d1\n",
		"sys/bus/acpi/devices/PNP0C0A:00/modalias":  "acpi:PNP0C0A:\n",
		"sys/bus/acpi/devices/none/path":            "",
		"sys/bus/platform/devices/empty/modalias":   "\n",
	})
}

func open(t *testing.T, x *tree) *Modules {
	t.Helper()
	m, err := x.OpenModules()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestOpenModulesRefuses(t *testing.T) {
	if _, err := newTree(t, nil).OpenModules(); err == nil {
		t.Error("without /proc")
	}
	x := moduleTree(t)
	x.write(lib+"modules.dep", "rubbish")
	if _, err := x.OpenModules(); err == nil || !strings.Contains(err.Error(), "modules.dep line 1") {
		t.Errorf("a broken index: %v", err)
	}
	m := open(t, newTree(t, map[string]string{"proc/sys/kernel/osrelease": "6.1.0", "sys/bus/pci/devices/1/modalias": "pci:x"}))
	if err := errors.Join(m.Load("ext4"), m.Coldplug(t.Context(), nil)); err != nil {
		t.Errorf("an image without modules: %v", err)
	}
}

func TestLoad(t *testing.T) {
	x := moduleTree(t)
	m := open(t, x)
	x.fail["load other"] = unix.ENOENT // wished for only
	x.fail["load broken"] = unix.ENOEXEC
	if err := m.Load("nosuch", "nft"); err != nil {
		t.Error(err)
	}
	x.expect("load crc", "load other", "load nft")
	for range 2 { // the second time it is not tried again
		if err := m.Load("broken", "nft"); !errors.Is(err, unix.ENOEXEC) || !strings.Contains(err.Error(), "broken") {
			t.Errorf("a broken module: %v", err)
		}
	}
	x.expect("load broken")
	if n, _ := m.Loaded(); n != 2 {
		t.Errorf("%d loaded, want 2", n)
	}
}

func TestLoadWhatIsThere(t *testing.T) {
	x := moduleTree(t)
	x.write("sys/module/crc/refcnt", "0")
	x.fail["load nft"] = unix.EEXIST
	x.fail["load virtio"] = unix.ENODEV
	m := open(t, x)
	if err := m.Load("nft", "virtio_net"); err != nil {
		t.Error(err)
	}
	slices.Sort(x.did)
	x.expect("load nft", "load other", "load virtio")
}

// Each module is loaded once however many ask at the same time.
func TestLoadAtOnce(t *testing.T) {
	x := moduleTree(t)
	m := open(t, x)
	if err := m.Load(slices.Repeat([]string{"virtio_net", "virtio_pci", "virtio"}, 50)...); err != nil {
		t.Error(err)
	}
	if slices.Sort(x.did); !slices.Equal(x.did, []string{"load virtio", "load virtio_net", "load virtio_pci"}) {
		t.Errorf("did %q", x.did)
	}
}

// A device that appears because its bus's driver was loaded gets its own.
func TestColdplug(t *testing.T) {
	x := moduleTree(t)
	x.fail["load broken"] = unix.ENODEV
	load := x.calls.LoadModule
	x.calls.LoadModule = func(path, parameters string) error {
		err := load(path, parameters)
		if strings.HasSuffix(path, "virtio_pci.ko") {
			x.write("sys/bus/virtio/devices/virtio0/modalias", "virtio:d1v1\n")
		}
		return err
	}
	m := open(t, x)
	if err := m.Coldplug(t.Context(), nil); err != nil {
		t.Error(err)
	}
	slices.Sort(x.did)
	x.expect("load broken", "load virtio", "load virtio_net", "load virtio_pci")
}

// Not every device is on a bus: the processor, the board and what a driver
// says of keys and buttons have their modalias elsewhere.
func TestColdplugOffTheBuses(t *testing.T) {
	x := newTree(t, map[string]string{
		"proc/sys/kernel/osrelease":       "6.1.0\n",
		lib + "modules.dep":               "k/aesni.ko:\nk/evdev.ko:\nk/board.ko:\n",
		lib + "modules.alias":             "alias cpu:*feature:*0099* aesni\nalias input:b* evdev\nalias dmi:*svnAcme:* board\n",
		"sys/bus/pci/drivers/x":           "",
		"sys/devices/system/cpu/modalias": "cpu:type:x86,ven0000fam0006mod0001:feature:,0000,0099\n",
		"sys/class/dmi/id/modalias":       "dmi:bvnX:svnAcme:pnBox:\n",
		"sys/class/input/input0/modalias": "input:b0019v0000p0001e0000-e0,1,k74,ramlsfw\n",
	})
	if err := open(t, x).Coldplug(t.Context(), nil); err != nil {
		t.Error(err)
	}
	slices.Sort(x.did)
	x.expect("load aesni", "load board", "load evdev")
}

func TestColdplugWaits(t *testing.T) {
	x := moduleTree(t)
	m := open(t, x)
	asked := 0
	if err := m.Coldplug(t.Context(), func() bool { asked++; return asked == 3 }); err != nil || asked != 3 {
		t.Errorf("asked %d times, %v", asked, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 80*time.Millisecond)
	defer cancel()
	if err := m.Coldplug(ctx, func() bool { return false }); err != nil || ctx.Err() == nil {
		t.Errorf("a disk that never comes: %v", err)
	}
	if err := os.RemoveAll(x.path("sys/bus")); err != nil {
		t.Fatal(err)
	}
	if err := m.Coldplug(t.Context(), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without /sys: %v", err)
	}
}

func TestFreeModules(t *testing.T) {
	if n, err := newTree(t, nil).FreeModules(); n != 0 || err != nil {
		t.Errorf("none: %d, %v", n, err)
	}
	x := moduleTree(t)
	x.fail["ram"] = errors.New("on a disk")
	if _, err := x.FreeModules(); err == nil || !strings.Contains(err.Error(), "not ours") {
		t.Errorf("modules on a disk: %v", err)
	}
	x.read(lib + "modules.dep")
	delete(x.fail, "ram")
	if n, err := x.FreeModules(); n < 100 || err != nil {
		t.Errorf("FreeModules = %d, %v", n, err)
	}
	if _, err := os.Stat(x.path("lib/modules")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("they are still there")
	}
}

func TestFreePrograms(t *testing.T) {
	x := newTree(t, map[string]string{"sbin/mke2fs": strings.Repeat("x", 1000), "lib/x86_64-linux-gnu/libc.so.6": "12345", "bin/gatehoused": "the program that runs"})
	x.fail["ram"] = errors.New("on a disk")
	if _, err := x.FreePrograms(); err == nil || !strings.Contains(err.Error(), "not ours") {
		t.Errorf("a system on a disk: %v", err)
	}
	x.read("sbin/mke2fs")
	delete(x.fail, "ram")
	if n, err := x.FreePrograms(); n != 1005 || err != nil {
		t.Errorf("FreePrograms = %d, %v", n, err)
	}
	for _, gone := range []string{"sbin", "lib"} {
		if _, err := os.Stat(x.path(gone)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there", gone)
		}
	}
	x.read("bin/gatehoused")
}
