package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatehouse/appliance/setup/proof"
	"gatehouse/appliance/vault"
	"gatehouse/image"
	"gatehouse/image/disk"
)

func TestRunRefuses(t *testing.T) {
	folder := t.TempDir()
	existing := filepath.Join(folder, "disk.img")
	if err := os.WriteFile(existing, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
		code exitCode
		want string
	}{
		{"no image", []string{"--output", folder, "--disk", filepath.Join(folder, "new.img")}, exitNotFound, "image build"},
		{"kernel alone", []string{"--kernel", "k"}, exitUsage, "both"},
		{"initramfs alone", []string{"--initramfs", "i"}, exitUsage, "both"},
		{"a code for a disk that has lived", []string{"--output", folder, "--disk", existing, "--code", "7K2M-QX9D-4TBH"}, exitConflict, "new disk"},
		{"a word too many", []string{"fast"}, exitUsage, "fast"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stderr bytes.Buffer
			got := execute(t.Context(), append([]string{"run"}, c.args...), strings.NewReader(""), io.Discard, &stderr)
			if got != c.code || !strings.Contains(stderr.String(), c.want) {
				t.Errorf("exit code %d with %q, want %d and a word about %q", got, &stderr, c.code, c.want)
			}
		})
	}
}

// blankDisk makes what "image build" would, without programs.
func blankDisk(t *testing.T, output string) {
	t.Helper()
	f, err := os.Create(filepath.Join(output, image.Disk))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := disk.Write(f, nil, []byte("test")); err != nil {
		t.Fatal(err)
	}
}

func TestRunRefusesBadCodeAndLeavesNoDisk(t *testing.T) {
	folder := t.TempDir()
	blankDisk(t, folder)
	made := filepath.Join(folder, "box.img")
	var stderr bytes.Buffer
	code := execute(t.Context(), []string{"run", "--output", folder, "--disk", made, "--code", "no code"}, strings.NewReader(""), io.Discard, &stderr)
	if code != exitUsage {
		t.Errorf("exit code %d with %q, want %d", code, &stderr, exitUsage)
	}
	if _, err := os.Stat(made); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a disk without its code was left behind (%v)", err)
	}
}

func TestACC1_CodeSetAtFlashingIsTheOneProven(t *testing.T) {
	for _, c := range []struct{ name, code, stdin string }{
		{"on the line", "7k2m-qx9d-4tbh", ""},
		{"from standard input", "-", "7K2MQX9D4TBH\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			folder := t.TempDir()
			blankDisk(t, folder)
			file := filepath.Join(folder, image.Disk)
			if err := writeClaimCode(file, c.code, strings.NewReader(c.stdin)); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			start, err := disk.Meta(f)
			if err != nil {
				t.Fatal(err)
			}
			salt, key, ok, err := vault.ReadClaimVerifier(partition{f, start})
			if err != nil || !ok {
				t.Fatalf("no verifier on the disk (%v)", err)
			}
			code, err := proof.ParseCode("7K2M-QX9D-4TBH")
			if err != nil {
				t.Fatal(err)
			}
			if proof.Derive(code, salt) != key {
				t.Error("the verifier is of another code")
			}
			whole, err := os.ReadFile(file)
			if err != nil || bytes.Contains(whole, []byte("7K2MQX9D4TBH")) || bytes.Contains(bytes.ToUpper(whole[start:start+1<<20]), []byte("7K2M-QX9D")) {
				t.Errorf("the code itself is on the disk (%v)", err)
			}
		})
	}
}

func TestCopyDiskGrowsAndStaysSparse(t *testing.T) {
	folder := t.TempDir()
	blankDisk(t, folder)
	from, to := filepath.Join(folder, image.Disk), filepath.Join(folder, "run", "box.img")
	if err := copyDisk(from, to, 1<<20); err == nil {
		t.Error("a disk smaller than the image was made")
	}
	if err := copyDisk(from, to, 1<<30); err != nil {
		t.Fatal(err)
	}
	a, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := os.Open(to)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if info, err := b.Stat(); err != nil || info.Size() != 1<<30 {
		t.Errorf("the disk is %d bytes long (%v)", info.Size(), err)
	}
	left, right := make([]byte, disk.Size), make([]byte, disk.Size)
	if _, err := io.ReadFull(a, left); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(b, right); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(left, right) {
		t.Error("the copy differs from the image")
	}
}

func TestAnnouncement(t *testing.T) {
	const open = "state=unclaimed name=box url=https://10.0.2.15/ code=7K2M-QX9D-4TBH fingerprint=AB:CD"
	for _, c := range []struct{ line, forwarded, want string }{
		{"state=starting name=box url=- code=- fingerprint=-", "127.0.0.1:8443", ""},
		{"state=starting name=box url=https://10.0.2.15/ code=- fingerprint=-", "127.0.0.1:8443", ""},
		{open, "127.0.0.1:8443", "gatehouse run: unclaimed, open https://127.0.0.1:8443/ with code 7K2M-QX9D-4TBH"},
		{open, "0.0.0.0:8443", "gatehouse run: unclaimed, open https://127.0.0.1:8443/ with code 7K2M-QX9D-4TBH"},
		{open, "", "gatehouse run: unclaimed, open https://10.0.2.15/ with code 7K2M-QX9D-4TBH"},
		{"state=ready name=box url=https://10.0.2.15/ code=- fingerprint=AB:CD", "127.0.0.1:9", "gatehouse run: ready, open https://127.0.0.1:9/"},
	} {
		match := stateLine.FindStringSubmatch("[ 1.0] noise\r\ngatehouse: " + c.line + "\r\n")
		if match == nil {
			t.Fatalf("%q is not recognised", c.line)
		}
		if got := announcement(fields(match[1]), c.forwarded); got != c.want {
			t.Errorf("%s:\n got %q\nwant %q", c.line, got, c.want)
		}
	}
}
