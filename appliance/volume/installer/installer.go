// Package installer is the form of the medium that installs a box: a partition of a type of its own, with a head and a packed disk image; pure.
package installer

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/google/uuid"

	"gatehouse/appliance/volume/gpt"
)

// Type is that of the partition. The table counts in sectors of 512 bytes on a
// CD, too.
var Type = uuid.MustParse("8a2d7c51-3e64-4f1b-b0c9-41d6e2f7a053")

const (
	magic = "GHINST01"
	// HeadSize is where the packed image begins.
	HeadSize = 4096
	headUsed = len(magic) + 8 + 8 + sha256.Size
	most     = 64 << 30
)

// A Head says what follows it.
type Head struct {
	Size   int64 // of the image
	Packed int64 // as it lies there: one gzip stream
	Sum    [sha256.Size]byte
}

// Encode writes the head with its own sum, filled up with zeros.
func (h Head) Encode() []byte {
	b := []byte(magic)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.Size))
	b = binary.LittleEndian.AppendUint64(b, uint64(h.Packed))
	b = append(b, h.Sum[:]...)
	own := sha256.Sum256(b)
	return append(append(b, own[:]...), make([]byte, HeadSize-headUsed-sha256.Size)...)
}

// A Medium is one that was found.
type Medium struct {
	Head
	at int64
	r  io.ReaderAt
}

// ErrNone says that a medium is none that installs.
var ErrNone = errors.New("it is no medium that installs a Gatehouse")

// Open looks at a whole disk or CD of size bytes.
func Open(r io.ReaderAt, size int64) (*Medium, error) {
	t, _, err := gpt.Read(r, gpt.Geometry{SectorSize: 512, Sectors: uint64(size) / 512})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNone, err)
	}
	_, p, ok := t.Find(Type)
	if !ok {
		return nil, ErrNone
	}
	m := &Medium{at: int64(p.First) * 512, r: r}
	room := int64(p.Last-p.First+1) * 512
	b := make([]byte, headUsed+sha256.Size)
	if _, err := r.ReadAt(b, m.at); err != nil {
		return nil, fmt.Errorf("reading the image on the medium: %w", err)
	}
	own := sha256.Sum256(b[:headUsed])
	if !bytes.HasPrefix(b, []byte(magic)) || !bytes.Equal(own[:], b[headUsed:]) {
		return nil, errors.New("the image on the medium is damaged: write the medium anew")
	}
	m.Size, m.Packed = int64(binary.LittleEndian.Uint64(b[8:])), int64(binary.LittleEndian.Uint64(b[16:]))
	copy(m.Sum[:], b[24:])
	if m.Size <= 0 || m.Size > most || m.Packed <= 0 || m.Packed > room-HeadSize {
		return nil, errors.New("the image on the medium cannot be: write the medium anew")
	}
	return m, nil
}

// Image reads the image, unpacked. At its end it fails unless it was the one
// that the head names.
func (m *Medium) Image() (io.Reader, error) {
	z, err := gzip.NewReader(io.NewSectionReader(m.r, m.at+HeadSize, m.Packed))
	if err != nil {
		return nil, fmt.Errorf("unpacking the image on the medium: %w", err)
	}
	return &checked{in: z, head: m.Head}, nil
}

type checked struct {
	in   io.Reader
	head Head
	hash interface {
		io.Writer
		Sum([]byte) []byte
	}
}

func (c *checked) Read(b []byte) (int, error) {
	if c.hash == nil {
		c.hash = sha256.New()
	}
	n, err := c.in.Read(b)
	c.hash.Write(b[:n])
	if errors.Is(err, io.EOF) && !bytes.Equal(c.hash.Sum(nil), c.head.Sum[:]) {
		return n, errors.New("the image on the medium is damaged: its sum is wrong")
	}
	return n, err
}
