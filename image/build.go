// Package image builds the box's bootable image from Debian's kernel and this repository, the same bytes each time.
package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/image/debian"
	"gatehouse/image/keys"
	"gatehouse/image/target"
)

// A Build says what to build and where.
type Build struct {
	Target  target.Target // what machines it is for; the zero value is amd64
	Source  string        // root of the repository
	Program string        // folder of the program that becomes /init
	Output  string        // folder of the results and of the cache
	Lock    string        // lock file to repeat; "" uses the one in Output, or makes it
	Cache   string        // folder of the packages; "" is one in Output
	Keys    string        // folder of the keys to sign with; "" for development keys in Output, made if there are none
	Version string        // shown on every face and in the boot menu
	Built   string        // RFC 3339, the floor of the box's clock
	Epoch   uint64        // of the release; 0 is Epoch. It goes up when older systems shall open nothing any more
	Final   bool          // it is for a release: without it every face says "development"
	Log     *slog.Logger  // progress
}

// Epoch is the one of this release.
const Epoch = 1

// The results for amd64, by name in the output folder; Named gives those of others.
const (
	LockFile  = "packages.lock"
	Kernel    = "vmlinuz"
	Initramfs = "initramfs.cpio.zst"
	UKI       = "gatehouse-amd64.efi"
	Disk      = "gatehouse-amd64.img"
	DiskGzip  = "gatehouse-amd64.img.gz"
	DiskQcow2 = "gatehouse-amd64.qcow2"
	keySuffix = ".inputs"
	cacheDir  = "cache"
	keysDir   = "keys"
)

// Named is the name of a result for a target: gatehouse-arm64.img for
// gatehouse-amd64.img, packages-arm64.lock for packages.lock.
func Named(result string, t target.Target) string {
	if t == target.AMD64 {
		return result
	}
	base, end, dot := strings.Cut(result, ".")
	base = strings.TrimSuffix(base, "-"+target.AMD64.Name) + "-" + t.Name
	if dot {
		return base + "." + end
	}
	return base
}

// kernelPrefix begins the names of all kernel packages of Debian's.
const kernelPrefix = "linux-image-"

// packages are the names that the lock resolves. A kernel, the loader, and
// what makes and mends the data volume with the libraries it is linked with.
func (b Build) packages() []string {
	return []string{
		b.target().Kernel + ">" + kernelPrefix,
		"systemd-boot-efi",
		"e2fsprogs", "libext2fs2", "libcom-err2", "libblkid1", "libuuid1", "libc6",
	}
}

func (b Build) target() target.Target {
	if b.Target == (target.Target{}) {
		return target.AMD64
	}
	return b.Target
}

// Run builds what is not already there from the same inputs.
func (b Build) Run(ctx context.Context) error {
	if err := errors.Join(os.MkdirAll(b.Output, 0o755), os.MkdirAll(b.cachePath(), 0o755)); err != nil {
		return fmt.Errorf("making the output folder: %w", err)
	}
	end, err := b.alone()
	if err != nil {
		return err
	}
	defer end()
	if b.Epoch == 0 {
		b.Epoch = Epoch
	}
	signing, err := b.keys()
	if err != nil {
		return err
	}
	signers, err := b.signers()
	if err != nil {
		return err
	}
	lock, err := b.lock(ctx)
	if err != nil {
		return err
	}
	text, err := lock.MarshalText()
	if err != nil {
		return err
	}
	revoked, err := keys.LoadRevoked(b.keysFolder())
	if err != nil {
		return err
	}
	key, err := b.inputs(ctx, text, signing, signers, revoked)
	if err != nil {
		return err
	}
	if b.current(key) {
		b.Log.Info("nothing has changed", "image", b.result(Disk))
		return nil
	}
	if err := os.Remove(b.result(Disk) + keySuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forgetting the last build: %w", err)
	}
	p, err := b.unpack(ctx, lock)
	if err != nil {
		return err
	}
	p.signer, p.approver = signing[keys.Programs], signing[keys.Release]
	if err := p.addKeys(signing, b.Built); err != nil {
		return err
	}
	if err := p.revoke(signing, revoked); err != nil {
		return err
	}
	p.addSigners(signers)
	for _, stage := range []func(payload) error{b.boot, b.unified, b.disks, b.forms} {
		if err := stage(p); err != nil {
			return err
		}
	}
	return os.WriteFile(b.result(Disk)+keySuffix, []byte(key), 0o644)
}

