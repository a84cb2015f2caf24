package keys

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// RevokedFile is what no machine is to start any more, a line for each program: the
// SHA-256 that firmware computes of it (Authenticode), a space, and words for people.
const RevokedFile = "revoked"

// MaxRevoked is how many programs it may name: what firmware has to keep for them is
// 48 bytes each, and small ones refuse more than 32 KiB.
const MaxRevoked = 512

// Revoked is a program that firmware is to refuse.
type Revoked struct {
	SHA256 [sha256.Size]byte
	Note   string
}

// LoadRevoked reads the list of a folder. A folder without one has an empty list.
func LoadRevoked(dir string) ([]Revoked, error) {
	file := filepath.Join(dir, RevokedFile)
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading what is revoked: %w", err)
	}
	var out []Revoked
	lines := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; lines.Scan(); n++ {
		sum, words, _ := strings.Cut(lines.Text(), " ")
		r := Revoked{Note: words}
		raw, err := hex.DecodeString(sum)
		if err != nil || copy(r.SHA256[:], raw) != len(r.SHA256) || len(raw) != len(r.SHA256) {
			return nil, fmt.Errorf("reading what is revoked: %s, line %d: it does not begin with a SHA-256 of 64 hexadecimal digits", file, n)
		}
		if slices.ContainsFunc(out, func(o Revoked) bool { return o.SHA256 == r.SHA256 }) {
			return nil, fmt.Errorf("reading what is revoked: %s, line %d: the same program stands there twice", file, n)
		}
		out = append(out, r)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading what is revoked: %s: %w", file, err)
	}
	if len(out) > MaxRevoked {
		return nil, fmt.Errorf("reading what is revoked: %s names %d programs, the limit is %d: raise the epoch, change the keys of Secure Boot, and begin a new list", file, len(out), MaxRevoked)
	}
	return out, nil
}

// Revoke adds programs to the list of a folder. Those that it has are left.
func Revoke(dir string, add ...Revoked) ([]Revoked, error) {
	list, err := LoadRevoked(dir)
	if err != nil {
		return nil, err
	}
	for _, r := range add {
		if !slices.ContainsFunc(list, func(o Revoked) bool { return o.SHA256 == r.SHA256 }) {
			list = append(list, r)
		}
	}
	if len(list) > MaxRevoked {
		return nil, fmt.Errorf("revoking: %d programs, the limit is %d", len(list), MaxRevoked)
	}
	var b strings.Builder
	for _, r := range list {
		fmt.Fprintf(&b, "%x %s\n", r.SHA256, strings.Join(strings.Fields(r.Note), " "))
	}
	file := filepath.Join(dir, RevokedFile)
	next := file + ".new"
	if err := os.WriteFile(next, []byte(b.String()), 0o644); err != nil {
		return nil, fmt.Errorf("revoking: %w", err)
	}
	if err := os.Rename(next, file); err != nil {
		return nil, fmt.Errorf("revoking: %w", err)
	}
	return list, nil
}
