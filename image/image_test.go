package image

import (
	"bytes"
	"crypto/ecdsa"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/firmware"
	"gatehouse/firmware/approval"
	"gatehouse/image/keys"
	"gatehouse/image/target"
	"gatehouse/image/uki"
)

func build(t *testing.T) Build {
	t.Helper()
	source, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	return Build{Source: source, Program: "image/initramfs/testdata/init", Output: t.TempDir(),
		Version: "1", Built: "2026-01-01T00:00:00Z", Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
}

func TestRunRefusesLocks(t *testing.T) {
	b := build(t)
	b.Lock = filepath.Join(b.Output, "no-such.lock")
	if err := b.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "no-such.lock") {
		t.Errorf("a missing lock: got %v", err)
	}
	b.Lock = filepath.Join(b.Output, "other.lock")
	text := "# gatehouse packages 1: name version sha256 file\nlibc6 1 " + strings.Repeat("ab", 32) + " libc6_1_amd64.deb\n"
	if err := os.WriteFile(b.Lock, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	// With --lock nothing is fetched: what the cache lacks is an error.
	if err := b.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "not in the cache") {
		t.Errorf("a lock without its packages: got %v", err)
	}
	if _, err := os.Stat(b.path(Disk)); err == nil {
		t.Error("a refused build left an image")
	}
}

// Keys that were asked for are never replaced by others.
func TestBOX5_BuildRefusesMissingKeys(t *testing.T) {
	b := build(t)
	b.Keys = filepath.Join(b.Output, "no-such-keys")
	if err := b.Run(t.Context()); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "no-such-keys") {
		t.Errorf("got %v", err)
	}
	for _, name := range []string{b.Keys, b.path(keysDir), b.path(LockFile), b.path(Disk)} {
		if _, err := os.Stat(name); err == nil {
			t.Errorf("a refused build made %s", name)
		}
	}
}

