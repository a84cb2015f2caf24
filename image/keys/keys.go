// Package keys makes and reads the keys that an image is signed with.
//
// They lie in one folder: for each Role a certificate, ROLE.crt, and its private
// key, ROLE.key, both PEM. Development keys are made when an image is built and
// there are none; they say so in their names, and are worth nothing to anybody
// who did not build that image.
package keys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Role is what a key is for. The first three are UEFI's (UEFI 2.10, 32.3).
type Role string

// The platform key says who owns the machine, the key exchange key who may
// change what starts on it, db what starts. The release key approves the
// registers that a TPM opens the data for; no firmware knows it.
const (
	Platform Role = "PK"
	Exchange Role = "KEK"
	Programs Role = "db"
	Release  Role = "release"
)

var all = []Role{Platform, Exchange, Programs, Release}

// ErrNoRelease: a folder from before there were release keys.
var ErrNoRelease = errors.New("has the keys PK, KEK and db, and none to approve releases with (release.crt and release.key)")

// ErrExist: a folder has all keys, and none is made anew.
var ErrExist = errors.New("has keys already: a box that knows them would not start what others sign")

// Roles are all of them, from the top of the chain down.
func Roles() []Role { return slices.Clone(all) }

// size in bits: what every firmware with Secure Boot takes.
const size = 2048

// Key is one key with its certificate.
type Key struct {
	Role        Role
	Certificate *x509.Certificate
	Signer      crypto.Signer
}

// Fingerprint is the SHA-256 of the certificate, 64 lower-case hex digits.
func (k Key) Fingerprint() string {
	sum := sha256.Sum256(k.Certificate.Raw)
	return hex.EncodeToString(sum[:])
}

// Set is one of each.
type Set map[Role]Key

// Load reads the keys of a folder. Without any the error is fs.ErrNotExist;
// with some of them missing it is another, since nothing may be made anew then.
func Load(dir string) (Set, error) {
	s := make(Set)
	missing := 0
	for _, r := range all {
		k, err := read(dir, r)
		if errors.Is(err, fs.ErrNotExist) {
			missing++
			continue
		}
		if err != nil {
			return nil, err
		}
		s[r] = k
	}
	switch missing {
	case 0:
		return s, nil
	case len(all):
		return nil, fmt.Errorf("there are no keys in %s: %w", dir, fs.ErrNotExist)
	}
	if _, ok := s[Release]; missing == 1 && !ok {
		return nil, fmt.Errorf("%s %w: gatehouse image keys new %s adds one", dir, ErrNoRelease, dir)
	}
	return nil, fmt.Errorf("%s has only some of the keys PK, KEK, db and release: put the others back, or choose another folder", dir)
}

func read(dir string, r Role) (Key, error) {
	fail := func(err error) (Key, error) { return Key{}, fmt.Errorf("reading the key %s: %w", r, err) }
	cert, certErr := block(filepath.Join(dir, string(r)+".crt"), "CERTIFICATE")
	key, keyErr := block(filepath.Join(dir, string(r)+".key"), "PRIVATE KEY")
	switch {
	case errors.Is(certErr, fs.ErrNotExist) && errors.Is(keyErr, fs.ErrNotExist):
		return fail(fs.ErrNotExist)
	case errors.Is(certErr, fs.ErrNotExist), errors.Is(keyErr, fs.ErrNotExist):
		return fail(fmt.Errorf("%s has one of %s.crt and %s.key, and not the other", dir, r, r))
	case certErr != nil || keyErr != nil:
		return fail(errors.Join(certErr, keyErr))
	}
	c, err := x509.ParseCertificate(cert)
	if err != nil {
		return fail(err)
	}
	private, err := x509.ParsePKCS8PrivateKey(key)
	if err != nil {
		return fail(err)
	}
	if r == Release {
		k, ok := private.(*ecdsa.PrivateKey)
		if !ok || k.Curve != elliptic.P256() || !k.PublicKey.Equal(c.PublicKey) {
			return fail(fmt.Errorf("%s.key is not the ECDSA key, P-256, of %s.crt", r, r))
		}
		return Key{r, c, k}, nil
	}
	k, ok := private.(*rsa.PrivateKey)
	if !ok || k.N.BitLen() < size || !k.PublicKey.Equal(c.PublicKey) {
		return fail(fmt.Errorf("%s.key is not the RSA key of %d bits or more of %s.crt", r, size, r))
	}
	return Key{r, c, k}, nil
}

func block(file, kind string) ([]byte, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	p, rest := pem.Decode(b)
	if p == nil || p.Type != kind || len(rest) != 0 {
		return nil, fmt.Errorf("%s is not one PEM block %s", file, kind)
	}
	return p.Bytes, nil
}

// New makes keys in a folder that has none; one from before there were release
// keys gets that one. name stands in their certificates. A key is written before
// its certificate, and nothing is ever replaced.
func New(dir, name string, now time.Time) (Set, error) {
	wanted := all
	if _, err := Load(dir); errors.Is(err, ErrNoRelease) {
		wanted = []Role{Release}
	} else if !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = fmt.Errorf("%s %w", dir, ErrExist)
		}
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder of the keys: %w", err)
	}
	for _, r := range wanted {
		if err := create(dir, name, r, now); err != nil {
			return nil, fmt.Errorf("making the key %s: %w", r, err)
		}
	}
	return Load(dir)
}

// NewApprover makes another release key in the place of the one that is there,
// which stays under a name with the start of its fingerprint. Cut short with both
// files put aside the folder has none, and New adds one; with one of them Load
// says which is missing.
func NewApprover(dir, name string, now time.Time) (Key, error) {
	set, err := Load(dir)
	if err != nil {
		return Key{}, err
	}
	for _, suffix := range []string{".key", ".crt"} {
		from := filepath.Join(dir, string(Release)+suffix)
		to := filepath.Join(dir, string(Release)+"-"+set[Release].Fingerprint()[:12]+suffix)
		if err := os.Rename(from, to); err != nil {
			return Key{}, fmt.Errorf("putting the old release key aside: %w", err)
		}
	}
	if set, err = New(dir, name, now); err != nil {
		return Key{}, err
	}
	return set[Release], nil
}

// generate makes what the firmware of a machine can verify, or every TPM 2.0.
func generate(r Role) (crypto.Signer, error) {
	if r == Release {
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	return rsa.GenerateKey(rand.Reader, size)
}

func create(dir, name string, r Role, now time.Time) error {
	key, err := generate(r)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	// Firmware does not look at the dates; tools warn about them.
	c := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name + " " + string(r)},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.AddDate(20, 0, 0), BasicConstraintsValid: true, IsCA: r != Programs && r != Release,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	if r == Programs || r == Release {
		c.KeyUsage, c.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	}
	cert, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		suffix, kind string
		content      []byte
		mode         fs.FileMode
	}{{".key", "PRIVATE KEY", private, 0o600}, {".crt", "CERTIFICATE", cert, 0o644}} {
		file, err := os.OpenFile(filepath.Join(dir, string(r)+f.suffix), os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.mode)
		if err != nil {
			return err
		}
		err = pem.Encode(file, &pem.Block{Type: f.kind, Bytes: f.content})
		if err := errors.Join(err, file.Close()); err != nil {
			return err
		}
	}
	return nil
}
