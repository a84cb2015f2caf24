package boot

import (
	"crypto/tls"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"gatehouse/image"
	"gatehouse/image/qemu"
)

// The built image, from this folder.
const output = "../../build"

// patience is for a loaded machine with two cores and no virtualisation in
// hardware: a firmware boot takes 15 to 40 s on an idle one.
const patience = 8 * time.Minute

// built returns the path of a result of the image build.
func built(t *testing.T, name string) string {
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
func newDisk(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	if out, err := exec.Command("cp", "--sparse=always", built(t, image.Disk), path).CombinedOutput(); err != nil {
		t.Fatalf("copying the disk: %v: %s", err, out)
	}
	if err := os.Truncate(path, 1<<30); err != nil {
		t.Fatal(err)
	}
	return path
}

// start starts a machine that ends with the test; the console of a failed
// test is in its output.
func start(t *testing.T, m qemu.Machine) *qemu.Guest {
	t.Helper()
	if m.State == "" {
		m.State = t.TempDir()
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

// direct is a machine that starts the built kernel without firmware or disk.
func direct(t *testing.T) qemu.Machine {
	t.Helper()
	return qemu.Machine{
		Memory: 512, Append: image.CommandLine,
		Kernel: built(t, image.Kernel), Initramfs: built(t, image.Initramfs),
	}
}

// say waits for the console to say something that matches.
func say(t *testing.T, guest *qemu.Guest, pattern string) []string {
	t.Helper()
	match, err := guest.WaitSerial(regexp.MustCompile(pattern), patience)
	if err != nil {
		t.Fatal(err)
	}
	return match
}

// state waits for the box's state line and returns its fields.
func state(t *testing.T, guest *qemu.Guest, want string) map[string]string {
	t.Helper()
	line := say(t, guest, `(?m)^gatehouse: (state=`+want+`\b[^\r\n]*)\r?\n`)[1]
	fields := make(map[string]string)
	for pair := range strings.FieldsSeq(line) {
		if key, value, ok := strings.Cut(pair, "="); ok && value != "-" {
			fields[key] = value
		}
	}
	return fields
}

// get fetches a page of the box through a forwarded port. Who the box is, is
// not the question here: its certificate is its own.
func get(t *testing.T, guest *qemu.Guest, path string) (status int, body string) {
	t.Helper()
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("https://" + guest.Addr(443) + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}
