package qemu

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/image/target"
)

func TestStartRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		m    Machine
		want string
	}{
		{"nothing to start", Machine{}, "neither"},
		{"no port", Machine{Disk: "d", Forward: map[int]string{443: "127.0.0.1"}}, "host:port"},
		{"a name", Machine{Disk: "d", Forward: map[int]string{443: "localhost:0"}}, "IPv4"},
		{"every address", Machine{Disk: "d", Forward: map[int]string{443: ":0"}}, "IPv4"},
		{"IPv6", Machine{Disk: "d", Forward: map[int]string{443: "[::1]:0"}}, "IPv4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.m.State = t.TempDir()
			if g, err := c.m.Start(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v and error %v, want one about %q", g, err, c.want)
			}
		})
	}
}

func TestStartRefusesTakenPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	m := Machine{Disk: "d", State: t.TempDir(), Forward: map[int]string{443: l.Addr().String()}}
	if _, err := m.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot be opened") {
		t.Errorf("got error %v, want one about the port", err)
	}
}

func TestStartSaysWhatQEMUSaid(t *testing.T) {
	m := Machine{Disk: filepath.Join(t.TempDir(), "no-such.img"), State: t.TempDir(), NoTPM: true}
	if _, err := m.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "no-such.img") {
		t.Errorf("got error %v, want QEMU's about the disk", err)
	}
	if left, err := filepath.Glob(filepath.Join(os.TempDir(), "gatehouse-*", socketQMP)); err != nil || len(left) > 0 {
		t.Logf("sockets of other machines: %v (%v)", left, err)
	}
}

