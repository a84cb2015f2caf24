// Package initramfs packs the box's program and its files into the archive that the kernel unpacks at start.
package initramfs

import (
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/gobusybox/src/pkg/golang"
	"github.com/u-root/mkuimage/cpio"
	"github.com/u-root/mkuimage/uimage"
	"github.com/u-root/mkuimage/uimage/builder"
	ramfs "github.com/u-root/mkuimage/uimage/initramfs"
	"github.com/u-root/uio/llog"
)

// A File is one file of the archive, by its path without the leading slash.
type File struct {
	Path    string
	Content []byte
	Mode    os.FileMode // permission bits
}

// A Link is a symbolic link of the archive.
type Link struct{ Path, Target string }

// An Archive says what to pack.
type Archive struct {
	Arch    string            // of the program, as Go calls it
	Program string            // folder of the Go program that becomes /init
	Set     map[string]string // string variables of its package main
	Files   []File
	Links   []Link
	Temp    string // folder for u-root's builder
}

// folders are mount points and places that the program expects at hand-over.
var folders = []string{"data", "dev", "etc", "proc", "run", "sys", "tmp"}

// Write builds the program with u-root's builder and writes the compressed
// archive. The bytes depend on the inputs and the compiler alone: records are
// sorted, and times, owners, devices and umask do not reach them.
func (a Archive) Write(out io.Writer) error {
	base := cpio.InMemArchive()
	if err := a.records(base); err != nil {
		return err
	}
	// One goroutine: with several, block boundaries follow the scheduler.
	z, err := zstd.NewWriter(out, zstd.WithEncoderLevel(zstd.SpeedBestCompression),
		zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(8<<20))
	if err != nil {
		return fmt.Errorf("starting compression: %w", err)
	}
	temp, err := os.MkdirTemp(a.Temp, "initramfs-")
	if err != nil {
		return fmt.Errorf("making a folder for the build: %w", err)
	}
	defer os.RemoveAll(temp)
	// -a=false undoes u-root's -a: the standard build cache is right, and a
	// rebuild of everything takes minutes. Of repeated flags the last counts.
	flags := "-ldflags=-s -w -buildid="
	for _, name := range slices.Sorted(maps.Keys(a.Set)) {
		flags += " -X main." + name + "=" + a.Set[name]
	}
	// The tool itself may be built with -trimpath and know no Go of its own.
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("asking go where it is installed: %w", err)
	}
	options := &golang.BuildOpts{EnableInlining: true, ExtraArgs: []string{"-a=false", "-buildvcs=false", flags}}
	err = uimage.Create(llog.New(slog.LevelError, func(string, ...any) {}),
		uimage.WithEnv(golang.DisableCGO(), golang.WithGOOS("linux"), golang.WithGOARCH(a.Arch),
			golang.WithGOROOT(strings.TrimSpace(string(goroot)))),
		uimage.WithCommands(options, builder.Binary, a.Program),
		uimage.WithInit(path.Base(a.Program)),
		uimage.WithSkipLDD(),
		uimage.WithBaseArchive(base),
		uimage.WithOutput(opener{z}),
		uimage.WithTempDir(temp),
	)
	if err != nil {
		return fmt.Errorf("building the initramfs with u-root: %w", err)
	}
	if err := z.Close(); err != nil {
		return fmt.Errorf("compressing the initramfs: %w", err)
	}
	return nil
}

// records adds files with every folder above them: the kernel makes none.
func (a Archive) records(out *cpio.Archive) error {
	made := make(map[string]bool)
	var addFolder func(name string) error
	addFolder = func(name string) error {
		if name == "." || made[name] {
			return nil
		}
		made[name] = true
		if err := addFolder(path.Dir(name)); err != nil {
			return err
		}
		return out.WriteRecord(cpio.Directory(name, 0o755))
	}
	for _, name := range folders {
		if err := addFolder(name); err != nil {
			return fmt.Errorf("packing %s: %w", name, err)
		}
	}
	// The kernel opens it for PID 1 before anything is mounted on /dev.
	if err := out.WriteRecord(cpio.CharDev("dev/console", 0o600, 5, 1)); err != nil {
		return fmt.Errorf("packing dev/console: %w", err)
	}
	add := func(r cpio.Record) error {
		if err := addFolder(path.Dir(r.Name)); err != nil {
			return err
		}
		if _, exists := out.Get(r.Name); exists {
			return os.ErrExist
		}
		return out.WriteRecord(r)
	}
	for _, f := range a.Files {
		if err := add(cpio.StaticRecord(f.Content, cpio.Info{Name: f.Path, Mode: cpio.S_IFREG | uint64(f.Mode.Perm())})); err != nil {
			return fmt.Errorf("packing %s: %w", f.Path, err)
		}
	}
	for _, l := range a.Links {
		if err := add(cpio.Symlink(l.Path, l.Target)); err != nil {
			return fmt.Errorf("packing link %s: %w", l.Path, err)
		}
	}
	return nil
}

// opener gives u-root the place to write to.
type opener struct{ w io.Writer }

func (o opener) OpenWriter() (ramfs.Writer, error) {
	return &writer{out: cpio.Newc.Writer(o.w)}, nil
}

// writer holds the records back until all are there, then writes them in one
// order with one owner and one time.
type writer struct {
	out     cpio.RecordWriter
	records []cpio.Record
}

func (w *writer) WriteRecord(r cpio.Record) error {
	r.Name = cpio.Normalize(r.Name)
	if r.Name == "." || r.Name == "" {
		return nil
	}
	w.records = append(w.records, r)
	return nil
}

func (w *writer) Finish() error {
	slices.SortFunc(w.records, func(a, b cpio.Record) int { return comparePaths(a.Name, b.Name) })
	for i, r := range w.records {
		mode := r.Mode
		if r.Mode&cpio.S_IFMT == cpio.S_IFDIR {
			mode = cpio.S_IFDIR | 0o755
		}
		if path.Dir(r.Name) == "bin" && r.Mode&cpio.S_IFMT == cpio.S_IFREG {
			mode = cpio.S_IFREG | 0o755
		}
		info := cpio.Info{Name: r.Name, Mode: mode, Ino: uint64(i + 1), NLink: 1, FileSize: r.FileSize, Rmajor: r.Rmajor, Rminor: r.Rminor}
		r.Info = info
		if err := w.out.WriteRecord(r); err != nil {
			return fmt.Errorf("writing %s: %w", r.Name, err)
		}
	}
	return cpio.WriteTrailer(w.out)
}

// comparePaths sorts a folder before what is in it.
func comparePaths(a, b string) int {
	return slices.Compare(split(a), split(b))
}

func split(name string) []string {
	var parts []string
	for dir := name; dir != "." && dir != "/"; dir = path.Dir(dir) {
		parts = append(parts, path.Base(dir))
	}
	slices.Reverse(parts)
	return parts
}
