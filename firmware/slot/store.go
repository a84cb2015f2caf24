package slot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Where the record is in META (docs/architecture.md): two copies, written in
// turn. Each has magic, generation, length (all big-endian), the record as JSON,
// and the SHA-256 of these.
const (
	recordMagic  = "GHSLOTS1"
	recordAt     = 512 << 10
	recordPlace  = 64 << 10
	recordPlaces = 2
	recordHead   = len(recordMagic) + 8 + 4
	maxRecord    = recordPlace - recordHead - sha256.Size
	blockSize    = 4096 // writes are whole blocks, so that a torn one never spoils a neighbour
)

// ErrRecord is what a record that breaks a rule is refused with.
var ErrRecord = errors.New("the record of the slots is not one that this box writes")

// Device is META, or a partition of it.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// Encode is the record in its one form.
func (r Record) Encode(generation uint64) ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	text, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	if len(text) > maxRecord {
		return nil, fmt.Errorf("%w: %d bytes, and %d fit", ErrRecord, len(text), maxRecord)
	}
	buf := append([]byte(recordMagic), binary.BigEndian.AppendUint64(nil, generation)...)
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(text)))
	buf = append(buf, text...)
	sum := sha256.Sum256(buf)
	return append(buf, sum[:]...), nil
}

// Decode reads what Encode wrote, and what lies behind it is not looked at.
func Decode(b []byte) (r Record, generation uint64, err error) {
	refuse := func(format string, args ...any) (Record, uint64, error) {
		return Record{}, 0, fmt.Errorf("%w: "+format, append([]any{ErrRecord}, args...)...)
	}
	if len(b) < recordHead+sha256.Size || !bytes.HasPrefix(b, []byte(recordMagic)) {
		return refuse("it does not begin with %s", recordMagic)
	}
	generation = binary.BigEndian.Uint64(b[len(recordMagic):])
	size := int64(binary.BigEndian.Uint32(b[len(recordMagic)+8:]))
	end := int64(recordHead) + size
	if generation >= 1<<62 { // or whoever writes META could have ours never be the newest again
		return refuse("its generation is %d", generation)
	}
	if size > int64(maxRecord) || end+sha256.Size > int64(len(b)) {
		return refuse("its length is %d", size)
	}
	if sum := sha256.Sum256(b[:end]); !bytes.Equal(sum[:], b[end:end+sha256.Size]) {
		return refuse("its checksum is wrong")
	}
	d := json.NewDecoder(bytes.NewReader(b[recordHead:end]))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return refuse("%w", err)
	}
	if again, err := r.Encode(generation); err != nil {
		return Record{}, 0, err
	} else if !bytes.Equal(again, b[:end+sha256.Size]) {
		return refuse("it is not in its one form")
	}
	return r, generation, nil
}

// check refuses what this package does not make.
func (r Record) check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrRecord}, args...)...)
	}
	systems := []*System{r.A, r.B}
	if t := r.Trial; t != nil {
		systems = append(systems, &t.System)
		if t.Slot != A && t.Slot != B || t.Tries < 1 || t.Tries > maxTries || !t.Began.Equal(moment(t.Began)) {
			return bad("a trial in slot %s, %d tries, since %s", t.Slot, t.Tries, t.Began)
		}
		if t.End != nil && t.End.Reason != short(t.End.Reason) {
			return bad("the reason of an end")
		}
	}
	if len(r.Verdicts) > maxVerdicts {
		return bad("%d verdicts, the limit is %d", len(r.Verdicts), maxVerdicts)
	}
	seen := map[Digest]bool{}
	for i := range r.Verdicts {
		v := &r.Verdicts[i]
		systems = append(systems, &v.System)
		if seen[v.System.SHA256] || v.Tries < 1 || v.Tries > maxTries || v.Reason != short(v.Reason) || !v.When.Equal(moment(v.When)) || v.Kept && v.Explained {
			return bad("verdict %d", i)
		}
		seen[v.System.SHA256] = true
	}
	for _, s := range systems {
		if s != nil && (s.Size <= 0 || s.Size > Size || s.SHA256 == Digest{}) {
			return bad("a system of %d bytes", s.Size)
		}
	}
	return nil
}

