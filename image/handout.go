package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"gatehouse/firmware"
	"gatehouse/image/debian"
	"gatehouse/image/keys"
	"gatehouse/image/release"
	"gatehouse/image/sbom"
	"gatehouse/image/target"
)

// ReleaseDir is the folder of a release, by name in the output folder.
const ReleaseDir = "release"

// scripts is where the pages' scripts are pinned, and one of those that make puts beside.
const (
	scriptsLock = "appliance/console/xterm/package-lock.json"
	scriptsMade = "appliance/console/xterm/dist/xterm.js"
)

// Refusals of Release, which a person can do something about.
var (
	ErrDevelopment = errors.New("a release is not signed with development keys")
	ErrChanged     = errors.New("a release is made of a commit")
	ErrTargets     = errors.New("a release has one image for each kind of processor")
)

// Release builds the images of targets with the keys of a folder, and hands them
// out as one release in a folder of its own. It needs all private keys but those
// of the manifest, which may sign later; and a commit, so that it can be built
// again. Locks are in the order of the targets, or none.
func (b Build) Release(ctx context.Context, minimum firmware.Version, targets []target.Target, locks []string) (dir string, err error) {
	dir = b.path(ReleaseDir)
	fail := func(err error) (string, error) { return "", fmt.Errorf("making a release: %w", err) }
	r := release.Release{Minimum: minimum}
	if r.Version, err = firmware.ParseVersion(b.Version); err != nil {
		return fail(err)
	}
	if r.Issued, err = time.Parse(time.RFC3339, b.Built); err != nil {
		return fail(err)
	}
	if _, err := os.Lstat(dir); err == nil {
		return fail(fmt.Errorf("%s %w: a release is not changed once it is made, move it to where you keep them", dir, fs.ErrExist))
	}
	if err := distinct(targets, locks); err != nil {
		return fail(err)
	}
	if r.Signers, err = b.releaseKeys(); err != nil {
		return fail(err)
	}
	if err := b.committed(ctx); err != nil {
		return fail(err)
	}
	var builds []Build
	for i, t := range targets {
		b.Target = t
		if locks != nil {
			b.Lock = locks[i]
		}
		if _, err := b.lock(ctx); err != nil { // makes one where there is none
			return fail(err)
		}
		work := b
		work.Final = true
		work.Output, work.Cache = b.path(ReleaseDir+".work"), b.cachePath()
		if work.Lock == "" {
			work.Lock = b.result(LockFile)
		}
		builds = append(builds, work)
	}
	for _, work := range builds {
		if err := work.Run(ctx); err != nil {
			return fail(err)
		}
		r.Systems = append(r.Systems, release.Build{Arch: work.target().Arch, Files: work.handedOut()})
	}
	if r.Parts, err = parts(ctx, r, builds); err != nil {
		return fail(err)
	}
	if err := r.Write(dir); err != nil {
		return "", err
	}
	if err := os.RemoveAll(b.path(ReleaseDir + ".work")); err != nil {
		return fail(err)
	}
	return dir, nil
}

// distinct refuses two systems for one processor: a box finds its own by that.
func distinct(targets []target.Target, locks []string) error {
	if locks != nil && len(locks) != len(targets) {
		return fmt.Errorf("%w: %d locks for %d of them", ErrTargets, len(locks), len(targets))
	}
	seen := make(map[string]string)
	for _, t := range targets {
		if other, twice := seen[t.Arch]; twice {
			return fmt.Errorf("%w: %s and %s are for one processor, and a box could not tell which system is its own", ErrTargets, other, t.Name)
		}
		seen[t.Arch] = t.Name
	}
	if len(targets) == 0 {
		return fmt.Errorf("%w: there is none", ErrTargets)
	}
	return nil
}

// handedOut are the results of which a release has a copy.
func (b Build) handedOut() map[string]string {
	return map[string]string{
		release.System: b.result(UKI), release.Disk: b.result(DiskGzip), release.Lock: b.result(LockFile),
		".qcow2": b.result(DiskQcow2), ".img.zst": b.result(DiskZstd), ".img.bmap": b.result(DiskMap), ".iso": b.result(DiskISO),
	}
}

