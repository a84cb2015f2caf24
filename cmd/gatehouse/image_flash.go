package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/spf13/cobra"

	"gatehouse/appliance/vault"
	"gatehouse/appliance/volume/disks"
	"gatehouse/image/bmap"
	"gatehouse/image/disk"
)

// flashing is one image on its way to one disk.
type flashing struct {
	machine disks.Machine
	yes     string
	asJSON  bool
	ask     *asker
	out     io.Writer
	diag    io.Writer
}

func imageFlashCommand() *cobra.Command {
	f := flashing{machine: disks.Machine{Root: "/"}}
	c := &cobra.Command{
		Use:   "flash IMAGE [DISK]",
		Short: "Write an image to a disk, carefully",
		Long: `Write an image to a disk: .img, .img.gz, .img.zst or .iso.

Without a disk, the disks of this machine are listed, with what is on them. A
disk is refused that is mounted, swapped to or a part of another one, that is
read-only, or smaller than the image. What is on the disk is lost: the name of
the disk has to be typed, or --yes says the serial number of the disk that is
meant.

The image is read to its end before the disk is touched. With IMAGE.bmap beside
it, only the blocks that the map names are written; an image that was customized
is written whole. What was written is then read back from the disk and compared.`,
		Example: "  gatehouse image flash gatehouse-amd64.img.gz\n  gatehouse image flash gatehouse-amd64.img.zst sdb\n" +
			"  gatehouse image flash gatehouse-amd64.img /dev/sdb --yes S3R1AL",
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.ask, f.out, f.diag = newAsker(cmd), cmd.OutOrStdout(), cmd.ErrOrStderr()
			if len(args) == 1 {
				return f.list(args[0])
			}
			return f.run(cmd.Context(), args[0], args[1])
		},
	}
	c.Flags().StringVar(&f.yes, "yes", "", "do not ask: the `SERIAL` number of the disk (its name if it has none)")
	c.Flags().BoolVar(&f.asJSON, "json", false, "print JSON")
	return c
}

// diskRow is a disk as --json prints it.
type diskRow struct {
	Name    string   `json:"name"`
	Model   string   `json:"model,omitempty"`
	Serial  string   `json:"serial,omitempty"`
	Size    int64    `json:"size"`
	Holds   string   `json:"holds"`
	InUse   []string `json:"in_use,omitempty"`
	Refused string   `json:"refused,omitempty"` // why this image cannot go there
}

