package vault

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// places are two places in META for something that a start needs which cannot
// open the data, written in turn. Each has magic, generation, length, content,
// and the SHA-256 of these. They are not authenticated: the keys that could are
// those that a locked box has not (docs/threat-model.md), so whoever reads them
// parses strictly, or asks the TPM whether they are what was kept.
type places struct {
	magic string // 8 bytes
	at    int64  // of the first; the other is behind it
	size  int64  // of each
	what  string
}

const (
	placesEach = 2
	placeHead  = 8 + 8 + 4
)

func (p places) most() int { return int(p.size) - placeHead - sha256.Size }

// read reads one place; nil content if it holds nothing sound.
func (p places) read(dev Device, place int) (content []byte, generation uint64, err error) {
	buf := make([]byte, p.size)
	if n, err := dev.ReadAt(buf, p.at+int64(place)*p.size); err != nil && (!errors.Is(err, io.EOF) || n != len(buf)) {
		return nil, 0, fmt.Errorf("reading %s in META: %w", p.what, err)
	}
	if !bytes.HasPrefix(buf, []byte(p.magic)) {
		return nil, 0, nil
	}
	generation = binary.BigEndian.Uint64(buf[len(p.magic):])
	size := binary.BigEndian.Uint32(buf[len(p.magic)+8:])
	if size > uint32(p.most()) {
		return nil, 0, nil
	}
	end := placeHead + int(size)
	if sum := sha256.Sum256(buf[:end]); !bytes.Equal(sum[:], buf[end:end+sha256.Size]) {
		return nil, 0, nil
	}
	return buf[placeHead:end:end], generation, nil
}

func (p places) newest(dev Device) (content []byte, generation uint64, place int, err error) {
	for i := range placesEach {
		c, g, err := p.read(dev, i)
		if err != nil {
			return nil, 0, 0, err
		}
		if c != nil && (content == nil || g > generation) {
			content, generation, place = c, g, i
		}
	}
	return content, generation, place, nil
}

// write keeps a copy. It goes to the place that does not hold the newest: a
// power cut in the midst of it leaves that one.
func (p places) write(dev Device, content []byte) error {
	if len(content) > p.most() {
		return fmt.Errorf("keeping %s in META: %d bytes, and %d fit", p.what, len(content), p.most())
	}
	old, generation, place, err := p.newest(dev)
	if err != nil {
		return err
	}
	if old != nil && bytes.Equal(old, content) {
		return nil
	}
	place = (place + 1) % placesEach
	buf := append([]byte(p.magic), binary.BigEndian.AppendUint64(nil, generation+1)...)
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(content)))
	buf = append(buf, content...)
	sum := sha256.Sum256(buf)
	if err := writeBlocks(dev, p.at+int64(place)*p.size, append(buf, sum[:]...)); err != nil {
		return fmt.Errorf("keeping %s in META: %w", p.what, err)
	}
	return nil
}
