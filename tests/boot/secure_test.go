package boot

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatehouse/firmware/slot"
	"gatehouse/image"
	"gatehouse/image/authenticode"
	"gatehouse/image/disk"
	"gatehouse/image/keys"
	"gatehouse/image/qemu"
	"gatehouse/image/uki"
)

// secure is a machine that starts what the keys of the build have signed.
func secure(t testing.TB, disk string) qemu.Machine {
	t.Helper()
	set, err := keys.Load(built(t, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	return qemu.Machine{Disk: disk, State: t.TempDir(), Memory: 512, SecureBoot: &qemu.SecureBoot{
		Platform: set[keys.Platform].Certificate, Exchange: set[keys.Exchange].Certificate, Programs: set[keys.Programs].Certificate,
	}}
}

// foreignLine is what somebody else would have the kernel do: say everything on
// the console. It is no longer than ours, and starts the box all the same.
const foreignLine = "console=ttyS0,115200 ignore_loglevel foreign rdinit=/init"

// foreignKernel is what a kernel says that was started with it; ours keeps its
// first lines off the console.
const foreignKernel = "Command line: " + foreignLine

// A machine that knows the build's keys goes through its boot menu. What is not
// as we signed it is refused by the firmware, each for itself: no signature, one
// byte changed, a foreign command line under a signature that is not of it, one
// that somebody else signed, a changed loader. The last is ours, and starts; what
// stood before it left no trace in PCR 7. The box sees that Secure Boot is on, and
// takes back what a key at the boot menu set.
func TestBOX5_FirmwareStartsTheSignedImageAlone(t *testing.T) {
	t.Parallel()
	whole, err := os.ReadFile(built(t, image.UKI))
	if err != nil {
		t.Fatal(err)
	}
	ours := readProgram(t, whole)
	loader := stage{disk: built(t, image.Disk)}.onESP(t, "EFI/BOOT/BOOTX64.EFI")
	changed := bytes.Clone(whole)
	initrd := ours.Section(".initrd")
	changed[initrd.Offset+initrd.Size/2] ^= 1
	foreign := ours.with(t, ".cmdline", []byte(foreignLine))
	strangers, err := keys.New(filepath.Join(t.TempDir(), "keys"), "somebody else", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	signer := strangers[keys.Programs]
	theirs, err := authenticode.Sign(readProgram(t, foreign).unsigned(t), signer.Certificate, signer.Signer)
	if err != nil {
		t.Fatal(err)
	}
	badLoader := bytes.Clone(loader)
	text := readProgram(t, loader).Section(".text")
	badLoader[text.Offset+text.Size/2] ^= 1

	bad := []struct {
		name    string
		content []byte
	}{
		{"unsigned", ours.unsigned(t)}, {"one byte changed", changed}, {"foreign command line", foreign},
		{"signed by somebody else", theirs}, {"changed loader", badLoader},
	}
	var menu []menuEntry
	files := []disk.File{
		{Path: slot.A.Path(), Content: whole}, {Path: slot.ConfigPath, Content: slot.Config(slot.A)},
		{Path: "EFI/BOOT/BOOTX64.EFI", Content: loader},
	}
	for i, b := range bad {
		if out, err := verify(t, b.content); err == nil {
			t.Errorf("%s: sbverify finds nothing wrong: %s", b.name, out)
		}
		path := "EFI/bad/" + string(rune('a'+i)) + ".efi"
		menu = append(menu, menuEntry{name: b.name, file: path})
		files = append(files, disk.File{Path: path, Content: b.content})
	}
	menu = append(menu, menuEntry{name: "ours", file: "EFI/BOOT/BOOTX64.EFI"})

	m := reachable(secure(t, writeDisk(t, files...)))
	box := stage{disk: m.Disk, state: m.State}
	if err := m.Prepare(); err != nil {
		t.Fatal(err)
	}
	box.bootFrom(t, menu...)
	chooses(t, m, slot.A)
	guest := start(t, m)
	for _, b := range bad {
		say(t, guest, `BdsDxe: failed to load Boot[0-9A-F]{4} "`+b.name+`" from [^\r\n]*: (Access Denied|Security Violation)`)
	}
	say(t, guest, "UEFI Secure Boot is enabled")
	if got, want := measured(t, guest, uki.LoaderSecure), foreseen(t); got != want {
		t.Errorf("PCR 7 with these keys was foreseen as %x, and is %x", want, got)
	}
	box.line = state(t, guest, "unclaimed", "url", "code")
	p := visit(t, guest.Addr(443), nil)
	p.expect("unclaimed", box.line)
	claim(t, guest.Addr(443), box.line["code"])
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
	undone(t, m)
	if strings.Contains(guest.Serial(), foreignKernel) {
		t.Error("a kernel was started with a foreign command line")
	}
}

// verify is what sbverify says, which is no opinion of ours.
func verify(t testing.TB, program []byte) (string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program.efi")
	if err := os.WriteFile(path, program, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sbverify", "--cert", built(t, "keys/db.crt"), path).CombinedOutput()
	return string(out), err
}

// Loader and UKI, as they are on the disk.
func TestBOX5_BuiltImageVerifies(t *testing.T) {
	t.Parallel()
	d := stage{disk: built(t, image.Disk)}
	for _, file := range []string{"EFI/BOOT/BOOTX64.EFI", slot.A.Path()} {
		if out, err := verify(t, d.onESP(t, file)); err != nil || !strings.Contains(out, "Signature verification OK") {
			t.Errorf("%s: %v: %s", file, err, out)
		}
	}
}
