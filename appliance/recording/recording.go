// Package recording keeps what a terminal showed, so that it can be played again by who holds the key, and by nobody where it is written.
//
// A recording is written at the target's end, chunk by chunk, encrypted to a
// public key whose private half is not there. Each chunk stands for itself, so
// that a recording that was cut is whole up to the cut, and that a player can
// seek; each is bound to its place, so that none can be changed, left out, moved
// or brought from another recording unseen. docs/recordings.md has the bytes.
package recording

import (
	"bytes"
	"compress/flate"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hpke"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Errors of a recording that cannot be read as it was written.
var (
	ErrMalformed = errors.New("it is not a recording, or of another version")
	ErrKey       = errors.New("it was made for another key")
	ErrTampered  = errors.New("it was changed after it was written")
)

// The wire: magic, length of the encapsulated key (2), the key, then chunks. A
// chunk: head, then the sealed content. All numbers are big-endian.
const (
	magic     = "gatehouse recording 1\n"
	info      = "gatehouse/recording/1"
	chunkHead = 1 + 4 + 8 // flags, length of what follows, milliseconds since the start
	tagSize   = 16
	// MaxChunk is the most events' text in a chunk, in bytes before compression.
	MaxChunk  = 256 << 10
	maxSealed = MaxChunk + MaxChunk/8 + 1024 // what does not compress grows a little
	maxEncap  = 4 << 10
	flagEnd   = 1 // the last chunk of a recording that was ended in order
)

// maxLength bounds what a reader believes: 400 days.
const maxLength = 400 * 24 * time.Hour

// NewKey makes a key for recordings: X25519 with ML-KEM-768 (RFC 9180 with the
// hybrid of draft-ietf-hpke-pq), since recordings are kept for years.
func NewKey() (private, public []byte, err error) {
	k, err := hpke.MLKEM768X25519().GenerateKey()
	if err != nil {
		return nil, nil, fmt.Errorf("making a key for recordings: %w", err)
	}
	private, err = k.Bytes()
	if err != nil {
		return nil, nil, fmt.Errorf("making a key for recordings: %w", err)
	}
	return private, k.PublicKey().Bytes(), nil
}

// Header says what was recorded. It is encrypted like the rest.
type Header struct {
	Session string    `json:"session"` // 32 hex digits
	Site    string    `json:"site"`
	Who     string    `json:"who"`    // the technician
	Target  string    `json:"target"` // its name
	Title   string    `json:"title,omitempty"`
	Width   int       `json:"width"` // columns at the start
	Height  int       `json:"height"`
	Started time.Time `json:"started"`
}

func (h Header) check() error {
	for _, n := range []int{h.Width, h.Height} {
		if n < 1 || n > 1000 {
			return fmt.Errorf("%w: a terminal of %d by %d", ErrMalformed, h.Width, h.Height)
		}
	}
	return nil
}

// sealer gives every chunk its key stream: the key is of this recording alone,
// the nonce is the chunk's number, and the head is authenticated with it.
type sealer struct {
	aead cipher.AEAD
	next uint64
}

func newSealer(key []byte) (sealer, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return sealer{}, err
	}
	aead, err := cipher.NewGCM(block)
	return sealer{aead: aead}, err
}

// context binds the chunks' key to the encapsulated one as it is written: X25519
// leaves a bit of it out (RFC 7748, 5).
func context(encap []byte) string { return info + " chunks " + string(encap) }

func nonce(n uint64) []byte {
	b := make([]byte, 12)
	binary.BigEndian.PutUint64(b[4:], n)
	return b
}

func head(flags byte, length int, at time.Duration) []byte {
	b := make([]byte, chunkHead)
	b[0] = flags
	binary.BigEndian.PutUint32(b[1:], uint32(length))
	binary.BigEndian.PutUint64(b[5:], uint64(at/time.Millisecond))
	return b
}

// Writer writes one recording. It is not safe for use by more than one goroutine.
type Writer struct {
	w       io.Writer
	sealer  sealer
	buffer  bytes.Buffer // events of the chunk that is being filled, as lines
	first   time.Duration
	last    time.Duration
	pending []byte // the beginning of a character whose rest has not come
	err     error  // what made it stop; nothing is written after that
}

// NewWriter begins a recording on w, encrypted to public. Every error from here
// on means that the recording is not whole: a session that has to be recorded
// ends then. What is not flushed yet is lost in a power cut, so Flush is called
// as often as that matters.
func NewWriter(w io.Writer, public []byte, h Header) (*Writer, error) {
	if err := h.check(); err != nil {
		return nil, fmt.Errorf("beginning a recording: %w", err)
	}
	key, err := hpke.MLKEM768X25519().NewPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("beginning a recording: the key to encrypt it to: %w", err)
	}
	encap, sender, err := hpke.NewSender(key, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(info))
	if err != nil {
		return nil, fmt.Errorf("beginning a recording: %w", err)
	}
	secret, err := sender.Export(context(encap), 32)
	if err != nil {
		return nil, fmt.Errorf("beginning a recording: %w", err)
	}
	r := &Writer{w: w}
	if r.sealer, err = newSealer(secret); err != nil {
		return nil, fmt.Errorf("beginning a recording: %w", err)
	}
	begin := binary.BigEndian.AppendUint16([]byte(magic), uint16(len(encap)))
	if _, err := w.Write(append(begin, encap...)); err != nil {
		return nil, fmt.Errorf("beginning a recording: %w", err)
	}
	b, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("beginning a recording: %w", err)
	}
	r.buffer.Write(append(b, '\n'))
	return r, r.Flush()
}

// Flush writes what there is as a chunk.
func (r *Writer) Flush() error {
	if r.err != nil || r.buffer.Len() == 0 {
		return r.err
	}
	return r.chunk(0)
}

func (r *Writer) chunk(flags byte) error {
	var packed bytes.Buffer
	z, err := flate.NewWriter(&packed, flate.DefaultCompression)
	if err == nil {
		_, err = z.Write(r.buffer.Bytes())
	}
	if err == nil {
		err = z.Close()
	}
	if err == nil {
		h := head(flags, packed.Len()+tagSize, r.first)
		// One write: a chunk is there whole, or its end is missing and it does not count.
		_, err = r.w.Write(r.sealer.aead.Seal(h, nonce(r.sealer.next), packed.Bytes(), h))
	}
	if err != nil {
		r.err = fmt.Errorf("writing a recording: %w", err)
		return r.err
	}
	r.sealer.next++
	r.buffer.Reset()
	return nil
}

// Close ends the recording in order. The file is the caller's to close.
func (r *Writer) Close() error {
	if r.err != nil {
		return r.err
	}
	if len(r.pending) > 0 {
		if err := r.text(r.last, Output, string([]rune{'\uFFFD'})); err != nil {
			return err
		}
	}
	if err := r.Flush(); err != nil {
		return err
	}
	r.first = r.last
	if err := r.chunk(flagEnd); err != nil {
		return err
	}
	r.err = errors.New("writing a recording: it has ended")
	return nil
}
