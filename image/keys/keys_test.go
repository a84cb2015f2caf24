package keys

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestBOX5_KeysAreMadeOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	if _, err := Load(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty folder: %v", err)
	}
	made, err := New(dir, "Test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	read, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, r := range all {
		if read[r].Fingerprint() != made[r].Fingerprint() || seen[read[r].Fingerprint()] || !strings.HasSuffix(read[r].Certificate.Subject.CommonName, string(r)) {
			t.Errorf("%s: %+v", r, read[r])
		}
		seen[read[r].Fingerprint()] = true
		if info, err := os.Stat(filepath.Join(dir, string(r)+".key")); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", r, info.Mode(), err)
		}
	}
	if _, err := New(dir, "Test", time.Now()); err == nil || !strings.Contains(err.Error(), "has keys already") {
		t.Errorf("made twice: %v", err)
	}
}

func TestBOX5_BadKeysAreRefused(t *testing.T) {
	whole := t.TempDir()
	if _, err := New(filepath.Join(whole, "a"), "A", time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := New(filepath.Join(whole, "b"), "B", time.Now()); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(dir string) error{
		"a certificate is missing": func(dir string) error { return os.Remove(filepath.Join(dir, "db.crt")) },
		"a key is missing":         func(dir string) error { return os.Remove(filepath.Join(dir, "db.key")) },
		"one of three is missing": func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "KEK.crt")), os.Remove(filepath.Join(dir, "KEK.key")))
		},
		"another's key": func(dir string) error {
			return os.Rename(filepath.Join(whole, "b", "db.key"), filepath.Join(dir, "db.key"))
		},
		"no PEM":       func(dir string) error { return os.WriteFile(filepath.Join(dir, "PK.crt"), []byte("x"), 0o600) },
		"an empty key": func(dir string) error { return os.WriteFile(filepath.Join(dir, "PK.key"), nil, 0o600) },
	} {
		dir := filepath.Join(t.TempDir(), "keys")
		if err := os.CopyFS(dir, os.DirFS(filepath.Join(whole, "a"))); err != nil {
			t.Fatal(err)
		}
		if err := spoil(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(dir); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: read, %v", name, err)
		}
		if _, err := New(dir, "C", time.Now()); err == nil {
			t.Errorf("%s: others were made in their place", name)
		}
	}
}
