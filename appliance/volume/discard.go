package volume

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/volume/gpt"
)

// A means is one way to be rid of blocks, by the ioctl that asks the kernel for
// it (include/uapi/linux/fs.h, "struct { u64 start, length }").
type means struct {
	name string
	call uint
}

// The ways, the thorough one first. A secure discard (eMMC and SD: "secure
// erase") promises that the copies go, too, which flash makes while it moves
// blocks about. A discard says no more than that the blocks are not needed.
// Zeroes are written by the kernel where the device has no command for it.
var (
	secureDiscard = means{"secure discard", unix.BLKSECDISCARD}
	discard       = means{"discard", unix.BLKDISCARD}
	zeroes        = means{"overwriting", unix.BLKZEROOUT}
)

func blockErase(f *os.File, m means, from, length uint64) error {
	span := [2]uint64{from, length}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(m.call), uintptr(unsafe.Pointer(&span)))
	if errno != 0 {
		return errno
	}
	return nil
}

const (
	// discardStep is how much one command is about: between two the end of the
	// time is seen. zeroStep is less, since a slow disk writes 20 MiB a second.
	discardStep = 1 << 30
	zeroStep    = 32 << 20
	edge        = 1 << 20 // what is overwritten at both ends in any case
	places      = 256     // looked at before and after
	placeSize   = 4096
)

// Discarded is what came of giving the blocks of the data partition back.
type Discarded struct {
	Size    uint64 // of the partition, in bytes; 0: there is none
	Means   string // secure discard, discard; "": the device knows neither, or did not do what it said
	Done    uint64 // bytes from the first on that this reached before the time was over
	Zeroed  uint64 // bytes after these that zeroes were written over
	Held    int    // places looked at that held something before
	Kept    int    // of these, places that read as before in the end
	Ignored bool   // the device said that it discarded, and did not
	Refused error  // what the device said to what it would not do; nil: nothing
}

// String says it in words, and what may be left.
func (d Discarded) String() string {
	if d.Size == 0 {
		return "There was no data volume to discard."
	}
	var s []string
	say := func(format string, a ...any) { s = append(s, fmt.Sprintf(format, a...)) }
	if d.Refused != nil {
		say("The disk refused: %s.", strings.ReplaceAll(d.Refused.Error(), "\n", "; "))
	}
	if d.Ignored {
		say("The disk took a discard and went on showing the old blocks.")
	}
	switch d.Means {
	case secureDiscard.name:
		say("Of %s of the data volume %s were discarded securely: the disk says that the copies it made itself went, too.", size(d.Size), size(d.Done))
	case discard.name:
		say("Of %s of the data volume %s were discarded.", size(d.Size), size(d.Done))
	}
	if d.Zeroed > 0 {
		say("Of %s of the data volume %s were written over with zeroes.", size(d.Size), size(d.Zeroed))
	}
	if left := d.Size - d.Done - d.Zeroed; left > 0 {
		say("%s stay as they are.", size(left))
	}
	if d.Held > 0 {
		say("Of %d places that held something %d still do.", d.Held, d.Kept)
	}
	if d.Means != secureDiscard.name || d.Done < d.Size {
		say("Flash may keep old blocks where only its maker can read them.")
	}
	say("All of it was encrypted, and the key is gone.")
	return strings.Join(s, " ")
}

