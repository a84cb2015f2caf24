package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"gatehouse/appliance/setup/proof"
	"gatehouse/image"
	"gatehouse/image/target"
)

// prepareDisk fills in the defaults and makes a disk of the built image where
// there is none. A direct boot may do without a disk.
func (o *runOptions) prepareDisk(log *slog.Logger) (fresh bool, err error) {
	direct := o.machine.Kernel != ""
	if o.machine.State == "" {
		o.machine.State = filepath.Join(o.output, o.folder(), "state")
	}
	if o.machine.Disk == "" && !direct {
		o.machine.Disk = filepath.Join(o.output, o.folder(), "disk.img")
	}
	if o.machine.Disk == "" {
		return false, nil
	}
	built := filepath.Join(o.output, image.Named(image.Disk, o.machine.Target))
	if have, err := os.Stat(o.machine.Disk); err == nil {
		if from, err := os.Stat(built); err == nil && from.ModTime().After(have.ModTime()) && !direct {
			log.Warn("the image was built after this disk was last used; remove the disk and the state folder to start a new box from it",
				"disk", o.machine.Disk, "state", o.machine.State)
		}
		return false, nil
	}
	if err := copyDisk(built, o.machine.Disk, o.size<<30); err != nil {
		return false, err
	}
	log.Info("made a disk", "file", o.machine.Disk, "from", built)
	return true, nil
}

// folder is where the machine of a target is unless its disk and state are named.
func (o *runOptions) folder() string {
	if o.machine.Target == target.AMD64 {
		return "run"
	}
	return "run-" + o.machine.Target.Name
}

// copyDisk copies the image without its zeros and grows it. Under its name
// the copy is always complete.
func copyDisk(from, to string, size int64) error {
	in, err := os.Open(from)
	if errors.Is(err, os.ErrNotExist) {
		return fail(exitNotFound, "there is no %s to make a disk of: run gatehouse image build", from)
	}
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if size < info.Size() {
		return fail(exitUsage, "a disk of %d bytes is smaller than the image (%d)", size, info.Size())
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return fmt.Errorf("making the disk's folder: %w", err)
	}
	partial := to + ".partial"
	out, err := os.Create(partial)
	if err != nil {
		return fmt.Errorf("making the disk: %w", err)
	}
	defer out.Close()
	if err := copySparse(out, in); err != nil {
		return fmt.Errorf("making the disk: %w", err)
	}
	if err := errors.Join(out.Truncate(size), out.Close(), os.Rename(partial, to)); err != nil {
		return fmt.Errorf("making the disk: %w", err)
	}
	return nil
}

func copySparse(out io.WriterAt, in io.Reader) error {
	buffer, zeros := make([]byte, 64<<10), string(make([]byte, 64<<10))
	for at := int64(0); ; {
		n, err := io.ReadFull(in, buffer)
		if n > 0 && string(buffer[:n]) != zeros[:n] {
			if _, err := out.WriteAt(buffer[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// partition is the META partition of a disk image, as the vault wants a device.
type partition struct {
	disk  *os.File
	start int64
}

func (p partition) ReadAt(b []byte, off int64) (int, error)  { return p.disk.ReadAt(b, p.start+off) }
func (p partition) WriteAt(b []byte, off int64) (int, error) { return p.disk.WriteAt(b, p.start+off) }
func (p partition) Sync() error                              { return p.disk.Sync() }

// writeClaimCode sets the claim code of a box before its first start: its
// console then shows none, whoever set the code knows it. The disk gets a
// verifier, never the code.
func writeClaimCode(file, code string, stdin io.Reader) error {
	text, err := claimCodeText(code, stdin)
	if err != nil {
		return err
	}
	parsed, err := proof.ParseCode(text)
	if err != nil {
		return fail(exitUsage, "the claim code: %w", err)
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("setting the claim code: %w", err)
	}
	defer f.Close()
	return setClaimCode(f, parsed)
}

// claimCodeText reads the code from where --code says. Unlike other secrets it
// may stand on the command line: it is for test beds, works once, and is gone
// with the claim.
func claimCodeText(code string, stdin io.Reader) (string, error) {
	const most = 256
	var in io.Reader
	path, isFile := strings.CutPrefix(code, "file:")
	switch {
	case code == "-":
		in = stdin
	case isFile:
		f, err := os.Open(path)
		if err != nil {
			return "", fmt.Errorf("reading the claim code: %w", err)
		}
		defer f.Close()
		in = f
	default:
		return code, nil
	}
	text, err := io.ReadAll(io.LimitReader(in, most))
	if err != nil {
		return "", fmt.Errorf("reading the claim code: %w", err)
	}
	return string(text), nil
}
