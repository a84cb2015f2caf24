// Package debian fetches Debian packages by name, remembers exactly which ones in a lock file, and unpacks them.
package debian

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// A Package is one .deb file, named by content: the same lock always gives the
// same bytes, whatever the archive offers by then.
type Package struct {
	Name    string
	Version string
	File    string // base name in the cache
	SHA256  [sha256.Size]byte
}

// A Lock is the list of packages that one image is made of, sorted by name.
type Lock []Package

// lockHeader is the first line; a later format gets another number.
const lockHeader = "# gatehouse packages 1: name version sha256 file"

// Field shapes after Debian policy 5.6.1 and 5.6.12; File additionally may not
// leave the cache folder.
var (
	nameShape    = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)
	versionShape = regexp.MustCompile(`^[0-9A-Za-z.+~:-]+$`)
	fileShape    = regexp.MustCompile(`^[a-z0-9][0-9A-Za-z.+~:%_-]*\.deb$`)
)

// For refuses a lock with packages of another architecture.
func (l Lock) For(arch string) error {
	for _, p := range l {
		if !strings.HasSuffix(p.File, "_"+arch+".deb") && !strings.HasSuffix(p.File, "_all.deb") {
			return fmt.Errorf("package %s is not one for %s: %s", p.Name, arch, p.File)
		}
	}
	return nil
}

// MarshalText writes one package a line, sorted, so that two locks compare with diff.
func (l Lock) MarshalText() ([]byte, error) {
	sorted := slices.SortedFunc(slices.Values(l), func(a, b Package) int { return strings.Compare(a.Name, b.Name) })
	var b bytes.Buffer
	fmt.Fprintln(&b, lockHeader)
	for _, p := range sorted {
		fmt.Fprintf(&b, "%s %s %x %s\n", p.Name, p.Version, p.SHA256, p.File)
	}
	return b.Bytes(), nil
}

// UnmarshalText reads a lock strictly: an unknown header, a doubled name or an
// odd field is an error with its line, because a build from half a lock would
// look like a good one.
func (l *Lock) UnmarshalText(text []byte) error {
	var out Lock
	seen := make(map[string]bool)
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		if n == 1 {
			if lines.Text() != lockHeader {
				return fmt.Errorf("line 1: %q is not the header of a lock file (%q)", lines.Text(), lockHeader)
			}
			continue
		}
		p, err := parseLine(lines.Text())
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		if seen[p.Name] {
			return fmt.Errorf("line %d: package %s is listed twice", n, p.Name)
		}
		seen[p.Name] = true
		out = append(out, p)
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("reading the lock: %w", err)
	}
	if len(out) == 0 {
		return fmt.Errorf("the lock lists no package")
	}
	*l = out
	return nil
}

func parseLine(line string) (Package, error) {
	f := strings.Split(line, " ")
	if len(f) != 4 {
		return Package{}, fmt.Errorf("want four fields (name version sha256 file), got %d", len(f))
	}
	p := Package{Name: f[0], Version: f[1], File: f[3]}
	switch {
	case !nameShape.MatchString(p.Name):
		return Package{}, fmt.Errorf("%q is not a package name", p.Name)
	case !versionShape.MatchString(p.Version):
		return Package{}, fmt.Errorf("%q is not a version", p.Version)
	case !fileShape.MatchString(p.File):
		return Package{}, fmt.Errorf("%q is not the base name of a .deb file", p.File)
	}
	sum, err := hex.DecodeString(f[2])
	if err != nil || len(sum) != sha256.Size {
		return Package{}, fmt.Errorf("%q is not a SHA-256 in hexadecimal", f[2])
	}
	copy(p.SHA256[:], sum)
	return p, nil
}