func size(n uint64) string {
	for _, u := range []struct {
		name string
		unit uint64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= u.unit {
			return fmt.Sprintf("%.3g %s", float64(n)/float64(u.unit), u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}

// Discard gives the blocks of the data partition back to the device, as
// thoroughly as the device knows how, until ctx ends. What matters was done
// before, when the key was forgotten: this is for those who kept a copy of the
// header and a way to open it. That a device did what it says is looked at; one
// that discards nothing is written over with zeroes, as far as the time goes.
// Nothing of it is an error, but that the device cannot be opened.
func (d Disk) Discard(ctx context.Context) (Discarded, error) {
	f, g, err := d.open(os.O_RDWR)
	if err != nil {
		return Discarded{}, fmt.Errorf("opening our disk: %w", err)
	}
	defer f.Close()
	t, _, err := gpt.Read(f, g)
	if err != nil {
		return Discarded{}, fmt.Errorf("reading the partition table of %s: %w", d.Device, err)
	}
	number, p, ok := t.Find(typeData)
	if !ok {
		return Discarded{}, nil
	}
	dev, err := d.partition(f, g, number, p)
	if err != nil {
		return Discarded{}, err
	}
	part, err := os.OpenFile(d.path(dev), os.O_RDWR, 0)
	if err != nil {
		return Discarded{}, fmt.Errorf("opening the data partition: %w", err)
	}
	defer part.Close()
	e := eraser{call: d.block.erase, dev: part, result: Discarded{Size: (p.Last - p.First + 1) * uint64(g.SectorSize)}}
	return e.run(ctx)
}

// eraser erases one partition.
type eraser struct {
	call   func(*os.File, means, uint64, uint64) error
	dev    *os.File
	seen   map[uint64][sha256.Size]byte // place → what it held before
	result Discarded
}

func (e *eraser) run(ctx context.Context) (Discarded, error) {
	r := &e.result
	if err := e.look(); err != nil {
		return *r, err
	}
	for _, m := range []means{secureDiscard, discard} {
		done, err := e.all(ctx, m, discardStep, 0)
		e.refused(m, err)
		if done > 0 {
			r.Means, r.Done = m.name, done
			break
		}
	}
	if err := e.compare(r.Done); err != nil {
		return *r, err
	}
	if r.Kept > 0 {
		r.Means, r.Done, r.Ignored = "", 0, true
	}
	done, err := r.Done, e.edges()
	if err == nil {
		done, err = e.all(ctx, zeroes, zeroStep, r.Done)
	}
	e.refused(zeroes, err)
	r.Zeroed = done - r.Done
	return *r, e.compare(r.Size)
}

func (e *eraser) refused(m means, err error) {
	if err != nil {
		e.result.Refused = errors.Join(e.result.Refused, fmt.Errorf("%s: %w", m.name, err))
	}
}

// all goes through the partition until ctx ends; done is how far it came.
func (e *eraser) all(ctx context.Context, m means, step, from uint64) (done uint64, err error) {
	done = from
	for done < e.result.Size && ctx.Err() == nil {
		n := min(step, e.result.Size-done)
		if err := e.call(e.dev, m, done, n); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// edges writes zeroes over both ends: where the file system's first description
// is, and what a discard may have left out because it is no whole block of the
// device's own.
func (e *eraser) edges() error {
	n := min(edge, e.result.Size)
	if err := e.call(e.dev, zeroes, 0, n); err != nil {
		return err
	}
	return e.call(e.dev, zeroes, e.result.Size-n, n)
}

// look notes what some places hold, spread evenly from the first block to the last.
func (e *eraser) look() error {
	e.seen = make(map[uint64][sha256.Size]byte)
	buf := make([]byte, placeSize)
	last := e.result.Size/placeSize - 1
	for i := range uint64(places) {
		at := last * i / (places - 1) * placeSize
		if _, err := e.dev.ReadAt(buf, int64(at)); err != nil {
			return fmt.Errorf("looking at the data partition: %w", err)
		}
		if !blank(buf) {
			e.seen[at] = sha256.Sum256(buf)
		}
	}
	e.result.Held = len(e.seen)
	return nil
}

// compare counts the places before an end that read as before. The kernel
// forgets what it has cached of blocks that it erases, so this asks the device.
func (e *eraser) compare(end uint64) error {
	buf := make([]byte, placeSize)
	e.result.Kept = 0
	for at, before := range e.seen {
		if at >= end {
			continue
		}
		if _, err := e.dev.ReadAt(buf, int64(at)); err != nil {
			return fmt.Errorf("looking at the data partition again: %w", err)
		}
		if sha256.Sum256(buf) == before {
			e.result.Kept++
		}
	}
	return nil
}

// blank knows zeroes and erased flash: there a discard changes nothing.
func blank(b []byte) bool {
	return len(b) == 0 || (b[0] == 0 || b[0] == 0xFF) && bytes.Count(b, b[:1]) == len(b)
}
