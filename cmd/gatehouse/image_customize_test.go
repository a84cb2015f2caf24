package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"

	"gatehouse/appliance/account/password"
	"gatehouse/appliance/seed"
	"gatehouse/image"
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
		{"packed.img.gz" + owner, exitUsage, "gunzip"},
		{"started.img" + owner, exitConflict, "started from"},
		{"none.img" + owner, exitNotFound, "no such file"},
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
