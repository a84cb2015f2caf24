package keys

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
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
		"one of four is missing": func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "KEK.crt")), os.Remove(filepath.Join(dir, "KEK.key")))
		},
		"another's key": func(dir string) error {
			return os.Rename(filepath.Join(whole, "b", "db.key"), filepath.Join(dir, "db.key"))
		},
		"a release key of RSA": func(dir string) error {
			return errors.Join(os.Rename(filepath.Join(dir, "db.key"), filepath.Join(dir, "release.key")), os.Rename(filepath.Join(dir, "db.crt"), filepath.Join(dir, "release.crt")),
				os.CopyFS(dir, onlyDB(filepath.Join(whole, "a"))))
		},
		"another's release key": func(dir string) error {
			return os.Rename(filepath.Join(whole, "b", "release.key"), filepath.Join(dir, "release.key"))
		},
		"release key and another are missing": func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "db.crt")), os.Remove(filepath.Join(dir, "db.key")),
				os.Remove(filepath.Join(dir, "release.crt")), os.Remove(filepath.Join(dir, "release.key")))
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

// onlyDB is the db key of a folder.
func onlyDB(dir string) fs.FS {
	out := fstest.MapFS{}
	for _, name := range []string{"db.crt", "db.key"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
			out[name] = &fstest.MapFile{Data: b, Mode: 0o600}
		}
	}
	return out
}

// A folder from before there were release keys says what to do, and gets one;
// the others stay as they are.
func TestKEY10_OlderFolderGetsAReleaseKey(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	made, err := New(dir, "Test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"release.crt", "release.key"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Load(dir); err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "gatehouse image keys new "+dir) {
		t.Errorf("without a release key: %v", err)
	}
	now, err := New(dir, "Test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []Role{Platform, Exchange, Programs} {
		if now[r].Fingerprint() != made[r].Fingerprint() {
			t.Errorf("%s was made anew", r)
		}
	}
	if k, ok := now[Release].Signer.(*ecdsa.PrivateKey); !ok || now[Release].Fingerprint() == made[Release].Fingerprint() || k.Curve != elliptic.P256() {
		t.Errorf("the release key: %+v", now[Release])
	}
}

// The key that approves releases is changed; the old one is kept, and cut short
// in between the folder says what to do.
func TestKEY10_ApproverIsChanged(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	if _, err := NewApprover(dir, "Test", time.Now()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a folder without keys: %v", err)
	}
	made, err := New(dir, "Test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	k, err := NewApprover(dir, "Test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	now, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if k.Fingerprint() == made[Release].Fingerprint() || now[Release].Fingerprint() != k.Fingerprint() || now[Programs].Fingerprint() != made[Programs].Fingerprint() {
		t.Errorf("the approver is %s, was %s", now[Release].Fingerprint(), made[Release].Fingerprint())
	}
	old := "release-" + made[Release].Fingerprint()[:12]
	for _, name := range []string{old + ".key", old + ".crt"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Errorf("the old one was not kept: %v", err)
		}
	}
	for _, name := range []string{"release.key", "release.crt"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if name == "release.crt" {
			if _, err := Load(dir); !errors.Is(err, ErrNoRelease) {
				t.Errorf("cut short: %v", err)
			}
		}
	}
}
