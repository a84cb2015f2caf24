package debian

import (
	"context"
	"crypto/sha256"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const sum = "b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c"

func TestLockRefuses(t *testing.T) {
	good := lockHeader + "\nlibc6 2.36-9+deb12u14 " + sum + " libc6_2.36-9+deb12u14_amd64.deb\n"
	var l Lock
	if err := l.UnmarshalText([]byte(good)); err != nil {
		t.Fatalf("a good lock is refused: %v", err)
	}
	for _, c := range []struct{ name, text, want string }{
		{"nothing", "", "no package"},
		{"no header", "libc6 1 " + sum + " libc6_1_amd64.deb\n", "line 1"},
		{"another version", strings.Replace(good, "packages 1:", "packages 2:", 1), "line 1"},
		{"header alone", lockHeader + "\n", "no package"},
		{"a field missing", lockHeader + "\nlibc6 1 " + sum + "\n", "line 2"},
		{"a field too many", strings.Replace(good, ".deb", ".deb x", 1), "line 2"},
		{"short hash", lockHeader + "\nlibc6 1 abcd libc6_1_amd64.deb\n", "SHA-256"},
		{"a name that is an option", lockHeader + "\n--help 1 " + sum + " a_1_amd64.deb\n", "package name"},
		{"a version with a space's cousin", lockHeader + "\nlibc6 1\t2 " + sum + " libc6_1_amd64.deb\n", "version"},
		{"a file elsewhere", lockHeader + "\nlibc6 1 " + sum + " ../libc6_1_amd64.deb\n", "base name"},
		{"a file that is no package", lockHeader + "\nlibc6 1 " + sum + " libc6\n", "base name"},
		{"the same twice", good + good[len(lockHeader)+1:], "twice"},
		{"an empty line", good + "\n", "line 3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var l Lock
			if err := l.UnmarshalText([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one about %q", err, c.want)
			}
			if l != nil {
				t.Error("a refused lock left something behind")
			}
		})
	}
}

func TestLockRoundTrip(t *testing.T) {
	l := Lock{
		{Name: "libc6", Version: "1:2.36~rc1-9+deb12u14", File: "libc6_1%3a2.36~rc1-9+deb12u14_amd64.deb", SHA256: sha256.Sum256([]byte("a"))},
		{Name: "e2fsprogs", Version: "1.47", File: "e2fsprogs_1.47_amd64.deb", SHA256: sha256.Sum256([]byte("b"))},
	}
	text, err := l.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	var back Lock
	if err := back.UnmarshalText(text); err != nil {
		t.Fatal(err)
	}
	if len(back) != 2 || back[0] != l[1] || back[1] != l[0] {
		t.Errorf("came back as %v", back)
	}
	again, err := back.MarshalText()
	if err != nil || string(again) != string(text) {
		t.Errorf("the order of packages reaches the file:\n%s\n%s", text, again)
	}
}

func TestVerifyRefuses(t *testing.T) {
	c := Cache{Dir: t.TempDir(), Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	if err := os.MkdirAll(c.debs(), 0o755); err != nil {
		t.Fatal(err)
	}
	p := Package{Name: "libc6", Version: "1", File: "libc6_1_amd64.deb", SHA256: sha256.Sum256([]byte("the package"))}
	if err := c.Verify(Lock{p}); err == nil || !strings.Contains(err.Error(), "not in the cache") {
		t.Errorf("a missing package: got %v", err)
	}
	file := filepath.Join(c.debs(), p.File)
	if err := os.WriteFile(file, []byte("another package"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := c.Verify(Lock{p}); err == nil || !strings.Contains(err.Error(), "the lock says") {
		t.Errorf("a changed package: got %v", err)
	}
	if err := os.WriteFile(file, []byte("the package"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := c.Verify(Lock{p}); err != nil {
		t.Errorf("the package itself: got %v", err)
	}
}

func TestUnpackLeavesNothingHalf(t *testing.T) {
	c := Cache{Dir: t.TempDir(), Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	if err := os.MkdirAll(c.debs(), 0o755); err != nil {
		t.Fatal(err)
	}
	p := Package{Name: "broken", Version: "1", File: "broken_1_amd64.deb"}
	if err := os.WriteFile(filepath.Join(c.debs(), p.File), []byte("not an archive"), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second try must not take the first one's ruins for a result
		if dir, err := c.Unpack(context.Background(), p); err == nil {
			t.Fatalf("unpacked a broken package into %s", dir)
		}
	}
}
