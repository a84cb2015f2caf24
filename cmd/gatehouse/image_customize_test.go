package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"gatehouse/appliance/account/password"
	"gatehouse/appliance/seed"
	"gatehouse/appliance/volume/installer"
	"gatehouse/image"
	"gatehouse/image/bmap"
	"gatehouse/image/disk"
)

const customizePassword = "orbit walnut cathedral seven"

func customize(t *testing.T, stdin string, args ...string) (exitCode, string, string) {
	t.Helper()
	var out, diag bytes.Buffer
	code := execute(context.Background(), append([]string{"image", "customize"}, args...), strings.NewReader(stdin), &out, &diag)
	return code, out.String(), diag.String()
}

// What is not whole is refused before anything is written.
func TestBOX11_CustomizeRefuses(t *testing.T) {
	folder := t.TempDir()
	t.Chdir(folder)
	blankDisk(t, folder)
	before, err := os.ReadFile(image.Disk)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"weak": "password\n", "good": customizePassword + "\n", "packed.img.gz": "\x1f\x8b\x08\x00", "started.img": ""} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile("started.img", before, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, 64 << 10} {
		if _, err := meta(t, "started.img").WriteAt([]byte("a header"), at); err != nil {
			t.Fatal(err)
		}
	}
	owner := " --email ada@example.org --name Ada --password file:good"
	for _, c := range []struct {
		args string
		code exitCode
		says string
	}{
		{image.Disk, exitUsage, "says nothing"},
		{image.Disk + " --email ada --name Ada --password file:good", exitUsage, "e-mail"},
		{image.Disk + " --email ada@example.org --password file:good", exitUsage, "1 to 100 letters"},
		{image.Disk + " --email ada@example.org --name Ada --password file:weak", exitUsage, "--password"},
		{image.Disk + " --email ada@example.org --name Ada --password " + customizePassword[:5], exitUsage, "never the secret itself"},
		{image.Disk + " --email ada@example.org --name Ada", exitUsage, "not a terminal"},
		{image.Disk + owner + " --address 192.0.2.7", exitUsage, "length of its network"},
		{image.Disk + owner + " --address 192.0.2.7/24 --gateway 198.51.100.1", exitUsage, "network cannot be set"},
		{image.Disk + owner + " --gateway 192.0.2.1", exitUsage, "needs --address"},
		{image.Disk + owner + " --hostname My.Box", exitUsage, "name of a box"},
		{image.Disk + " --secure-boot", exitUsage, "names no owner"},
		{image.Disk + owner + " --install-to S3R1AL", exitUsage, "is the disk of a box"},
		{"packed.img.gz" + owner, exitUsage, "gunzip"},
		{"started.img" + owner, exitConflict, "started from"},
		{"none.img" + owner, exitNotFound, "no such file"},
		{"none.img --email ada@example.org --name Ada", exitNotFound, "no such file"},
	} {
		code, out, diag := customize(t, "", strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(diag, c.says) || out != "" {
			t.Errorf("%s: exit %d, %q, %q; want %d and %q", c.args, code, out, diag, c.code, c.says)
		}
	}
	if now, err := os.ReadFile(image.Disk); err != nil || !bytes.Equal(now, before) {
		t.Error("something was written to the image")
	}
}

func TestBOX11_CustomizeWritesTheSeed(t *testing.T) {
	folder := t.TempDir()
	t.Chdir(folder)
	blankDisk(t, folder)
	args := []string{"--email", "ada@example.org", "--name", "Ada", "--password", "-", "--address", "192.0.2.7/24", "--gateway", "192.0.2.1", "--resolver", "192.0.2.1", "--hostname", "attic", "--secure-boot"}
	code, out, diag := customize(t, customizePassword+"\n", append([]string{"-"}, args...)...)
	if code != exitOK || strings.Contains(out+diag, customizePassword) {
		t.Fatalf("exit %d, %s", code, diag)
	}
	s, err := seed.Parse([]byte(out))
	if err != nil {
		t.Fatal(err)
	}
	ok, err := password.NewHasher().Check(t.Context(), customizePassword, s.Owner.Password, true)
	if err != nil || !ok || s.HostName != "attic" || s.SecureBoot != seed.Enrol || s.Network.Links[0].Addresses[0].String() != "192.0.2.7/24" {
		t.Errorf("%v, %v, %+v", ok, err, s)
	}
	if code, _, diag := customize(t, customizePassword+"\n", append([]string{image.Disk}, args...)...); code != exitOK {
		t.Fatalf("exit %d, %s", code, diag)
	}
	whole, err := os.ReadFile(image.Disk)
	if err != nil || !bytes.Contains(whole[disk.Size-(1<<20):], []byte(`"host_name": "attic"`)) || bytes.Contains(whole, []byte(customizePassword)) {
		t.Errorf("the image does not hold the seed, or holds the password (%v)", err)
	}
}

