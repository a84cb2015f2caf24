package debian

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A Cache keeps .deb files and what they unpack to. Apt's own checks of the
// archive's signature are the root of trust when a package is fetched; from
// then on the hash in the lock is.
type Cache struct {
	Dir  string
	Arch string // of the packages, which need not be this machine's
	Log  *slog.Logger
}

// Resolve asks the archive for the newest version of each name, fetches what
// the cache lacks and returns the lock. A name given as "meta>prefix" stands
// for the package that meta depends on and whose name begins with prefix:
// linux-image-amd64 only points at the kernel of the day.
//
// Package lists are kept in a folder of the cache, so that neither the lists
// of this machine, nor what is installed on it, nor its permissions matter: it
// need not know the architecture.
func (c Cache) Resolve(ctx context.Context, names []string) (Lock, error) {
	lists := c.lists()
	for _, dir := range []string{filepath.Join(lists, "lists", "partial"), filepath.Join(lists, "archives", "partial"), c.debs()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("making the package cache: %w", err)
		}
	}
	if err := os.WriteFile(filepath.Join(lists, "status"), nil, 0o644); err != nil {
		return nil, fmt.Errorf("making the package cache: %w", err)
	}
	if _, err := c.apt(ctx, "apt-get", "-q", "update"); err != nil {
		return nil, fmt.Errorf("reading what the Debian archive has (a build without network needs --lock): %w", err)
	}
	var lock Lock
	for _, name := range names {
		if meta, prefix, ok := strings.Cut(name, ">"); ok {
			found, err := c.dependency(ctx, meta, prefix)
			if err != nil {
				return nil, err
			}
			name = found
		}
		p, err := c.fetch(ctx, name)
		if err != nil {
			return nil, err
		}
		lock = append(lock, p)
	}
	return lock, nil
}

// Verify checks that every package of the lock is in the cache, unchanged.
func (c Cache) Verify(lock Lock) error {
	for _, p := range lock {
		sum, err := fileSum(filepath.Join(c.debs(), p.File))
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("package %s %s is not in the cache: put %s into %s, or make a new lock", p.Name, p.Version, p.File, c.debs())
		}
		if err != nil {
			return fmt.Errorf("checking package %s: %w", p.Name, err)
		}
		if sum != p.SHA256 {
			return fmt.Errorf("package %s: %s has SHA-256 %x, the lock says %x: remove the file and make a new lock", p.Name, p.File, sum, p.SHA256)
		}
	}
	return nil
}

// Unpack returns a folder with the files of the package, unpacked once for
// each content: the folder appears under its name only when it is complete.
func (c Cache) Unpack(ctx context.Context, p Package) (string, error) {
	dir := filepath.Join(c.Dir, "unpacked", fmt.Sprintf("%s-%x", p.Name, p.SHA256[:8]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	partial := dir + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return "", fmt.Errorf("clearing an unfinished unpack: %w", err)
	}
	if err := os.MkdirAll(partial, 0o755); err != nil {
		return "", fmt.Errorf("unpacking %s: %w", p.Name, err)
	}
	cmd := exec.CommandContext(ctx, "dpkg-deb", "-x", filepath.Join(c.debs(), p.File), partial)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("unpacking %s with dpkg-deb: %w: %s", p.File, err, bytes.TrimSpace(out))
	}
	if err := os.Rename(partial, dir); err != nil {
		return "", fmt.Errorf("unpacking %s: %w", p.Name, err)
	}
	return dir, nil
}

func (c Cache) debs() string { return filepath.Join(c.Dir, "deb") }

// lists is a folder for each architecture: apt forgets those of another.
func (c Cache) lists() string { return filepath.Join(c.Dir, "apt-"+c.Arch) }

// dependency finds the one dependency of meta whose name begins with prefix.
func (c Cache) dependency(ctx context.Context, meta, prefix string) (string, error) {
	out, err := c.apt(ctx, "apt-cache", "depends", "--no-recommends", "--no-suggests", meta)
	if err != nil {
		return "", fmt.Errorf("asking what %s depends on: %w", meta, err)
	}
	for line := range strings.Lines(string(out)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok && strings.HasPrefix(name, prefix) {
			return name, nil
		}
	}
	return "", fmt.Errorf("%s depends on no package that begins with %s", meta, prefix)
}

// fetch downloads the newest version of name unless the cache has it.
func (c Cache) fetch(ctx context.Context, name string) (Package, error) {
	out, err := c.apt(ctx, "apt-cache", "show", "--no-all-versions", name)
	if err != nil {
		return Package{}, fmt.Errorf("asking the archive for %s: %w", name, err)
	}
	p := Package{Name: name}
	var want string
	for line := range strings.Lines(string(out)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch key {
		case "Version":
			p.Version = value
		case "SHA256":
			want = value
		case "Architecture":
			p.File = fmt.Sprintf("_%s.deb", value)
		}
	}
	// apt writes an epoch's colon as %3a in the file's name.
	p.File = name + "_" + strings.ReplaceAll(p.Version, ":", "%3a") + p.File
	path := filepath.Join(c.debs(), p.File)
	if sum, err := fileSum(path); err != nil || fmt.Sprintf("%x", sum) != want {
		c.Log.Info("fetching a package", "package", name, "version", p.Version)
		if _, err := c.apt(ctx, "apt-get", "-q", "download", name+"="+p.Version); err != nil {
			return Package{}, fmt.Errorf("fetching %s %s: %w", name, p.Version, err)
		}
	}
	sum, err := fileSum(path)
	if err != nil {
		return Package{}, fmt.Errorf("reading %s after its download: %w", name, err)
	}
	if got := fmt.Sprintf("%x", sum); got != want {
		return Package{}, fmt.Errorf("package %s arrived with SHA-256 %s, the archive's index says %s", name, got, want)
	}
	p.SHA256 = sum
	return p, nil
}

// apt runs one of apt's tools on the lists of the cache, in the folder of the
// .deb files (apt-get download writes where it stands). Sandbox::User root
// only matters to root: the _apt user cannot write to the cache.
func (c Cache) apt(ctx context.Context, tool string, args ...string) ([]byte, error) {
	dir, err := filepath.Abs(c.lists())
	if err != nil {
		return nil, fmt.Errorf("finding the package cache: %w", err)
	}
	options := []string{
		"-o", "Dir::State::Lists=" + filepath.Join(dir, "lists"),
		"-o", "Dir::Cache=" + dir,
		"-o", "Dir::State::Status=" + filepath.Join(dir, "status"),
		"-o", "APT::Architecture=" + c.Arch, "-o", "APT::Architectures=" + c.Arch,
		"-o", "APT::Sandbox::User=root",
		"-o", "Acquire::Languages=none",
	}
	cmd := exec.CommandContext(ctx, tool, append(options, args...)...)
	cmd.Dir = c.debs()
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", tool, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

func fileSum(path string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	return sum, nil
}