func TestIdentityIsTheStateFolder(t *testing.T) {
	state := t.TempDir()
	m := Machine{Disk: "d", State: state}
	first, err := m.prepare()
	if err != nil {
		t.Fatal(err)
	}
	again, err := m.prepare()
	if err != nil || again != first {
		t.Errorf("the same folder gave another machine (%v)", err)
	}
	other, err := Machine{Disk: "d", State: t.TempDir()}.prepare()
	if err != nil || other == first {
		t.Errorf("another folder gave the same machine (%v)", err)
	}
	if err := os.WriteFile(filepath.Join(state, identityFile), []byte("what"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := m.prepare(); err == nil {
		t.Error("a damaged identity was taken")
	}
}

func TestArguments(t *testing.T) {
	id := [16]byte{0xaa, 0xbb, 0xcc, 15: 1}
	base := Machine{Disk: "a,b.img", State: "s"}
	has := func(m Machine, want string) bool {
		return strings.Contains(strings.Join(m.arguments(id, "/tmp/x", map[int]string{443: "127.0.0.1:8443"}), " "), want)
	}
	without := base
	without.NoTPM = true
	direct := Machine{State: "s", Kernel: "k", Initramfs: "i", Append: "console=ttyS0 x=1"}
	tap := base
	tap.Tap = "tap7"
	opened := base
	opened.TapFile = os.Stdin
	cd, kernelAndCD := base, direct
	cd.CD, kernelAndCD.CD = "c.iso", "c.iso"
	stick, sata := base, base
	stick.Stick, sata.SATA = "s,t.img", true
	logged := base
	logged.WriteLog, logged.NVMe = "log", true
	for _, c := range []struct {
		name string
		m    Machine
		text string
		want bool
	}{
		{"never KVM", base, "kvm", false},
		{"TCG", base, "-accel tcg", true},
		{"commas of a path", base, "file.filename=a,,b.img", true},
		{"a TPM", base, "tpm-tis", true},
		{"a stick", stick, "usb-storage,drive=stick", true},
		{"a CD first", cd, "drive=cd,bootindex=0", true},
		{"the kernel before a CD", kernelAndCD, "bootindex", false},
		{"a SATA disk", sata, "ide-hd,drive=disk", true},
		{"no TPM", without, "tpm", false},
		{"firmware", base, boards["amd64"].open.code, true},
		{"direct boot has none", direct, "pflash", false},
		{"direct boot", direct, "-kernel k -initrd i -append console=ttyS0 x=1", true},
		{"direct boot without disk", direct, "virtio-blk", false},
		{"forward", base, "hostfwd=tcp:127.0.0.1:8443-:443", true},
		{"TAP", tap, "tap,id=net,script=no,downscript=no,ifname=tap7", true},
		{"opened TAP", opened, "tap,id=net,fd=3", true},
		{"opened TAP has no way round", opened, "hostfwd", false},
		{"TAP has no way round", tap, "hostfwd", false},
		{"write log", logged, "nvme,drive=logged", true},
		{"card address", base, "mac=52:54:00:aa:bb:cc", true},
		{"a watchdog that bites", base, "watchdog=reset", true},
	} {
		if has(c.m, c.text) != c.want {
			t.Errorf("%s: %q in the arguments is %v, want %v", c.name, c.text, !c.want, c.want)
		}
	}
	if a := direct.arguments(id, "/tmp/x", nil); !slices.Contains(a, "console=ttyS0 x=1") {
		t.Error("the kernel command line is not one argument")
	}
}

// The board of arm64: what QEMU has for it, and what it has not.
func TestBOX1_ARMBoard(t *testing.T) {
	m := Machine{Target: target.ARM64, Disk: "d", CD: "c", State: "s"}
	words := func(m Machine) string { return strings.Join(m.arguments([16]byte{}, "/tmp/x", nil), " ") }
	secure := m
	secure.SecureBoot = &SecureBoot{}
	for _, c := range []struct {
		m    Machine
		text string
		want bool
	}{
		{m, "-machine virt", true}, {m, "tpm-tis-device,tpmdev=tpm0", true}, {m, "AAVMF_CODE.fd", true}, {m, "scsi-cd", true}, {m, "-accel tcg", true}, {m, "kvm", false},
		{m, "q35", false}, {m, "OVMF", false}, {m, "-vga", false}, {m, "ide-cd", false}, {m, "la57", false},
		{secure, "smm", false}, {secure, "-machine virt", true}, {secure, "property=secure", false},
	} {
		if strings.Contains(words(c.m), c.text) != c.want {
			t.Errorf("%q in the arguments is %v, want %v", c.text, !c.want, c.want)
		}
	}
	if got := m.board().program; got != "qemu-system-aarch64" {
		t.Errorf("it is run by %s", got)
	}
	if words(Machine{Disk: "d", State: "s"}) != words(Machine{Target: target.AMD64, Disk: "d", State: "s"}) {
		t.Error("without a target it is another machine than amd64")
	}
}

// guest is one without a machine, to test what its console does.
func guest() *Guest {
	return &Guest{serial: newSerial(nil), ended: make(chan struct{}), qemu: &process{ended: make(chan struct{})}}
}

func TestWaitSerialSeesEachMatchOnce(t *testing.T) {
	g := guest()
	line := regexp.MustCompile(`state=(\w+)`)
	go func() {
		for _, part := range []string{"sta", "te=unclaimed\r\n", "state=ready\r\n"} {
			if _, err := g.serial.Write([]byte(part)); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Millisecond)
		}
	}()
	whole := regexp.MustCompile(`state=(\w+)\r\n`)
	for _, want := range []string{"unclaimed", "ready"} {
		match, err := g.WaitSerial(whole, time.Minute)
		if err != nil || match[1] != want {
			t.Fatalf("got %q (%v), want %q", match, err, want)
		}
	}
	if match, err := g.WaitSerial(line, time.Millisecond); err == nil {
		t.Errorf("matched %q twice", match)
	} else if !strings.Contains(err.Error(), "state=ready") {
		t.Errorf("the error does not show the console: %v", err)
	}
}

func TestWaitSerialEndsWithTheMachine(t *testing.T) {
	g := guest()
	close(g.ended)
	if _, err := g.WaitSerial(regexp.MustCompile("never"), time.Hour); err == nil || !strings.Contains(err.Error(), "ended before") {
		t.Errorf("got error %v, want one that says the machine ended", err)
	}
}
