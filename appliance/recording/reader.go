package recording

import (
	"bytes"
	"compress/flate"
	"crypto/hpke"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"sort"
	"time"
)

// Reader reads a recording.
type Reader struct {
	Header Header
	// Whole says whether the recording was ended in order. Without that it is
	// right as far as it goes: the writer, its disk or its power went away.
	Whole bool

	r      io.ReaderAt
	sealer sealer
	chunks []chunk
}

// chunk is where one is, and when it begins.
type chunk struct {
	offset int64
	length int
	at     time.Duration
	flags  byte
}

// Open reads the heads of a recording of size bytes and checks the first and
// the last chunk; the others are checked when they are read.
func Open(r io.ReaderAt, size int64, private []byte) (*Reader, error) {
	fail := func(err error) (*Reader, error) { return nil, fmt.Errorf("opening a recording: %w", err) }
	rd, from, err := begin(r, size, private)
	if err != nil {
		return fail(err)
	}
	if err := rd.index(from, size); err != nil {
		return fail(err)
	}
	if len(rd.chunks) == 0 {
		return fail(fmt.Errorf("%w: it ends before it says what it is of", ErrMalformed))
	}
	first, err := rd.content(0)
	if err != nil {
		return fail(err)
	}
	line, _, _ := bytes.Cut(first, []byte("\n"))
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&rd.Header); err != nil {
		return fail(fmt.Errorf("%w: %w", ErrMalformed, err))
	}
	if err := rd.Header.check(); err != nil {
		return fail(err)
	}
	last := len(rd.chunks) - 1
	if _, err := rd.content(last); err != nil {
		return fail(err)
	}
	rd.Whole = rd.chunks[last].flags&flagEnd != 0
	return rd, nil
}

func begin(r io.ReaderAt, size int64, private []byte) (*Reader, int64, error) {
	fixed := make([]byte, len(magic)+2)
	if _, err := r.ReadAt(fixed, 0); err != nil || string(fixed[:len(magic)]) != magic {
		return nil, 0, ErrMalformed
	}
	n := int64(binary.BigEndian.Uint16(fixed[len(magic):]))
	from := int64(len(fixed)) + n
	if n > maxEncap || from > size {
		return nil, 0, ErrMalformed
	}
	encap := make([]byte, n)
	if _, err := r.ReadAt(encap, int64(len(fixed))); err != nil {
		return nil, 0, err
	}
	key, err := hpke.MLKEM768X25519().NewPrivateKey(private)
	if err != nil {
		return nil, 0, fmt.Errorf("the key of the recordings: %w", err)
	}
	recipient, err := hpke.NewRecipient(encap, key, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(info))
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ErrKey, err)
	}
	secret, err := recipient.Export(context(encap), 32)
	if err != nil {
		return nil, 0, err
	}
	rd := &Reader{r: r}
	rd.sealer, err = newSealer(secret)
	return rd, from, err
}

// index reads the heads. They are believed only once their chunk was opened;
// until then they can lead nowhere but astray within the file.
func (rd *Reader) index(from, size int64) error {
	b := make([]byte, chunkHead)
	for size-from >= chunkHead {
		if _, err := rd.r.ReadAt(b, from); err != nil {
			return err
		}
		ms := binary.BigEndian.Uint64(b[5:])
		c := chunk{from + chunkHead, int(binary.BigEndian.Uint32(b[1:])), time.Duration(ms) * time.Millisecond, b[0]}
		last := len(rd.chunks) - 1
		switch {
		case c.length < tagSize || c.length > maxSealed || ms > uint64(maxLength/time.Millisecond) || c.flags&^flagEnd != 0:
			return fmt.Errorf("%w: the head of chunk %d", ErrTampered, last+1)
		case last >= 0 && (c.at < rd.chunks[last].at || rd.chunks[last].flags&flagEnd != 0):
			return fmt.Errorf("%w: chunk %d is out of place", ErrTampered, last+1)
		case c.offset+int64(c.length) > size:
			return nil // cut in the middle of it: it does not count
		}
		rd.chunks = append(rd.chunks, c)
		from = c.offset + int64(c.length)
	}
	return nil
}

// content opens one chunk.
func (rd *Reader) content(i int) ([]byte, error) {
	c := rd.chunks[i]
	sealed := make([]byte, c.length)
	if _, err := rd.r.ReadAt(sealed, c.offset); err != nil {
		return nil, err
	}
	packed, err := rd.sealer.aead.Open(sealed[:0], nonce(uint64(i)), sealed, head(c.flags, c.length, c.at))
	if err != nil {
		if i == 0 {
			return nil, fmt.Errorf("%w, or it was changed", ErrKey)
		}
		return nil, fmt.Errorf("%w: chunk %d", ErrTampered, i)
	}
	// Only who had the key wrote this; the limit is for a writer gone wrong.
	b, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(packed)), 2*MaxChunk))
	if err != nil {
		return nil, fmt.Errorf("%w: chunk %d: %w", ErrMalformed, i, err)
	}
	return b, nil
}

// Length is when the last chunk begins: the recording is at least so long.
func (rd *Reader) Length() time.Duration { return rd.chunks[len(rd.chunks)-1].at }

// Events gives the events from a time on. A player that begins in the middle
// has to be told what the screen showed before, so it begins with the first.
func (rd *Reader) Events(from time.Duration) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		// The last chunk that begins before it may reach into it.
		i := max(0, sort.Search(len(rd.chunks), func(i int) bool { return rd.chunks[i].at >= from })-1)
		for ; i < len(rd.chunks); i++ {
			b, err := rd.content(i)
			if err != nil {
				yield(Event{}, err)
				return
			}
			if i == 0 {
				_, b, _ = bytes.Cut(b, []byte("\n"))
			}
			for line := range bytes.Lines(b) {
				e, err := parseEvent(bytes.TrimSuffix(line, []byte("\n")))
				if err == nil && e.At < from {
					continue
				}
				if !yield(e, err) || err != nil {
					return
				}
			}
		}
	}
}

// Export writes the recording as asciicast v2, which asciinema plays. On an
// error w has what came before it.
func (rd *Reader) Export(w io.Writer) error {
	h := rd.Header
	b, err := json.Marshal(map[string]any{"version": 2, "width": h.Width, "height": h.Height, "timestamp": h.Started.Unix(), "title": h.Title})
	if err != nil {
		return err
	}
	if _, err := w.Write(append(b, '\n')); err != nil {
		return err
	}
	for e, err := range rd.Events(0) {
		if err != nil {
			return err
		}
		line, err := e.line()
		if err != nil {
			return err
		}
		if _, err := w.Write(append(line, '\n')); err != nil {
			return err
		}
	}
	return nil
}

// Verify reads the whole and says whether it is as it was written, to its end.
func (rd *Reader) Verify() error {
	for i := range rd.chunks {
		if _, err := rd.content(i); err != nil {
			return err
		}
	}
	if !rd.Whole {
		return errors.New("the recording is right as far as it goes, and was cut")
	}
	return nil
}
