package vault

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The network settings that were last kept, for a start that cannot open the
// data: two places, written in turn. Each has magic, generation, length,
// content, and the SHA-256 of these. They are not authenticated: the keys that
// could are those that a locked box has not (docs/threat-model.md), so whoever
// reads them parses strictly.
const (
	networkMagic  = "GHNETWK1"
	networkAt     = networkStart
	networkPlace  = 32 << 10
	networkPlaces = 2
	networkHead   = len(networkMagic) + 8 + 4
)

// MaxNetwork is how much fits, in bytes.
const MaxNetwork = networkPlace - networkHead - sha256.Size

// readNetwork reads one place; nil content if it holds nothing sound.
func readNetwork(dev Device, place int) (content []byte, generation uint64, err error) {
	buf := make([]byte, networkPlace)
	if n, err := dev.ReadAt(buf, networkAt+int64(place)*networkPlace); err != nil && (!errors.Is(err, io.EOF) || n != len(buf)) {
		return nil, 0, fmt.Errorf("reading the network settings in META: %w", err)
	}
	if !bytes.HasPrefix(buf, []byte(networkMagic)) {
		return nil, 0, nil
	}
	generation = binary.BigEndian.Uint64(buf[len(networkMagic):])
	size := binary.BigEndian.Uint32(buf[len(networkMagic)+8:])
	if size > uint32(MaxNetwork) {
		return nil, 0, nil
	}
	end := networkHead + int(size)
	if sum := sha256.Sum256(buf[:end]); !bytes.Equal(sum[:], buf[end:end+sha256.Size]) {
		return nil, 0, nil
	}
	return buf[networkHead:end:end], generation, nil
}

func newestNetwork(dev Device) (content []byte, generation uint64, place int, err error) {
	for i := range networkPlaces {
		c, g, err := readNetwork(dev, i)
		if err != nil {
			return nil, 0, 0, err
		}
		if c != nil && (content == nil || g > generation) {
			content, generation, place = c, g, i
		}
	}
	return content, generation, place, nil
}

// ReadNetwork gives the newest copy that is whole; nil if there is none.
func ReadNetwork(dev Device) ([]byte, error) {
	content, _, _, err := newestNetwork(dev)
	return content, err
}

// WriteNetwork keeps a copy. It goes to the place that does not hold the
// newest: a power cut in the midst of it leaves that one.
func WriteNetwork(dev Device, content []byte) error {
	if len(content) > MaxNetwork {
		return fmt.Errorf("keeping the network settings in META: %d bytes, and %d fit", len(content), MaxNetwork)
	}
	old, generation, place, err := newestNetwork(dev)
	if err != nil {
		return err
	}
	if old != nil && bytes.Equal(old, content) {
		return nil
	}
	place = (place + 1) % networkPlaces
	buf := append([]byte(networkMagic), binary.BigEndian.AppendUint64(nil, generation+1)...)
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(content)))
	buf = append(buf, content...)
	sum := sha256.Sum256(buf)
	if err := writeBlocks(dev, networkAt+int64(place)*networkPlace, append(buf, sum[:]...)); err != nil {
		return fmt.Errorf("keeping the network settings in META: %w", err)
	}
	return nil
}