func TestBOX1_InputsDecideTheImage(t *testing.T) {
	one, err := keys.New(t.TempDir(), "one", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	two, err := keys.New(t.TempDir(), "two", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	signer, err := keys.NewSigners(t.TempDir(), []string{"ada"}, 1)
	if err != nil {
		t.Fatal(err)
	}
	signing, signers := one, signer
	var revoked []keys.Revoked
	key := func(change func(*Build), lock string) string {
		b := build(t)
		change(&b)
		k, err := b.inputs(t.Context(), []byte(lock), signing, signers, revoked)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	same := func(*Build) {}
	first := key(same, "lock")
	if key(same, "lock") != first {
		t.Error("the same inputs gave another key: nothing would ever be current")
	}
	signing = two
	if key(same, "lock") == first {
		t.Error("another key is taken for the same image")
	}
	signing = one
	if signers, err = keys.NewSigners(t.TempDir(), []string{"ada"}, 1); err != nil {
		t.Fatal(err)
	}
	if key(same, "lock") == first {
		t.Error("whom the image lets sign the next one is none of its inputs")
	}
	signers = signer
	revoked = []keys.Revoked{{SHA256: [32]byte{1}}}
	if key(same, "lock") == first {
		t.Error("what it has firmware refuse is none of its inputs")
	}
	revoked = nil
	for name, other := range map[string]string{
		"lock":    key(same, "other lock"),
		"version": key(func(b *Build) { b.Version = "2" }, "lock"),
		"time":    key(func(b *Build) { b.Built = "2027-01-01T00:00:00Z" }, "lock"),
		"kind":    key(func(b *Build) { b.Final = true }, "lock"),
		"epoch":   key(func(b *Build) { b.Epoch = 2 }, "lock"),
		"target":  key(func(b *Build) { b.Target = target.ARM64 }, "lock"),
		"kernel":  key(func(b *Build) { b.Target = target.ARM64Cloud }, "lock"),
		"program": key(func(b *Build) { b.Program = "appliance/task" }, "lock"),
	} {
		if other == first {
			t.Errorf("another %s is taken for the same image", name)
		}
	}
}

func TestBuildsOfOneFolderWaitForEachOther(t *testing.T) {
	b := build(t)
	var said bytes.Buffer
	b.Log = slog.New(slog.NewTextHandler(&said, nil))
	end, err := b.alone()
	if err != nil {
		t.Fatal(err)
	}
	second := make(chan error, 1)
	go func() {
		end, err := b.alone()
		if err == nil {
			end()
		}
		second <- err
	}()
	select {
	case err := <-second:
		t.Fatalf("the second one does not wait: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	end()
	if err := <-second; err != nil || !strings.Contains(said.String(), "another build") {
		t.Errorf("%v, said %q", err, said.String())
	}
}

func TestCurrentNeedsEveryResult(t *testing.T) {
	b := build(t)
	names := []string{Kernel, Initramfs, UKI, Disk, DiskGzip, DiskQcow2, DiskZstd, DiskMap, DiskISO, Disk + keySuffix}
	for _, name := range names {
		if err := os.WriteFile(b.path(name), []byte("key"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if !b.current("key") {
		t.Error("all results are there, and are made again")
	}
	if b.current("another key") {
		t.Error("results of other inputs are taken for current")
	}
	for _, name := range names {
		if err := os.Rename(b.path(name), b.path("away")); err != nil {
			t.Fatal(err)
		}
		if b.current("key") {
			t.Errorf("current without %s", name)
		}
		if err := os.Rename(b.path("away"), b.path(name)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestModulesHaveOneReasonEach(t *testing.T) {
	for _, x := range target.All() {
		t.Run(x.Name, func(t *testing.T) { modulesOf(t, x) })
	}
}

func modulesOf(t *testing.T, x target.Target) {
	seen := make(map[string]string)
	for _, g := range groups(x) {
		for name := range strings.FieldsSeq(g.modules) {
			if strings.Contains(name, "-") {
				t.Errorf("%s: write module names with underscores", name)
			}
			if other := seen[name]; other != "" {
				t.Errorf("%s is listed for %q and for %q", name, other, g.why)
			}
			seen[name] = g.why
		}
	}
	for _, name := range []string{"nf_tables", "crc32c_generic", "dm_crypt", "ext4", "nvme", "virtio_blk", "softdog", "button"} {
		if seen[name] == "" {
			t.Errorf("%s is not listed", name)
		}
	}
	for name, want := range map[string]bool{
		"ahci": !x.Virtual(), "r8169": !x.Virtual(), "i6300esb": !x.Virtual(), "iTCO_wdt": x == target.AMD64, "aesni_intel": x == target.AMD64,
		"genet": x == target.ARM64, "tpm_tis_spi": x == target.ARM64, "tpm_tis": x == target.ARM64Cloud, "aes_ce_blk": x.Arch == "arm64",
	} {
		if (seen[name] != "") != want {
			t.Errorf("%s is listed: %v, want %v", name, !want, want)
		}
	}
	list := string(loadList(x))
	for name, want := range map[string]bool{"nf_tables": true, "dm_crypt": true, "vfat": true, "e1000e": false} {
		if strings.Contains(list, "\n"+name+"\n") != want {
			t.Errorf("%s in modules.load is %v, want %v", name, !want, want)
		}
	}
}

func TestCommandLineKeepsItsPromises(t *testing.T) {
	for x, console := range map[target.Target]string{target.AMD64: "console=ttyS0,115200", target.ARM64: "console=ttyAMA0,115200", target.ARM64Cloud: "console=ttyAMA0,115200"} {
		words := strings.Fields(CommandLine(x))
		for _, want := range []string{"gpt", "lockdown=integrity", "panic=10", "rdinit=/init", "console=tty0", console} {
			if !slices.Contains(words, want) {
				t.Errorf("%s: the kernel command line lacks %s", x.Name, want)
			}
		}
	}
}

// Images for several targets lie side by side in one folder, and those for amd64
// have the names that they always had.
func TestBOX1_ResultsOfTargetsHaveNamesOfTheirOwn(t *testing.T) {
	for result, want := range map[string][2]string{
		LockFile: {"packages.lock", "packages-arm64.lock"}, Kernel: {"vmlinuz", "vmlinuz-arm64"},
		Initramfs: {"initramfs.cpio.zst", "initramfs-arm64.cpio.zst"}, UKI: {"gatehouse-amd64.efi", "gatehouse-arm64.efi"},
		Disk: {"gatehouse-amd64.img", "gatehouse-arm64.img"}, DiskMap: {"gatehouse-amd64.img.bmap", "gatehouse-arm64.img.bmap"},
		DiskISO: {"gatehouse-amd64.iso", "gatehouse-arm64.iso"}, DiskQcow2: {"gatehouse-amd64.qcow2", "gatehouse-arm64.qcow2"},
	} {
		if got := [2]string{Named(result, target.AMD64), Named(result, target.ARM64)}; got != want {
			t.Errorf("%s: %q, want %q", result, got, want)
		}
	}
	if got := Named(Disk, target.ARM64Cloud); got != "gatehouse-arm64-cloud.img" {
		t.Errorf("with the other kernel: %s", got)
	}
}

// The lock of another target would make an image that starts nowhere, or another
// one than was asked for.
func TestBOX1_LocksOfOtherTargetsAreRefused(t *testing.T) {
	line := func(name, arch string) string {
		return name + " 1 " + strings.Repeat("ab", 32) + " " + name + "_1_" + arch + ".deb\n"
	}
	lockOf := func(kernel, arch string) string {
		return "# gatehouse packages 1: name version sha256 file\n" + line("libc6", arch) + line("linux-image-6.1.0-56-"+kernel, arch)
	}
	for name, c := range map[string]struct {
		target target.Target
		text   string
		words  string
	}{
		"amd64 for arm64":       {target.ARM64, lockOf("amd64", "amd64"), "not one for arm64"},
		"arm64 for amd64":       {target.AMD64, lockOf("arm64", "arm64"), "not one for amd64"},
		"one package of arm64":  {target.AMD64, lockOf("amd64", "amd64") + line("libuuid1", "arm64"), "libuuid1"},
		"cloud for boards":      {target.ARM64, lockOf("cloud-arm64", "arm64"), "image lock --arch arm64 "},
		"boards' for the cloud": {target.ARM64Cloud, lockOf("arm64", "arm64"), "image lock --arch arm64-cloud"},
		"its own":               {target.ARM64, lockOf("arm64", "arm64"), "not in the cache"},
	} {
		b := build(t)
		b.Target, b.Lock = c.target, filepath.Join(b.Output, "given.lock")
		if err := os.WriteFile(b.Lock, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := b.lock(t.Context()); err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v, want %q", name, err, c.words)
		}
	}
}

// What is built carries an approval of each way in which firmware may start it.
func TestKEY10_SystemIsApprovedForEachWay(t *testing.T) {
	set, err := keys.New(t.TempDir(), "Test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	release := set[keys.Release].Signer.(*ecdsa.PrivateKey)
	public, err := approval.EncodeKey(&release.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	sections := []uki.Section{{Name: ".linux", Content: []byte("kernel")}, {Name: ".cmdline", Content: []byte(CommandLine(target.AMD64))}, {Name: ".pcrpkey", Content: public}}
	signatures, err := approve(release, 7, sections)
	if err != nil {
		t.Fatal(err)
	}
	system, err := approval.Open(signatures, public)
	if err != nil || system.Epoch != 7 {
		t.Fatalf("%+v, %v", system, err)
	}
	for _, p := range uki.Paths() {
		values, err := uki.Registers(sections, p)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := system.Started(values); !ok || got != string(p) {
			t.Errorf("started as %s it is taken for %q, %v", p, got, ok)
		}
	}
	again, err := approve(release, 7, sections)
	if err != nil || !bytes.Equal(again, signatures) {
		t.Errorf("approved again, it is other bytes: %v", err)
	}
}

// A box started from an image goes by the keys in it: those that sign the next
// release, so that a rotation holds for new boxes too.
func TestBOX4_ImageCarriesWhoSignsTheNextRelease(t *testing.T) {
	b := build(t)
	made, err := b.signers()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := b.signers(); err != nil || again.Keys.Text() != made.Keys.Text() {
		t.Errorf("development keys were made anew: %v", err)
	}
	rotated, err := keys.Rotate(b.path(keysDir), []string{"ada"}, []string{development}, 0)
	if err != nil {
		t.Fatal(err)
	}
	var p payload
	p.addSigners(rotated)
	if len(p.files) != 1 || p.files[0].Path != firmware.KeysFile {
		t.Fatalf("the image got %+v", p.files)
	}
	if got, err := firmware.ParseKeys(string(p.files[0].Content)); err != nil || got.Text() != rotated.Next.Text() || got.Text() == made.Keys.Text() {
		t.Errorf("the image carries %v, %v", got, err)
	}
	b.Keys = t.TempDir()
	if _, err := b.signers(); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "image keys new "+b.Keys) {
		t.Errorf("a folder without manifest keys: %v", err)
	}
	if left, _ := os.ReadDir(b.Keys); len(left) != 0 {
		t.Errorf("keys were made in a folder that was named: %v", left)
	}
}
