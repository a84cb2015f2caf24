package hosted

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The tool on a block device of the kernel's: refused while somebody has it,
// written and read back past the kernel's memory otherwise.
func TestBOX3_FlashOnARealDevice(t *testing.T) {
	folder := t.TempDir()
	content := make([]byte, 4<<20)
	copy(content, "the beginning")
	copy(content[3<<20:], "the end")
	img, backing := filepath.Join(folder, "box.img"), filepath.Join(folder, "disk")
	for name, b := range map[string][]byte{img: content, backing: bytes.Repeat([]byte("old "), 2<<20)} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.CommandContext(t.Context(), "losetup", "--show", "--find", backing).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v\n%s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup --detach %s: %v\n%s", device, err, out)
		}
	})
	flash := func() (int, string) {
		cmd := exec.CommandContext(t.Context(), tool, "image", "flash", img, device, "--yes", filepath.Base(device))
		out, _ := cmd.CombinedOutput()
		return cmd.ProcessState.ExitCode(), string(out)
	}
	held, err := os.OpenFile(device, os.O_RDONLY|syscall.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	if code, said := flash(); code != 5 || !strings.Contains(said, "in use") {
		t.Errorf("held by another: exit %d, %s", code, said)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	if now, err := os.ReadFile(backing); err != nil || !bytes.HasPrefix(now, []byte("old ")) {
		t.Errorf("refused, and written to (%v)", err)
	}
	if code, said := flash(); code != 0 || !strings.Contains(said, "read back from the disk and compared") {
		t.Errorf("exit %d, %s", code, said)
	}
	if now, err := os.ReadFile(backing); err != nil || !bytes.Equal(now[:len(content)], content) || !bytes.HasSuffix(now, []byte("old ")) {
		t.Errorf("the disk does not hold the image (%v)", err)
	}
}
