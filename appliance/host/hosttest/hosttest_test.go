package hosttest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// The double fails where it is told to, and the Host over it says so.
func TestFail(t *testing.T) {
	m := New(t, nil)
	broken := errors.New("broken")
	for _, c := range []struct {
		call string
		do   func() error
	}{
		{"mount sysfs /sys", m.MountEarly},
		{"set clock", func() error { return m.SetClock(Now()) }},
		{"read clock chip", func() error { _, err := m.ReadRTC(); return err }},
		{"random", func() error { return m.WaitEntropy(context.Background()) }},
		{"restart", m.Restart},
		{"name x", func() error { return m.SetName("x") }},
	} {
		m.Fail(c.call, broken)
		if err := c.do(); !errors.Is(err, broken) {
			t.Errorf("%s: %v", c.call, err)
		}
		m.Fail(c.call, nil)
		if err := c.do(); err != nil {
			t.Errorf("%s, no longer failing: %v", c.call, err)
		}
	}
}

// What a start of the box does is done on files and remembered calls alone.
func TestMachineStarts(t *testing.T) {
	m := New(t, map[string]string{
		"lib/modules/6.1.0-test/modules.dep": "k/ext4.ko:\n",
		"proc/cmdline":                       "gatehouse.disk=/dev/vda",
	})
	modules, err := m.OpenModules()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(m.MountEarly(), modules.Load("ext4"), modules.Coldplug(t.Context(), nil), m.SetSysctls(), m.PowerOff()); err != nil {
		t.Fatal(err)
	}
	calls := m.Calls()
	if calls[0] != "mount proc /proc" || !slices.Contains(calls, "load ext4") || calls[len(calls)-1] != "power off" {
		t.Errorf("calls %q", calls)
	}
	if v, ok := m.Parameter("gatehouse.disk"); !ok || v != "/dev/vda" {
		t.Errorf("Parameter = %q, %v", v, ok)
	}
	if n, err := m.FreeModules(); n == 0 || err != nil {
		t.Errorf("FreeModules = %d, %v", n, err)
	}
	if _, err := os.Stat(filepath.Join(m.Root, "lib/modules")); err == nil {
		t.Error("the modules are still there")
	}
	if err := m.SetClock(Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if got, err := m.ReadRTC(); err != nil || !got.Equal(Now().Add(time.Hour)) {
		t.Errorf("ReadRTC = %v, %v", got, err)
	}
	if mem, err := m.Memory(); err != nil || mem.Total != 256<<20 {
		t.Errorf("Memory = %+v, %v", mem, err)
	}
}
