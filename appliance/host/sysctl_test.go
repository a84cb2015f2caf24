package host

import (
	"io/fs"
	"os"
	"strings"
	"testing"
)

func TestSysctlPath(t *testing.T) {
	for key, want := range map[string]string{
		"kernel.sysrq":                        "/proc/sys/kernel/sysrq",
		"net.ipv4.conf.all.rp_filter":         "/proc/sys/net/ipv4/conf/all/rp_filter",
		"net.ipv6.conf.eth0.5.accept_ra":      "/proc/sys/net/ipv6/conf/eth0.5/accept_ra",
		"net.ipv6.conf.a.conf.b.accept_ra":    "/proc/sys/net/ipv6/conf/a.conf.b/accept_ra",
		"net.ipv4.ip_unprivileged_port_start": "/proc/sys/net/ipv4/ip_unprivileged_port_start",
	} {
		if got := sysctlPath(key); got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
}

func TestNET7_HasSYNCookies(t *testing.T) {
	if _, err := newTree(t, nil).HasSYNCookies(); err == nil {
		t.Error("a kernel that does not say has them")
	}
	for text, want := range map[string]bool{"0\n": false, "1\n": true, "2\n": true} {
		if got, err := newTree(t, map[string]string{"proc/sys/net/ipv4/tcp_syncookies": text}).HasSYNCookies(); err != nil || got != want {
			t.Errorf("%q: %t, %v", text, got, err)
		}
	}
}

func TestSetSysctls(t *testing.T) {
	x := newTree(t, nil)
	err := x.SetSysctls()
	if err == nil || !strings.Contains(err.Error(), "net.ipv4.ip_forward") || strings.Contains(err.Error(), "ldisc") {
		t.Errorf("a kernel without settings: %v", err)
	}
	table := append(append(Sysctls(), LinkSysctls("all")...), LinkSysctls("default")...)
	seen := map[string]bool{}
	for _, s := range table {
		if seen[s.Key] || s.Why == "" {
			t.Errorf("%s is there twice, or without a reason", s.Key)
		}
		seen[s.Key] = true
		x.write(sysctlPath(s.Key), "9\n")
	}
	if err := x.SetSysctls(); err != nil {
		t.Fatal(err)
	}
	for _, s := range table {
		// A kernel's file takes the value whole; a test's keeps the rest.
		if got := x.read(sysctlPath(s.Key)); !strings.HasPrefix(got, s.Value) {
			t.Errorf("%s is %q, want %q", s.Key, got, s.Value)
		}
	}
}

func TestWindows(t *testing.T) {
	for memory, want := range map[uint64]string{0: "1048576", 256 << 20: "8388608", 512 << 20: "16777216", 64 << 30: "16777216"} {
		for _, s := range Windows(memory) {
			if f := strings.Fields(s.Value); len(f) != 3 || f[2] != want {
				t.Errorf("%d bytes of memory: %s is %q, want %s at most", memory, s.Key, s.Value, want)
			}
		}
	}
	x := newTree(t, map[string]string{"proc/meminfo": "MemTotal: 262144 kB\n"})
	for _, s := range append(append(append(Sysctls(), LinkSysctls("all")...), LinkSysctls("default")...), Windows(0)...) {
		x.write(sysctlPath(s.Key), "\n")
	}
	if err := x.SetSysctls(); err != nil {
		t.Fatal(err)
	}
	if got := x.read("proc/sys/net/ipv4/tcp_wmem"); !strings.HasPrefix(got, "4096 16384 8388608") {
		t.Errorf("tcp_wmem is %q", got)
	}
}

// A setting that can be written once and is right already is no error.
func TestSysctlWrittenOnce(t *testing.T) {
	x := newTree(t, map[string]string{"proc/sys/kernel/once": "1\n", "proc/sys/net/range": "32768\t60999\n"})
	for _, name := range []string{"proc/sys/kernel/once", "proc/sys/net/range"} {
		if err := os.Chmod(x.path(name), 0o400); err != nil {
			t.Fatal(err)
		}
	}
	before, err := os.Stat(x.path("proc/sys/kernel/once"))
	if err != nil {
		t.Fatal(err)
	}
	if err := x.writeSysctls([]Sysctl{{"kernel.once", "1", "w", true}, {"net.range", "32768 60999", "w", true}}); err != nil {
		t.Error(err)
	}
	after, err := os.Stat(x.path("proc/sys/kernel/once"))
	if err != nil || !before.ModTime().Equal(after.ModTime()) {
		t.Errorf("it was written again, %v", err)
	}
	if err := writeExisting(x.path("proc/sys/kernel/nosuch"), "1"); !os.IsNotExist(err) {
		t.Errorf("a setting was made: %v, want %v", err, fs.ErrNotExist)
	}
}
