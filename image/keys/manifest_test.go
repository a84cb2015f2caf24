package keys

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatehouse/firmware"
)

func signers(t *testing.T, threshold int, names ...string) (string, Signers) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "keys")
	s, err := NewSigners(dir, names, threshold)
	if err != nil {
		t.Fatal(err)
	}
	return dir, s
}

func TestKEY10_BadManifestKeysAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		names     []string
		threshold int
		want      string
	}{
		"nobody":                     {nil, 1, "at least 1"},
		"more than there are":        {[]string{"ada"}, 2, "2 of 1"},
		"none has to sign":           {[]string{"ada"}, 0, "0 of 1"},
		"one name twice":             {[]string{"ada", "ada"}, 1, "there twice"},
		"a name that leads away":     {[]string{"../ada"}, 1, "cannot be the name"},
		"a hidden file":              {[]string{".ada"}, 1, "cannot be the name"},
		"a name of two words":        {[]string{"ada b"}, 1, "cannot be the name"},
		"a name with the key's sign": {[]string{"ada+b"}, 1, "cannot be the name"},
		"no name":                    {[]string{""}, 1, "cannot be the name"},
	} {
		dir := t.TempDir()
		if _, err := NewSigners(dir, c.names, c.threshold); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want one about %q", name, err, c.want)
		}
		if left, _ := os.ReadDir(dir); len(left) != 0 {
			t.Errorf("%s: a refused request left %v", name, left)
		}
	}

	whole, _ := signers(t, 2, "ada", "bob", "eve")
	strange, _ := signers(t, 1, "ada")
	for name, spoil := range map[string]func(dir string) error{
		"another's private key": func(dir string) error {
			return os.Rename(filepath.Join(strange, "manifest-ada.key"), filepath.Join(dir, "manifest-ada.key"))
		},
		"no private key": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "manifest-bob.key"), []byte("x"), 0o600)
		},
		"an empty set": func(dir string) error { return os.WriteFile(filepath.Join(dir, ManifestFile), nil, 0o600) },
		"a set of strange": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, nextFile), []byte("threshold 1\n"), 0o600)
		},
		"a line too many": func(dir string) error {
			b, err := os.ReadFile(filepath.Join(dir, ManifestFile))
			return errors.Join(err, os.WriteFile(filepath.Join(dir, ManifestFile), append(b, "x\n"...), 0o600))
		},
	} {
		dir := filepath.Join(t.TempDir(), "keys")
		if err := errors.Join(os.CopyFS(dir, os.DirFS(whole)), spoil(dir)); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadSigners(dir); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: read, %v", name, err)
		}
		if _, err := NewSigners(dir, []string{"new"}, 1); err == nil {
			t.Errorf("%s: others were made in their place", name)
		}
		if _, err := Rotate(dir, []string{"new"}, nil, 0); err == nil {
			t.Errorf("%s: rotated", name)
		}
	}
}

func TestKEY10_ManifestKeysAreMadeOnce(t *testing.T) {
	if _, err := LoadSigners(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty folder: %v", err)
	}
	dir, s := signers(t, 2, "ada", "bob", "eve")
	if s.Rotating() || len(s.All(s.Keys)) != 3 || s.Keys.Threshold != 2 {
		t.Errorf("%+v", s)
	}
	if info, err := os.Stat(filepath.Join(dir, "manifest-ada.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if _, err := NewSigners(dir, []string{"new"}, 1); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("made twice: %v", err)
	}
	// A person takes their key away: the others are still read.
	if err := os.Remove(filepath.Join(dir, "manifest-bob.key")); err != nil {
		t.Fatal(err)
	}
	s, err := LoadSigners(dir)
	if err != nil || len(s.All(s.Keys)) != 2 || len(s.Keys.Keys) != 3 {
		t.Errorf("%+v %v", s, err)
	}
}

// A box follows a rotation over two releases, and the folder goes with it.
func TestKEY10_RotationInTheFolderIsWhatABoxFollows(t *testing.T) {
	dir, s := signers(t, 2, "ada", "bob", "eve")
	if _, err := Rotated(dir); err == nil {
		t.Error("a rotation that nobody began is over")
	}
	for name, c := range map[string]struct {
		add, remove []string
		threshold   int
	}{
		"too few left":       {nil, []string{"ada", "bob"}, 0},
		"nobody's":           {nil, []string{"mallory"}, 0},
		"one that is there":  {[]string{"eve"}, nil, 0},
		"too high":           {nil, nil, 4},
		"its old name again": {[]string{"ada"}, []string{"ada"}, 0},
	} {
		if _, err := Rotate(dir, c.add, c.remove, c.threshold); err == nil {
			t.Errorf("%s: rotated", name)
		}
	}
	if again, err := LoadSigners(dir); err != nil || again.Rotating() {
		t.Fatalf("refused rotations changed the set: %v", err)
	}

	trust := firmware.Trust{Product: "gatehouse", Keys: s.Keys, Version: firmware.Version{Major: 1}, Newest: firmware.Version{Major: 1}, Epoch: 1}
	s, err := Rotate(dir, []string{"fay"}, []string{"ada"}, 3)
	if err != nil {
		t.Fatal(err)
	}
	if !s.Rotating() || len(s.Next.Keys) != 3 || s.Next.Threshold != 3 {
		t.Fatalf("%+v", s.Next)
	}
	m := firmware.Manifest{Product: "gatehouse", Version: firmware.Version{Major: 2}, Epoch: 1, Issued: time.Date(2026, 11, 28, 0, 0, 0, 0, time.UTC),
		Keys: s.Next, Systems: []firmware.System{{Arch: "amd64", Size: 1, SHA256: [32]byte{1}}}}
	b, err := m.Sign(s.All(s.Keys)...)
	if err != nil {
		t.Fatal(err)
	}
	first, err := trust.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	if s, err = Rotated(dir); err != nil || s.Rotating() {
		t.Fatalf("%+v %v", s, err)
	}
	m.Version = firmware.Version{Major: 3}
	if b, err = m.Sign(s.All(s.Keys)...); err != nil {
		t.Fatal(err)
	}
	if _, err := trust.Next(first).Open(b); err != nil {
		t.Errorf("a box that had the release before: %v", err)
	}
	if _, err := trust.Open(b); err != nil {
		t.Errorf("bob and eve are two of three for a box that had not: %v", err)
	}
}