// releaseKeys refuses keys that are worth nothing.
func (b Build) releaseKeys() (keys.Signers, error) {
	if b.Keys == "" {
		return keys.Signers{}, fmt.Errorf("%w: say --keys (gatehouse image keys new makes some)", ErrDevelopment)
	}
	set, err := b.keys()
	if err != nil {
		return keys.Signers{}, err
	}
	signers, err := b.signers()
	if err != nil {
		return keys.Signers{}, err
	}
	for _, r := range keys.Roles() {
		if strings.HasPrefix(set[r].Certificate.Subject.CommonName, developmentName) {
			return keys.Signers{}, fmt.Errorf("%w: %s in %s is one", ErrDevelopment, r, b.Keys)
		}
	}
	for _, key := range append(signers.Keys.Keys, signers.Next.Keys...) {
		if keys.SignerName(key) == development {
			return keys.Signers{}, fmt.Errorf("%w: the manifest key %s in %s is one", ErrDevelopment, development, b.Keys)
		}
	}
	return signers, nil
}

// committed says whether the sources are those of a commit, with what make puts
// into them.
func (b Build) committed(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "git", "status", "--porcelain")
	cmd.Dir = b.Source
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("asking git whether all is committed: %w", err)
	}
	if first, rest, _ := strings.Cut(strings.TrimSpace(string(out)), "\n"); first != "" {
		more := ""
		if n := strings.Count(rest, "\n"); rest != "" {
			more = fmt.Sprintf(" and %d more", n+1)
		}
		return fmt.Errorf("%w: %s%s (git status) is in none", ErrChanged, strings.TrimSpace(first[2:]), more)
	}
	if _, err := os.Stat(filepath.Join(b.Source, scriptsMade)); err != nil {
		return fmt.Errorf("the pages would have no terminal, since %s is not there: run make tools first: %w", scriptsMade, err)
	}
	return nil
}

// parts is the document on what a release is made of, by its builds in the order
// of its systems.
func parts(ctx context.Context, r release.Release, builds []Build) ([]byte, error) {
	document := sbom.Document{Name: fmt.Sprintf("%s-%s", firmware.Product, r.Version), Version: r.Version.String(), Created: r.Issued, Tool: "gatehouse image build"}
	for i, system := range r.Systems {
		b := builds[i]
		folders, err := b.moduleFolders(ctx)
		if err != nil {
			return nil, err
		}
		whole, err := os.ReadFile(system.Files[release.System])
		if err != nil {
			return nil, err
		}
		program, err := release.Program(whole)
		if err != nil {
			return nil, err
		}
		modules, err := sbom.Modules(program, func(path, version string) string { return licenceOf(folders[path+"@"+version]) })
		if err != nil {
			return nil, err
		}
		lock, err := b.lock(ctx)
		if err != nil {
			return nil, err
		}
		packages := sbom.Packages(lock, func(p debian.Package) string {
			dir, err := b.cache().Unpack(ctx, p)
			if err != nil {
				return ""
			}
			text, err := os.ReadFile(filepath.Join(dir, "usr/share/doc", p.Name, "copyright"))
			if err != nil {
				return ""
			}
			return string(text)
		})
		document.Parts = append(append(document.Parts, modules...), packages...)
	}
	text, err := os.ReadFile(filepath.Join(builds[0].Source, scriptsLock))
	if err != nil {
		return nil, fmt.Errorf("reading what the pages' scripts are made of: %w", err)
	}
	scripts, err := sbom.Scripts(text)
	if err != nil {
		return nil, err
	}
	document.Parts = append(document.Parts, scripts...)
	return document.JSON()
}

// moduleFolders is where the sources of each module lie.
func (b Build) moduleFolders(ctx context.Context) (map[string]string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-deps", "-json=Module", "./"+filepath.ToSlash(b.Program))
	cmd.Dir = b.Source
	cmd.Env = append(os.Environ(), b.target().Environment()...)
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("listing the modules of %s: %w", b.Program, err)
	}
	folders := make(map[string]string)
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			Module *struct{ Path, Version, Dir string }
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return folders, nil
		} else if err != nil {
			return nil, fmt.Errorf("listing the modules of %s: %w", b.Program, err)
		}
		if p.Module != nil {
			folders[p.Module.Path+"@"+p.Module.Version] = p.Module.Dir
		}
	}
}

// licenceOf is the text that lies at the top of a module.
func licenceOf(dir string) string {
	if dir == "" {
		return ""
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ""
	}
	for _, e := range entries { // sorted
		name := strings.ToUpper(e.Name())
		if e.Type().IsRegular() && (strings.HasPrefix(name, "LICENSE") || strings.HasPrefix(name, "LICENCE") || strings.HasPrefix(name, "COPYING")) {
			if text, err := os.ReadFile(filepath.Join(dir, e.Name())); err == nil {
				return string(text)
			}
		}
	}
	return ""
}