// The medium that installs takes a seed as well, and no claim code: that would be
// nowhere once the disk is written.
func TestBOX11_MediumThatInstallsIsCustomized(t *testing.T) {
	t.Chdir(t.TempDir())
	const iso = "medium.iso"
	packed := []byte("packed")
	f, err := os.Create(iso)
	if err == nil {
		err = disk.WriteISO(f, []disk.File{{Path: "EFI/BOOT/BOOTX64.EFI", Content: []byte("loader")}}, bytes.NewReader(packed), installer.Head{Size: 1 << 20, Packed: int64(len(packed))}, []byte("id"))
	}
	if err != nil {
		t.Fatal(err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out bytes.Buffer
	if code := execute(t.Context(), []string{"image", "claim-code", iso}, strings.NewReader(""), &out, &out); code != exitUsage || !strings.Contains(out.String(), "medium that installs") {
		t.Errorf("a claim code: exit %d, %q", code, out.String())
	}
	for _, serial := range []string{"first", "second"} { // which takes its place
		code, _, diag := customize(t, customizePassword+"\n", iso, "--email", "ada@example.org", "--name", "Ada", "--password", "-", "--install-to", serial, "--secure-boot")
		if code != exitOK || !strings.Contains(diag, "serial number "+serial+" overwritten without asking") || !strings.Contains(diag, "restarts once by itself") {
			t.Fatalf("exit %d, %s", code, diag)
		}
	}
	whole, err := os.ReadFile(iso)
	if err != nil || !bytes.Contains(whole[size-(1<<20):], []byte(`"disk_serial": "second"`)) || bytes.Contains(whole, []byte(`"disk_serial": "first"`)) {
		t.Errorf("the medium does not hold the second seed alone (%v)", err)
	}
	m, err := installer.Open(bytes.NewReader(whole), int64(len(whole)))
	if err != nil || m.Packed != int64(len(packed)) {
		t.Errorf("it installs no more: %+v, %v", m, err)
	}
	if code, _, diag := customize(t, "", iso, "--hostname", "attic"); code != exitOK || !strings.Contains(diag, "asks at its console") {
		t.Errorf("without a disk: exit %d, %s", code, diag)
	}
}

// What was customized is flashed, although a map of the image as it was built lies
// beside it; what only differs from its map is not.
func TestBOX11_CustomizedImageIsFlashed(t *testing.T) {
	folder := t.TempDir()
	t.Chdir(folder)
	blankDisk(t, folder)
	whole, err := os.ReadFile(image.Disk)
	if err != nil {
		t.Fatal(err)
	}
	m, err := bmap.Find(bytes.NewReader(whole), int64(len(whole)), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, set := range map[string][]string{
		"seed.img": {"image", "customize", "seed.img", "--hostname", "attic"},
		"code.img": {"image", "claim-code", "code.img"},
		"harm.img": nil,
	} {
		if err := errors.Join(os.WriteFile(name, whole, 0o600), os.WriteFile(name+".bmap", m.Encode(), 0o600)); err != nil {
			t.Fatal(err)
		}
		if im, err := openFlash(name); err != nil || len(im.spans) == 0 {
			t.Fatalf("%s, as it was built: %+v, %v", name, im, err)
		}
		if set == nil {
			harmed := bytes.Clone(whole)
			harmed[m.Ranges[len(m.Ranges)/2].At+100] ^= 1
			if err := os.WriteFile(name, harmed, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := openFlash(name); err == nil || !strings.Contains(err.Error(), "not of one build") {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		var said bytes.Buffer
		if code := execute(t.Context(), set, strings.NewReader(""), &said, &said); code != exitOK {
			t.Fatalf("%q: exit %d, %s", set, code, &said)
		}
		im, err := openFlash(name)
		if err != nil || im.spans != nil {
			t.Errorf("%s: %+v, %v; want it written whole", name, im, err)
		}
	}
}
