package sealed

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

var key = bytes.Repeat([]byte{7}, 32)

func TestKEY2_SealedRefuses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "secret")
	if _, err := Read(path, key, "p"); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrDamaged) {
		t.Errorf("a missing file: %v, want only not-exist", err)
	}
	if err := Write(path, key, "p", []byte("the secret itself")); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(good, []byte("secret")) {
		t.Error("the secret is in the file as it is")
	}
	if _, err := Read(path, bytes.Repeat([]byte{8}, 32), "p"); !errors.Is(err, ErrDamaged) {
		t.Errorf("another key: %v", err)
	}
	if _, err := Read(path, key, "q"); !errors.Is(err, ErrDamaged) {
		t.Errorf("another purpose: %v", err)
	}
	for _, short := range [][]byte{nil, key[:16], append(key[:32:32], 0)} {
		if _, err := Read(path, short, "p"); err == nil {
			t.Errorf("a key of %d bytes is taken", len(short))
		}
		if err := Write(path, short, "p", nil); err == nil {
			t.Errorf("a key of %d bytes is used", len(short))
		}
	}
	for i := range good {
		for _, b := range [][]byte{good[:i], flip(good, i)} {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Read(path, key, "p"); !errors.Is(err, ErrDamaged) || errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("damage at byte %d: %v", i, err)
			}
		}
	}
	if err := Write(path, key, "p", make([]byte, MaxSecret+1)); err == nil {
		t.Error("an oversize secret is written")
	}
	if _, err := Read(dir, key, "p"); !errors.Is(err, ErrDamaged) {
		t.Errorf("a folder: %v", err)
	}
}

func flip(b []byte, i int) []byte {
	c := bytes.Clone(b)
	c[i] ^= 1
	return c
}

func TestSealedRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	var files [][]byte
	for _, secret := range [][]byte{[]byte("one"), {}, make([]byte, MaxSecret), []byte("one")} {
		if err := Write(path, key, "p", secret); err != nil {
			t.Fatal(err)
		}
		got, err := Read(path, key, "p")
		if err != nil || !bytes.Equal(got, secret) {
			t.Fatalf("%d bytes came back as %d: %v", len(secret), len(got), err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, b)
	}
	if bytes.Equal(files[0], files[3]) {
		t.Error("the same secret gave the same file: the nonce repeats")
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add([]byte{version}, "p")
	f.Add(make([]byte, overhead), "")
	f.Fuzz(func(t *testing.T, b []byte, purpose string) {
		if _, err := open(b, key, purpose); !errors.Is(err, ErrDamaged) {
			t.Fatalf("opened, or another error: %v", err)
		}
	})
}
