package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatehouse/appliance/setup/proof"
	"gatehouse/appliance/vault"
	"gatehouse/image"
	"gatehouse/image/disk"
)

// meta opens META of a disk image.
func meta(t *testing.T, file string) partition {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	start, err := disk.Meta(f)
	if err != nil {
		t.Fatal(err)
	}
	return partition{f, start}
}

func TestBOX10_ClaimCodeRefusals(t *testing.T) {
	folder := t.TempDir()
	t.Chdir(folder)
	blankDisk(t, folder)
	whole, err := os.ReadFile(image.Disk)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"packed.img.gz": {0x1f, 0x8b, 8, 0}, "box.qcow2": []byte("QFI\xfb0000"), "noise": bytes.Repeat([]byte("noise"), 100_000), "empty": {},
		"code": []byte("7K2M-QX9D-4TBH\n"), "short": []byte("7K2M\n"),
	} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// A disk from which a box was started: its keys' header is there.
	if err := os.WriteFile("started.img", whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := meta(t, "started.img").WriteAt([]byte("a header"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := meta(t, "started.img").WriteAt([]byte("a header"), 64<<10); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args string
		code exitCode
		says string
	}{
		{"none.img", exitNotFound, "no such file"},
		{".", exitUsage, "neither a file nor a disk"},
		{"/dev/null", exitUsage, "neither a file nor a disk"},
		{"packed.img.gz", exitUsage, "gunzip"},
		{"box.qcow2", exitUsage, "qemu-img"},
		{"noise", exitUsage, "no image of a Gatehouse"},
		{"empty", exitUsage, "no image of a Gatehouse"},
		{"started.img", exitConflict, "started from started.img already"},
		{image.Disk + " --code 7K2M-QX9D-4TBH", exitUsage, "never the secret itself"},
		{image.Disk + " --code file:short", exitUsage, "has 12 symbols"},
		{image.Disk + " --code file:none", exitNotFound, "no such file"},
		{"", exitUsage, "arg"},
	} {
		var out, diag bytes.Buffer
		args := append([]string{"image", "claim-code"}, strings.Fields(c.args)...)
		if code := execute(context.Background(), args, strings.NewReader(""), &out, &diag); code != c.code || !strings.Contains(diag.String(), c.says) || out.Len() > 0 {
			t.Errorf("%s: exit %d, %q, %q; want %d and %q", c.args, code, &out, &diag, c.code, c.says)
		}
	}
	now, err := os.ReadFile(image.Disk)
	if err != nil || !bytes.Equal(now, whole) {
		t.Errorf("a refused request changed the image (%v)", err)
	}
}

// TestBOX10_ClaimCodeIsWrittenAsVerifier: the code is printed once, and the
// image has nothing but what verifies it.
func TestBOX10_ClaimCodeIsWrittenAsVerifier(t *testing.T) {
	folder := t.TempDir()
	blankDisk(t, folder)
	file := filepath.Join(folder, image.Disk)
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	last, err := chooseCode("", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, stdin := range []string{"", "7k2mqx9d4tbh\n"} {
		args := []string{"image", "claim-code", file, "--json"}
		if stdin != "" {
			args = append(args, "--code", "-")
		}
		var out, diag bytes.Buffer
		if code := execute(context.Background(), args, strings.NewReader(stdin), &out, &diag); code != exitOK {
			t.Fatalf("exit %d: %s", code, &diag)
		}
		var said struct{ Image, Code string }
		if err := json.Unmarshal(out.Bytes(), &said); err != nil || said.Image != file {
			t.Fatalf("%v: %s", err, &out)
		}
		text := said.Code
		if stdin != "" {
			if text = stdin; strings.Contains(out.String()+diag.String(), "QX9D") || said.Code != "" {
				t.Errorf("the given code is printed: %s%s", &out, &diag)
			}
		} else if text == last.String() || len(text) != 14 {
			t.Errorf("made code %q after %q", text, last)
		}
		code, err := proof.ParseCode(text)
		if err != nil {
			t.Fatal(err)
		}
		salt, key, ok, err := vault.ReadClaimVerifier(meta(t, file))
		if err != nil || !ok || proof.Derive(code, salt) != key {
			t.Errorf("the image verifies another code than %q (%v, %v)", text, ok, err)
		}
		after, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		changed := 0
		for i := range before {
			if before[i] != after[i] {
				changed++
			}
		}
		if symbols := strings.ReplaceAll(code.String(), "-", ""); bytes.Contains(after, []byte(symbols)) || changed > 200 || len(after) != len(before) {
			t.Errorf("%d bytes of the image are others than before", changed)
		}
	}
}