// copies is what both places hold.
type copies struct {
	record     Record
	generation uint64
	place      int // of the newest that is whole; -1: none is
	problem    error
	unread     [recordPlaces]error // why a place that holds none that is whole cannot be read
}

// find reads both places.
func find(dev io.ReaderAt) copies {
	c := copies{place: -1}
	for i := range recordPlaces {
		buf, unread := readPlace(dev, i)
		got, g, err := Decode(buf)
		switch {
		case err != nil && unread != nil && (len(buf) == 0 || bytes.HasPrefix(buf, []byte(recordMagic))):
			c.unread[i] = fmt.Errorf("reading copy %d of the record of slots in META: %w", i, unread)
		case err != nil:
			// A first write that the power was cut in leaves place 0 torn and place 1
			// blank: no record was ever kept.
			c.problem = nil
			if len(bytes.Trim(buf, "\x00")) > 0 && len(bytes.Trim(buf, "\xff")) > 0 {
				c.problem = fmt.Errorf("copy %d: %w", i, err)
			}
		case c.place < 0 || g > c.generation:
			c.record, c.generation, c.place = got, g, i
		}
	}
	return c
}

// readPlace reads a place up to the first block that cannot be read: what lies behind a
// record does not matter.
func readPlace(dev io.ReaderAt, place int) ([]byte, error) {
	buf := make([]byte, recordPlace)
	for at := 0; at < len(buf); at += blockSize {
		block := buf[at : at+blockSize]
		if n, err := dev.ReadAt(block, placeAt(place)+int64(at)); err != nil && (!errors.Is(err, io.EOF) || n != len(block)) {
			return buf[:at], err
		}
	}
	return buf, nil
}

func placeAt(place int) int64 { return recordAt + int64(place)*recordPlace }

// ReadRecord gives the newest copy that is whole. META that never held one gives
// the zero Record; so does one that holds only what breaks a rule, with an error
// that is ErrRecord: nothing is remembered then, and the next write mends it. One
// broken copy beside a whole one is what a power cut leaves, and no error; one that
// cannot be read is none either, as long as the other is whole.
func ReadRecord(meta io.ReaderAt) (Record, error) {
	c := find(meta)
	return c.record, c.none()
}

// none says why there is no record; nil: there is one, or never was.
func (c copies) none() error {
	if c.place >= 0 {
		return nil
	}
	if err := errors.Join(c.unread[:]...); err != nil {
		return err
	}
	return c.problem
}

// WriteRecord is KeepRecord for who does not ask what the disk is like.
func WriteRecord(meta Device, r Record) error {
	_, err := KeepRecord(meta, r)
	return err
}

// KeepRecord keeps a record. It goes to the place that does not hold the newest:
// a power cut in the midst of it leaves that one, and the end of the write makes
// this one the newest. Where that place cannot be read or written it goes to the other, too:
// the next start has to find it. failed says so, of a disk that is to be replaced.
func KeepRecord(meta Device, r Record) (failed, err error) {
	c := find(meta)
	if err := c.none(); err != nil && !errors.Is(err, ErrRecord) {
		return nil, err
	}
	at := (c.place + 1) % recordPlaces
	next := c.generation + 1
	if c.unread[at] != nil {
		next++ // it may hold the one after the newest that can be read, and be read again
	}
	raw, err := r.Encode(next)
	if err != nil {
		return nil, fmt.Errorf("keeping the record of slots in META: %w", err)
	}
	buf := make([]byte, (len(raw)+blockSize-1)/blockSize*blockSize)
	copy(buf, raw)
	failed = c.unread[at]
	first := write(meta, buf, at)
	if failed == nil && first == nil {
		return nil, nil
	}
	second := write(meta, buf, (at+1)%recordPlaces)
	failed = errors.Join(failed, first, second)
	if first != nil && second != nil {
		return nil, failed
	}
	return failed, nil
}

func write(meta Device, buf []byte, place int) error {
	_, err := meta.WriteAt(buf, placeAt(place))
	if err == nil {
		err = meta.Sync()
	}
	if err != nil {
		return fmt.Errorf("keeping copy %d of the record of slots in META: %w", place, err)
	}
	return nil
}