// list says which disks there are, and never chooses one.
func (f flashing) list(file string) error {
	im, err := openFlash(file)
	if err != nil {
		return err
	}
	all, err := f.machine.List()
	if err != nil {
		return err
	}
	var rows []diskRow
	for _, d := range all {
		rows = append(rows, diskRow{d.Name, d.Model, d.Serial, d.Size, d.Holds(), d.InUse, d.Refusal(im.size)})
	}
	if f.asJSON {
		return printJSON(f.out, rows)
	}
	w := tabwriter.NewWriter(f.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "DISK\tMODEL\tSERIAL\tSIZE\tHOLDS\tIMAGE")
	for i, r := range rows {
		may := "may be written to it"
		if r.Refused != "" {
			may = "refused: " + r.Refused
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.Name, r.Model, r.Serial, disks.Bytes(all[i].Size), r.Holds, may)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(f.diag, "Nothing was written. Say which disk: gatehouse image flash %s DISK\n", file)
	return nil
}

func (f flashing) run(ctx context.Context, file, name string) error {
	d, err := f.find(name)
	if err != nil {
		return err
	}
	im, err := openFlash(file)
	if err != nil {
		return err
	}
	if why := d.Refusal(im.size); why != "" {
		return fail(exitConflict, "%s is not written to: %s", d.Name, why)
	}
	if err := f.confirm(d, file); err != nil {
		return err
	}
	// Alone: the kernel refuses while anything of the disk is in use.
	out, err := os.OpenFile(filepath.Join(f.machine.Root, d.Device), os.O_RDWR|syscall.O_EXCL, 0)
	switch {
	case errors.Is(err, syscall.EBUSY):
		return fail(exitConflict, "%s is not written to: it is in use", d.Name)
	case errors.Is(err, fs.ErrPermission):
		return fail(exitDenied, "opening %s: %w (as root?)", d.Device, err)
	case err != nil:
		return fmt.Errorf("opening %s: %w", d.Device, err)
	}
	defer out.Close()
	start := time.Now()
	written, direct, err := f.write(ctx, im, out)
	if err != nil {
		what := fmt.Errorf("%w\n%s holds nothing whole now: write it anew", err, d.Name)
		if errors.Is(err, disks.ErrDiffers) {
			return fail(exitVerification, "%w", what)
		}
		return what
	}
	took := time.Since(start)
	if f.asJSON {
		return printJSON(f.out, struct {
			Disk    string  `json:"disk"`
			Serial  string  `json:"serial,omitempty"`
			Image   int64   `json:"image_bytes"`
			Written int64   `json:"written_bytes"`
			Direct  bool    `json:"read_back_from_disk"` // past the kernel's memory
			Seconds float64 `json:"seconds"`
		}{d.Name, d.Serial, im.size, written, direct, took.Seconds()})
	}
	how := "read back from the disk and compared"
	if !direct {
		how = "read back and compared (this disk cannot be asked past the kernel's memory)"
	}
	_, err = fmt.Fprintf(f.out, "%s: %s of an image of %s written in %s, %s\n", d.Name, disks.Bytes(written), disks.Bytes(im.size), took.Round(100*time.Millisecond), how)
	return err
}

// find takes a disk's name or a path of it, /dev/disk/by-id included.
func (f flashing) find(name string) (disks.Disk, error) {
	if strings.Contains(name, "/") {
		real, err := filepath.EvalSymlinks(filepath.Join(f.machine.Root, name))
		if err != nil {
			return disks.Disk{}, fail(exitNotFound, "there is no disk %s: %w", name, err)
		}
		dev, err := filepath.EvalSymlinks(filepath.Join(f.machine.Root, "dev"))
		if err != nil || filepath.Dir(real) != dev {
			return disks.Disk{}, fail(exitUsage, "%s is not a disk: give a name such as sdb, or a path below /dev", name)
		}
		name = filepath.Base(real)
	}
	// Loop devices are for those who make media in files; the other virtual
	// ones are made of disks that are in use by that.
	if disks.Virtual(name) && !strings.HasPrefix(name, "loop") {
		return disks.Disk{}, fail(exitUsage, "%s is made of other disks, or of memory: nothing starts from it", name)
	}
	d, err := f.machine.Find(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return d, fail(exitNotFound, "%w", err)
	case errors.Is(err, disks.ErrPartition):
		return d, fail(exitUsage, "%w", err)
	}
	return d, err
}

// confirm asks for the disk's name, or takes the serial number that was said.
func (f flashing) confirm(d disks.Disk, file string) error {
	name, what := d.Serial, "serial number"
	if name == "" {
		name, what = d.Name, "name"
	}
	if f.yes != "" {
		if f.yes != name {
			return fail(exitConflict, "%s is not written to: its %s is %q, and --yes says %q", d.Name, what, name, f.yes)
		}
		return nil
	}
	fmt.Fprintf(f.diag, "%s\n  holds: %s\nEverything on it is lost, and %s is written to it.\n", d, d.Holds(), filepath.Base(file))
	if f.ask.secret == nil {
		return fail(exitUsage, "to go on without a terminal say --yes and the %s of the disk", what)
	}
	fmt.Fprintf(f.diag, "Type the name of the disk, %s, to go on: ", d.Name)
	line, err := f.ask.lines.ReadString('\n')
	if err != nil || strings.TrimSpace(line) != d.Name {
		return fail(exitConflict, "nothing was written")
	}
	return nil
}

func (f flashing) write(ctx context.Context, im flashImage, out *os.File) (written int64, direct bool, err error) {
	in, err := im.open()
	if err != nil {
		return 0, false, err
	}
	defer in.Close()
	w, err := disks.Write(ctx, out, in, im.size, im.spans, f.progress("writing", im.size))
	if err != nil {
		return w.Bytes, false, err
	}
	direct, err = w.Compare(ctx, out.Name(), f.progress("comparing", w.Bytes))
	return w.Bytes, direct, err
}

// progress draws on a terminal alone: in a log it would be noise.
func (f flashing) progress(what string, all int64) func(int64) {
	if f.ask.secret == nil {
		return nil
	}
	last := time.Time{}
	return func(done int64) {
		if now := time.Now(); done >= all || now.Sub(last) > 200*time.Millisecond {
			last = now
			fmt.Fprintf(f.diag, "\r%-10s %3d %%", what, 100*done/max(all, 1))
			if done >= all {
				fmt.Fprintln(f.diag)
			}
		}
	}
}

// flashImage is an image that was read to its end once.
type flashImage struct {
	file  string
	size  int64 // unpacked
	spans []disks.Span
}

// openFlash reads an image to its end: what is cut off, damaged, or does not fit
// its map must be known before the disk is touched.
func openFlash(file string) (flashImage, error) {
	im := flashImage{file: file}
	in, err := im.open()
	if err != nil {
		return im, err
	}
	defer in.Close()
	var m *bmap.Map
	if !personal(file) {
		if m, err = mapOf(file); err != nil {
			return im, err
		}
	}
	check := &mapCheck{m: m, sum: sha256.New()}
	if im.size, err = io.Copy(check, in); err != nil {
		return im, fail(exitVerification, "%s: %w", file, err)
	}
	if im.size == 0 || im.size%512 != 0 {
		return im, fail(exitUsage, "%s is no disk image: it has %d bytes", file, im.size)
	}
	if m == nil {
		return im, nil
	}
	if im.size != m.Size || check.done != len(m.Ranges) {
		return im, fail(exitVerification, "%s does not fit its map: they are not of one build", file)
	}
	for _, r := range m.Ranges {
		im.spans = append(im.spans, disks.Span{At: r.At, Size: r.Size})
	}
	return im, nil
}

// personal says whether a claim code or a seed was set on an image, or on the medium
// that installs: it is not what its map says any more, and is written whole.
func personal(file string) bool {
	f, err := os.Open(file)
	if err != nil {
		return false // said by who reads it
	}
	defer f.Close()
	if disk.HasSeed(f) {
		return true
	}
	start, err := disk.Meta(f)
	if err != nil {
		return false
	}
	_, _, set, err := vault.ReadClaimVerifier(partition{f, start})
	return set && err == nil
}

// mapOf reads the map beside an image: NAME.bmap, or with .gz or .zst taken off.
func mapOf(file string) (*bmap.Map, error) {
	base := strings.TrimSuffix(strings.TrimSuffix(file, ".gz"), ".zst")
	for _, name := range slices.Compact([]string{file + ".bmap", base + ".bmap"}) {
		b, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		m, err := bmap.Decode(b)
		if err != nil {
			return nil, fail(exitVerification, "%s: %w (without that file the whole image is written)", name, err)
		}
		return &m, nil
	}
	return nil, nil
}

// mapCheck compares what passes with the sums of a map.
type mapCheck struct {
	m    *bmap.Map
	at   int64
	done int
	sum  interface {
		io.Writer
		Sum([]byte) []byte
		Reset()
	}
}

func (c *mapCheck) Write(b []byte) (int, error) {
	n := len(b)
	for c.m != nil && c.done < len(c.m.Ranges) && len(b) > 0 {
		r := c.m.Ranges[c.done]
		if c.at < r.At {
			skip := min(int64(len(b)), r.At-c.at)
			b, c.at = b[skip:], c.at+skip
			continue
		}
		part := min(int64(len(b)), r.At+r.Size-c.at)
		c.sum.Write(b[:part])
		b, c.at = b[part:], c.at+part
		if c.at == r.At+r.Size {
			if !bytes.Equal(c.sum.Sum(nil), r.Sum[:]) {
				return 0, fmt.Errorf("its bytes %d to %d are not those of its map: it is damaged, or they are not of one build", r.At, c.at)
			}
			c.sum.Reset()
			c.done++
		}
	}
	c.at += int64(len(b))
	return n, nil
}

// open begins to read an image, unpacked, whatever it is called.
func (im flashImage) open() (io.ReadCloser, error) {
	f, err := os.Open(im.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fail(exitNotFound, "reading the image: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the image: %w", err)
	}
	buffered := bufio.NewReaderSize(f, 1<<20)
	first, err := buffered.Peek(4)
	in := io.Reader(buffered)
	switch {
	case err != nil:
		err = fail(exitUsage, "%s is no disk image: %w", im.file, err)
	case bytes.HasPrefix(first, []byte("\x1f\x8b")):
		in, err = gzip.NewReader(buffered)
	case string(first) == "\x28\xb5\x2f\xfd":
		var z *zstd.Decoder
		if z, err = zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20)); err == nil {
			return reading{z, func() error { z.Close(); return f.Close() }}, nil
		}
	case string(first) == "QFI\xfb":
		err = fail(exitUsage, "%s is for virtual machines: write the .img, .img.gz or .img.zst", im.file)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return reading{in, f.Close}, nil
}

type reading struct {
	io.Reader
	close func() error
}

func (r reading) Close() error { return r.close() }
