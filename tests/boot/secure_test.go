package boot

import (
	"bytes"
	"debug/pe"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"gatehouse/image"
	"gatehouse/image/keys"
	"gatehouse/image/qemu"
	"gatehouse/image/uki"
)

// secure is a machine that starts what the keys of the build have signed.
func secure(t *testing.T, disk string) qemu.Machine {
	t.Helper()
	set, err := keys.Load(built(t, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	return qemu.Machine{Disk: disk, State: t.TempDir(), Memory: 512, SecureBoot: &qemu.SecureBoot{
		Platform: set[keys.Platform].Certificate, Exchange: set[keys.Exchange].Certificate, Programs: set[keys.Programs].Certificate,
	}}
}

// A machine that knows the build's keys starts it, and the box sees that Secure
// Boot is on.
func TestBOX5_SignedImageStarts(t *testing.T) {
	guest := start(t, reachable(secure(t, newDisk(t))))
	say(t, guest, "UEFI Secure Boot is enabled")
	if got, want := measured(t, guest, uki.LoaderSecure), foreseen(t); got != want {
		t.Errorf("PCR 7 with these keys was foreseen as %x, and is %x", want, got)
	}
	box := state(t, guest, "unclaimed", "url", "code")
	p := visit(t, guest.Addr(443), nil)
	p.expect("unclaimed", box)
	claim(t, guest.Addr(443), box["code"])
	state(t, guest, "ready", "url")
	p.signIn()
	p.factor()
	_, _, body := p.open("/api/v1/details")
	var seen struct {
		Trust struct {
			SecureBoot bool `json:"secure_boot"`
		} `json:"trust"`
	}
	if err := json.Unmarshal([]byte(body), &seen); err != nil || !seen.Trust.SecureBoot {
		t.Errorf("the box does not see that Secure Boot is on: %v %.300s", err, body)
	}
	off(t, guest)
}

// The same machine does not start a system of which one byte was changed.
func TestBOX5_ChangedImageIsRefused(t *testing.T) {
	disk := newDisk(t)
	whole, err := os.ReadFile(built(t, image.UKI))
	if err != nil {
		t.Fatal(err)
	}
	f, err := pe.NewFile(bytes.NewReader(whole))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	line := f.Section(".cmdline")
	if line == nil {
		t.Fatal("the UKI has no command line")
	}
	raw, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(raw, whole[:4096])
	if at < 0 {
		t.Fatal("the UKI is not on the disk in one run")
	}
	raw = nil
	d, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	// "console" becomes "Console": a foreign command line, as small as it can be.
	if _, err := d.WriteAt([]byte("C"), int64(at)+int64(line.Offset)); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	guest := start(t, secure(t, disk))
	say(t, guest, `(?i)(access denied|security violation|bad shim signature|failed to (start|execute))`)
	time.Sleep(5 * time.Second)
	if strings.Contains(guest.Serial(), "gatehouse: state=") {
		t.Error("a system with a foreign command line was started")
	}
}

// What sbverify says is no opinion of ours.
func TestBOX5_BuiltImageVerifies(t *testing.T) {
	out, err := exec.Command("sbverify", "--cert", built(t, "keys/db.crt"), built(t, image.UKI)).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Signature verification OK") {
		t.Errorf("%v: %s", err, out)
	}
}
