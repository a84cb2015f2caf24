package audit

import (
	"bufio"
	"crypto/ecdsa"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Trust is what a verifier knows from elsewhere.
type Trust struct {
	// Key is the box's checkpoint key, if known. Without it the log's own is
	// taken, and whoever rewrote all of the log could have put in his.
	Key *ecdsa.PublicKey
	// Sequence and Hash (hexadecimal) are an entry that was seen before, such
	// as the newest checkpoint: a log that ends before it was cut.
	Sequence uint64
	Hash     string
	// Part accepts a log that does not begin with its first entry.
	Part bool
}

// Report is what Verify found.
type Report struct {
	Whole       bool      `json:"whole"`    // nothing is wrong
	Sentence    string    `json:"sentence"` // all of it in words
	Log         string    `json:"log,omitempty"`
	First       uint64    `json:"first"`
	Last        uint64    `json:"last"`
	Hash        string    `json:"hash,omitempty"` // of the last entry
	At          time.Time `json:"at"`             // of the last entry
	Checkpoints int       `json:"checkpoints"`
	Signed      uint64    `json:"signed"`        // newest entry under a valid signature
	Key         string    `json:"key,omitempty"` // SHA-256 of the key that signed it
	KeyTrusted  bool      `json:"key_trusted"`   // it was given, not taken from the log
	KeyChanges  int       `json:"key_changes"`   // the log named another key so many times
	Recovered   int       `json:"recovered"`     // torn lines that were removed after power cuts
	File        string    `json:"file,omitempty"`
	Line        int       `json:"line,omitempty"` // where it broke
}

// A BrokenError says in one sentence what is wrong with a log, and where.
type BrokenError struct{ Sentence string }

func (e *BrokenError) Error() string { return e.Sentence }

// Verify reads a log as one stream of lines. A log that is not whole gives a
// BrokenError; other errors are of reading.
func Verify(r io.Reader, t Trust) (Report, error) {
	v := verifier{trust: t}
	if err := v.read(r); err != nil {
		return v.report, err
	}
	return v.end()
}

// VerifyDir verifies the segments of a folder in their order.
func VerifyDir(dir string, t Trust) (Report, error) {
	names, err := segments(dir)
	if err != nil {
		return Report{}, err
	}
	v := verifier{trust: t}
	for _, name := range names {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return v.report, fmt.Errorf("reading the audit log: %w", err)
		}
		v.report.File, v.report.Line = name, 0
		err = v.read(f)
		f.Close()
		if err != nil {
			return v.report, err
		}
	}
	return v.end()
}

// verifier goes through a log once.
type verifier struct {
	trust  Trust
	report Report
	header *header
	key    *ecdsa.PublicKey // named by the newest header
	last   *record
	// hashes of the entries from sequence base on, which a checkpoint may
	// still sign: those since the newest one it did.
	base   uint64
	hashes []digest
	seen   bool // the entry of trust.Sequence
}

// read takes one segment, whose every line must have its newline.
func (v *verifier) read(r io.Reader) error {
	in := bufio.NewReaderSize(r, MaxLine)
	for {
		line, err := in.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF) && len(line) == 0:
			return nil
		case errors.Is(err, io.EOF):
			v.report.Line++
			return v.broken("the line is cut off")
		case errors.Is(err, bufio.ErrBufferFull):
			v.report.Line++
			return v.broken("the line is longer than %d bytes", MaxLine)
		case err != nil:
			return fmt.Errorf("reading the audit log: %w", err)
		}
		v.report.Line++
		rec, err := parse(line[:len(line)-1])
		if err == nil {
			err = v.take(&rec)
		}
		if err != nil {
			return v.broken("%w", err)
		}
	}
}

func (v *verifier) broken(format string, args ...any) error {
	where := fmt.Sprintf("line %d", v.report.Line)
	if v.report.File != "" {
		where += " of " + v.report.File
	}
	after := "at its beginning"
	if v.last != nil {
		after = fmt.Sprintf("after entry %d", v.last.Sequence)
	}
	v.report.Sentence = fmt.Sprintf("The audit log is broken %s, at %s: %v.", after, where, fmt.Errorf(format, args...))
	return &BrokenError{v.report.Sentence}
}

