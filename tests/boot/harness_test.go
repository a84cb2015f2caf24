package boot

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/image"
	"gatehouse/image/qemu"
	"gatehouse/image/target"
)

// The built image, from this folder.
const output = "../../build"

// patience is for a loaded machine with two cores and no virtualisation in
// hardware: a firmware boot takes 15 to 40 s on an idle one.
const patience = 8 * time.Minute

// firmwareBudget is how often all tests here may go through the firmware, but
// for the soak; a boot of the kernel alone is half as long.
const firmwareBudget = 25

// boots counts what the tests here cost.
var boots struct{ firmware, direct, resets atomic.Int32 }

// shared is the folder of what more than one test uses.
var shared string

func TestMain(m *testing.M) {
	os.Exit(main(m))
}

func main(m *testing.M) int {
	var err error
	if shared, err = os.MkdirTemp("", "gatehouse-boot-"); err != nil {
		fmt.Fprintln(os.Stderr, "making a folder for the tests:", err)
		return 1
	}
	defer os.RemoveAll(shared)
	code := m.Run()
	fmt.Printf("boots: %d through firmware, %d of the kernel alone, %d resets of the latter\n",
		boots.firmware.Load(), boots.direct.Load(), boots.resets.Load())
	if n := boots.firmware.Load(); n > firmwareBudget && !soak() {
		fmt.Printf("%d boots through firmware, and %d is all that the tests may use\n", n, firmwareBudget)
		return 1
	}
	return code
}

// soak says that whole counts are asked for, not samples.
func soak() bool { return os.Getenv("GATEHOUSE_SOAK") == "1" }

// built returns the path of a result of the image build.
func built(t testing.TB, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(output, name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: build the image first (make image)", err)
	}
	return path
}

// newDisk copies the built image, sparse, and grows it.
func newDisk(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	copyDisk(t, built(t, image.Disk), path)
	if err := os.Truncate(path, 1<<30); err != nil {
		t.Fatal(err)
	}
	return path
}

func copyDisk(t testing.TB, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "--sparse=always", from, to).CombinedOutput(); err != nil {
		t.Fatalf("copying the disk: %v: %s", err, out)
	}
}

// start starts a machine that ends with the test; the console of a failed
// test is in its output.
func start(t testing.TB, m qemu.Machine) *qemu.Guest {
	t.Helper()
	guest := startSick(t, m)
	t.Cleanup(func() {
		if strings.Contains(guest.Serial(), "Kernel panic") {
			t.Error("the kernel panicked")
		}
	})
	return guest
}

// startSick starts a machine whose kernel may panic.
func startSick(t testing.TB, m qemu.Machine) *qemu.Guest {
	t.Helper()
	if m.State == "" {
		m.State = t.TempDir()
	}
	if m.Kernel == "" {
		boots.firmware.Add(1)
	} else {
		boots.direct.Add(1)
	}
	guest, err := m.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := guest.Kill(); err != nil {
			t.Errorf("the machine's end: %v", err)
		}
		if t.Failed() {
			t.Logf("console:\n%s", guest.Serial())
		}
	})
	return guest
}

// direct is a machine that starts the built kernel without firmware.
func direct(t testing.TB) qemu.Machine {
	t.Helper()
	return qemu.Machine{
		Memory: 512, Append: image.CommandLine(target.AMD64) + " gatehouse.disk=/dev/vda",
		Kernel: built(t, image.Kernel), Initramfs: built(t, image.Initramfs),
	}
}

// reachable forwards the page of a machine to a free port here.
func reachable(m qemu.Machine) qemu.Machine {
	m.Forward = map[int]string{443: "127.0.0.1:0"}
	return m
}

// say waits for the console to say something that matches, and logs for how
// long: that is where the time of these tests goes.
func say(t testing.TB, guest *qemu.Guest, pattern string) []string {
	t.Helper()
	began := time.Now()
	match, err := guest.WaitSerial(regexp.MustCompile(pattern), patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("waited %.1f s for %.60q", time.Since(began).Seconds(), match[0])
	return match
}

// line is the box's line for automation. Empty fields are not in it.
type line map[string]string

// state waits for the box's line in a state, with all that it will say there:
// who it is, and where its page is if it has a network.
func state(t testing.TB, guest *qemu.Guest, want string, fields ...string) line {
	t.Helper()
	for {
		text := say(t, guest, `(?m)^gatehouse: (state=`+want+`\b[^\r\n]*)\r?\n`)[1]
		got := make(line)
		for pair := range strings.FieldsSeq(text) {
			if key, value, ok := strings.Cut(pair, "="); ok && value != "-" {
				got[key] = value
			}
		}
		if complete(got, append(fields, "name", "fingerprint")) {
			return got
		}
	}
}

func complete(got line, fields []string) bool {
	for _, f := range fields {
		if got[f] == "" {
			return false
		}
	}
	return true
}

// same says whether two lines are of the same box: name and certificate.
func same(t testing.TB, when string, got, want line) {
	t.Helper()
	for _, f := range []string{"name", "fingerprint"} {
		if got[f] != want[f] {
			t.Errorf("%s the box's %s is %s, was %s", when, f, got[f], want[f])
		}
	}
}

// block waits until the status block says something, however it is wrapped.
func block(t testing.TB, guest *qemu.Guest, words string) {
	t.Helper()
	say(t, guest, strings.ReplaceAll(regexp.QuoteMeta(words), " ", `\s+`))
}

// off presses the power button and waits for an end in order.
func off(t testing.TB, guest *qemu.Guest) {
	t.Helper()
	if err := guest.PowerButton(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-guest.Ended():
	case <-time.After(patience):
		t.Fatalf("the box did not switch off within %v of the power button", patience)
	}
	if err := guest.Wait(); err != nil {
		t.Errorf("the box did not switch off in order: %v", err)
	}
}

// choose types a choice of the menu on the serial console.
func choose(t testing.TB, guest *qemu.Guest, text string) {
	t.Helper()
	if err := guest.Type(text + "\r"); err != nil {
		t.Fatal(err)
	}
}
