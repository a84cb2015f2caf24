package boot

import (
	"bytes"
	"crypto/sha256"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gatehouse/image"
	"gatehouse/image/initramfs"
)

// The image is built once more, of a copy of the sources in another folder, with
// the keys and the lock of the one that is there: the same bytes, in every form.
// The compiler's cache is shared, as it does not know folders (-trimpath); where
// whole counts are asked for it is a new one, and the packages are unpacked anew.
func TestBOX15_AnotherFolderSameImage(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	b := image.Build{
		Source: filepath.Join(t.TempDir(), "another", "folder"), Program: "cmd/gatehoused", Output: t.TempDir(),
		Cache: filepath.Join(root, "build", "cache"), Lock: built(t, image.LockFile), Keys: filepath.Join(root, "build", "keys"),
		Version: builtVersion(t), Built: git(t, root, "log", "-1", "--format=%cd", "--date=format-local:%Y-%m-%dT%H:%M:%SZ"),
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	copySources(t, root, b.Source)
	if soak() {
		t.Setenv("GOCACHE", t.TempDir())
		b.Cache = t.TempDir()
		if err := os.CopyFS(filepath.Join(b.Cache, "deb"), os.DirFS(filepath.Join(root, "build", "cache", "deb"))); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("GOEXPERIMENT", "runtimesecret") // as the tool and make have it
	there := filepath.Dir(built(t, image.Disk))
	t.Chdir(b.Source) // u-root takes programs of the module that it stands in
	if err := b.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{image.Kernel, image.Initramfs, image.UKI, image.Disk, image.DiskGzip, image.DiskQcow2} {
		if one, two := sum(t, filepath.Join(there, name)), sum(t, filepath.Join(b.Output, name)); one != two {
			t.Errorf("%s: SHA-256 %x, and built elsewhere %x", name, one, two)
		}
	}
	if t.Failed() {
		one, two := unpack(t, filepath.Join(there, image.Initramfs)), unpack(t, filepath.Join(b.Output, image.Initramfs))
		for _, name := range slices.Sorted(maps.Keys(one)) {
			if !bytes.Equal(one[name], two[name]) {
				t.Errorf("it differs in %s (%d and %d bytes): was the image built of these sources? (make image)", name, len(one[name]), len(two[name]))
			}
		}
	}
}

// builtVersion is what the built image says that it is.
func builtVersion(t testing.TB) string {
	t.Helper()
	for line := range strings.Lines(string(unpack(t, built(t, image.Initramfs))["etc/os-release"])) {
		if v, ok := strings.CutPrefix(line, "VERSION_ID="); ok {
			return strings.Trim(v, "\"\n")
		}
	}
	t.Fatal("the image does not say which version it is")
	return ""
}

// copySources copies what git knows of, as it lies there, and what make adds.
func copySources(t testing.TB, from, to string) {
	t.Helper()
	names := strings.Split(git(t, from, "ls-files", "--cached", "--others", "--exclude-standard"), "\n")
	bundle, err := filepath.Glob(filepath.Join(from, "appliance/console/xterm/dist/xterm.*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range bundle {
		names = append(names, strings.TrimPrefix(b, from+"/"))
	}
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(from, name))
		if os.IsNotExist(err) {
			continue // removed, and that is not committed
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(to, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TZ=UTC")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git %s: %v", args[0], err)
	}
	return strings.TrimSpace(string(out))
}

func sum(t testing.TB, file string) (sum [sha256.Size]byte) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func unpack(t testing.TB, archive string) map[string][]byte {
	t.Helper()
	b, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	files, err := initramfs.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return files
}