// take checks one entry against those before it.
func (v *verifier) take(r *record) error {
	if v.last == nil {
		if err := v.first(r); err != nil {
			return err
		}
	} else if err := follows(v.last, r); err != nil {
		return err
	}
	var err error
	switch r.Kind {
	case KindHeader:
		err = v.takeHeader(r.Header)
	case KindCheckpoint:
		err = v.takeCheckpoint(r)
	case KindDamage:
		err = errors.New("the box found damage here that is not in this copy")
	case KindRecovered:
		v.report.Recovered++
	}
	if err != nil {
		return err
	}
	if r.Sequence == v.trust.Sequence {
		if v.seen = hex.EncodeToString(r.Hash[:]) == v.trust.Hash; !v.seen {
			return fmt.Errorf("entry %d is not the one that was known", r.Sequence)
		}
	}
	v.hashes = append(v.hashes, *r.Hash)
	v.last = r
	v.report.Last, v.report.Hash, v.report.At = r.Sequence, hex.EncodeToString(r.Hash[:]), r.Time.Time
	return nil
}

func (v *verifier) first(r *record) error {
	if !v.trust.Part && (r.Sequence != 1 || r.Prev != digest{}) {
		return fmt.Errorf("it begins with entry %d: what comes before is missing", r.Sequence)
	}
	if r.Kind != KindHeader {
		return errors.New("it does not begin with a header, which each file of a log has")
	}
	v.report.First, v.base = r.Sequence, r.Sequence
	return nil
}

func (v *verifier) takeHeader(h *header) error {
	if h.Version != Version {
		return fmt.Errorf("it is in version %d of the format, this tool knows %d", h.Version, Version)
	}
	if v.header != nil && !slices.Equal(v.header.Log, h.Log) {
		return errors.New("another log begins here")
	}
	key, err := parseKey(h.Key)
	if err != nil {
		return fmt.Errorf("the key in the header: %w", err)
	}
	if v.key != nil && !v.key.Equal(key) {
		v.report.KeyChanges++
	}
	v.header, v.key = h, key
	v.report.Log = hex.EncodeToString(h.Log)
	return nil
}

func (v *verifier) takeCheckpoint(r *record) error {
	c := r.Checkpoint
	if c.Covers < v.base || c.Covers >= r.Sequence {
		return fmt.Errorf("checkpoint %d signs entry %d, which it cannot", r.Sequence, c.Covers)
	}
	if c.Head != v.hashes[c.Covers-v.base] {
		return fmt.Errorf("checkpoint %d was signed over another entry %d than stands here", r.Sequence, c.Covers)
	}
	if !ecdsa.VerifyASN1(v.key, checkpointDigest(v.header.Log, c.Covers, c.Head), c.Signature) {
		return fmt.Errorf("the signature of checkpoint %d is not by the key in the log", r.Sequence)
	}
	v.report.Checkpoints++
	// A checkpoint under another key than the trusted one holds the chain
	// together but vouches for nothing.
	if v.trust.Key == nil || v.trust.Key.Equal(v.key) {
		v.report.Signed = c.Covers
		v.report.Key = fingerprint(v.header.Key)
		v.report.KeyTrusted = v.trust.Key != nil
	}
	v.hashes = append(v.hashes[:0], v.hashes[c.Covers-v.base:]...)
	v.base = c.Covers
	return nil
}

// end checks what only the end shows, and says the result in a sentence.
func (v *verifier) end() (Report, error) {
	switch {
	case v.last == nil:
		return v.fails("There is no audit log here: not one entry.")
	case v.trust.Sequence != 0 && !v.seen && v.trust.Sequence >= v.report.First:
		return v.fails("The audit log was cut: it ends with entry %d, but entry %d was known.", v.report.Last, v.trust.Sequence)
	case v.trust.Sequence != 0 && !v.seen:
		return v.fails("The audit log begins with entry %d, so entry %d, which was known, cannot be checked.", v.report.First, v.trust.Sequence)
	case v.trust.Key != nil && v.report.Signed == 0:
		return v.fails("Nothing in the audit log is signed by the key that was given.")
	}
	r := &v.report
	r.File, r.Line, r.Whole = "", 0, true
	r.Sentence = fmt.Sprintf("Entries %d to %d are unbroken; ", r.First, r.Last)
	switch {
	case r.Signed == 0:
		r.Sentence += "no checkpoint signs them yet."
	case r.KeyTrusted:
		r.Sentence += fmt.Sprintf("up to %d they are signed by the key that was given.", r.Signed)
	default:
		r.Sentence += fmt.Sprintf("up to %d they are signed by the key in the log, %s: compare it with the box's.", r.Signed, r.Key)
	}
	if r.KeyChanges > 0 {
		r.Sentence += fmt.Sprintf(" The key changed %d times.", r.KeyChanges)
	}
	return *r, nil
}

func (v *verifier) fails(format string, args ...any) (Report, error) {
	v.report.Sentence = fmt.Sprintf(format, args...)
	return v.report, &BrokenError{v.report.Sentence}
}
