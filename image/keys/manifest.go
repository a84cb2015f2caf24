package keys

import (
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"gatehouse/firmware"
)

// Files of the manifest keys in a folder. The public ones are enough to verify
// by; private ones may lie elsewhere, each where its person keeps it.
const (
	ManifestFile = "manifest.pub"
	nextFile     = "manifest.next.pub"
)

// Signers are the Ed25519 keys that sign manifests: each release by those that
// the boxes know, naming those that sign the next one.
type Signers struct {
	// Keys are whom the boxes know.
	Keys firmware.Keys
	// Next is who signs after the release that says so. It is Keys while nothing changes.
	Next firmware.Keys
	// Private are those whose private keys lie in the folder, by name.
	Private map[string]note.Signer
}

// Rotating says whether the next release changes the keys.
func (s Signers) Rotating() bool { return s.Keys.Text() != s.Next.Text() }

// All lists the signers of a set whose private keys are there, in its order.
func (s Signers) All(k firmware.Keys) []note.Signer {
	var out []note.Signer
	for _, key := range k.Keys {
		if p, ok := s.Private[SignerName(key)]; ok {
			out = append(out, p)
		}
	}
	return out
}

// SignerName is whose key a note's verifier key is.
func SignerName(verifier string) string {
	name, _, _ := strings.Cut(verifier, "+")
	return name
}

// LoadSigners reads the manifest keys of a folder. Without any the error is fs.ErrNotExist.
func LoadSigners(dir string) (Signers, error) {
	s := Signers{Private: make(map[string]note.Signer)}
	var err error
	if s.Keys, err = readKeys(filepath.Join(dir, ManifestFile)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return Signers{}, fmt.Errorf("there are no manifest keys in %s: %w", dir, fs.ErrNotExist)
		}
		return Signers{}, err
	}
	s.Next, err = readKeys(filepath.Join(dir, nextFile))
	if errors.Is(err, fs.ErrNotExist) {
		s.Next, err = s.Keys, nil
	}
	if err != nil {
		return Signers{}, err
	}
	for _, key := range slices.Concat(s.Keys.Keys, s.Next.Keys) {
		p, err := readSigner(dir, key)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Signers{}, err
		}
		s.Private[p.Name()] = p
	}
	return s, nil
}

func readKeys(file string) (firmware.Keys, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return firmware.Keys{}, fmt.Errorf("reading the manifest keys: %w", err)
	}
	k, err := firmware.ParseKeys(string(b))
	if err != nil {
		return firmware.Keys{}, fmt.Errorf("reading the manifest keys in %s: %w", file, err)
	}
	return k, nil
}

// readSigner reads the private half of a key, and makes sure that it is that.
func readSigner(dir, verifier string) (note.Signer, error) {
	file := signerFile(dir, SignerName(verifier))
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	s, err := note.NewSigner(strings.TrimSuffix(string(b), "\n"))
	if err != nil {
		return nil, fmt.Errorf("reading the manifest key in %s: %w", file, err)
	}
	v, err := note.NewVerifier(verifier)
	if err != nil {
		return nil, fmt.Errorf("reading the manifest key in %s: %w", file, err)
	}
	sig, err := s.Sign([]byte(file))
	if err != nil || !v.Verify([]byte(file), sig) {
		return nil, fmt.Errorf("%s is not the private key of %s in %s", file, v.Name(), ManifestFile)
	}
	return s, nil
}

func signerFile(dir, name string) string { return filepath.Join(dir, "manifest-"+name+".key") }

// NewSigners makes manifest keys in a folder that has none, one for each name.
// The public set is written last: until then there are none.
func NewSigners(dir string, names []string, threshold int) (Signers, error) {
	if _, err := LoadSigners(dir); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = fmt.Errorf("%s has manifest keys already: change them with a rotation, which boxes can follow", dir)
		}
		return Signers{}, err
	}
	k, err := add(dir, firmware.Keys{Threshold: threshold}, names)
	if err != nil {
		return Signers{}, err
	}
	if err := writeKeys(dir, ManifestFile, k); err != nil {
		return Signers{}, err
	}
	return LoadSigners(dir)
}