// alone waits until no other build works in the folder: two of them would write one
// file together.
func (b Build) alone() (end func(), err error) {
	f, err := os.OpenFile(b.path(".building"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening the output folder: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		b.Log.Info("another build works in this folder; waiting for its end", "folder", b.Output)
		err = unix.EINTR
		for errors.Is(err, unix.EINTR) {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("waiting for another build in %s: %w", b.Output, err), f.Close())
	}
	return func() { f.Close() }, nil
}

// Refresh makes a new lock from the newest packages of the archive.
func (b Build) Refresh(ctx context.Context) error {
	lock, err := b.cache().Resolve(ctx, b.packages())
	if err != nil {
		return err
	}
	text, err := lock.MarshalText()
	if err != nil {
		return err
	}
	if err := os.WriteFile(b.result(LockFile), text, 0o644); err != nil {
		return fmt.Errorf("writing the lock: %w", err)
	}
	b.Log.Info("packages locked", "packages", len(lock), "file", b.result(LockFile))
	return nil
}

// lock reads the lock of this build and checks the cache against it. The
// archive is asked only when there is no lock yet: what is built changes when
// someone makes a new lock, not because it is Tuesday.
func (b Build) lock(ctx context.Context) (debian.Lock, error) {
	file := b.Lock
	if file == "" {
		file = b.result(LockFile)
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			if err := b.Refresh(ctx); err != nil {
				return nil, err
			}
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the lock: %w", err)
	}
	var lock debian.Lock
	if err := lock.UnmarshalText(text); err != nil {
		return nil, fmt.Errorf("lock %s: %w", file, err)
	}
	if err := b.suits(lock); err != nil {
		return nil, fmt.Errorf("lock %s: %w", file, err)
	}
	if err := b.cache().Verify(lock); err != nil {
		return nil, fmt.Errorf("lock %s: %w", file, err)
	}
	if b.Lock != "" {
		if err := os.WriteFile(b.result(LockFile), text, 0o644); err != nil {
			return nil, fmt.Errorf("keeping the lock beside the image: %w", err)
		}
	}
	return lock, nil
}

// suits refuses the lock of another target.
func (b Build) suits(lock debian.Lock) error {
	t := b.target()
	if err := lock.For(t.Arch); err != nil {
		return err
	}
	for _, p := range lock {
		if release, ok := strings.CutPrefix(p.Name, kernelPrefix); ok && target.Virtual(release) != t.Virtual() {
			return fmt.Errorf("its kernel %s is not one for %s (gatehouse image lock --arch %s makes a lock)", p.Name, t.Name, t.Name)
		}
	}
	return nil
}

// keysFolder is where the keys of this build lie.
func (b Build) keysFolder() string {
	if b.Keys != "" {
		return b.Keys
	}
	return b.path(keysDir)
}

// keys reads what the image is signed with. Only development keys are made:
// who names a folder means the keys that are in it.
func (b Build) keys() (keys.Set, error) {
	if b.Keys != "" {
		return keys.Load(b.Keys)
	}
	dir := b.keysFolder()
	set, err := keys.Load(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, keys.ErrNoRelease) {
		if set, err = keys.New(dir, developmentName, time.Now()); err == nil {
			b.Log.Info("development keys made", "folder", dir)
		}
	}
	return set, err
}

// Development keys say so in their certificates, and in the name of the one who
// signs releases with them.
const (
	developmentName = "Gatehouse development"
	development     = "development"
)

// signers reads who signs releases. As with the other keys, only development
// ones are made.
func (b Build) signers() (keys.Signers, error) {
	if b.Keys != "" {
		s, err := keys.LoadSigners(b.Keys)
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: gatehouse image keys new %s makes them", err, b.Keys)
		}
		return s, err
	}
	dir := b.keysFolder()
	s, err := keys.LoadSigners(dir)
	if errors.Is(err, fs.ErrNotExist) {
		s, err = keys.NewSigners(dir, []string{development}, 1)
	}
	return s, err
}

func (b Build) cache() debian.Cache {
	return debian.Cache{Dir: b.cachePath(), Arch: b.target().Arch, Log: b.Log}
}

func (b Build) cachePath() string {
	if b.Cache != "" {
		return b.Cache
	}
	return b.path(cacheDir)
}

func (b Build) path(name string) string { return filepath.Join(b.Output, name) }

// result is where one lies, by its name for amd64.
func (b Build) result(name string) string { return b.path(Named(name, b.target())) }

// boot writes kernel and initramfs, what a direct boot needs.
func (b Build) boot(p payload) error {
	if err := b.write(Kernel, func(f *os.File) error {
		_, err := f.Write(p.kernel)
		return err
	}); err != nil {
		return err
	}
	return b.write(Initramfs, func(f *os.File) error { return p.archive(b).Write(f) })
}

// write makes one result: under its name it is always complete.
func (b Build) write(result string, fill func(*os.File) error) error {
	name := Named(result, b.target())
	partial := b.path(name + ".partial")
	f, err := os.Create(partial)
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	defer f.Close()
	if err := fill(f); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	if err := os.Rename(partial, b.path(name)); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	b.Log.Info("written", "file", b.path(name), "MB", megabytes(info.Size()))
	return nil
}

func megabytes(n int64) string { return fmt.Sprintf("%.2f", float64(n)/1e6) }
