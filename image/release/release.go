// Package release makes, signs and verifies the folder in which a release is handed out.
//
// The folder has the signed manifest, for each architecture the system and the
// forms that it comes in, what they are made of, and sums of all that carries no
// signature of its own. A mirror serves it as it is. docs/firmware.md has the names.
package release

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gatehouse/firmware"
	"gatehouse/firmware/approval"
	"gatehouse/image/keys"
)

// Names of files that every release has.
const (
	Note     = "release"         // the manifest, a signed note
	Sums     = "SHA256SUMS"      // of what carries no signature itself
	SumsNote = "SHA256SUMS.note" // the same as a signed note
)

// Ends of names that belong to an architecture, and of the one that does not.
const (
	System  = ".efi"
	Bundle  = ".update"
	Disk    = ".img.gz"
	Lock    = ".lock"
	partsOf = ".spdx.json"
)

// File is the name of a file for an architecture: gatehouse-1.5.0-amd64.efi.
func File(v firmware.Version, arch, end string) string {
	return fmt.Sprintf("%s-%s-%s%s", firmware.Product, v, arch, end)
}

// Parts is the name of the document on what a release is made of.
func Parts(v firmware.Version) string { return fmt.Sprintf("%s-%s%s", firmware.Product, v, partsOf) }

// A Release is what is to be handed out.
type Release struct {
	Version firmware.Version
	Minimum firmware.Version // the oldest one that may be updated from
	Issued  time.Time        // the day alone counts
	Signers keys.Signers
	Parts   []byte // SPDX
	Systems []Build
}

// A Build is the image for one architecture: its files by the ends of their names.
type Build struct {
	Arch  string
	Files map[string]string
}

// Write makes the folder, which must not be there. It is there when it is whole.
// Signatures are added of those whose private keys lie at hand; Verify says
// whether they are enough.
func (r Release) Write(dir string) error {
	fail := func(err error) error { return fmt.Errorf("making release %s: %w", r.Version, err) }
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return fail(fmt.Errorf("%s is there already (%w): a release is not changed once it is made, move it to where you keep them", dir, fs.ErrExist))
	}
	partial := dir + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return fail(err)
	}
	if err := os.MkdirAll(partial, 0o755); err != nil {
		return fail(err)
	}
	m, err := r.manifest()
	if err != nil {
		return fail(err)
	}
	for _, b := range r.Systems {
		for end, from := range b.Files {
			if err := copyFile(from, filepath.Join(partial, File(r.Version, b.Arch, end))); err != nil {
				return fail(err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(partial, Parts(r.Version)), r.Parts, 0o644); err != nil {
		return fail(err)
	}
	sums, err := sumsOf(partial)
	if err != nil {
		return fail(err)
	}
	if err := os.WriteFile(filepath.Join(partial, Sums), []byte(sums), 0o644); err != nil {
		return fail(err)
	}
	text, err := m.Text()
	if err != nil {
		return fail(err)
	}
	if err := sign(partial, m, text, sumsText(m.Version, sums), r.Signers); err != nil {
		return fail(err)
	}
	if err := os.Rename(partial, dir); err != nil {
		return fail(err)
	}
	return nil
}

// manifest is what the systems say of themselves.
func (r Release) manifest() (firmware.Manifest, error) {
	m := firmware.Manifest{Product: firmware.Product, Version: r.Version, Minimum: r.Minimum, Issued: r.Issued.UTC().Truncate(24 * time.Hour), Keys: r.Signers.Next}
	for _, b := range slices.SortedFunc(slices.Values(r.Systems), func(a, b Build) int { return strings.Compare(a.Arch, b.Arch) }) {
		whole, err := os.ReadFile(b.Files[System])
		if err != nil {
			return m, err
		}
		in, err := look(whole)
		if err == nil {
			err = startsOn(b.Arch, whole)
		}
		if err != nil {
			return m, fmt.Errorf("the system for %s: %w", b.Arch, err)
		}
		switch {
		case m.Approver == nil:
			m.Approver, m.Epoch = in.approvals.Key, in.approvals.Epoch
		case !m.Approver.Equal(in.approvals.Key) || m.Epoch != in.approvals.Epoch:
			return m, fmt.Errorf("the system for %s is of another epoch or by another approver than the one for %s: build them with the same keys", b.Arch, m.Systems[0].Arch)
		}
		m.Systems = append(m.Systems, firmware.System{Arch: b.Arch, Size: int64(len(whole)), SHA256: sha256.Sum256(whole), Starts: starts(in.approvals)})
	}
	return m, nil
}

// starts puts approvals into the order of a manifest.
func starts(s approval.System) []approval.Start {
	return slices.SortedFunc(slices.Values(s.Starts), func(a, b approval.Start) int { return strings.Compare(a.Path, b.Path) })
}

// sumsOf lists the files of a folder as sha256sum does, but for those that carry
// signatures: they change when one is added.
func sumsOf(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, e := range entries {
		if signedItself(e.Name()) {
			continue
		}
		sum, err := sumOf(filepath.Join(dir, e.Name()))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "%x  %s\n", sum, e.Name())
	}
	return b.String(), nil
}

func signedItself(name string) bool {
	return name == Note || name == Sums || name == SumsNote || strings.HasSuffix(name, Bundle)
}

// sumsText is what is signed of the sums: they are of this release, and no
// manifest.
func sumsText(v firmware.Version, sums string) string {
	return fmt.Sprintf("%s sums 1\nversion %s\n%s", firmware.Product, v, sums)
}

func sumOf(file string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(file)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return sum, err
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	return write(to, func(w io.Writer) error {
		_, err := io.Copy(w, in)
		return err
	})
}

// write makes one file: under its name it is always complete.
func write(name string, fill func(io.Writer) error) error {
	partial := name + ".partial"
	f, err := os.OpenFile(partial, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	if err := errors.Join(fill(f), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(partial, name)
}

func writeBytes(name string, b []byte) error {
	return write(name, func(w io.Writer) error {
		_, err := io.Copy(w, bytes.NewReader(b))
		return err
	})
}