// Rotate makes the set that the next release names: with keys added and
// removed, and another threshold if that is not 0. It can be changed again
// until that release is out.
func Rotate(dir string, added, removed []string, threshold int) (Signers, error) {
	s, err := LoadSigners(dir)
	if err != nil {
		return Signers{}, err
	}
	k := firmware.Keys{Threshold: s.Next.Threshold, Keys: slices.Clone(s.Next.Keys)}
	if threshold != 0 {
		k.Threshold = threshold
	}
	for _, name := range removed {
		i := slices.IndexFunc(k.Keys, func(key string) bool { return SignerName(key) == name })
		if i < 0 {
			return Signers{}, fmt.Errorf("there is no manifest key %q to remove", name)
		}
		k.Keys = slices.Delete(k.Keys, i, i+1)
	}
	if k, err = add(dir, k, added); err != nil {
		return Signers{}, err
	}
	if err := writeKeys(dir, nextFile, k); err != nil {
		return Signers{}, err
	}
	return LoadSigners(dir)
}

// Rotated makes the next set the one that signs: the release that names it is
// out. Private keys that were given up stay where they are, for boxes that have
// not had that release.
func Rotated(dir string) (Signers, error) {
	s, err := LoadSigners(dir)
	if err != nil {
		return Signers{}, err
	}
	if !s.Rotating() {
		return Signers{}, fmt.Errorf("no change of the manifest keys in %s is under way", dir)
	}
	if err := os.Rename(filepath.Join(dir, nextFile), filepath.Join(dir, ManifestFile)); err != nil {
		return Signers{}, fmt.Errorf("changing the manifest keys: %w", err)
	}
	return LoadSigners(dir)
}

// add makes private keys and adds them to a set. The set is judged before a
// file is written.
func add(dir string, k firmware.Keys, names []string) (firmware.Keys, error) {
	private := make(map[string]string)
	for _, name := range names {
		secret, verifier, err := note.GenerateKey(rand.Reader, name)
		if err != nil {
			return k, fmt.Errorf("making the manifest key %q: %w", name, err)
		}
		if strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-.") != "" || name == "" || len(name) > 40 || name[0] == '.' {
			return k, fmt.Errorf("%q cannot be the name of a manifest key: lower-case letters, digits, hyphens and dots can, at most 40", name)
		}
		if _, err := os.Stat(signerFile(dir, name)); err == nil {
			return k, fmt.Errorf("%s is there already: a key that was given up is not taken again, choose another name", signerFile(dir, name))
		}
		private[name] = secret
		k.Keys = append(k.Keys, verifier)
	}
	if err := k.Check(); err != nil {
		return k, fmt.Errorf("the manifest keys would be of no use: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return k, fmt.Errorf("making the folder of the keys: %w", err)
	}
	for _, name := range names {
		if err := writeNew(signerFile(dir, name), private[name]+"\n", 0o600); err != nil {
			return k, fmt.Errorf("making the manifest key %s: %w", name, err)
		}
	}
	return k, nil
}

// writeKeys puts a set under its name whole, in the place of what is there.
func writeKeys(dir, name string, k firmware.Keys) error {
	partial := filepath.Join(dir, name+".partial")
	if err := os.Remove(partial); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("writing the manifest keys: %w", err)
	}
	if err := writeNew(partial, k.Text(), 0o644); err != nil {
		return fmt.Errorf("writing the manifest keys: %w", err)
	}
	if err := os.Rename(partial, filepath.Join(dir, name)); err != nil {
		return fmt.Errorf("writing the manifest keys: %w", err)
	}
	return nil
}

// writeNew writes a file that must not be there.
func writeNew(file, text string, mode fs.FileMode) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Sync(), f.Close())
}

// Certificate reads the certificate of a key alone, to verify by.
func Certificate(dir string, r Role) (*x509.Certificate, error) {
	der, err := block(filepath.Join(dir, string(r)+".crt"), "CERTIFICATE")
	if err != nil {
		return nil, fmt.Errorf("reading the certificate %s: %w", r, err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate %s: %w", r, err)
	}
	return c, nil
}
