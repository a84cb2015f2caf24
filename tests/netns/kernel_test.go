package netns

import (
	"debug/elf"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/u-root/mkuimage/cpio"
	"golang.org/x/sys/unix"

	"gatehouse/appliance/host"
	"gatehouse/image"
	"gatehouse/image/qemu"
	"gatehouse/image/target"
)

// envTests names the tests that this binary runs when it is the first process
// of an emulated machine; the kernel puts words of its command line that it
// does not know into the first process's environment.
const envTests = "GATEHOUSE_TESTS"

// cableModule makes virtual cables. The box has no use for it, so the image
// does not carry it; it is of the same kernel package.
const cableModule = "veth.ko"

// output is where make image puts things, from this folder.
const output = "../../build"

// guest is what the first process does: load what the box loads, and test.
func guest(m *testing.M) int {
	for _, at := range []struct{ kind, path string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}} {
		if err := unix.Mount(at.kind, at.path, at.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			fmt.Println("mounting", at.path, err)
			return 2
		}
	}
	modules, err := host.New(slog.New(slog.NewTextHandler(os.Stdout, nil))).OpenModules()
	if err == nil {
		err = modules.Load(host.Needed()...)
	}
	if err == nil {
		var f *os.File
		if f, err = os.Open("/" + cableModule); err == nil {
			err = unix.FinitModule(int(f.Fd()), "", 0)
		}
	}
	if err != nil {
		fmt.Println("loading modules:", err)
		return 2
	}
	os.Args = []string{os.Args[0], "-test.v", "-test.run=" + os.Getenv(envTests)}
	return m.Run()
}

// inGuest ends the machine with the tests.
func inGuest(m *testing.M) {
	fmt.Printf("tests ended with %d\n", guest(m))
	time.Sleep(time.Second) // the serial port is slow
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// onTheImagesKernel runs tests of this binary as the first process on the
// kernel of the built image, with its modules, without firmware or disk.
func onTheImagesKernel(t *testing.T, tests string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if e, err := elf.Open(self); err != nil {
		t.Fatal(err)
	} else if libraries, err := e.ImportedLibraries(); err != nil || len(libraries) > 0 {
		t.Fatalf("this test needs %v and cannot be a first process: run it with CGO_ENABLED=0 (%v)", libraries, err)
	}
	cables, err := filepath.Glob(filepath.Join(output, "cache/unpacked/linux-image-*/lib/modules/*/kernel/drivers/net", cableModule))
	if err != nil || len(cables) == 0 {
		t.Fatalf("no %s of the image's kernel under %s (%v): build the image first (make image)", cableModule, output, err)
	}
	initramfs := filepath.Join(t.TempDir(), "initramfs")
	if err := appendFiles(initramfs, filepath.Join(output, image.Initramfs), map[string]string{"guest": self, cableModule: cables[len(cables)-1]}); err != nil {
		t.Fatalf("making the machine's first files: %v: build the image first (make image)", err)
	}
	machine := qemu.Machine{
		State: t.TempDir(), Memory: 768, CPUs: 2, NoTPM: true, Kernel: filepath.Join(output, image.Kernel), Initramfs: initramfs,
		Append: strings.Replace(image.CommandLine(target.AMD64), "rdinit=/init", "rdinit=/guest", 1) + " " + envTests + "=" + tests,
	}
	g, err := machine.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer g.Kill()
	match, err := g.WaitSerial(regexp.MustCompile(`tests ended with (\d+)`), 8*time.Minute)
	if err != nil || match[1] != "0" {
		t.Fatalf("on the image's kernel: %v %v\n%s", match, err, g.Serial())
	}
	return g.Serial()
}

// appendFiles appends programs to an archive; the kernel reads one after the
// other, each from a place that is a multiple of four.
func appendFiles(to, archive string, files map[string]string) error {
	content, err := os.ReadFile(archive)
	if err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := out.Write(append(content, make([]byte, (4-len(content)%4)%4)...)); err != nil {
		return err
	}
	var records []cpio.Record
	for name, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		records = append(records, cpio.StaticFile(name, string(content), 0o755))
	}
	w := cpio.Newc.Writer(out)
	if err := cpio.WriteRecords(w, records); err != nil {
		return err
	}
	return errors.Join(cpio.WriteTrailer(w), out.Sync())
}

// TestNET2_SwapOnTheImagesKernel runs the race where it counts, on the set code
// of the box's own kernel.
func TestNET2_SwapOnTheImagesKernel(t *testing.T) {
	tests := "^(TestNET2_FillThenSwapLosesNobody)$"
	if soak() {
		tests = "^(TestNET2_FillThenSwapLosesNobody|TestNET2_NaiveReloadsLose|TestNET2_KernelAgainstModel)$"
	}
	said := onTheImagesKernel(t, tests)
	for _, line := range regexp.MustCompile(`(?m)^.*packets of friends.*$`).FindAllString(said, -1) {
		t.Log(strings.TrimSpace(line))
	}
	if !strings.Contains(said, "--- PASS: TestNET2_FillThenSwapLosesNobody") {
		t.Errorf("the race did not run:\n%s", said)
	}
}
