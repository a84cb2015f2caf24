package vault

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Erase forgets the data key for good, whatever state it is in. On a box with
// a TPM the machine must be restarted before a new one can be made.
func Erase(ctx context.Context, c Config) error {
	if err := Forget(ctx, c); err != nil {
		return err
	}
	return Unlatch(ctx, c)
}

// Forget erases what opens the data: META, then what the TPM remembers, but for
// the latch. The header goes first: a power cut after it leaves a latch over a
// blank META, which is locked and can be erased again. The counter cannot be had
// back: made anew it goes on above what it ever was, so that what was sealed
// under it opens no more, even for somebody with a copy of the header and the
// same TPM.
//
// The root key stays: it is made of a template that everybody uses, and of a
// seed that is not ours to clear. It opens nothing without a header.
func Forget(ctx context.Context, c Config) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c = c.ready()
	if err := erase(c.Meta); err != nil {
		return err
	}
	return c.undefine(nvClaimed, nvMemory, nvKept, nvCounter)
}

// Unlatch removes the latch, without which the box begins anew. It is for the
// end of all that is to be erased.
func Unlatch(ctx context.Context, c Config) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return c.undefine(nvLatch)
}

func (c *Config) undefine(indices ...uint32) error {
	if c.TPM == nil {
		return nil
	}
	const again = "erasing what the TPM remembers (the data key is gone; erase again): %w"
	if err := c.reopenTPM(); err != nil {
		return fmt.Errorf(again, err)
	}
	root, err := c.TPM.Root()
	if err != nil {
		return fmt.Errorf(again, err)
	}
	for _, index := range indices {
		if err := c.TPM.UndefineNV(root, index); err != nil {
			return fmt.Errorf(again, err)
		}
	}
	return nil
}

// erase zeroes META, but for the report of an erasure. Flash may keep old blocks
// where only its maker can read them: what is gone for good is what the TPM held.
func erase(dev Device) error {
	zeroes, held := make([]byte, copySize), make([]byte, copySize)
	for at := int64(0); at < erasureAt; at += copySize {
		n := min(copySize, erasureAt-at)
		if at >= erasedEnd {
			// Never used by any version before: written only if somebody did.
			got, err := dev.ReadAt(held[:n], at)
			if got == 0 && errors.Is(err, io.EOF) {
				return nil // META is smaller in images of the first versions
			}
			if err == nil && bytes.Equal(held[:n], zeroes[:n]) {
				continue
			}
		}
		if err := writeBlocks(dev, at, zeroes[:n]); err != nil {
			return fmt.Errorf("erasing META: %w", err)
		}
	}
	return nil
}

// An Erasure is what came of erasing a box: kept in META for its next start,
// which has nothing else to know it from.
type Erasure struct {
	Done  bool   // false: it was begun
	Words string // what was discarded, and what may be left
}

const (
	erasureMagic = "GHERASE1"
	erasureHead  = len(erasureMagic) + 1 + 2
	erasureAt    = MetaSize - blockSize
	maxErasure   = blockSize - erasureHead - sha256.Size
)

// WriteErasure keeps a report. Words that do not fit are cut.
func WriteErasure(dev Device, e Erasure) error {
	words := e.Words[:min(len(e.Words), maxErasure)]
	buf := append([]byte(erasureMagic), 0)
	if e.Done {
		buf[len(erasureMagic)] = 1
	}
	buf = binary.BigEndian.AppendUint16(buf, uint16(len(words)))
	buf = append(buf, words...)
	sum := sha256.Sum256(buf)
	if err := writeBlocks(dev, erasureAt, append(buf, sum[:]...)); err != nil {
		return fmt.Errorf("noting in META that the box is erased: %w", err)
	}
	return nil
}

// ReadErasure reads the report; ok is false if there is none, or none that is
// whole. Nothing vouches for it: it is shown, and decides no more than that a
// new volume's blocks are discarded once more.
func ReadErasure(dev Device) (e Erasure, ok bool, err error) {
	buf := make([]byte, blockSize)
	if _, err := dev.ReadAt(buf, erasureAt); errors.Is(err, io.EOF) {
		return e, false, nil
	} else if err != nil {
		return e, false, fmt.Errorf("reading what was erased in META: %w", err)
	}
	size := int(binary.BigEndian.Uint16(buf[erasureHead-2:]))
	if !bytes.HasPrefix(buf, []byte(erasureMagic)) || buf[len(erasureMagic)] > 1 || size > maxErasure {
		return e, false, nil
	}
	end := erasureHead + size
	if sum := sha256.Sum256(buf[:end]); !bytes.Equal(sum[:], buf[end:end+sha256.Size]) {
		return e, false, nil
	}
	return Erasure{Done: buf[len(erasureMagic)] == 1, Words: string(buf[erasureHead:end])}, true, nil
}

// ClearErasure forgets the report.
func ClearErasure(dev Device) error {
	if err := writeBlocks(dev, erasureAt, make([]byte, blockSize)); err != nil {
		return fmt.Errorf("clearing what was erased in META: %w", err)
	}
	return nil
}
